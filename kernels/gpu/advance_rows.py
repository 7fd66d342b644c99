"""`advance`, algorithm ``rows``: one program takes a block of rows of X through all iterations (``mse``, ``sse``).

    for each block of columns t:  R_t = X M_t - Y_t;  total += ||R_t||^2;  S += c R_t M_t^T      (S = D(S) before)
    X += F(S)

for a rule that accumulates (``rules.Rule``). X and S stay in registers, M streams through shared memory, R is never
held. Programs do not wait for each other, so a problem whose total meets its threshold overshoots that iterate, and the
caller restores and replays it.

S is kept as ``S / 2^e``, and the residual is multiplied by ``c / 2^e``, which is in [1, 2): so S is the accumulator of
the second product, without a block for the gradient beside it, and the scaling at both ends is exact. It also keeps
``c R`` within the range of float16.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..contract import StopCriteria, Trace
from . import rules, search, target
from .advance_tiles import RowTile, fits, rows
from .block import (
    can_describe,
    descriptor,
    dtype_of,
    load_block,
    load_state,
    product,
    rounded,
    store_block,
    store_state,
)  # fmt: skip
from .reduce import launch_finish_rows
from .state import Problems, RuleState


@triton.jit
def _scale_for(total, squared, fallback):
    """A power of two near 1 / norm, given the norm or its square in float64; `fallback` where that is 0 or not finite.

    In integers: a root and a division in float64 are function calls, whose registers spill here.
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
    rule_state, M, Y, LIMIT, PARTIALS, sizes, columns, scales, tile,
    RULE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program b * blocks + i: rows ``[i BM, (i + 1) BM)`` of problem b, ``LIMIT[b]`` updates.

    rule_state: `RuleArguments`, X and S float32. M ``[B or 1, n, p]``, Y ``[B or 1, m, p]``, as pointers or as
    descriptors of blocks ``[BN, BP]`` and ``[BM, BP]``.
    PARTIALS ``[B, columns, blocks]`` float64: ``||R||^2`` of these rows at each iterate.
    sizes: m, n, p, and the rows of M and of Y from one problem to the next. scales: 2^e, 2^-e and c / 2^e.
    tile: `RowConstants`.
    """
    BM: tl.constexpr = tile.BM
    BN: tl.constexpr = tile.BN
    BP: tl.constexpr = tile.BP
    SWAP: tl.constexpr = tile.SWAP
    DESCRIPTOR: tl.constexpr = tile.DESCRIPTOR
    m, n, p, M_rows, Y_rows = sizes
    high, inverse, low = scales
    blocks = tl.cdiv(m, BM)
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
    start = b.to(tl.int64) * m * n
    PARTIALS += b.to(tl.int64) * columns * blocks + block
    hyper = rules.load_hyper(RULE, rule_state.hyper, b, tl.num_programs(0) // blocks)
    made = tl.full((), 0, tl.int64)
    if rule_state.step is not None:
        made = tl.load(rule_state.step + b)
    x = load_block(rule_state.X + start, (row, 0), (m, n), (n, 1), BM, BN)
    s = load_state(rule_state.state, start, (row, 0), (m, n), BM, BN)[0] * inverse
    if SWAP:
        x = tl.trans(x)
        s = tl.trans(s)

    # Squares are of R times a power of two near 1 / ||R||, which keeps all of them in range: that of the iterate
    # before, and at first that of the first block of R, which turn -1 measures. Turn `limit` makes no update, either.
    # All in one loop: a second and a third copy of its body made sm_80 spill 2 KB.
    scale = tl.full((), 1.0, tl.float32)
    for j in tl.range(-1, limit + 1):
        updates = (j >= 0) & (j < limit)
        x_operand = rounded(x, OPERAND)
        _, decayed = rules.update(RULE, x, (s,), 0.0, hyper, made + j + 1)
        s = tl.where(updates, decayed[0], s)
        squares = tl.zeros((BM,), tl.float32)
        for column in tl.range(0, tl.where(j < 0, tl.minimum(p, BP), p), BP, num_stages=tile.STAGES):
            if DESCRIPTOR:
                m_block = M.load([M_row, column])
                y_block = Y.load([Y_row, column]).to(tl.float32)
            else:
                m_block = load_block(M, (0, column), (n, p), (p, 1), BN, BP)
                y_block = load_block(Y, (0, column), (m - row, p), (p, 1), BM, BP).to(tl.float32)
            if SWAP:
                r = product(tl.trans(m_block), x_operand, tl.zeros((BP, BM), tl.float32), PRECISION)
                r -= tl.trans(y_block)
                squares += tl.sum(_measure(r * scale, j), axis=0)
            else:
                r = product(x_operand, m_block, tl.zeros((BM, BP), tl.float32), PRECISION) - y_block
                squares += tl.sum(_measure(r * scale, j), axis=1)
            r_operand = rounded(tl.where(updates, r * low, 0.0), OPERAND)
            if SWAP:
                s = product(m_block, r_operand, s, PRECISION)
            else:
                s = product(r_operand, tl.trans(m_block), s, PRECISION)
        updated, _ = rules.update(RULE, x, (0.0,), s * high, hyper, made + j + 1)
        x = tl.where(updates, updated, x)
        back = _inverse(scale).to(tl.float64)
        total = tl.sum(squares.to(tl.float64), axis=0) * back * back
        if j >= 0:
            tl.store(PARTIALS + j * blocks, total)
        scale = _scale_for(total, j >= 0, scale)

    if SWAP:
        x = tl.trans(x)
        s = tl.trans(s)
    # an offset that the compiler cannot know to be 0: else it keeps the addresses of X and S through all iterations
    row += (scale == 0).to(tl.int32)
    store_block(rule_state.X + start, x, (row, 0), (m, n), (n, 1))
    store_state(rule_state.state, (s * high,), start, (row, 0), (m, n))


def launch_rows(state: RuleState, problems: Problems, stop: StopCriteria, trace: Trace) -> None:
    """As many updates as the limits say; the caller replays the problems that overshot."""
    M, Y = problems.M, problems.Y
    assert M is not None  # `choose` has checked
    batch, m, n = state.X.shape
    p = Y.shape[2]
    precision = target.precision(M.dtype)
    frozen = rows(batch, m, n, p, precision)
    assert frozen is not None

    def trial() -> Callable[[RowTile], None]:
        copy, device = state.clone(), state.X.device
        few, unread = StopCriteria.steps(batch, search.STEPS, device), Trace.empty(batch, search.STEPS, device)
        return lambda tile: _launch(copy, problems, few.limit, unread, tile)

    def allowed(tile: RowTile) -> bool:
        return not tile.descriptor or fits(batch, m, n, tile)

    key = batch, m, n, p, precision, M.dtype, M.shape[0], Y.shape[0], state.rule
    tile = search.best(_advance_rows_kernel, frozen, key, trial, allowed=allowed)
    _launch(state, problems, stop.limit, trace, tile)


def _launch(state: RuleState, problems: Problems, limit: Tensor, trace: Trace, tile: RowTile) -> None:
    M, Y = problems.M, problems.Y
    assert M is not None
    batch, m, n = state.X.shape
    columns = trace.sums.shape[1]
    M_source, Y_source = M, Y
    if tile.descriptor:
        assert can_describe(M)  # the caller aligns both to 64 bytes
        assert can_describe(Y)
        M_source, Y_source = descriptor(M, tile.BN, tile.BP), descriptor(Y, tile.BM, tile.BP)
    blocks = triton.cdiv(m, tile.BM)
    partials = state.X.new_empty((batch, columns, blocks), dtype=torch.float64)
    high = 2.0 ** math.floor(math.log2(problems.scale))
    _advance_rows_kernel[batch * blocks,](
        state.arguments, M_source, Y_source, limit, partials,
        (m, n, Y.shape[2], *problems.rows_between()), columns, (high, 1 / high, problems.scale / high), tile.constants,
        RULE=state.rule, OPERAND=dtype_of(M.dtype), PRECISION=target.dot_precision(target.precision(M.dtype)),
        num_warps=tile.warps, **tile.registers,
    )  # fmt: skip
    launch_finish_rows(partials, limit, trace)
