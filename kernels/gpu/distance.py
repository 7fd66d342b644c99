"""``||A - B||`` of two matrices in one read: a partial result per block, then one program a problem adds them up."""

from __future__ import annotations

import triton
import triton.language as tl

from .block import load_block
from .reduce import max_with_nan


@triton.jit
def _distance_kernel(
    A, B, PARTIALS, m, n, A_batch, A_row, A_column, B_batch, B_row, B_column, across, blocks,
    BM: tl.constexpr, BN: tl.constexpr, SPAN: tl.constexpr, ORD: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Program ``b * blocks + i * across + j``: BM rows and SPAN columns of problem b.

    A, B ``[batch, m, n]`` with their strides. PARTIALS ``[batch, blocks]`` float64: sum of squares in float64 ("fro"),
    largest ("max") or sum ("1") of absolute entries; NaN where there is one.
    """
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    row = program % blocks // across * BM
    start = program % blocks % across * SPAN
    A += b * A_batch
    B += b * B_batch
    running = tl.zeros((BM, BN), T if ORD == "max" else tl.float64)
    for column in tl.range(start, tl.minimum(start + SPAN, n), BN):
        a = load_block(A, row, column, m, n, A_row, A_column, BM, BN, False).to(T)
        difference = a - load_block(B, row, column, m, n, B_row, B_column, BM, BN, False).to(T)
        if ORD == "fro":
            double = difference.to(tl.float64)
            running += double * double
        elif ORD == "max":
            running = tl.maximum(running, tl.abs(difference), propagate_nan=tl.PropagateNan.ALL)
        else:
            running += tl.abs(difference).to(tl.float64)
    total = max_with_nan(tl.reshape(running, (BM * BN,))).to(tl.float64) if ORD == "max" else tl.sum(running)
    tl.store(PARTIALS + program, total)
