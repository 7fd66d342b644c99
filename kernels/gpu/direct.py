"""``X @ M = Y`` for a small square M by elimination, many problems a program: as the reference's ``direct_solve``.

``M^T X^T = Y^T`` is solved by Gauss-Jordan elimination with partial pivoting in float64; the residual of the X that is
stored, rounded to its own dtype, decides. Rows and columns are taken by masked sums: a block has no index of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import contract

_RUNNING = tl.constexpr(contract.RUNNING)
_CONVERGED = tl.constexpr(contract.CONVERGED)
_STAGNATED = tl.constexpr(contract.STAGNATED)
_FLOOR_SHARE = tl.constexpr(contract.FLOOR_SHARE)

# The largest n and m; elements of M that a program of one warp holds: 8 a thread in float64 need 80 registers.
MOST, ELEMENTS = 16, 256


@triton.jit
def _row(block, k):
    """Row ``k [P]`` of each matrix of a block ``[P, N, C]``, as ``[P, C]``."""
    i = tl.arange(0, block.shape[1])
    return tl.sum(tl.where(i[None, :, None] == k[:, None, None], block, 0.0), axis=1)


@triton.jit
def _swapped(block, k, pivot):
    """With rows ``k [P]`` and ``pivot [P]`` of each matrix swapped, and the row that is k then."""
    i = tl.arange(0, block.shape[1])[None, :, None]
    upper, lower = _row(block, k), _row(block, pivot)
    block = tl.where(i == pivot[:, None, None], upper[:, None, :], block)
    return tl.where(i == k[:, None, None], lower[:, None, :], block), lower


@triton.jit(do_not_specialize=["batch"])
def _direct_solve_kernel(
    M, Y, found, RUNNING_COUNT, batch, sizes, rtol: tl.float64, atol: tl.float64, floor: tl.float64,
    LOSS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Program i solves the problems ``[i P, (i + 1) P)``.

    M ``[1 or batch, n, n]``, Y ``[1 or batch, m, n]`` or None for the identity.
    found: X ``[batch, m, n]``, LOSSES ``[batch, 2]``, SQUARES and STATUS ``[batch]``. RUNNING_COUNT: 0 before.
    sizes: m, n, and the elements from one M, and one Y, to the next. N, R: powers of two that hold n and m.
    """
    X, LOSSES, SQUARES, STATUS = found
    m, n, M_step, Y_step = sizes
    b = tl.program_id(0) * P + tl.arange(0, P)
    inside = b < batch
    b = tl.where(inside, b, 0).to(tl.int64)
    i = tl.arange(0, N)[None, :, None]
    j = tl.arange(0, N)[None, None, :]
    r = tl.arange(0, R)[None, None, :]
    M += b[:, None, None] * M_step
    a = tl.load(M + j * n + i, mask=(i < n) & (j < n), other=0.0).to(tl.float64)  # M^T
    a_squares = tl.sum(tl.sum(a * a, axis=2), axis=1)
    if Y is None:
        y = tl.where((i == r) & (i < n), 1.0, 0.0).to(tl.float64) + tl.zeros((P, N, R), tl.float64)
    else:
        Y += b[:, None, None] * Y_step
        y = tl.load(Y + r * n + i, mask=(i < n) & (r < m), other=0.0).to(tl.float64)  # Y^T
    y_squares = tl.sum(tl.sum(y * y, axis=2), axis=1)

    z = y
    row = tl.arange(0, N)[None, :]
    for step in tl.range(0, n):
        k = tl.full((P,), step, tl.int32)
        column = tl.sum(tl.where(j == step, a, 0.0), axis=2)
        pivot = tl.argmax(tl.where((row >= step) & (row < n), tl.abs(column), -1.0), axis=1).to(tl.int32)
        a, a_row = _swapped(a, k, pivot)
        z, z_row = _swapped(z, k, pivot)
        scale = 1.0 / tl.sum(tl.where(row == step, a_row, 0.0), axis=1)[:, None]
        a_row *= scale
        z_row *= scale
        factor = tl.where(row == step, 0.0, tl.sum(tl.where(j == step, a, 0.0), axis=2))[:, :, None]
        a = tl.where(i == step, a_row[:, None, :], a - factor * a_row[:, None, :])
        z = tl.where(i == step, z_row[:, None, :], z - factor * z_row[:, None, :])

    x = z.to(X.dtype.element_ty)
    tl.store(
        X + b[:, None, None] * (m * n) + r * n + i, x, mask=(i < n) & (r < m) & inside[:, None, None]
    )  # fmt: skip
    x = x.to(tl.float64)
    residual = -y
    for q in tl.range(0, n):
        m_row = tl.load(M + q * n + i, mask=i < n, other=0.0).to(tl.float64)  # [P, N, 1]
        residual += m_row * _row(x, tl.full((P,), q, tl.int32))[:, None, :]
    squares = tl.sum(tl.sum(residual * residual, axis=2), axis=1)
    x_squares = tl.sum(tl.sum(x * x, axis=2), axis=1)

    y_norm, r_norm = tl.sqrt(y_squares), tl.sqrt(squares)
    tolerance = tl.maximum(rtol * y_norm, atol)
    judged = (y_norm > 1e-100) & (y_norm < 1e100) & (y_norm > tolerance)
    at_floor = (r_norm <= floor * (tl.sqrt(x_squares) * tl.sqrt(a_squares) + y_norm)) & (floor > 0)
    stagnated = judged & at_floor & (r_norm <= y_norm * _FLOOR_SHARE)
    code = tl.where(stagnated, _STAGNATED, _RUNNING)
    code = tl.where(judged & (squares <= tolerance * tolerance), _CONVERGED, code).to(tl.int64)
    if LOSS == "fro":
        y_loss, r_loss = y_norm, r_norm
    else:
        elements = tl.cast(m * n if LOSS == "mse" else 1, tl.float64)
        y_loss, r_loss = y_squares / elements, squares / elements
    tl.store(LOSSES + 2 * b, y_loss.to(LOSSES.dtype.element_ty), mask=inside)
    tl.store(LOSSES + 2 * b + 1, r_loss.to(LOSSES.dtype.element_ty), mask=inside)
    tl.store(SQUARES + b, squares, mask=inside)
    tl.store(STATUS + b, code, mask=inside)
    tl.atomic_add(RUNNING_COUNT, tl.sum(tl.where(inside & (code == _RUNNING), 1, 0).to(tl.int64)))


