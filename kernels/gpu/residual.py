"""The residual, block by block: ``R = X M - Y`` with ``sum(R^2)`` of each block, R held or not.

The product is made here, or by cuBLAS before (`PRODUCT` false: then this is one pass over what it wrote).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import search, tiles
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
from .tiles import ProductTile


@triton.jit
def block_of(tile, across, down, GROUP: tl.constexpr):
    """Row and column of a tile, in groups of GROUP rows: the blocks of M that neighbours read stay in L2."""
    width = GROUP * across
    first = tile // width * GROUP
    height = tl.minimum(down - first, GROUP)
    return first + tile % width % height, tile % width // height


@triton.jit(do_not_specialize=["programs"])
def _residual_kernel(
    X, M, Y, R, PARTIALS, ACTIVE, KNOWN, known_stride,
    m, n, p, M_rows, Y_rows, batch, programs,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
    PRODUCT: tl.constexpr, HAS_Y: tl.constexpr, HOLD: tl.constexpr, GUARDED: tl.constexpr, SKIP_KNOWN: tl.constexpr,
    DESCRIPTOR: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs share the tiles of all problems, one after another.

    X ``[batch, m, n]`` (``PRODUCT`` false: what R is to be but for Y, and n = p), M ``[batch or 1, n, p]``, Y ``[batch
    or 1, m, p]`` (``HAS_Y`` false: the identity), with their rows from problem to problem (0: shared).
    R ``[batch, m, p]``, written with HOLD. PARTIALS ``[batch, tiles]`` float64.
    GUARDED: problems with ``ACTIVE[b] == 0`` are left alone. SKIP_KNOWN: so are those with a number in
    ``KNOWN[b * known_stride]``, whose R is there already.
    """
    down = tl.cdiv(m, BM)
    across = tl.cdiv(p, BN)
    tiles = down * across
    for index in tl.range(tl.program_id(0), tiles * batch, programs):
        b = index // tiles
        wanted = True
        if GUARDED:
            wanted = tl.load(ACTIVE + b) != 0
        if SKIP_KNOWN:
            known = tl.load(KNOWN + b.to(tl.int64) * known_stride)
            wanted = wanted & (known != known)
        if wanted:
            row_block, column_block = block_of(index % tiles, across, down, GROUP)
            row, column = row_block * BM, column_block * BN
            if PRODUCT:
                acc = tl.zeros((BM, BN), T)
                for k in tl.range(0, n, BK):
                    if DESCRIPTOR:
                        x_block = X.load([b * m + row, k])
                        m_block = M.load([b * M_rows + k, column])
                    else:
                        x_block = load_block(X + b.to(tl.int64) * m * n, row, k, m, n, n, 1, BM, BK, False)
                        m_block = load_block(M + b.to(tl.int64) * M_rows * p, k, column, n, p, p, 1, BK, BN, False)
                    acc = product(x_block, m_block, acc, PRECISION)
            else:
                acc = load_block(X + b.to(tl.int64) * m * n, row, column, m, n, n, 1, BM, BN, False).to(T)
            WIDTH: tl.constexpr = BN // PARTS
            total = tl.full((), 0.0, tl.float64)
            for part in tl.static_range(PARTS):  # the whole block at once does not fit beside the accumulator
                r = column_part(acc, part, PARTS)
                first = column + part * WIDTH
                if HAS_Y:
                    Y_b = Y + b.to(tl.int64) * Y_rows * p
                    r -= load_block(Y_b, row, first, m, p, p, 1, BM, WIDTH, False).to(T)
                else:
                    r -= identity_block(row, first, m, p, BM, WIDTH, T)
                if HOLD:
                    held = rounded(r, R.dtype.element_ty)
                    store_block(R + b.to(tl.int64) * m * p, held, row, first, m, p, p, 1, BM, WIDTH, False)
                total += sum_of_squares(r)
            tl.store(PARTIALS + index, total)


def launch_residual(
    X: Tensor, M: Tensor | None, Y: Tensor | None, R: Tensor | None, partials: Tensor, tile: ProductTile, *,
    active: Tensor | None = None, known: Tensor | None = None,
) -> None:  # fmt: skip
    """``R = X M - Y`` (``X - Y`` without M), where there is an R, and ``partials [batch, tile.count(m, p)]``.

    ``active [batch]``: which problems; ``known [batch, columns]``: those with a number in column 0 are left alone.
    """
    batch, m, n = X.shape
    p = n if M is None else M.shape[2]
    unused = partials
    source, factor = X, unused if M is None else M
    described = tile.descriptor and M is not None and can_describe(X) and can_describe(M)
    if described:
        source, factor = descriptor(X, tile.BM, tile.BK), descriptor(factor, tile.BK, tile.BN)
    programs = tile.programs(batch, m, p)
    _residual_kernel[programs,](
        source, factor, unused if Y is None else Y, unused if R is None else R, partials,
        unused if active is None else active, unused if known is None else known,
        0 if known is None else known.shape[1],
        m, n, p, 0 if M is None or M.shape[0] == 1 else n, 0 if Y is None or Y.shape[0] == 1 else m, batch, programs,
        BM=tile.BM, BN=tile.BN, BK=tile.BK, PARTS=tile.parts, GROUP=tile.group, PRODUCT=M is not None,
        HAS_Y=Y is not None, HOLD=R is not None, GUARDED=active is not None, SKIP_KNOWN=known is not None,
        DESCRIPTOR=described, T=dtype_of(tiles.state_dtype(X.dtype)),
        PRECISION=tile.dot_precision, num_warps=tile.warps, num_stages=tile.stages, **tile.registers,
    )  # fmt: skip


def residual_tile(X: Tensor, M: Tensor | None, Y: Tensor | None, R: Tensor | None) -> ProductTile:
    """The block shape for `launch_residual` with these."""
    batch, m, n = X.shape
    p = n if M is None else M.shape[2]
    frozen = tiles.elementwise(p) if M is None else tiles.residual(batch, m, n, p, X.dtype)
    factors = tuple(None if t is None else (t.shape[0], t.dtype) for t in (M, Y, R))
    problem = batch, m, n, p, X.dtype, factors

    def trial() -> Callable[[ProductTile], None]:
        held = None if R is None else torch.empty_like(R)
        return lambda tile: launch_residual(X, M, Y, held, new_partials(X, p, tile), tile)

    return search.best(_residual_kernel, frozen, problem, trial)


def new_partials(X: Tensor, p: int, tile: ProductTile) -> Tensor:
    """Room for what `launch_residual` sums up: ``[batch, tiles]`` float64."""
    return X.new_empty((X.shape[0], tile.count(X.shape[1], p)), dtype=torch.float64)
