"""What to tell the user of a solve that did not converge: found out when asked, never during the solve."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _reference
from . import convergence, spectrum
from .heavy_ball import HeavyBall
from .loop import State
from .options import Options
from .problem import Problem
from .status import Status


def explain(problem: Problem, state: State, options: Options, index: int) -> str:
    """One problem's outcome in a sentence or two, with what to do about it."""
    status, iterations = Status(int(state.status[index])), int(state.iterations[index])
    tolerance = float(convergence.tolerance(problem, options)[index])
    reached = f"||R||_F = {float(state.sums[index]) ** 0.5:.3g} after {iterations} iterations"
    if status is Status.CONVERGED:
        return f"converged: {reached}, within the tolerance {tolerance:.3g}"
    if problem.changed:
        return f"{status.name}: {reached}; M or Y was changed in place since, so the cause cannot be told"
    if status is Status.NONFINITE:
        return _nonfinite(problem, state, index)
    if status is Status.DIVERGED:
        return f"diverged: {reached}; {_unstable(problem, state, index) or 'lower lr or momentum'}"
    missing = f"{reached}, above the tolerance {tolerance:.3g}"
    if status is Status.MAX_ITERATIONS and options.limit == 0:
        return f"max_iters is 0, so no iteration was made: {missing}"
    cause = _untestable(tolerance) or _unstable(problem, state, index) or _unsolvable(problem, state, index)
    if status is Status.STAGNATED:
        return f"stagnated: {missing}; {cause or _floor(problem, state, options, index)}"
    return f"max_iters reached: {missing}; {cause or _more(problem, state)}"


def _all_finite(t: Tensor | None) -> bool:
    return t is None or bool(t.isfinite().all())


def _nonfinite(problem: Problem, state: State, index: int) -> str:
    M, Y = problem.one(index)
    iterations = int(state.iterations[index])
    found = [name for name, t in (("M", M), ("Y", Y)) if not _all_finite(t)]
    if iterations == 0 and not _all_finite(state.X[index]):
        found.append("X0")
    if found:
        return f"{' and '.join(found)} holds NaN or infinity: check the input"
    if iterations == 0:
        return "the first residual, or its square, overflows: scale M, X0 and Y down"
    if isinstance(state.solver, HeavyBall):
        lr, momentum = (t[index] for t in state.solver.hyperparameters(problem))
        if not (_all_finite(lr) and _all_finite(momentum)):
            return f"lr is {float(lr)} and momentum {float(momentum)}: both must be finite"
    cause = _unstable(problem, state, index) or "the iteration overflowed; lower lr or momentum"
    return f"NaN after {iterations} iterations: {cause}"


def _untestable(tolerance: float) -> str:
    if not (tolerance > 0 and tolerance**2 < _reference.SMALLEST_SQUARE):
        return ""
    return "the square of that tolerance underflows float64, so it cannot be tested for: scale Y up"


def _more(problem: Problem, state: State) -> str:
    advice = "raise max_iters or the tolerance"
    if isinstance(state.solver, HeavyBall):
        if state.solver.momentum == "auto":
            return advice
        if problem.loss != "fro":
            return f"{advice}, or use HeavyBall(momentum='auto'), whose lr and momentum are optimal for M"
        return (
            f"{advice}, or lower lr: the gradient of 'fro' keeps its length, and steps of a constant length overshoot"
        )
    return f"{advice}, or raise lr"


def _unstable(problem: Problem, state: State, index: int) -> str:
    """Whether the heavy ball's lr is outside its stable range, and by how much."""
    if not isinstance(state.solver, HeavyBall) or problem.loss == "fro":
        return ""
    square = float(spectrum.largest(problem)[index])
    lr, momentum = (float(t[index]) for t in state.solver.hyperparameters(problem))
    if lr <= 0:
        return f"lr is {lr:.3g}: it must be above 0"
    limits = torch.finfo(problem.dtype)
    if lr in (limits.tiny, limits.max):
        name = str(problem.dtype).removeprefix("torch.")
        return f"the step size that suits this M, of largest singular value {square**0.5:.3g}, is no {name}: scale M"
    if not square > 0 or lr <= (limit := 2 * (1 + momentum) / (problem.scale * square)):
        return ""
    return (
        f"lr {lr:.3g} is above the stability limit {limit:.3g} for this M: "
        f"2 (1 + momentum) / (c s^2) with momentum {momentum:.3g}, c {problem.scale:.3g} and largest singular value "
        f"{square**0.5:.3g}; use a smaller lr, or lr=None, which estimates one"
    )


def _unsolvable(problem: Problem, state: State, index: int) -> str:
    """Whether no X solves the equation for most Y: M lacks rank, and the residual is not near 0."""
    M, _ = problem.one(index)
    if M is None or bool(convergence.at_rounding_floor(problem, state.X, state.sums)[index]):
        return ""
    rank, (n, p) = int(torch.linalg.matrix_rank(M)), M.shape
    if rank == p:
        return ""
    equation, side, shape = ("M @ X", "rows", (p, n)) if problem.left else ("X @ M", "columns", (n, p))
    kind = "singular" if n == p else f"{shape[0]} x {shape[1]}"
    return (
        f"M is {kind} (rank {rank} of {p} {side}), so {equation} = Y has no exact solution for most Y and the residual "
        "cannot fall below its least-squares minimum; see torch.linalg.lstsq, or set atol above it"
    )


def _floor(problem: Problem, state: State, options: Options, index: int) -> str:
    if options.patience is not None and not bool(convergence.at_rounding_floor(problem, state.X, state.sums)[index]):
        return f"the residual fell by less than 1 % over {options.patience} iterations; raise patience, lr or momentum"
    name = str(problem.dtype).removeprefix("torch.")
    return f"that is what {name} rounding allows here; raise atol or rtol, or use a wider dtype"
