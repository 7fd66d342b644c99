"""Launchers of `advance` and of the single step: grids, workspaces, and the tier that a problem takes.

All arguments are those of ``_reference.py``; everything is decided from shapes and dtypes, and nothing is read from the
device. X and the buffers are float32 or float64; M and Y are that, or bfloat16 or float16.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
from torch import Tensor

from . import tiles
from .advance_rows import launch_rows
from .advance_small import launch_small
from .reduce import _finish_chunk_kernel, _finish_iterate_kernel, _start_kernel, launch_finish_norm
from .residual import launch_residual, new_partials, residual_tile
from .state import FRO, Chunk, Solver, unstopped
from .step import launch_step, step_tile

# How `advance` can go about a problem; "gemm" and "tiled" differ in who makes the products, cuBLAS or our kernels.
WAYS = ("small", "rows", "tiled", "gemm")
STOPS_EXACTLY = ("small", "tiled", "gemm")
KEEPS_RESIDUAL = ("tiled", "gemm")
MANY_LAUNCHES = ("tiled", "gemm")  # in every iteration: a CUDA graph of them takes the host's time out
LEAST_UPDATES = {"rows": 8}  # that repay a launch


def advance_way(
    batch: int, m: int, n: int, p: int, *, product: bool, coupled: bool, heavy_ball: bool, dtype: torch.dtype
) -> str:
    """The tier that problems of a kind take.

    * ``"small"``: a program a problem, all of it on chip.
    * ``"rows"``: a program a block of rows, which must not be ``coupled`` by the loss, for the heavy ball.
    * ``"tiled"``: two kernels an iteration, products with what follows them fused.
    * ``"gemm"``: cuBLAS and a pass after each product. That is the faster one where our products run at a fraction of
      its rate, on the units of float32 and float64 rather than on tensor cores, and the passes take little beside them;
      and where ``p`` is so far above ``m n`` that only a product split along p fills the GPU.
    """
    precision = tiles.precision(dtype)
    if max(m, n, p) <= tiles.small_limit(precision, heavy_ball=heavy_ball):
        return "small"
    if product and heavy_ball and not coupled and tiles.rows(batch, m, n, p, precision) is not None:
        return "rows"
    if not product or precision in ("ieee", "fp64"):
        return "gemm"
    return "gemm" if p > 16 * m * n else "tiled"


@functools.cache
def _adam_constants(first_decay: float, second_decay: float, eps: float, device: torch.device) -> Tensor:
    def log(decay: float) -> float:
        return math.log(decay) if decay > 0 else -math.inf

    return torch.tensor(
        (first_decay, 1 - first_decay, second_decay, 1 - second_decay, eps, log(first_decay), log(second_decay)),
        dtype=torch.float64, device=device,
    )  # fmt: skip


def launch_heavy_ball_advance(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor, lr: Tensor, momentum: Tensor,
    limit: Tensor, threshold: Tensor, bail: Tensor, sums: Tensor, taken: Tensor, R: Tensor | None, loss: int, way: int,
) -> None:  # fmt: skip
    """``matconv_fast::heavy_ball_advance``."""
    solver = Solver("heavy_ball", X, V, V, sums, lr, momentum)
    _advance(solver, M, Y, Chunk(limit, threshold, bail, sums, taken, R, loss), WAYS[way])


def launch_adam_advance(
    X: Tensor, first: Tensor, second: Tensor, count: Tensor, M: Tensor | None, Y: Tensor, lr: Tensor,
    first_decay: float, second_decay: float, eps: float,
    limit: Tensor, threshold: Tensor, bail: Tensor, sums: Tensor, taken: Tensor, R: Tensor | None, loss: int, way: int,
) -> None:  # fmt: skip
    """``matconv_fast::adam_advance``."""
    constants = _adam_constants(first_decay, second_decay, eps, X.device)
    solver = Solver("adam", X, first, second, count, lr, constants)
    _advance(solver, M, Y, Chunk(limit, threshold, bail, sums, taken, R, loss), WAYS[way])


@functools.lru_cache(maxsize=64)
def _step_constants(
    lr: float, momentum: float, batch: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """lr, momentum, a limit of 1, a threshold that nothing meets and no bail, each ``[batch]``."""
    return (
        torch.full((batch,), lr, dtype=dtype, device=device),
        torch.full((batch,), momentum, dtype=dtype, device=device),
        *unstopped(batch, 1, device),
    )


def _captures(t: Tensor) -> bool:
    """Whether a CUDA graph is being captured: what is made then holds nothing until a replay, and may not be cached."""
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def launch_heavy_ball_step_(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor, lr: float, momentum: float, loss: int
) -> Tensor:
    """``matconv_fast::heavy_ball_step_`` on ``[B, m, n]``: an `advance` of one update that does not look after it."""
    batch, m, n = X.shape
    p = Y.shape[2]
    constants = _step_constants.__wrapped__ if _captures(X) else _step_constants
    rate, decay, limit, threshold, bail = constants(lr, momentum, batch, X.dtype, X.device)
    sums = X.new_empty((batch, 2), dtype=torch.float64)
    chunk = Chunk(limit, threshold, bail, sums, torch.empty_like(limit), None, loss)
    way = advance_way(batch, m, n, p, product=M is not None, coupled=True, heavy_ball=True, dtype=Y.dtype)
    _advance(Solver("heavy_ball", X, V, V, sums, rate, decay), M, Y, chunk, way, last=False)
    before = X.new_empty(batch)
    launch_finish_norm(
        sums[:, :1], before, elements=chunk.elements(m, p), how="root" if loss == FRO else "sum"
    )  # fmt: skip
    return before


def _advance(solver: Solver, M: Tensor | None, Y: Tensor, chunk: Chunk, way: str, *, last: bool = True) -> None:
    """``last``: whether the iterate that a problem ends at is looked at."""
    if way == "small":
        launch_small(solver, M, Y, chunk, last=last)
    elif way == "rows":
        assert M is not None
        assert (solver.rule, chunk.loss == FRO) == ("heavy_ball", False)
        launch_rows(solver, M, Y, chunk)
    else:
        _advance_products(solver, M, Y, chunk, fused=way == "tiled", last=last)


def _advance_products(solver: Solver, M: Tensor | None, Y: Tensor, chunk: Chunk, *, fused: bool, last: bool) -> None:
    """Iterate by iterate: residual, what its norm decides, step. ``fused``: our kernels make the products."""
    X = solver.X
    batch, m, n = X.shape
    p = Y.shape[2]
    low_precision = M is not None and Y.dtype != X.dtype
    operand = X.to(Y.dtype) if low_precision else X  # what products read; the step keeps it up to date
    copy = operand if low_precision else None
    R = X.new_empty((batch, m, p), dtype=X.dtype if M is None else Y.dtype) if chunk.R is None else chunk.R
    source, gradient, factor = operand, R, M if fused else None  # what the kernels read; those of cuBLAS otherwise
    by_cublas = M is not None and not fused
    if by_cublas:
        products = X.new_empty(batch * m * max(n, p))
        source = products[: batch * m * p].view(batch, m, p)
        gradient = products[: batch * m * n].view(batch, m, n)
    fro = chunk.loss == FRO
    residual_shape = residual_tile(source, factor, Y, R)
    step_shape = step_tile(gradient, factor, solver, copy, fro=fro)
    partials = new_partials(X, p, residual_shape)
    active = torch.empty(batch, dtype=torch.int32, device=X.device)
    _start_kernel[triton.cdiv(batch, 256),](chunk.limit, active, chunk.taken, batch, BLOCK=256)
    looks = chunk.columns if last else chunk.columns - 1
    for j in range(looks):
        if by_cublas:
            multiply(operand, M, out=source)
        known = chunk.sums if j == 0 and chunk.R is not None else None
        launch_residual(source, factor, Y, R, partials, residual_shape, active=active, known=known)
        _finish_iterate_kernel[batch,](
            partials, chunk.limit, chunk.threshold, chunk.bail, solver.count, active, chunk.taken, chunk.sums,
            partials.shape[1], chunk.columns, j, KEPT=known is not None, COUNTS=solver.rule == "adam",
            BLOCK=min(tiles.padded(partials.shape[1]), 1024), num_warps=4,
        )  # fmt: skip
        if j == chunk.columns - 1:  # the end that is only looked at
            break
        if by_cublas:
            multiply(R, M.mT, out=gradient)
        total, elements = chunk.sums[:, j], chunk.elements(m, p)
        launch_step(gradient, factor, solver, copy, active, total, elements, step_shape, fro=fro)


def multiply(A: Tensor, B: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
    """``out [B, m, n] = A [B, m, k] @ B [B or 1, k, n]``, added to what is there if asked; ``out`` may be wider."""
    if B.shape[0] == 1 and A.shape[0] > 1:
        A, out = A.reshape(1, -1, A.shape[2]), out.view(1, -1, out.shape[2])
    if A.dtype == out.dtype:
        torch.baddbmm(out, A, B, beta=1 if accumulate else 0, out=out)
    elif A.device.type == "cpu":  # only GPUs have products that widen
        torch.baddbmm(out, A.to(out.dtype), B.to(out.dtype), beta=1 if accumulate else 0, out=out)
    else:
        torch.baddbmm(out, A, B, out.dtype, beta=1 if accumulate else 0, out=out)


def launch_finish_chunk(
    sums: Tensor, taken: Tensor, threshold: Tensor, Y_squares: Tensor, bail: Tensor, last: Tensor, best: Tensor,
    updates: Tensor, status: Tensor, again: Tensor, counts: Tensor, *, bail_factor: float, codes: dict[str, int],
) -> None:  # fmt: skip
    """``matconv_fast::finish_chunk``."""
    counts.copy_(_empty_counts(counts.device))
    _finish_chunk_kernel[sums.shape[0],](
        sums, taken, threshold, Y_squares, bail, last, best, updates, status, again, counts,
        sums.shape[1], BAIL_FACTOR=bail_factor, **codes, BLOCK=min(tiles.padded(sums.shape[1]), 256), num_warps=1,
    )  # fmt: skip


@functools.cache
def _empty_counts(device: torch.device) -> Tensor:
    return torch.tensor((0, -1), device=device)
