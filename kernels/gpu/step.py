"""The update, block by block: ``G = c R M^T`` and what the solver does with it, in one pass over X and its buffers.

The product is made here, or by cuBLAS before (`PRODUCT` false: then R is ``R M^T`` already, or M is the identity).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import rules, search, tiles
from .block import can_describe, column_part, descriptor, gradient_scale, load_block, product, rounded, store_block
from .residual import block_of
from .state import Solver
from .tiles import ProductTile


@triton.jit
def _update_block(
    gradient, X, B1, B2, COPY, row, column, m, n, lr, momentum, rate, eps, CONSTANTS,
    BM: tl.constexpr, BN: tl.constexpr, RULE: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    x = load_block(X, row, column, m, n, n, 1, BM, BN, False)
    v = load_block(B1, row, column, m, n, n, 1, BM, BN, False)
    if RULE == "heavy_ball":
        x, v = rules.heavy_ball(x, v, gradient, lr, momentum)
    else:
        second = load_block(B2, row, column, m, n, n, 1, BM, BN, False)
        x, v, second = rules.adam(x, v, second, gradient, rate, eps, CONSTANTS)
        store_block(B2, second, row, column, m, n, n, 1, BM, BN, False)
    store_block(B1, v, row, column, m, n, n, 1, BM, BN, False)
    store_block(X, x, row, column, m, n, n, 1, BM, BN, False)
    if COPIES:
        store_block(COPY, rounded(x, COPY.dtype.element_ty), row, column, m, n, n, 1, BM, BN, False)


@triton.jit(do_not_specialize=["elements", "programs", "total_stride"])
def _step_kernel(
    R, M, X, B1, B2, COUNT, COPY, LR, HYPER, ACTIVE, TOTAL, total_stride,
    m, n, p, M_rows, batch, elements, programs,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
    RULE: tl.constexpr, FRO: tl.constexpr, PRODUCT: tl.constexpr, COPIES: tl.constexpr,
    DESCRIPTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs share the tiles of all problems with ``ACTIVE[b] != 0``.

    R ``[batch, m, p]`` (``PRODUCT`` false: ``R M^T``, ``[batch, m, n]``), M ``[batch or 1, n, p]``.
    X, B1, B2 ``[batch, m, n]``, updated; COPY, likewise, gets X in its own dtype with COPIES.
    LR ``[batch]``, and COUNT, Adam's, this update included; HYPER: momentum ``[batch]``, or Adam's constants.
    TOTAL: ``||R||^2`` of problem b at ``b * total_stride``, which fro divides by.
    """
    T: tl.constexpr = X.dtype.element_ty
    down = tl.cdiv(m, BM)
    across = tl.cdiv(n, BN)
    tiles = down * across
    for index in tl.range(tl.program_id(0), tiles * batch, programs):
        b = index // tiles
        if tl.load(ACTIVE + b) != 0:
            row_block, column_block = block_of(index % tiles, across, down, GROUP)
            row, column = row_block * BM, column_block * BN
            start = b.to(tl.int64) * m * n
            if PRODUCT:
                acc = tl.zeros((BM, BN), T)
                for k in tl.range(0, p, BK):
                    if DESCRIPTOR:
                        r_block = R.load([b * m + row, k])
                        m_block = M.load([b * M_rows + column, k])
                    else:
                        r_block = load_block(R + b.to(tl.int64) * m * p, row, k, m, p, p, 1, BM, BK, False)
                        m_block = load_block(M + b.to(tl.int64) * M_rows * p, column, k, n, p, p, 1, BN, BK, False)
                    acc = product(r_block, tl.trans(m_block), acc, PRECISION)
            else:
                acc = load_block(R + start, row, column, m, n, n, 1, BM, BN, False).to(T)
            total = tl.load(TOTAL + b.to(tl.int64) * total_stride)
            acc *= gradient_scale(elements, FRO, total).to(T)
            lr = tl.load(LR + b)
            if RULE == "heavy_ball":
                momentum = tl.load(HYPER + b)
                rate, eps = momentum, momentum  # not used
            else:
                momentum = lr
                rate, eps = rules.adam_rates(lr, HYPER, tl.load(COUNT + b))
            X_b, B1_b, B2_b, COPY_b = X + start, B1 + start, B2 + start, COPY + start
            WIDTH: tl.constexpr = BN // PARTS
            for part in tl.static_range(PARTS):  # the whole block at once does not fit beside the accumulator
                _update_block(
                    column_part(acc, part, PARTS), X_b, B1_b, B2_b, COPY_b, row, column + part * WIDTH, m, n,
                    lr, momentum, rate, eps, HYPER, BM, WIDTH, RULE, COPIES,
                )  # fmt: skip


def launch_step(
    R: Tensor, M: Tensor | None, solver: Solver, copy: Tensor | None, active: Tensor, total: Tensor, elements: int,
    tile: ProductTile, *, fro: bool,
) -> None:  # fmt: skip
    """The solver's update with ``R M^T``, or with R itself where M is None, of the problems that are ``active [B]``.

    ``total [B]``: their ``||R||^2``. ``copy``: X in the dtype that it is multiplied in, kept up to date.
    """
    batch, m, n = solver.X.shape
    p = R.shape[2]
    source, factor = R, R if M is None else M
    described = tile.descriptor and M is not None and can_describe(R) and can_describe(M)
    if described:
        source, factor = descriptor(R, tile.BM, tile.BK), descriptor(factor, tile.BN, tile.BK)
    programs = tile.programs(batch, m, n)
    _step_kernel[programs,](
        source, factor, solver.X, solver.first, solver.second, solver.count, solver.X if copy is None else copy,
        solver.lr, solver.hyper, active, total, total.stride(0),
        m, n, p, 0 if M is None or M.shape[0] == 1 else n, batch, elements, programs,
        BM=tile.BM, BN=tile.BN, BK=tile.BK, PARTS=tile.parts, GROUP=tile.group, RULE=solver.rule, FRO=fro,
        PRODUCT=M is not None, COPIES=copy is not None, DESCRIPTOR=described,
        PRECISION=tile.dot_precision, num_warps=tile.warps, num_stages=tile.stages, **tile.registers,
    )  # fmt: skip


def step_tile(R: Tensor, M: Tensor | None, solver: Solver, copy: Tensor | None, *, fro: bool) -> ProductTile:
    """The block shape for `launch_step` with these."""
    batch, m, n = solver.X.shape
    p = R.shape[2]
    frozen = tiles.elementwise(n) if M is None else tiles.step(batch, m, n, p, M.dtype, solver.rule)
    problem = batch, m, n, p, R.dtype, solver.rule, None if M is None else M.shape[0], copy is not None, fro

    def trial() -> Callable[[ProductTile], None]:
        other, other_copy = solver.copy(), None if copy is None else copy.clone()
        active = torch.ones(batch, dtype=torch.int32, device=R.device)
        total = R.new_ones(batch, dtype=torch.float64)
        return lambda tile: launch_step(R, M, other, other_copy, active, total, 1, tile, fro=fro)

    return search.best(_step_kernel, frozen, problem, trial)
