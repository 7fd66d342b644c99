"""The residual, block by block: ``R = X M - Y`` with ``sum(R^2)`` of each block, R held or not.

The product is made here, or by cuBLAS before. Without M this is one pass over what cuBLAS wrote.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import state_dtype
from . import product_tiles, search
from .block import (
    can_describe,
    column_part,
    descriptor,
    dtype_of,
    identity_block,
    load_block,
    product,
    rounded,
    store_block,
    sum_of_squares,
)  # fmt: skip
from .product_tiles import ProductTile


@triton.jit
def block_of(tile, across, down, GROUP: tl.constexpr):
    """Row and column of a tile, in groups of GROUP rows: the blocks of M that neighbours read stay in L2."""
    width = GROUP * across
    first = tile // width * GROUP
    height = tl.minimum(down - first, GROUP)
    return first + tile % width % height, tile % width // height


@triton.jit
def _residual_kernel(
    X, M, Y, R, PARTIALS, ACTIVE, sizes, tile, DESCRIPTOR: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr
):
    """Programs share the tiles of all problems.

    X ``[batch, m, n]`` and M ``[batch or 1, n, p]``, as pointers or as descriptors of blocks ``[BM, BK]`` and
    ``[BK, BN]``; without M, X is the product, and n = p. Y ``[batch or 1, m, p]``, or None for the identity.
    R ``[batch, m, p]``, written unless it is None. PARTIALS ``[batch, tiles]`` float64.
    Problems with ``ACTIVE[b] == 0`` are left alone; ACTIVE may be None.
    sizes: batch, m, n, p, and the rows of M and of Y from one problem to the next. tile: `ProductConstants`.
    """
    BM: tl.constexpr = tile.BM
    BN: tl.constexpr = tile.BN
    BK: tl.constexpr = tile.BK
    WIDTH: tl.constexpr = tile.BN // tile.PARTS
    batch, m, n, p, M_rows, Y_rows = sizes
    down = tl.cdiv(m, BM)
    across = tl.cdiv(p, BN)
    tiles = down * across
    for index in tl.range(tl.program_id(0), tiles * batch, tl.num_programs(0)):
        b = index // tiles
        wanted = True
        if ACTIVE is not None:
            wanted = tl.load(ACTIVE + b) != 0
        if wanted:
            row_block, column_block = block_of(index % tiles, across, down, tile.GROUP)
            row, column = row_block * BM, column_block * BN
            if M is not None:
                acc = tl.zeros((BM, BN), T)
                for k in tl.range(0, n, BK):
                    if DESCRIPTOR:
                        x_block = X.load([b * m + row, k])
                        m_block = M.load([b * M_rows + k, column])
                    else:
                        x_block = load_block(X + b.to(tl.int64) * m * n, (row, k), (m, n), (n, 1), BM, BK)
                        M_b = M + b.to(tl.int64) * M_rows * p
                        m_block = load_block(M_b, (k, column), (n, p), (p, 1), BK, BN)
                    acc = product(x_block, m_block, acc, PRECISION)
            else:
                acc = load_block(X + b.to(tl.int64) * m * n, (row, column), (m, n), (n, 1), BM, BN).to(T)
            total = tl.full((), 0.0, tl.float64)
            for part in tl.static_range(tile.PARTS):  # the whole block at once does not fit beside the accumulator
                r = column_part(acc, part, tile.PARTS)
                at = (row, column + part * WIDTH)
                if Y is not None:
                    r -= load_block(Y + b.to(tl.int64) * Y_rows * p, at, (m, p), (p, 1), BM, WIDTH).to(T)
                else:
                    r -= identity_block(at, (m, p), BM, WIDTH, T)
                if R is not None:
                    held = rounded(r, R.dtype.element_ty)
                    store_block(R + b.to(tl.int64) * m * p, held, at, (m, p), (p, 1))
                total += sum_of_squares(r)
            tl.store(PARTIALS + index, total)


def launch_residual(
    X: Tensor, M: Tensor | None, Y: Tensor | None, R: Tensor | None, partials: Tensor, tile: ProductTile,
    active: Tensor | None = None,
) -> None:  # fmt: skip
    """``R = X M - Y`` (``X - Y`` without M), where there is an R, and ``partials [batch, tile.count(m, p)]``.

    ``active [batch]``: the problems with a number other than 0; None for all.
    """
    batch, m, n = X.shape
    p = n if M is None else M.shape[2]
    source, factor = X, M
    described = tile.descriptor and M is not None and can_describe(X) and can_describe(M)
    if described:
        source, factor = descriptor(X, tile.BM, tile.BK), descriptor(M, tile.BK, tile.BN)
    M_rows, Y_rows = 0 if M is None or M.shape[0] == 1 else n, 0 if Y is None or Y.shape[0] == 1 else m
    _residual_kernel[tile.programs(batch, m, p),](
        source, factor, Y, R, partials, active, (batch, m, n, p, M_rows, Y_rows), tile.constants,
        DESCRIPTOR=described, T=dtype_of(state_dtype(X.dtype)), PRECISION=tile.dot_precision,
        num_warps=tile.warps, num_stages=tile.stages, **tile.registers,
    )  # fmt: skip


def residual_tile(X: Tensor, M: Tensor | None, Y: Tensor | None, R: Tensor | None) -> ProductTile:
    """The block shape for `launch_residual` with these."""
    batch, m, n = X.shape
    p = n if M is None else M.shape[2]
    frozen = product_tiles.elementwise(p) if M is None else product_tiles.residual(batch, m, n, p, X.dtype)
    factors = tuple(None if t is None else (t.shape[0], t.dtype) for t in (M, Y, R))

    def trial() -> Callable[[ProductTile], None]:
        held = None if R is None else torch.empty_like(R)
        return lambda tile: launch_residual(X, M, Y, held, new_partials(X, p, tile), tile)

    return search.best(_residual_kernel, frozen, (batch, m, n, p, X.dtype, factors), trial)


def new_partials(X: Tensor, p: int, tile: ProductTile) -> Tensor:
    """Memory for the sums of `launch_residual`: ``[batch, tiles]`` float64."""
    return X.new_empty((X.shape[0], tile.count(X.shape[1], p)), dtype=torch.float64)
