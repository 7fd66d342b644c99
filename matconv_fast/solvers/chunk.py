"""The iterations of one chunk, for solvers that end their problems by a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..kernels.contract import RUNNING, StopCriteria, Trace


def iterate_chunk(
    squares: Tensor,
    step: Callable[[Tensor], tuple[Tensor, Tensor]],
    verdict: Tensor,
    criteria: StopCriteria,
    trace: Trace,
) -> None:
    """Call ``step`` until the chunk is full; on a CPU, until no problem goes on. Each stops at its tolerance.

    Args:
        squares: ``[B]``, ``||R||^2`` of the first iterate.
        step: makes an iteration of the problems that go on, ``[B]`` bool; returns the new squares, and which problems
            have made it.
        verdict: ``[B]``, the status codes that ``step`` may set; only RUNNING problems go on.
        criteria: of the chunk.
        trace: filled.
    """
    trace.sums[:, 0] = squares
    trace.steps_done.zero_()
    for j in range(trace.sums.shape[1] - 1):
        goes_on = (squares > criteria.threshold) & (squares < math.inf)
        goes_on &= (criteria.limit > j) & (verdict == RUNNING)
        if goes_on.device.type == "cpu" and not bool(goes_on.any()):
            break
        squares, made = step(goes_on)
        trace.sums[:, j + 1] = squares
        trace.steps_done.add_(made)
