"""The loss and its gradient by X in one pass, R never held: the row algorithm's products without an update.

    for each block of columns t:  R_t = X M_t - Y_t;  total += ||R_t||^2;  G += R_t M_t^T

The gradient by M is that of the transposed equation ``M^T X^T = Y^T``, which the strides express.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import gradient_tiles, search, target
from .advance_tiles import RowTile
from .block import identity_block, load_block, product, rounded, store_block, sum_of_squares


@triton.jit
def _row_gradient_kernel(X, M, Y, G, PARTIALS, sizes, strides, tile, PRECISION: tl.constexpr):
    """Program b * blocks + i: rows ``[i BM, (i + 1) BM)`` of problem b.

    X ``[B, m, n]``, M ``[B, n, p]``, Y ``[B, m, p]``, or None for the identity; n <= BN.
    G ``[B, m, n]``: ``R M^T``, float32 or float64. PARTIALS ``[B, blocks]`` float64: ``||R||^2`` of these rows.
    sizes: m, n and p. strides: those of X, M, Y and G. tile: `RowConstants`.
    """
    BM: tl.constexpr = tile.BM
    BN: tl.constexpr = tile.BN
    BP: tl.constexpr = tile.BP
    T: tl.constexpr = tl.float64 if X.dtype.element_ty == tl.float64 else tl.float32
    m, n, p = sizes
    X_strides, M_strides, Y_strides, G_strides = strides
    blocks = tl.cdiv(m, BM)
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    row = program % blocks * BM
    X += b * X_strides[0]
    M += b * M_strides[0]
    G += b * G_strides[0]
    if Y is not None:
        Y += b * Y_strides[0]
    x = load_block(X, (row, 0), (m, n), (X_strides[1], X_strides[2]), BM, BN)
    g = tl.zeros((BM, BN), T)
    total = tl.full((), 0.0, tl.float64)
    for column in tl.range(0, p, BP, num_stages=tile.STAGES):
        m_block = load_block(M, (0, column), (n, p), (M_strides[1], M_strides[2]), BN, BP)
        r = product(x, m_block, tl.zeros((BM, BP), T), PRECISION)
        if Y is not None:
            r -= load_block(Y, (row, column), (m, p), (Y_strides[1], Y_strides[2]), BM, BP).to(T)
        else:
            r -= identity_block((row, column), (m, p), BM, BP, T)
        total += sum_of_squares(r)
        g = product(rounded(r, M.dtype.element_ty), tl.trans(m_block), g, PRECISION)
    tl.store(PARTIALS + program, total)
    store_block(G, g, (row, 0), (m, n), (G_strides[1], G_strides[2]))


def launch_row_gradient(X: Tensor, M: Tensor, Y: Tensor | None, G: Tensor) -> Tensor:
    """``G = (X M - Y) M^T``, all ``[B, *, *]`` of any strides; returns partial sums of squares ``[B, blocks]``."""
    batch, m, n = X.shape
    p = M.shape[2]
    precision = target.precision(M.dtype)
    frozen = gradient_tiles.gradient(m, n, p, precision)
    assert frozen is not None  # `recomputes` has checked
    layout = tuple(None if t is None else (t.dtype, t.stride()) for t in (X, M, Y, G))

    def trial() -> Callable[[RowTile], Tensor]:
        out = torch.empty_like(G)
        return lambda tile: _launch(X, M, Y, out, tile)

    key = batch, m, n, p, precision, layout
    tile = search.best(_row_gradient_kernel, frozen, key, trial, allowed=lambda tile: not tile.swap)
    return _launch(X, M, Y, G, tile)


def _launch(X: Tensor, M: Tensor, Y: Tensor | None, G: Tensor, tile: RowTile) -> Tensor:
    batch, m, n = X.shape
    blocks = triton.cdiv(m, tile.BM)
    partials = X.new_empty((batch, blocks), dtype=torch.float64)
    strides = X.stride(), M.stride(), None if Y is None else Y.stride(), G.stride()
    _row_gradient_kernel[batch * blocks,](
        X, M, Y, G, partials, (m, n, M.shape[2]), strides, tile.constants,
        PRECISION=target.dot_precision(target.precision(M.dtype)), num_warps=tile.warps, **tile.registers,
    )  # fmt: skip
    return partials
