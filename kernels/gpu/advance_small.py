"""`advance`, small tier: one program takes one problem through all of its iterations, X and the buffers on chip.

    R = X M - Y;  total = ||R||^2;  stop, or  G = c R M^T  and the solver's update

A problem stops by itself at the first iterate with ``total <= threshold`` or not ``total <= bail``.
"""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from . import rules, search, tiles
from .block import gradient_scale, load_block, product, rounded, store_block, sum_of_squares
from .state import FRO, Chunk, Solver
from .tiles import SmallTile


@triton.jit(do_not_specialize=["elements", "columns"])
def _advance_small_kernel(
    X, B1, B2, COUNT, M, Y, LR, HYPER, LIMIT, THRESHOLD, BAIL, SUMS, TAKEN,
    m, n, p, M_stride, Y_stride, elements, columns,
    BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, TILE: tl.constexpr,
    RULE: tl.constexpr, COUPLED: tl.constexpr, PRODUCT: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program b: problem b.

    X, B1, B2 ``[B, m, n]``: the state and the solver's buffers (heavy ball: V, unused); COUNT ``[B]``, Adam's.
    M ``[B or 1, n, p]``, Y ``[B or 1, m, p]``, their strides from problem to problem (0: shared).
    HYPER: momentum ``[B]``, or Adam's constants. SUMS ``[B, columns]``; the rest ``[B]``.
    LAST: whether the iterate that a problem ends at is looked at; the single step leaves that out.
    BM, BN, BP: m, n, p padded; TILE: columns of M and Y that are read at a time, BP to keep both on chip.
    """
    b = tl.program_id(0).to(tl.int64)
    limit = tl.load(LIMIT + b)
    if limit < 0:
        tl.store(TAKEN + b, 0)
        return
    X += b * m * n
    B1 += b * m * n
    M += b * M_stride
    Y += b * Y_stride
    SUMS += b * columns
    threshold, bail = tl.load(THRESHOLD + b), tl.load(BAIL + b)
    lr = tl.load(LR + b)
    x = load_block(X, 0, 0, m, n, n, 1, BM, BN, False)
    v = load_block(B1, 0, 0, m, n, n, 1, BM, BN, False)
    T: tl.constexpr = X.dtype.element_ty
    OPERAND: tl.constexpr = Y.dtype.element_ty
    if RULE == "heavy_ball":
        momentum = tl.load(HYPER + b)
    else:
        B2 += b * m * n
        second = load_block(B2, 0, 0, m, n, n, 1, BM, BN, False)
        count = tl.load(COUNT + b)
    if TILE == BP or not PRODUCT:
        y_all = load_block(Y, 0, 0, m, p, p, 1, BM, BP, False).to(T)
        if PRODUCT:
            m_all = load_block(M, 0, 0, n, p, p, 1, BN, BP, False)

    scale = gradient_scale(elements, False, 0.0).to(T)
    j = tl.full((), 0, tl.int64)
    going = tl.full((), 1, tl.int32)
    while going != 0:
        if not PRODUCT:
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
                m_tile = load_block(M, 0, column, n, p, p, 1, BN, TILE, False)
                y_tile = load_block(Y, 0, column, m, p, p, 1, BM, TILE, False).to(T)
                r = product(rounded(x, OPERAND), m_tile, -y_tile, PRECISION)
                total += sum_of_squares(r)
                gradient = product(rounded(r, OPERAND), tl.trans(m_tile), gradient, PRECISION)
        tl.store(SUMS + j, total)
        going = ((j < limit) & (total > threshold) & (total <= bail)).to(tl.int32)
        if going != 0:
            gradient *= gradient_scale(elements, True, total).to(T) if COUPLED else scale
            if RULE == "heavy_ball":
                x, v = rules.heavy_ball(x, v, gradient, lr, momentum)
            else:
                count += 1
                rate, eps = rules.adam_rates(lr, HYPER, count)
                x, v, second = rules.adam(x, v, second, gradient, rate, eps, HYPER)
            j += 1
            if not LAST:
                going = (j < limit).to(tl.int32)

    tl.store(TAKEN + b, j)
    store_block(X, x, 0, 0, m, n, n, 1, BM, BN, False)
    store_block(B1, v, 0, 0, m, n, n, 1, BM, BN, False)
    if RULE == "adam":
        store_block(B2, second, 0, 0, m, n, n, 1, BM, BN, False)
        tl.store(COUNT + b, count)


def launch_small(solver: Solver, M: Tensor | None, Y: Tensor, chunk: Chunk, *, last: bool = True) -> None:
    """``last``: whether the iterate that a problem ends at is looked at."""
    batch, m, n = solver.X.shape
    p = Y.shape[2]
    shared = M is not None and M.shape[0] == 1, Y.shape[0] == 1
    problem = batch, m, n, p, tiles.precision(Y.dtype), solver.rule, M is not None, shared, chunk.loss, last

    def trial() -> Callable[[SmallTile], None]:
        other, few = solver.copy(), Chunk.of(solver.X, search.UPDATES, chunk.loss)
        return lambda tile: _launch(other, M, Y, few, tile, last=last)

    frozen = tiles.small(m, n, p, heavy_ball=solver.rule == "heavy_ball")
    tile = search.best(_advance_small_kernel, frozen, problem, trial)
    _launch(solver, M, Y, chunk, tile, last=last)


def _launch(solver: Solver, M: Tensor | None, Y: Tensor, chunk: Chunk, tile: SmallTile, *, last: bool) -> None:
    batch, m, n = solver.X.shape
    p = Y.shape[2]
    _advance_small_kernel[batch,](
        solver.X, solver.first, solver.second, solver.count, Y if M is None else M, Y, solver.lr, solver.hyper,
        chunk.limit, chunk.threshold, chunk.bail, chunk.sums, chunk.taken,
        m, n, p, 0 if M is None or M.shape[0] == 1 else n * p, 0 if Y.shape[0] == 1 else m * p,
        chunk.elements(m, p), chunk.columns,
        BM=tile.BM, BN=tile.BN, BP=tile.BP, TILE=tile.TILE, RULE=solver.rule, COUPLED=chunk.loss == FRO,
        PRODUCT=M is not None, LAST=last, PRECISION=tiles.dot_precision(tiles.precision(Y.dtype)),
        num_warps=tile.warps, num_stages=1, **tile.registers,
    )  # fmt: skip
