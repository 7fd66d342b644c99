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

# Up to this size a message may take a singular value decomposition.
MOST_DIRECT = 512


def explain(problem: Problem, end: Checkpoint, options: Options, index: int) -> str:
    """One problem's outcome in a sentence or two, with what to do about it."""
    status, iterations = Status(int(end.status[index])), int(end.iterations[index])
    tolerance = float(convergence.tolerance(problem, options)[index])
    size = "sqrt(||R||_F^2 + ridge ||X||_F^2)" if problem.has_ridge else "||R||_F"
    reached = f"{size} = {float(end.last[index]) ** 0.5:.3g} after {iterations} iterations"
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
    if status is Status.LEAST_SQUARES:
        return f"least-squares minimum: {missing}; {_minimum(problem, index)}"
    if status is Status.BREAKDOWN:
        return f"breakdown: {missing}; {end.solver.explain(problem, ending) or _singular(problem, index)}"
    if status is Status.MAX_ITERATIONS and options.limit == 0:
        return f"max_iters is 0, so no iteration was made: {missing}"
    cause = _untestable(tolerance) or end.solver.explain(problem, ending) or _unsolvable(problem, end, index)
    if status is Status.STAGNATED:
        return f"stagnated: {missing}; {cause or _floor(problem, end, options, index)}"
    return f"max_iters reached: {missing}; {cause or end.solver.advice(problem)}"


def _minimum(problem: Problem, index: int) -> str:
    if problem.has_ridge:
        return "the gradient of that is 0 up to rounding, so no X has a smaller one"
    if min(problem.n, problem.p) <= MOST_DIRECT and (cause := _unsolvable_by_rank(problem, index)):
        return cause
    gradient, norms = ("||M^T R||", "||M|| ||R||") if problem.left else ("||R M^T||", "||R|| ||M||")
    return f"no X has a smaller residual up to rounding, by {gradient} over {norms}; set atol above it"


def _singular(problem: Problem, index: int) -> str:
    return _unsolvable_by_rank(problem, index) or "M is too close to singular for this solver; use LSQR()"


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


def _unsolvable(problem: Problem, end: Checkpoint, index: int) -> str:
    """Whether M lacks the rank to solve the equation for most Y, and the residual is not near 0."""
    if bool(convergence.at_rounding_floor(problem, end.X, end.last)[index]):
        return ""
    return _unsolvable_by_rank(problem, index)


def _unsolvable_by_rank(problem: Problem, index: int) -> str:
    """By the singular values of M in float64: those of a float32 M have a rank that float64 would not confirm."""
    M, _ = problem.one(index)
    if M is None or 0 in M.shape or problem.has_ridge:
        return ""
    n, p = M.shape
    s = torch.linalg.svdvals(M.double())
    rank = int((s > max(n, p) * torch.finfo(torch.float64).eps * s[0]).sum())
    if rank == p:
        return _ill_conditioned(problem, float(s[0] / s[-1]))
    equation, side, shape = ("M @ X", "rows", (p, n)) if problem.left else ("X @ M", "columns", (n, p))
    kind = "singular" if n == p else f"{shape[0]} x {shape[1]}"
    return (
        f"M is {kind} (rank {rank} of {p} {side}), so {equation} = Y has no exact solution for most Y and the residual "
        "cannot fall below its least-squares minimum; see torch.linalg.lstsq, or set atol above it"
    )


def _ill_conditioned(problem: Problem, condition: float) -> str:
    if condition * torch.finfo(problem.dtype).eps < 0.1:
        return ""
    name = str(problem.dtype).removeprefix("torch.")
    return f"the condition number of M is {condition:.1e}, too large for {name}; use a wider dtype, or scale M"


def _floor(problem: Problem, end: Checkpoint, options: Options, index: int) -> str:
    if options.patience is not None and not bool(convergence.at_rounding_floor(problem, end.X, end.last)[index]):
        return f"the residual fell by less than 1 % over {options.patience} iterations; raise patience, lr or momentum"
    direct = _direct_residual(problem, index)
    if direct is not None and direct < 0.1 * float(end.last[index]) ** 0.5:
        return f"a direct solution reaches {direct:.3g}; use solver=Refinement()"
    if not bool(convergence.at_rounding_floor(problem, end.X, end.last)[index]):
        return "the residual no longer falls; use solver=Refinement() or LSQR()"
    name = str(problem.dtype).removeprefix("torch.")
    return f"that is what {name} rounding allows here; raise atol or rtol, or use a wider dtype"


def _direct_residual(problem: Problem, index: int) -> float | None:
    """``||R||`` of the solution in float64, rounded to the dtype of X; None where it would take seconds."""
    M, Y = problem.one(index)
    if M is None or min(problem.n, problem.p) > MOST_DIRECT or 0 in (problem.m, problem.n, problem.p):
        return None
    M, Y = M.double(), Y.double()
    X = torch.linalg.lstsq(M.mT.cpu(), Y.mT.cpu(), driver="gelsd").solution.mT.to(problem.dtype).to(M.device)
    return float(torch.linalg.matrix_norm(X.double() @ M - Y))
