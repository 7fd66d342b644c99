"""The loss and its gradient by X in one pass, R never held: the row tier's product without an update.

    for each block of columns t:  R_t = X M_t - Y_t;  total += ||R_t||^2;  G += R_t M_t^T

The gradient by M is that of the transposed equation ``M^T X^T = Y^T``, which the strides express.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import search, tiles
from .block import identity_block, load_block, product, rounded, store_block, sum_of_squares
from .tiles import RowTile


@triton.jit
def _row_gradient_kernel(
    X, M, Y, G, PARTIALS, m, n, p,
    X_batch, X_row, X_column, M_batch, M_row, M_column, Y_batch, Y_row, Y_column, G_batch, G_row, G_column, blocks,
    BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, HAS_Y: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program b * blocks + i: rows ``[i BM, (i + 1) BM)`` of problem b.

    X ``[B, m, n]``, M ``[B, n, p]``, Y ``[B, m, p]`` (``HAS_Y`` false: the identity) with their strides; n <= BN.
    G ``[B, m, n]``: ``R M^T``, in the state's dtype. PARTIALS ``[B, blocks]`` float64: ``||R||^2`` of these rows.
    """
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    row = program % blocks * BM
    X += b * X_batch
    M += b * M_batch
    Y += b * Y_batch
    G += b * G_batch
    T: tl.constexpr = tl.float64 if X.dtype.element_ty == tl.float64 else tl.float32
    x = load_block(X, row, 0, m, n, X_row, X_column, BM, BN, False)
    g = tl.zeros((BM, BN), T)
    total = tl.full((), 0.0, tl.float64)
    for column in tl.range(0, p, BP, num_stages=STAGES):
        m_block = load_block(M, 0, column, n, p, M_row, M_column, BN, BP, False)
        r = product(x, m_block, tl.zeros((BM, BP), T), PRECISION)
        if HAS_Y:
            r -= load_block(Y, row, column, m, p, Y_row, Y_column, BM, BP, False).to(T)
        else:
            r -= identity_block(row, column, m, p, BM, BP, T)
        total += sum_of_squares(r)
        g = product(rounded(r, M.dtype.element_ty), tl.trans(m_block), g, PRECISION)
    tl.store(PARTIALS + program, total)
    store_block(G, g, row, 0, m, n, G_row, G_column, BM, BN, False)


def launch_row_gradient(X: Tensor, M: Tensor, Y: Tensor | None, G: Tensor) -> Tensor:
    """``G = (X M - Y) M^T``, all ``[B, *, *]`` of any strides; returns partial sums of squares ``[B, blocks]``."""
    batch, m, n = X.shape
    p = M.shape[2]
    frozen = tiles.gradient(m, n, p, tiles.precision(M.dtype))
    assert frozen is not None  # as `tiles.recomputes` has found
    tensors = X, M, Y, G
    layout = tuple(None if t is None else (t.dtype, t.stride()) for t in tensors)
    problem = batch, m, n, p, tiles.precision(M.dtype), layout

    def trial() -> Callable[[RowTile], Tensor]:
        out = torch.empty_like(G)
        return lambda tile: _launch(X, M, Y, out, tile)

    tile = search.best(_row_gradient_kernel, frozen, problem, trial, allowed=lambda tile: not tile.swap)
    return _launch(X, M, Y, G, tile)


def _launch(X: Tensor, M: Tensor, Y: Tensor | None, G: Tensor, tile: RowTile) -> Tensor:
    batch, m, n = X.shape
    p = M.shape[2]
    precision = tiles.precision(M.dtype)
    blocks = triton.cdiv(m, tile.BM)
    partials = X.new_empty((batch, blocks), dtype=torch.float64)
    _row_gradient_kernel[batch * blocks,](
        X, M, M if Y is None else Y, G, partials, m, n, p,
        *X.stride(), *M.stride(), *(M if Y is None else Y).stride(), *G.stride(), blocks,
        BM=tile.BM, BN=tile.BN, BP=tile.BP, HAS_Y=Y is not None, STAGES=tile.stages,
        PRECISION=tiles.dot_precision(precision), num_warps=tile.warps,
        **tile.registers,
    )  # fmt: skip
    return partials
