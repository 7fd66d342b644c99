"""The step, block by block: ``G = c R M^T`` and the rule's update, in one pass over X and the state matrices.

The product is made here, or by cuBLAS before. Without M, R is ``R M^T`` already, or M is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import product_tiles, rules, search
from .block import (
    can_describe,
    column_part,
    descriptor,
    gradient_scale,
    load_block,
    load_state,
    product,
    rounded,
    store_block,
    store_state,
)  # fmt: skip
from .product_tiles import ProductTile
from .residual import block_of
from .state import RuleState


@triton.jit
def _update_block(RULE: tl.constexpr, gradient, rule_state, COPY, at, sizes, hyper, number):
    """Update that block of X, of the state matrices and of COPY. sizes: rows, columns, the problem's first element."""
    ROWS: tl.constexpr = gradient.shape[0]
    COLUMNS: tl.constexpr = gradient.shape[1]
    m, n, start = sizes
    x = load_block(rule_state.X + start, at, (m, n), (n, 1), ROWS, COLUMNS)
    state = load_state(rule_state.state, start, at, (m, n), ROWS, COLUMNS)
    x, state = rules.update(RULE, x, state, gradient, hyper, number)
    store_state(rule_state.state, state, start, at, (m, n))
    store_block(rule_state.X + start, x, at, (m, n), (n, 1))
    if COPY is not None:
        store_block(COPY + start, rounded(x, COPY.dtype.element_ty), at, (m, n), (n, 1))


@triton.jit(do_not_specialize=["j", "columns"])
def _step_kernel(
    R, M, rule_state, COPY, ACTIVE, SUMS, j, columns, scale: tl.float64, sizes, tile,
    RULE: tl.constexpr, DESCRIPTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs share the tiles of all problems with ``ACTIVE[b] != 0``; of all problems if ACTIVE is None.

    R ``[batch, m, p]`` and M ``[batch or 1, n, p]``, as pointers or as descriptors of blocks ``[BM, BK]`` and
    ``[BN, BK]``; without M, R is ``R M^T``, ``[batch, m, n]``.
    rule_state: `RuleArguments`, updated. COPY ``[batch, m, n]``, unless it is None, gets X in its own dtype.
    SUMS ``[batch, columns]``: ``||R||^2`` of iterate j, whose root divides the gradient; None: nothing does.
    sizes: batch, m, n, p, and the rows of M from one problem to the next. tile: `ProductConstants`.
    """
    BM: tl.constexpr = tile.BM
    BN: tl.constexpr = tile.BN
    BK: tl.constexpr = tile.BK
    WIDTH: tl.constexpr = tile.BN // tile.PARTS
    T: tl.constexpr = rule_state.X.dtype.element_ty
    batch, m, n, p, M_rows = sizes
    down = tl.cdiv(m, BM)
    across = tl.cdiv(n, BN)
    tiles = down * across
    for index in tl.range(tl.program_id(0), tiles * batch, tl.num_programs(0)):
        b = index // tiles
        wanted = True
        if ACTIVE is not None:
            wanted = tl.load(ACTIVE + b) != 0
        if wanted:
            row_block, column_block = block_of(index % tiles, across, down, tile.GROUP)
            row, column = row_block * BM, column_block * BN
            start = b.to(tl.int64) * m * n
            if M is not None:
                acc = tl.zeros((BM, BN), T)
                for k in tl.range(0, p, BK):
                    if DESCRIPTOR:
                        r_block = R.load([b * m + row, k])
                        m_block = M.load([b * M_rows + column, k])
                    else:
                        r_block = load_block(R + b.to(tl.int64) * m * p, (row, k), (m, p), (p, 1), BM, BK)
                        M_b = M + b.to(tl.int64) * M_rows * p
                        m_block = load_block(M_b, (column, k), (n, p), (p, 1), BN, BK)
                    acc = product(r_block, tl.trans(m_block), acc, PRECISION)
            else:
                acc = load_block(R + start, (row, column), (m, n), (n, 1), BM, BN).to(T)
            total = 0.0
            if SUMS is not None:
                total = tl.load(SUMS + b.to(tl.int64) * columns + j)
            acc *= gradient_scale(scale, total, SUMS is not None).to(T)
            hyper = rules.load_hyper(RULE, rule_state.hyper, b, batch)
            number = tl.full((), 1, tl.int64) + j
            if rule_state.step is not None:
                number += tl.load(rule_state.step + b)
            for part in tl.static_range(tile.PARTS):  # the whole block at once does not fit beside the accumulator
                gradient = column_part(acc, part, tile.PARTS)
                at = (row, column + part * WIDTH)
                _update_block(RULE, gradient, rule_state, COPY, at, (m, n, start), hyper, number)


class Iterate(NamedTuple):
    """Which iterate a step starts from, and for which problems.

    Attributes:
        j: its index in the chunk.
        active: ``[B]`` int32, the problems with a number other than 0; None for all.
        sums: ``[B, K + 1]``, whose column j has the ``||R||^2`` that a coupled loss divides by; None: nothing does.
    """

    j: int
    active: Tensor | None
    sums: Tensor | None


def launch_step(
    R: Tensor, M: Tensor | None, state: RuleState, copy: Tensor | None, iterate: Iterate, scale: float,
    tile: ProductTile,
) -> None:  # fmt: skip
    """The rule's update with ``scale R M^T``, or with ``scale R`` where M is None.

    ``copy``: X in the dtype in which it is multiplied, kept up to date.
    """
    batch, m, n = state.X.shape
    p = R.shape[2]
    source, factor = R, M
    described = tile.descriptor and M is not None and can_describe(R) and can_describe(M)
    if described:
        source, factor = descriptor(R, tile.BM, tile.BK), descriptor(M, tile.BN, tile.BK)
    j, active, sums = iterate
    _step_kernel[tile.programs(batch, m, n),](
        source, factor, state.arguments, copy, active, sums, j, 0 if sums is None else sums.shape[1], scale,
        (batch, m, n, p, 0 if M is None or M.shape[0] == 1 else n), tile.constants,
        RULE=state.rule, DESCRIPTOR=described, PRECISION=tile.dot_precision,
        num_warps=tile.warps, num_stages=tile.stages, **tile.registers,
    )  # fmt: skip


def step_tile(R: Tensor, M: Tensor | None, state: RuleState, copy: Tensor | None, *, coupled: bool) -> ProductTile:
    """The block shape for `launch_step` with these."""
    batch, m, n = state.X.shape
    p = R.shape[2]
    if M is None:
        frozen = product_tiles.elementwise(n)
    else:
        frozen = product_tiles.step(batch, m, n, p, M.dtype, rules.RULES[state.rule].states)
    key = batch, m, n, p, R.dtype, state.rule, None if M is None else M.shape[0], copy is not None, coupled

    def trial() -> Callable[[ProductTile], None]:
        other, other_copy = state.clone(), None if copy is None else copy.clone()
        sums = R.new_ones((batch, 1), dtype=torch.float64) if coupled else None
        iterate = Iterate(0, torch.ones(batch, dtype=torch.int32, device=R.device), sums)
        return lambda tile: launch_step(R, M, other, other_copy, iterate, 1.0, tile)

    return search.best(_step_kernel, frozen, key, trial)
