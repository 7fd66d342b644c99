"""Tolerances, and stagnation; the stop at a tolerance itself is `start_run` and `finish_chunk`, two operators."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _reference
from .options import Options
from .problem import Problem

# A residual within this many units of rounding of ||X|| ||M|| + ||Y|| may be as small as the dtype allows. It takes so
# many because the updates round too, and on an ill-conditioned M that costs more than the rounding of the residual.
FLOOR_UNITS = 1_000

# An explicit patience asks for this much progress, in ||R||; without one, any progress beyond rounding will do.
PROGRESS = 0.01


def tolerance(problem: Problem, options: Options) -> Tensor:
    """``max(atol, rtol ||Y||_F)`` of each problem, ``[B]`` float64."""
    return _reference.tolerances(problem.Y_norm(), options.relative(problem.input_dtype), options.atol)


def stagnated(problem: Problem, X: Tensor, sums: Tensor, best: Tensor, mark: Tensor, explicit: bool) -> Tensor:
    """Whether the best residual has come to a halt since the last look, ``[B]`` bool.

    With an explicit patience: whether it fell by less than `PROGRESS`. Without, a slow fall goes on until `max_iters`:
    it must have stopped falling altogether, and the residual must either stand still there or be near what rounding
    allows; the momentum's own rise and fall is neither.
    """
    if explicit:
        return best > (1 - PROGRESS) ** 2 * mark
    eps = torch.finfo(problem.Y.dtype).eps
    halted = best > (1 - 4 * eps) * mark
    still = sums <= (1 + 1e-3) * best
    return halted & (still | (at_rounding_floor(problem, X, sums) & (sums <= 100 * best)))


def at_rounding_floor(problem: Problem, X: Tensor, sums: Tensor) -> Tensor:
    """Whether ``||R||`` is within `FLOOR_UNITS` roundings of the terms that it is the difference of."""
    norm_X = torch.linalg.vector_norm(X, dim=(-2, -1), dtype=torch.float64)
    norm_M = 1.0 if problem.M is None else torch.linalg.vector_norm(problem.M, dim=(-2, -1), dtype=torch.float64)
    floor = FLOOR_UNITS * torch.finfo(problem.Y.dtype).eps * (norm_X * norm_M + problem.Y_norm())
    return sums.sqrt() <= floor