def launch_direct_solve(
    M: Tensor, Y: Tensor | None, rtol: float, atol: float, loss: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``matconv_fast::direct_solve``, for n and m up to `MOST`."""
    n = M.shape[2]
    m, batch = (n, M.shape[0]) if Y is None else (Y.shape[1], max(M.shape[0], Y.shape[0]))
    X, losses = M.new_empty(batch, m, n), M.new_empty(batch, 2)
    squares, status = M.new_empty(batch, dtype=torch.float64), M.new_empty(batch, dtype=torch.int64)
    running = torch.zeros((), dtype=torch.int64, device=M.device)
    N, R = (max(2, triton.next_power_of_2(size)) for size in (n, m))
    P = max(1, ELEMENTS // (N * max(N, R)))
    floor = contract.FLOOR_UNITS * torch.finfo(M.dtype).eps * n**0.5 if M.dtype == torch.float32 else 0.0
    steps = (0 if M.shape[0] == 1 else n * n), (0 if Y is None or Y.shape[0] == 1 else m * n)
    _direct_solve_kernel[triton.cdiv(batch, P),](
        M.contiguous(), None if Y is None else Y.contiguous(), (X, losses, squares, status), running, batch,
        (m, n, *steps), rtol, atol, floor, LOSS=contract.LOSSES[loss], P=P, N=N, R=R, num_warps=1,
    )  # fmt: skip
    return X, losses, squares, status, running
