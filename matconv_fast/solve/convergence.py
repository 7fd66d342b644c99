"""Tolerances, and stagnation. The stop at a tolerance itself is decided by the operator `finish_chunk`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _reference
from ..kernels.contract import LEAST_SQUARES, STAGNATED
from ..problem import Problem
from ..solvers.measure import MOST_CHECKED, Measure, norm
from .options import Options

# A residual within this many units of rounding of ||X|| ||M|| + ||Y|| may be as small as the dtype allows. The number
# is large because updates round as well, which costs more than the rounding of the residual where M is ill-conditioned.
FLOOR_UNITS = 1_000

# The progress in ||R|| that an explicit patience asks for. Without a patience, any progress beyond rounding will do.
PROGRESS = 0.01


def tolerance(problem: Problem, options: Options) -> Tensor:
    """``max(atol, rtol ||Y||_F)`` of each problem, ``[B]`` float64."""
    return _reference.tolerances(problem.Y_norm(), options.relative(problem.precision.inputs), options.atol)


def stagnated(problem: Problem, X: Tensor, sums: Tensor, best: Tensor, mark: Tensor, explicit: bool) -> Tensor:
    """Whether the best residual has stagnated since the last check, ``[B]`` bool.

    With an explicit patience: whether ``||R||`` fell by less than `PROGRESS`. Without one, a slow fall may continue
    until `max_iters`. Then it must not have fallen at all, and the current residual must either equal the best or be
    near the rounding floor, which the rise and fall under momentum does not.

    Args:
        problem: what is solved.
        X: ``[B, m, n]``, the current iterate.
        sums: ``[B]``, its ``||R||^2``.
        best: ``[B]``, the smallest so far.
        mark: ``[B]``, ``best`` at the last check.
        explicit: whether the user gave a patience.
    """
    if explicit:
        return best > (1 - PROGRESS) ** 2 * mark
    eps = problem.precision.eps
    halted = best > (1 - 4 * eps) * mark
    still = sums <= (1 + 1e-3) * best
    return halted & (still | (at_rounding_floor(problem, X, sums) & (sums <= 100 * best)))


def codes_at_halt(problem: Problem, X: Tensor) -> Tensor:
    """LEAST_SQUARES for each problem whose ``||R M^T||`` is 0 up to rounding, STAGNATED for the others; ``[B]`` int64.

    On CPUs, up to `MOST_CHECKED` rows or columns, a singular value decomposition in float64 must agree. Elsewhere only
    an M with more columns than rows is believed: for another, a solution is likely that rounding hides.
    """
    measure = Measure(problem)
    R = measure.residual(X)
    r, slope = norm(R), norm(measure.normal(R))
    minimum = measure.flat(slope, r) | (~measure.at_floor(X, r) & measure.flat_at_halt(slope, r, X))
    if measure.waits or min(problem.n, problem.p) > MOST_CHECKED:
        minimum &= problem.n < problem.p
    elif bool(minimum.any()):
        minimum &= ~measure.minimum_refuted(R)
    return torch.where(minimum, LEAST_SQUARES, STAGNATED)


def at_rounding_floor(problem: Problem, X: Tensor, sums: Tensor) -> Tensor:
    """Whether ``||R||`` is within `FLOOR_UNITS` units of rounding of the terms that it is the difference of."""
    norm_X = torch.linalg.vector_norm(X, dim=(-2, -1), dtype=torch.float64)
    norm_M = 1.0 if problem.M is None else torch.linalg.vector_norm(problem.M, dim=(-2, -1), dtype=torch.float64)
    floor = FLOOR_UNITS * problem.precision.eps * (norm_X * norm_M + problem.Y_norm())
    return sums.sqrt() <= floor
