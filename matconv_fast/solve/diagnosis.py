"""What to tell the user of a solve that did not converge: found out when asked, never during the solve."""

from __future__ import annotations

import torch

from . import convergence, spectrum
from .heavy_ball import HeavyBall
from .loop import State
from .options import Options
from .problem import Problem
from .status import Status


def explain(problem: Problem, state: State, options: Options, index: int, status: Status, sums: torch.Tensor) -> str:
    """One problem's outcome in a sentence or two, with what to do about it."""
    iterations = int(state.iterations[index])
    norm = float(sums[index].sqrt())
    tolerance = float(convergence.tolerance(problem, options, problem.Y_norm())[index])
    reached = f"||R||_F = {norm:.3g} after {iterations} iterations"
    if status is Status.CONVERGED:
        return f"converged: {reached}, within the tolerance {tolerance:.3g}"
    unstable = _unstable(problem, state, index)
    if status is Status.NONFINITE:
        found = [name for name, t in (("M", problem.M), ("Y", problem.Y)) if t is not None and not t.isfinite().all()]
        if found:
            return f"{' and '.join(found)} holds NaN or infinity: check the input"
        if iterations == 0:
            return "the first residual is not finite: X0 holds NaN or infinity, or X0 @ M overflows"
        return f"NaN after {iterations} iterations: {unstable or 'the iteration overflowed; lower lr or momentum'}"
    if status is Status.DIVERGED:
        return f"diverged: {reached}; {unstable or 'lower lr or momentum'}"
    missing = f"{reached}, above the tolerance {tolerance:.3g}"
    unsolvable = _unsolvable(problem, state, index, sums)
    if status is Status.STAGNATED:
        return f"stagnated: {missing}; {unsolvable or _floor(problem, state, index, sums)}"
    if options.limit == 0:
        return f"max_iters is 0, so no iteration was made: {missing}"
    return f"max_iters reached: {missing}; {unstable or unsolvable or _more(state)}"


def _more(state: State) -> str:
    advice = "raise max_iters or the tolerance"
    if isinstance(state.solver, HeavyBall):
        return f"{advice}, or use HeavyBall(momentum='auto'), whose lr and momentum are optimal for M"
    return f"{advice}, or raise lr"


def _unstable(problem: Problem, state: State, index: int) -> str:
    """Whether the heavy ball's lr is beyond its stability limit, and by how much."""
    if not isinstance(state.solver, HeavyBall) or problem.loss == "fro":
        return ""
    square = float(spectrum.largest(problem)[index])
    lr, momentum = (float(t[index]) for t in state.solver.hyperparameters(problem))
    if not square > 0 or lr <= (limit := 2 * (1 + momentum) / (problem.scale * square)):
        return ""
    return (
        f"lr {lr:.3g} is above the stability limit {limit:.3g} for this M: "
        f"2 (1 + momentum) / (c s^2) with momentum {momentum:.3g}, c {problem.scale:.3g} and largest singular value "
        f"{square**0.5:.3g}; use a smaller lr, or lr=None, which estimates one"
    )


def _unsolvable(problem: Problem, state: State, index: int, sums: torch.Tensor) -> str:
    """Whether no X solves the equation: the residual is at its least-squares minimum, or M lacks rank."""
    if problem.M is None or convergence.at_rounding_floor(problem, state.X, sums)[index]:
        return ""
    M = problem.M[index if problem.M.shape[0] > 1 else 0]
    rank = int(torch.linalg.matrix_rank(M))
    n, p = M.shape
    if rank == p and not convergence.is_stationary(problem, state.X, sums)[index]:
        return ""
    shape = "singular" if n == p else f"{n} x {p}"
    if rank < p:
        return (
            f"M is {shape} (rank {rank} of {p} columns), so X @ M = Y has no exact solution for most Y and the "
            "residual cannot fall below its least-squares minimum; see torch.linalg.lstsq, or set atol above it"
        )
    return "the gradient has vanished: this is the least-squares solution, and the residual falls no further"


def _floor(problem: Problem, state: State, index: int, sums: torch.Tensor) -> str:
    if convergence.at_rounding_floor(problem, state.X, sums)[index]:
        name = str(problem.dtype).removeprefix("torch.")
        return f"that is what {name} rounding allows here; raise atol or rtol, or use a wider dtype"
    return "the residual fell by less than 1 % over `patience` iterations; raise patience, lr or momentum"
