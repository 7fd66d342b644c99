"""``||A - B||`` of two matrices in one read: a partial result for each block, then one program a problem adds them."""

from __future__ import annotations

import triton
import triton.language as tl

from .block import load_block
from .reduce import max_with_nan


@triton.jit
def _distance_kernel(A, B, PARTIALS, sizes, strides, tile, ORD: tl.constexpr, T: tl.constexpr):
    """Program ``b * blocks + i * across + j``: BM rows and SPAN columns of problem b.

    A, B ``[batch, m, n]``. PARTIALS ``[batch, blocks]`` float64: sum of squares in float64 ("fro"), largest ("max") or
    sum ("1") of absolute entries; NaN where there is one.
    sizes: m and n. strides: those of A and of B. tile: `DistanceConstants`.
    """
    BM: tl.constexpr = tile.BM
    BN: tl.constexpr = tile.BN
    SPAN: tl.constexpr = tile.SPAN
    m, n = sizes
    A_strides, B_strides = strides
    across = tl.cdiv(n, SPAN)
    blocks = tl.cdiv(m, BM) * across
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    row = program % blocks // across * BM
    start = program % blocks % across * SPAN
    A += b * A_strides[0]
    B += b * B_strides[0]
    running = tl.zeros((BM, BN), T if ORD == "max" else tl.float64)
    for column in tl.range(start, tl.minimum(start + SPAN, n), BN):
        a = load_block(A, (row, column), (m, n), (A_strides[1], A_strides[2]), BM, BN).to(T)
        difference = a - load_block(B, (row, column), (m, n), (B_strides[1], B_strides[2]), BM, BN).to(T)
        if ORD == "fro":
            double = difference.to(tl.float64)
            running += double * double
        elif ORD == "max":
            running = tl.maximum(running, tl.abs(difference), propagate_nan=tl.PropagateNan.ALL)
        else:
            running += tl.abs(difference).to(tl.float64)
    total = max_with_nan(tl.reshape(running, (BM * BN,))).to(tl.float64) if ORD == "max" else tl.sum(running)
    tl.store(PARTIALS + program, total)
