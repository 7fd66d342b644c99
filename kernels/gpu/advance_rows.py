"""`advance`, row tier: one program takes a block of rows of X through many iterations, alone, under mse and sse.

    for each block of columns t:  R_t = X M_t - Y_t;  total += ||R_t||^2;  V += c R_t M_t^T      (V = momentum V before)
    X -= lr V

X and V stay in registers, M streams through shared memory, R is never held. The programs do not wait for each other, so
a problem whose total meets its threshold on the way goes beyond that iterate: the caller replays it.

V is kept as ``V / 2^e`` and the residual is multiplied by ``c / 2^e``, in [1, 2): so V is the accumulator of the second
product, without a block for the gradient beside it, and the scaling at both ends is exact. It also keeps ``c R`` within
the range of float16.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import search, tiles
from .block import can_describe, descriptor, dtype_of, load_block, product, rounded, store_block
from .reduce import launch_finish_rows
from .state import Chunk, Solver
from .tiles import RowTile


@triton.jit
def _scale_for(total, squared, fallback):
    """A power of two near 1 / norm, given the norm or its square in float64; `fallback` where that is 0 or not finite.

    In integers: a root and a division in float64 are calls, and what they need spills.
    """
    exponent = ((total.to(tl.int64, bitcast=True) >> 52) & 0x7FF).to(tl.int32) - 1023
    exponent = tl.where(squared, exponent >> 1, exponent)
    exponent = tl.minimum(tl.maximum(exponent, -126), 126)
    scale = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    return tl.where((total > 0) & (total < float("inf")), scale, fallback)


@triton.jit
def _inverse(power):
    """1 / power, for a power of two."""
    return (0x7F000000 - power.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def _measure(r, j):
    """Squares; in turn -1, where nothing is known of their range, absolute values."""
    return tl.where(j < 0, tl.abs(r), r * r)


@triton.jit(do_not_specialize=["columns"])
def _advance_rows_kernel(
    X, V, M, Y, LR, MOMENTUM, LIMIT, PARTIALS,
    m, n, p, M_rows, Y_rows, blocks, columns, high, inverse, low,
    BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, SWAP: tl.constexpr, STAGES: tl.constexpr,
    DESCRIPTOR: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program b * blocks + i: rows ``[i BM, (i + 1) BM)`` of problem b, ``LIMIT[b]`` updates.

    X, V ``[B, m, n]`` float32, updated in place. M ``[B or 1, n, p]``, Y ``[B or 1, m, p]`` with their rows from one
    problem to the next (0: shared), as pointers or as descriptors, of blocks ``[BN, BP]`` and ``[BM, BP]``.
    PARTIALS ``[B, columns, blocks]`` float64: ``||R||^2`` of these rows at each iterate. c = low * high; high = 2^e,
    inverse = 2^-e.
    """
    program = tl.program_id(0)
    b = program // blocks
    block = program % blocks
    limit = tl.load(LIMIT + b).to(tl.int32)
    if limit < 0:
        return
    row = block * BM
    Y_row = b * Y_rows + row
    M_row = b * M_rows
    if not DESCRIPTOR:
        M += b.to(tl.int64) * M_rows * p
        Y += (b.to(tl.int64) * Y_rows + row) * p
    X += b.to(tl.int64) * m * n
    V += b.to(tl.int64) * m * n
    PARTIALS += b.to(tl.int64) * columns * blocks + block
    x = load_block(X, row, 0, m, n, n, 1, BM, BN, False)
    w = load_block(V, row, 0, m, n, n, 1, BM, BN, False) * inverse
    if SWAP:
        x = tl.trans(x)
        w = tl.trans(w)
    momentum = tl.load(MOMENTUM + b)
    step = tl.load(LR + b) * high

    # Squares are taken of R times a power of two near 1 / ||R||, which none of them under- or overflows in: that of the
    # iterate before, and to begin with that of the first block of R, which turn -1 looks at. Turn `limit` only looks,
    # too. All in one loop: a second and a third copy of its body made sm_80 spill 2 KB.
    scale = tl.full((), 1.0, tl.float32)
    for j in tl.range(-1, limit + 1):
        updates = (j >= 0) & (j < limit)
        x_operand = rounded(x, OPERAND)
        w *= tl.where(updates, momentum, 1.0)
        squares = tl.zeros((BM,), tl.float32)
        for column in tl.range(0, tl.where(j < 0, tl.minimum(p, BP), p), BP, num_stages=STAGES):
            if DESCRIPTOR:
                m_block = M.load([M_row, column])
                y_block = Y.load([Y_row, column]).to(tl.float32)
            else:
                m_block = load_block(M, 0, column, n, p, p, 1, BN, BP, False)
                y_block = load_block(Y, 0, column, m - row, p, p, 1, BM, BP, False).to(tl.float32)
            if SWAP:
                r = product(tl.trans(m_block), x_operand, tl.zeros((BP, BM), tl.float32), PRECISION)
                r -= tl.trans(y_block)
                squares += tl.sum(_measure(r * scale, j), axis=0)
            else:
                r = product(x_operand, m_block, tl.zeros((BM, BP), tl.float32), PRECISION) - y_block
                squares += tl.sum(_measure(r * scale, j), axis=1)
            r_operand = rounded(tl.where(updates, r * low, 0.0), OPERAND)
            if SWAP:
                w = product(m_block, r_operand, w, PRECISION)
            else:
                w = product(r_operand, tl.trans(m_block), w, PRECISION)
        x = tl.where(updates, x - step * w, x)
        back = _inverse(scale).to(tl.float64)
        total = tl.sum(squares.to(tl.float64), axis=0) * back * back
        if j >= 0:
            tl.store(PARTIALS + j * blocks, total)
        scale = _scale_for(total, j >= 0, scale)

    if SWAP:
        x = tl.trans(x)
        w = tl.trans(w)
    # an offset that the compiler cannot know to be 0: else it keeps the addresses of X and V through all iterations
    row += (scale == 0).to(tl.int32)
    store_block(X, x, row, 0, m, n, n, 1, BM, BN, False)
    store_block(V, w * high, row, 0, m, n, n, 1, BM, BN, False)


