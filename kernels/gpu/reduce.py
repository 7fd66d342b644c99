"""Sums of partials in a fixed order, and what is decided on them: which problems go on, and how a chunk ended."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .state import Chunk
from .tiles import padded


@triton.jit
def max_with_nan(values):
    """The largest of a vector, or NaN where there is one: a reduction by itself drops it."""
    missing = tl.max((values != values).to(tl.int32), axis=0)
    return tl.where(missing != 0, float("nan"), tl.max(values, axis=0))


@triton.jit
def sum_of_partials(PARTIALS, count, BLOCK: tl.constexpr):
    """``sum(PARTIALS[:count])`` in float64: BLOCK running sums, then a tree over them."""
    running = tl.zeros((BLOCK,), tl.float64)
    for start in tl.range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        running += tl.load(PARTIALS + i, mask=i < count, other=0.0)
    return tl.sum(running, axis=0)


@triton.jit(do_not_specialize=["elements"])
def _finish_norm_kernel(PARTIALS, OUT, count, stride, elements, HOW: tl.constexpr, BLOCK: tl.constexpr):
    """``OUT[b]``: the sum of the partials of problem b over `elements`, its root (HOW "root"), or the largest ("max").

    PARTIALS ``[B, count]``, `stride` from problem to problem.
    """
    b = tl.program_id(0).to(tl.int64)
    PARTIALS += b * stride
    if HOW == "max":
        largest = tl.zeros((BLOCK,), tl.float64)
        for start in tl.range(0, count, BLOCK):
            i = start + tl.arange(0, BLOCK)
            partial = tl.load(PARTIALS + i, mask=i < count, other=0.0)
            largest = tl.maximum(largest, partial, propagate_nan=tl.PropagateNan.ALL)
        result = max_with_nan(largest)
    else:
        result = sum_of_partials(PARTIALS, count, BLOCK) / elements.to(tl.float64)
        if HOW == "root":
            result = tl.sqrt(result)
    tl.store(OUT + b, result.to(OUT.dtype.element_ty))


def launch_finish_norm(partials: Tensor, out: Tensor, *, elements: int, how: str) -> None:
    """``out [B]`` from ``partials [B, count]``; ``how`` is "sum", "root" or "max"."""
    batch, count = partials.shape
    _finish_norm_kernel[batch,](
        partials, out, count, partials.stride(0), elements, HOW=how, BLOCK=min(padded(count), 1024), num_warps=4
    )  # fmt: skip


@triton.jit
def _start_kernel(LIMIT, ACTIVE, TAKEN, batch, BLOCK: tl.constexpr):
    """``ACTIVE[b]``: whether problem b runs at all; ``TAKEN[b] = 0``."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(ACTIVE + b, (tl.load(LIMIT + b, mask=b < batch, other=-1) >= 0).to(tl.int32), mask=b < batch)
    tl.store(TAKEN + b, tl.zeros((BLOCK,), tl.int64), mask=b < batch)


