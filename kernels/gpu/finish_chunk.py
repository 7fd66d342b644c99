"""How a chunk ended for each problem: as the reference's ``finish_chunk``, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import contract
from .target import padded

_BAIL_FACTOR = tl.constexpr(contract.BAIL_FACTOR)
_RUNNING = tl.constexpr(contract.RUNNING)
_CONVERGED = tl.constexpr(contract.CONVERGED)
_DIVERGED = tl.constexpr(contract.DIVERGED)
_NONFINITE = tl.constexpr(contract.NONFINITE)


@triton.jit(do_not_specialize=["columns"])
def _finish_chunk_kernel(trace, criteria, outcome, COUNTS, columns, BLOCK: tl.constexpr):
    """Program b judges problem b.

    trace: SUMS ``[B, columns]`` and STEPS_DONE ``[B]``. criteria: THRESHOLD, Y_SQUARES and BAIL, each ``[B]``.
    outcome: LAST, BEST, UPDATES, STATUS and REPLAY_TO, each ``[B]``.
    COUNTS ``[2]``, 0 and -1 before: the programs count the problems that go on, and find the longest replay.
    """
    SUMS, STEPS_DONE = trace
    THRESHOLD, Y_SQUARES, BAIL = criteria
    LAST, BEST, UPDATES, STATUS, REPLAY_TO = outcome
    b = tl.program_id(0).to(tl.int64)
    REPLAY_TO += b
    tl.store(REPLAY_TO, tl.full((), -1, tl.int64))
    if tl.load(STATUS + b) != _RUNNING:
        return
    SUMS += b * columns
    threshold, bail, done = tl.load(THRESHOLD + b), tl.load(BAIL + b), tl.load(STEPS_DONE + b)
    first_sum = tl.load(SUMS)
    starts = bail != bail
    if starts:
        y = tl.load(Y_SQUARES + b)  # NaN on either side stays NaN, as in torch.maximum
        larger = tl.where((first_sum > y) | (first_sum != first_sum), first_sum, y)
        bail = larger * _BAIL_FACTOR
        tl.store(BAIL + b, bail)
    end = done
    best = tl.load(BEST + b)
    start = tl.full((), 0, tl.int64)
    while start <= end:
        j = start + tl.arange(0, BLOCK)
        sums = tl.load(SUMS + j, mask=j <= end, other=float("inf"))
        stops = ((sums <= threshold) | ((sums <= bail) == 0)) & (j <= end)
        end = tl.minimum(end, tl.min(tl.where(stops, j, end), axis=0))
        lowest = tl.min(tl.where((j <= end) & (sums == sums), sums, float("inf")), axis=0)
        best = tl.where((best != best) | (lowest < best), lowest, best)
        start += BLOCK
    total = tl.load(SUMS + end)
    code = tl.where(total <= bail, _RUNNING, _DIVERGED)
    code = tl.where(total != total, _NONFINITE, code)
    code = tl.where(total <= threshold, _CONVERGED, code)
    finite = tl.abs(first_sum) < float("inf")
    code = tl.where(starts & (finite == 0), _NONFINITE, code).to(tl.int64)
    tl.store(LAST + b, total)
    tl.store(BEST + b, best)
    tl.store(UPDATES + b, tl.load(UPDATES + b) + end)
    tl.store(STATUS + b, code)
    if code == _RUNNING:
        tl.atomic_add(COUNTS, tl.full((), 1, tl.int64))
    if end < done:
        tl.store(REPLAY_TO, end)
        tl.atomic_max(COUNTS + 1, end)


def launch_finish_chunk(
    sums: Tensor, steps_done: Tensor, threshold: Tensor, Y_squares: Tensor, bail: Tensor, last: Tensor, best: Tensor,
    updates: Tensor, status: Tensor, replay_to: Tensor, counts: Tensor,
) -> None:  # fmt: skip
    """``matconv_fast::finish_chunk``."""
    torch.arange(0, -2, -1, out=counts, device=counts.device)  # 0 and -1 in one launch, from constants of the host
    batch, columns = sums.shape
    _finish_chunk_kernel[batch,](
        (sums, steps_done), (threshold, Y_squares, bail), (last, best, updates, status, replay_to), counts, columns,
        BLOCK=min(padded(columns), 256), num_warps=1,
    )  # fmt: skip
