"""What to tell the user about a solve that did not converge. It is computed when asked for, never during the solve."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.contract import SMALLEST_SQUARE
from ..problem import Problem
from ..solvers import Ending
from . import convergence
from .checkpoint import Checkpoint
from .options import Options
from .status import Status


def explain(problem: Problem, end: Checkpoint, options: Options, index: int) -> str:
    """One problem's outcome in a sentence or two, with what to do about it."""
    status, iterations = Status(int(end.status[index])), int(end.iterations[index])
    tolerance = float(convergence.tolerance(problem, options)[index])
    reached = f"||R||_F = {float(end.last[index]) ** 0.5:.3g} after {iterations} iterations"
    if status is Status.CONVERGED:
        return f"converged: {reached}, within the tolerance {tolerance:.3g}"
    if problem.changed:
        return f"{status.name}: {reached}; M or Y was modified in place since, so the cause cannot be determined"
    ending = Ending(status, index, iterations)
    if status is Status.NONFINITE:
        return _nonfinite(problem, end, ending)
    if status is Status.DIVERGED:
        return f"diverged: {reached}; {end.solver.explain(problem, ending) or 'lower lr or momentum'}"
    missing = f"{reached}, above the tolerance {tolerance:.3g}"
    if status is Status.MAX_ITERATIONS and options.limit == 0:
        return f"max_iters is 0, so no iteration was made: {missing}"
    cause = _untestable(tolerance) or end.solver.explain(problem, ending) or _unsolvable(problem, end, index)
    if status is Status.STAGNATED:
        return f"stagnated: {missing}; {cause or _floor(problem, end, options, index)}"
    return f"max_iters reached: {missing}; {cause or end.solver.advice(problem)}"


def _all_finite(t: Tensor | None) -> bool:
    return t is None or bool(t.isfinite().all())


def _nonfinite(problem: Problem, end: Checkpoint, ending: Ending) -> str:
    M, Y = problem.one(ending.index)
    found = [name for name, t in (("M", M), ("Y", Y)) if not _all_finite(t)]
    if ending.iterations == 0 and not _all_finite(end.X[ending.index]):
        found.append("X0")
    if found:
        return f"{' and '.join(found)} holds NaN or infinity: check the input"
    if ending.iterations == 0:
        return "the first residual, or its square, overflows: scale M, X0 and Y down"
    cause = end.solver.explain(problem, ending)
    if "must be finite" in cause:
        return cause
    return f"NaN after {ending.iterations} iterations: {cause or 'the iteration overflowed; lower lr or momentum'}"


def _untestable(tolerance: float) -> str:
    if not (tolerance > 0 and tolerance**2 < SMALLEST_SQUARE):
        return ""
    return "the square of that tolerance underflows float64, so it cannot be tested for: scale Y up"


def _unsolvable(problem: Problem, end: Checkpoint, index: int) -> str:
    """Whether M lacks the rank to solve the equation for most Y, and the residual is not near 0."""
    M, _ = problem.one(index)
    if M is None or bool(convergence.at_rounding_floor(problem, end.X, end.last)[index]):
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


def _floor(problem: Problem, end: Checkpoint, options: Options, index: int) -> str:
    if options.patience is not None and not bool(convergence.at_rounding_floor(problem, end.X, end.last)[index]):
        return f"the residual fell by less than 1 % over {options.patience} iterations; raise patience, lr or momentum"
    name = str(problem.dtype).removeprefix("torch.")
    return f"that is what {name} rounding allows here; raise atol or rtol, or use a wider dtype"