@triton.jit(do_not_specialize=["j", "columns"])
def _finish_iterate_kernel(
    PARTIALS, LIMIT, THRESHOLD, BAIL, COUNT, ACTIVE, TAKEN, SUMS, tiles, columns, j,
    KEPT: tl.constexpr, COUNTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Iterate j of problem b: ``||R||^2`` goes to ``SUMS[b, j]``, and a problem that stops there becomes inactive.

    PARTIALS ``[B, tiles]``, SUMS ``[B, columns]``. KEPT: a number in ``SUMS[b, 0]`` is that of the start already.
    COUNTS: ``COUNT[b]``, Adam's, grows by the update that follows.
    """
    b = tl.program_id(0).to(tl.int64)
    if tl.load(ACTIVE + b) == 0:
        return
    SUMS += b * columns + j
    known = False
    total = tl.full((), 0.0, tl.float64)
    if KEPT:
        total = tl.load(SUMS)
        known = (j == 0) & (total == total)
    if not known:
        total = sum_of_partials(PARTIALS + b * tiles, tiles, BLOCK)
        tl.store(SUMS, total)
    if (j < tl.load(LIMIT + b)) & (total > tl.load(THRESHOLD + b)) & (total <= tl.load(BAIL + b)):
        if COUNTS:
            tl.store(COUNT + b, tl.load(COUNT + b) + 1)
    else:
        tl.store(ACTIVE + b, 0)
        tl.store(TAKEN + b, tl.cast(j, tl.int64))


@triton.jit(do_not_specialize=["columns"])
def _finish_rows_kernel(PARTIALS, LIMIT, SUMS, TAKEN, blocks, columns, BLOCK: tl.constexpr):
    """``SUMS[b, j]``, the sum of ``PARTIALS[b, j, :blocks]``, up to ``j = LIMIT[b]``, which is what was TAKEN.

    Program b * columns + j: the second dimension of a grid ends at 65,535.
    """
    b = (tl.program_id(0) // columns).to(tl.int64)
    j = tl.program_id(0) % columns
    limit = tl.load(LIMIT + b)
    if j == 0:
        tl.store(TAKEN + b, tl.maximum(limit, 0))
    if j <= limit:
        tl.store(SUMS + b * columns + j, sum_of_partials(PARTIALS + (b * columns + j) * blocks, blocks, BLOCK))


def launch_finish_rows(partials: Tensor, chunk: Chunk) -> None:
    """Sums and updates taken of a chunk, from ``partials [B, columns, blocks]``."""
    batch, columns, blocks = partials.shape
    _finish_rows_kernel[batch * columns,](
        partials, chunk.limit, chunk.sums, chunk.taken, blocks, columns, BLOCK=min(padded(blocks), 1024), num_warps=4
    )  # fmt: skip


@triton.jit(do_not_specialize=["columns"])
def _finish_chunk_kernel(
    SUMS, TAKEN, THRESHOLD, Y_SQUARES, BAIL, LAST, BEST, UPDATES, STATUS, AGAIN, COUNTS, columns,
    BAIL_FACTOR: tl.constexpr, RUNNING: tl.constexpr, CONVERGED: tl.constexpr, DIVERGED: tl.constexpr,
    NONFINITE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program b judges problem b, as the reference's ``finish_chunk``. SUMS ``[B, columns]``.

    COUNTS: ``[2]``, 0 and -1 before, where the programs count what goes on and find the longest replay, in integers.
    """
    b = tl.program_id(0).to(tl.int64)
    AGAIN += b
    tl.store(AGAIN, tl.full((), -1, tl.int64))
    if tl.load(STATUS + b) != RUNNING:
        return
    SUMS += b * columns
    threshold, bail, taken = tl.load(THRESHOLD + b), tl.load(BAIL + b), tl.load(TAKEN + b)
    first_sum = tl.load(SUMS)
    starts = bail != bail
    if starts:
        y = tl.load(Y_SQUARES + b)  # NaN on either side stays NaN, as in torch.maximum
        larger = tl.where((first_sum > y) | (first_sum != first_sum), first_sum, y)
        bail = larger * BAIL_FACTOR
        tl.store(BAIL + b, bail)
    end = taken
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
    code = tl.where(total <= bail, RUNNING, DIVERGED)
    code = tl.where(total != total, NONFINITE, code)
    code = tl.where(total <= threshold, CONVERGED, code)
    finite = tl.abs(first_sum) < float("inf")
    code = tl.where(starts & (finite == 0), NONFINITE, code).to(tl.int64)
    tl.store(LAST + b, total)
    tl.store(BEST + b, best)
    tl.store(UPDATES + b, tl.load(UPDATES + b) + end)
    tl.store(STATUS + b, code)
    if code == RUNNING:
        tl.atomic_add(COUNTS, tl.full((), 1, tl.int64))
    if end < taken:
        tl.store(AGAIN, end)
        tl.atomic_max(COUNTS + 1, end)
