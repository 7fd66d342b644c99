"""What to tell the user about a solve that did not converge. It is computed when asked for, never during the solve."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.contract import SMALLEST_SQUARE
from ..problem import Problem
from ..solvers import Auto, Ending
from . import convergence
from .checkpoint import Checkpoint
from .options import Options
from .status import Status

# Up to this size, and so many entries of M, a message may take a singular value decomposition.
MOST_DIRECT, MOST_ENTRIES = 512, 1 << 21
# A residual below this many times that of a direct solution is taken for as small.
AS_SMALL = 10


def explain(problem: Problem, end: Checkpoint, options: Options, index: int) -> str:
    """One problem's outcome in a sentence or two, with what to do about it."""
    status, iterations = Status(int(end.status[index])), int(end.iterations[index])
    tolerance = float(convergence.tolerance(problem, options)[index])
    size = "sqrt(||R||_F^2 + ridge ||X||_F^2)" if problem.has_ridge else "||R||_F"
    equals = "is about" if end.estimated else "="
    reached = f"{size} {equals} {float(end.last[index]) ** 0.5:.3g} after {iterations} iterations"
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
    if status is Status.STOPPED:
        return f"stopped by the callback: {missing}"
    if status is Status.MAX_ITERATIONS and options.limit == 0:
        return f"max_iters is 0, so no iteration was made: {missing}"
    direct = _direct(problem, index)
    r = float(end.last[index]) ** 0.5
    if status is Status.LEAST_SQUARES:
        return f"least-squares minimum: {missing}; {_minimum(problem, direct, r, tolerance)}"
    if status is Status.BREAKDOWN:
        return f"breakdown: {missing}; {end.solver.explain(problem, ending) or _singular(problem, direct, tolerance)}"
    cause = _untestable(tolerance) or end.solver.explain(problem, ending) or _unsolvable(problem, direct, tolerance)
    if status is Status.STAGNATED:
        return f"stagnated: {missing}; {cause or _floor(problem, end, options, index, direct)}"
    if cause:
        return f"max_iters reached: {missing}; {cause}"
    one = problem.select(torch.tensor([index], device=problem.device))
    advice = _unreachable(problem, direct, tolerance) or end.solver.advice(one, tolerance)
    return f"max_iters reached: {missing}; {advice}{_alternative(end, direct, tolerance)}"


class Direct(NamedTuple):
    """Least-squares solutions by a singular value decomposition in float64, and what it says of M.

    Attributes:
        minimum: ``||R||`` of the solution, the smallest that there is.
        rounded: the same in the dtype of X: of that solution, or of the one without singular values that are rounding
            in this dtype, whichever is smaller.
        rank: of M in float64: a float32 M may have a rank that float32 would not confirm.
        condition: of M, by its nonzero singular values.
    """

    minimum: float
    rounded: float
    rank: int
    condition: float


def _direct(problem: Problem, index: int) -> Direct | None:
    """None for the identity, and where it would take seconds."""
    M, Y = problem.one(index)
    if M is None or 0 in (problem.m, problem.n, problem.p):
        return None
    if min(M.shape) > MOST_DIRECT or max(M.numel(), Y.numel()) > MOST_ENTRIES or not M.isfinite().all():
        return None
    M, Y = M.double().cpu(), Y.double().cpu()
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    ranks = [int((s > max(M.shape) * torch.finfo(dtype).eps * s[0]).sum()) for dtype in (torch.float64, problem.dtype)]
    solutions = [(Y @ Vh[:rank].mT / s[:rank]) @ U[:, :rank].mT for rank in ranks]
    minimum, *rounded = (
        float(torch.linalg.matrix_norm(X.double() @ M - Y))
        for X in (solutions[0], *(X.to(problem.dtype) for X in solutions))
    )
    return Direct(minimum, min(rounded), ranks[0], float(s[0] / s[max(ranks[0], 1) - 1]))


