"""`advance`, algorithm ``small``: one program takes one problem through all of its iterations, all of it on chip.

    R = X M - Y;  total = ||R||^2;  stop, or  G = c R M^T  and the rule's update

A problem stops by itself at the first iterate with ``total <= threshold`` or not ``total <= bail``.
"""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl

from ..contract import StopCriteria, Trace
from . import rules, search, target
from .advance_tiles import SmallTile, small
from .block import (
    gradient_scale,
    load_block,
    load_state,
    product,
    rounded,
    store_block,
    store_state,
    sum_of_squares,
)  # fmt: skip
from .state import Problems, RuleState


@triton.jit(do_not_specialize=["columns"])
def _advance_small_kernel(
    rule_state, M, Y, stop, trace, sizes, columns, scale: tl.float64, tile,
    RULE: tl.constexpr, COUPLED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program b: problem b.

    rule_state: `RuleArguments`. M ``[B or 1, n, p]``, or None for the identity, and Y ``[B or 1, m, p]``.
    stop: limit, threshold and bail, each ``[B]``; None: one update of every problem.
    trace: sums ``[B, columns]``, and the updates made ``[B]``.
    sizes: m, n, p, and the rows of M and of Y from one problem to the next. tile: `SmallConstants`.
    """
    BM: tl.constexpr = tile.BM
    BN: tl.constexpr = tile.BN
    BP: tl.constexpr = tile.BP
    TILE: tl.constexpr = tile.TILE
    T: tl.constexpr = rule_state.X.dtype.element_ty
    OPERAND: tl.constexpr = Y.dtype.element_ty
    m, n, p, M_rows, Y_rows = sizes
    SUMS, STEPS_DONE = trace
    b = tl.program_id(0).to(tl.int64)
    limit = tl.full((), 1, tl.int64)
    threshold = tl.full((), 0.0, tl.float64)
    bail = threshold
    if stop is not None:
        limit = tl.load(stop[0] + b)
        threshold, bail = tl.load(stop[1] + b), tl.load(stop[2] + b)
    if limit < 0:
        tl.store(STEPS_DONE + b, tl.full((), 0, tl.int64))
        return
    Y += b * Y_rows * p
    SUMS += b * columns
    hyper = rules.load_hyper(RULE, rule_state.hyper, b, tl.num_programs(0))
    made = tl.full((), 0, tl.int64)
    if rule_state.step is not None:
        made = tl.load(rule_state.step + b)
    x = load_block(rule_state.X + b * m * n, (0, 0), (m, n), (n, 1), BM, BN)
    state = load_state(rule_state.state, b * m * n, (0, 0), (m, n), BM, BN)
    if TILE == BP or M is None:
        y_all = load_block(Y, (0, 0), (m, p), (p, 1), BM, BP).to(T)
    if M is not None:
        M += b * M_rows * p
        if TILE == BP:
            m_all = load_block(M, (0, 0), (n, p), (p, 1), BN, BP)

    j = tl.full((), 0, tl.int64)
    going = tl.full((), 1, tl.int32)
    while going != 0:
        if M is None:
            gradient = x - y_all
            total = sum_of_squares(gradient)
        elif TILE == BP:
            r = product(rounded(x, OPERAND), m_all, -y_all, PRECISION)
            total = sum_of_squares(r)
            gradient = product(rounded(r, OPERAND), tl.trans(m_all), tl.zeros((BM, BN), T), PRECISION)
        else:
            gradient = tl.zeros((BM, BN), T)
            total = tl.full((), 0.0, tl.float64)
            for column in tl.range(0, p, TILE):
                m_tile = load_block(M, (0, column), (n, p), (p, 1), BN, TILE)
                y_tile = load_block(Y, (0, column), (m, p), (p, 1), BM, TILE).to(T)
                r = product(rounded(x, OPERAND), m_tile, -y_tile, PRECISION)
                total += sum_of_squares(r)
                gradient = product(rounded(r, OPERAND), tl.trans(m_tile), gradient, PRECISION)
        tl.store(SUMS + j, total)
        if stop is not None:
            going = ((j < limit) & (total > threshold) & (total <= bail)).to(tl.int32)
        if going != 0:
            j += 1
            gradient *= gradient_scale(scale, total, COUPLED).to(T)
            x, state = rules.update(RULE, x, state, gradient, hyper, made + j)
            if stop is None:
                going = tl.full((), 0, tl.int32)

    tl.store(STEPS_DONE + b, j)
    store_block(rule_state.X + b * m * n, x, (0, 0), (m, n), (n, 1))
    store_state(rule_state.state, state, b * m * n, (0, 0), (m, n))


def launch_small(state: RuleState, problems: Problems, stop: StopCriteria | None, trace: Trace) -> None:
    """The updates of all problems, each up to its own stop; with ``stop=None`` one update each, and no last check."""
    M, Y = problems.M, problems.Y
    batch, m, n = state.X.shape
    p = Y.shape[2]
    shared = M is not None and M.shape[0] == 1, Y.shape[0] == 1
    key = batch, m, n, p, target.precision(Y.dtype), state.rule, M is not None, shared, problems.coupled

    def trial() -> Callable[[SmallTile], None]:
        copy, device = state.clone(), state.X.device
        few, unread = StopCriteria.steps(batch, search.STEPS, device), Trace.empty(batch, search.STEPS, device)
        return lambda tile: _launch(copy, problems, few, unread, tile)

    tile = search.best(_advance_small_kernel, small(m, n, p, rules.RULES[state.rule].states), key, trial)
    _launch(state, problems, stop, trace, tile)


def _launch(state: RuleState, problems: Problems, stop: StopCriteria | None, trace: Trace, tile: SmallTile) -> None:
    batch, m, n = state.X.shape
    Y = problems.Y
    _advance_small_kernel[batch,](
        state.arguments, problems.M, Y,
        None if stop is None else (stop.limit, stop.threshold, stop.bail),
        (trace.sums, trace.steps_done),
        (m, n, Y.shape[2], *problems.rows_between()), trace.sums.shape[1], problems.scale, tile.constants,
        RULE=state.rule, COUPLED=problems.coupled, PRECISION=target.dot_precision(target.precision(Y.dtype)),
        num_warps=tile.warps, num_stages=1, **tile.registers,
    )  # fmt: skip
