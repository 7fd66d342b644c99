"""Tolerances, and stagnation; the stop at a tolerance itself is `finish_chunk`, an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _reference
from .options import Options
from .problem import Problem

# A residual within this many units of rounding of ||X|| ||M|| + ||Y|| may be as small as the dtype allows.
FLOOR_UNITS = 1_000

# Less progress than this, in ||R||, over one interval counts as none.
PROGRESS = 0.01


def tolerance(problem: Problem, options: Options, Y_norm: Tensor) -> Tensor:
    """``max(atol, rtol ||Y||_F)`` of each problem, ``[B]`` float64."""
    return (options.relative(problem.input_dtype) * Y_norm).clamp_(min=options.atol)


def stagnated(problem: Problem, X: Tensor, sums: Tensor, best: Tensor, mark: Tensor, explicit: bool) -> Tensor:
    """Whether the best residual has come to a halt since the last look, ``[B]`` bool.

    With an explicit patience that is all. Without, the halt must have a reason: the residual, or its gradient, is as
    small as rounding lets it be. A slow fall far above rounding goes on until `max_iters`.
    """
    halted = best > (1 - PROGRESS) ** 2 * mark
    if explicit:
        return halted
    return halted & (at_rounding_floor(problem, X, sums) | is_stationary(problem, X, sums))


def at_rounding_floor(problem: Problem, X: Tensor, sums: Tensor) -> Tensor:
    """Whether ``||R||`` is within `FLOOR_UNITS` roundings of the terms that it is the difference of."""
    norm_X = torch.linalg.vector_norm(X, dim=(-2, -1), dtype=torch.float64)
    norm_M = 1.0 if problem.M is None else torch.linalg.vector_norm(problem.M, dim=(-2, -1), dtype=torch.float64)
    floor = FLOOR_UNITS * torch.finfo(problem.dtype).eps * (norm_X * norm_M + problem.Y_norm())
    return sums.sqrt() <= floor


def is_stationary(problem: Problem, X: Tensor, sums: Tensor) -> Tensor:
    """Whether ``R M^T`` vanishes although R does not: a least-squares solution where there is no exact one."""
    if problem.M is None:
        return torch.zeros_like(sums, dtype=torch.bool)
    R = _reference.residual(X, problem.M, problem.Y)
    gradient = torch.linalg.vector_norm(R @ problem.M.mT, dim=(-2, -1), dtype=torch.float64)
    norm_M = torch.linalg.vector_norm(problem.M, dim=(-2, -1), dtype=torch.float64)
    return gradient <= FLOOR_UNITS * torch.finfo(problem.dtype).eps * norm_M * sums.sqrt()


def poll(counts: Tensor) -> tuple[int, int]:
    """The one wait for the device in a chunk: problems that go on, and the longest replay (-1: none)."""
    running, longest = counts.tolist()
    return running, longest