def _minimum(problem: Problem, direct: Direct | None, r: float, tolerance: float) -> str:
    if problem.has_ridge:
        return "the gradient of that is 0 up to rounding, so no X has a smaller one"
    gradient, norms = ("||M^T R||", "||M|| ||R||") if problem.left else ("||R M^T||", "||R|| ||M||")
    if direct is not None and direct.rounded < 0.9 * r:
        return (
            f"that is judged by {gradient} over {norms}, but a direct solution in float64 reaches {direct.rounded:.3g}"
        )
    if cause := _unsolvable(problem, direct, tolerance):
        return cause
    return f"no X has a smaller residual up to rounding, by {gradient} over {norms}; set atol above it"


def _singular(problem: Problem, direct: Direct | None, tolerance: float) -> str:
    return _unsolvable(problem, direct, tolerance) or "M is too close to singular for this solver; use LSQR()"


def _all_finite(t: Tensor | None) -> bool:
    return t is None or bool(t.isfinite().all())


def _nonfinite(problem: Problem, end: Checkpoint, ending: Ending) -> str:
    M, Y = problem.one(ending.index)
    given = ("M", M), ("Y", Y)
    if M is not None and problem.has_ridge:
        given = ("M", M[:, : problem.columns]), ("Y", Y), ("the square root of ridge", M[:, problem.columns :])
    found = [name for name, t in given if not _all_finite(t)]
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


def _unsolvable(problem: Problem, direct: Direct | None, tolerance: float) -> str:
    """Whether no X in the dtype at hand meets the tolerance, because of M; by a solution in float64."""
    name = str(problem.dtype).removeprefix("torch.")
    if direct is None or direct.rounded <= tolerance or problem.has_ridge:
        return ""
    if direct.rank == problem.p or direct.minimum <= tolerance:
        if not direct.condition * torch.finfo(problem.dtype).eps >= 0.1:
            return ""
        return (
            f"the condition number of M is {direct.condition:.1e}, too large for {name}, in which a direct solution "
            f"reaches {direct.rounded:.3g}; use a wider dtype, or scale M"
        )
    n, p = problem.n, problem.p
    equation, side, shape = ("M @ X", "rows", (p, n)) if problem.left else ("X @ M", "columns", (n, p))
    kind = "singular" if n == p else f"{shape[0]} x {shape[1]}"
    return (
        f"M is {kind} (rank {direct.rank} of {p} {side}), so {equation} = Y has no exact solution for most Y and the "
        f"residual cannot fall below its least-squares minimum, {direct.minimum:.3g}; see torch.linalg.lstsq, or set "
        "atol above it"
    )


def _unreachable(problem: Problem, direct: Direct | None, tolerance: float) -> str:
    if direct is None or direct.rounded <= tolerance:
        return ""
    name = str(problem.dtype).removeprefix("torch.")
    return f"raise the tolerance, or use a wider dtype: a direct solution in {name} reaches {direct.rounded:.3g}"


def _alternative(end: Checkpoint, direct: Direct | None, tolerance: float) -> str:
    """A better solver, for a message that already says something else."""
    if direct is None or direct.rounded > tolerance or isinstance(end.solver, Auto):
        return ""
    return f"; a direct solution reaches {direct.rounded:.3g}: use solver=Auto()"


def _floor(problem: Problem, end: Checkpoint, options: Options, index: int, direct: Direct | None) -> str:
    at_floor = bool(convergence.at_rounding_floor(problem, end.X, end.last)[index])
    if options.patience is not None and not at_floor:
        return f"the residual fell by less than 1 % over {options.patience} iterations; raise patience, lr or momentum"
    if direct is not None and AS_SMALL * direct.rounded >= float(end.last[index]) ** 0.5:
        name = str(problem.dtype).removeprefix("torch.")
        return f"that is what {name} rounding allows here; raise atol or rtol, or use a wider dtype"
    other = "LSQR()" if isinstance(end.solver, Auto) else "Auto()"
    if direct is not None:
        return f"a direct solution reaches {direct.rounded:.3g}; use solver={other}"
    return f"the residual no longer falls; use solver={other}, or a wider dtype"
