"""Sums of partial results in a fixed order, and which problems go on."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..contract import StopCriteria, Trace
from .target import padded


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
def _finish_norm_kernel(PARTIALS, OUT, count, elements, HOW: tl.constexpr, BLOCK: tl.constexpr):
    """``OUT[b]``: the sum of the partials of problem b over `elements`, its root (HOW "root"), or the largest ("max").

    PARTIALS ``[B, count]``.
    """
    b = tl.program_id(0).to(tl.int64)
    PARTIALS += b * count
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
    _finish_norm_kernel[batch,](partials, out, count, elements, HOW=how, BLOCK=min(padded(count), 1024), num_warps=4)


@triton.jit(do_not_specialize=["columns"])
def _start_kernel(LIMIT, trace, ACTIVE, MISSING, batch, columns, BLOCK: tl.constexpr):
    """``ACTIVE[b]``: whether problem b runs at all; ``STEPS_DONE[b] = 0``.

    ``MISSING[b]``, unless it is None: whether it runs and has no number in ``SUMS[b, 0]``.
    """
    SUMS, STEPS_DONE = trace
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = b < batch
    active = tl.load(LIMIT + b, mask=inside, other=-1) >= 0
    tl.store(ACTIVE + b, active.to(tl.int32), mask=inside)
    tl.store(STEPS_DONE + b, tl.zeros((BLOCK,), tl.int64), mask=inside)
    if MISSING is not None:
        known = tl.load(SUMS + b.to(tl.int64) * columns, mask=inside, other=0.0)
        tl.store(MISSING + b, (active & (known != known)).to(tl.int32), mask=inside)


def launch_start(limit: Tensor, trace: Trace, active: Tensor, missing: Tensor | None) -> None:
    """Set ``active [B]`` and ``missing [B]``, int32, and ``trace.steps_done``."""
    batch, columns = trace.sums.shape
    _start_kernel[triton.cdiv(batch, 256),](
        limit, (trace.sums, trace.steps_done), active, missing, batch, columns, BLOCK=256
    )  # fmt: skip


@triton.jit(do_not_specialize=["j", "columns"])
def _finish_iterate_kernel(PARTIALS, stop, trace, ACTIVE, MEASURED, tiles, columns, j, BLOCK: tl.constexpr):
    """Iterate j of problem b: ``||R||^2`` goes to ``SUMS[b, j]``, and a problem that stops there becomes inactive.

    PARTIALS ``[B, tiles]``; where ``MEASURED[b] == 0``, ``SUMS[b, j]`` holds the sum already.
    stop: limit, threshold and bail, each ``[B]``. trace: SUMS ``[B, columns]`` and STEPS_DONE ``[B]``.
    """
    LIMIT, THRESHOLD, BAIL = stop
    SUMS, STEPS_DONE = trace
    b = tl.program_id(0).to(tl.int64)
    if tl.load(ACTIVE + b) == 0:
        return
    SUMS += b * columns + j
    if tl.load(MEASURED + b) != 0:
        total = sum_of_partials(PARTIALS + b * tiles, tiles, BLOCK)
        tl.store(SUMS, total)
    else:
        total = tl.load(SUMS)
    goes_on = (j < tl.load(LIMIT + b)) & (total > tl.load(THRESHOLD + b)) & (total <= tl.load(BAIL + b))
    if goes_on == 0:
        tl.store(ACTIVE + b, 0)
        tl.store(STEPS_DONE + b, tl.cast(j, tl.int64))


def launch_finish_iterate(
    partials: Tensor, stop: StopCriteria, trace: Trace, active: Tensor, measured: Tensor, j: int
) -> None:
    """Judge iterate j of the problems that are ``active [B]``; ``measured [B]``: those whose partials are new."""
    batch, tiles = partials.shape
    _finish_iterate_kernel[batch,](
        partials, (stop.limit, stop.threshold, stop.bail), (trace.sums, trace.steps_done), active, measured,
        tiles, trace.sums.shape[1], j, BLOCK=min(padded(tiles), 1024), num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["columns"])
def _finish_rows_kernel(PARTIALS, LIMIT, trace, blocks, columns, BLOCK: tl.constexpr):
    """``SUMS[b, j]``, the sum of ``PARTIALS[b, j, :blocks]``, up to ``j = LIMIT[b]``, the updates that were made.

    Program b * columns + j: the second dimension of a grid ends at 65,535.
    """
    SUMS, STEPS_DONE = trace
    b = (tl.program_id(0) // columns).to(tl.int64)
    j = tl.program_id(0) % columns
    limit = tl.load(LIMIT + b)
    if j == 0:
        tl.store(STEPS_DONE + b, tl.maximum(limit, 0))
    if j <= limit:
        tl.store(SUMS + b * columns + j, sum_of_partials(PARTIALS + (b * columns + j) * blocks, blocks, BLOCK))


def launch_finish_rows(partials: Tensor, limit: Tensor, trace: Trace) -> None:
    """Sums and updates made, from ``partials [B, columns, blocks]``."""
    batch, columns, blocks = partials.shape
    _finish_rows_kernel[batch * columns,](
        partials, limit, (trace.sums, trace.steps_done), blocks, columns, BLOCK=min(padded(blocks), 1024), num_warps=4
    )  # fmt: skip