def launch_rows(solver: Solver, M: Tensor, Y: Tensor, chunk: Chunk) -> None:
    """The heavy ball's updates, as many as the limits say; the caller replays what went beyond its stop."""
    batch, m, n = solver.X.shape
    p = Y.shape[2]
    precision = tiles.precision(M.dtype)
    frozen = tiles.rows(batch, m, n, p, precision)
    assert frozen is not None  # as `advance_way` has found

    def trial() -> Callable[[RowTile], None]:
        other, few = solver.copy(), Chunk.of(solver.X, search.UPDATES, chunk.loss)
        return lambda tile: _launch(other, M, Y, few, tile)

    def allowed(tile: RowTile) -> bool:
        return not tile.descriptor or tiles.fits(batch, m, n, tile)

    problem = batch, m, n, p, precision, M.dtype, M.shape[0], Y.shape[0]
    tile = search.best(_advance_rows_kernel, frozen, problem, trial, allowed=allowed)
    _launch(solver, M, Y, chunk, tile)


def _launch(solver: Solver, M: Tensor, Y: Tensor, chunk: Chunk, tile: RowTile) -> None:
    batch, m, n = solver.X.shape
    p = Y.shape[2]
    M_rows, Y_rows = (0 if t.shape[0] == 1 else t.shape[1] for t in (M, Y))
    M_source, Y_source = M, Y
    if tile.descriptor:
        assert can_describe(M)  # `Problem` aligns both to 64 bytes
        assert can_describe(Y)
        M_source, Y_source = descriptor(M, tile.BN, tile.BP), descriptor(Y, tile.BM, tile.BP)
    blocks = triton.cdiv(m, tile.BM)
    partials = solver.X.new_empty((batch, chunk.columns, blocks), dtype=torch.float64)
    scale = 2 / chunk.elements(m, p)
    high = 2.0 ** math.floor(math.log2(scale))
    _advance_rows_kernel[batch * blocks,](
        solver.X, solver.first, M_source, Y_source, solver.lr, solver.hyper, chunk.limit, partials,
        m, n, p, M_rows, Y_rows, blocks, chunk.columns, high, 1 / high, scale / high,
        BM=tile.BM, BN=tile.BN, BP=tile.BP, SWAP=tile.swap, STAGES=tile.stages, DESCRIPTOR=tile.descriptor,
        OPERAND=dtype_of(M.dtype), PRECISION=tiles.dot_precision(tiles.precision(M.dtype)), num_warps=tile.warps,
        **tile.registers,
    )  # fmt: skip
    launch_finish_rows(partials, chunk)
