"""``X @ M = Y`` for a square M by elimination, in one pass over the problems: `direct_solve`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.contract import CONVERGED, FLOOR_SHARE, FLOOR_UNITS, LOSSES, RUNNING, STAGNATED
from .losses import loss_of_sums
from .run import tolerances


def direct_solve(
    M: Tensor, Y: Tensor | None, rtol: float, atol: float, loss: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Solve each problem by Gauss elimination with partial pivoting, and judge X by its residual in float64.

    A problem in float32 is CONVERGED, or else X is the solution in float64 rounded to float32. That X ends as STAGNATED
    where its residual is the rounding of X: ``||R|| <= 16 eps sqrt(n) (||X|| ||M|| + ||Y||)`` and at most a tenth of
    ``||Y||``. All other problems are left RUNNING: M is singular or not finite, X = 0 meets the tolerance, a square
    under- or overflows, or a float64 problem misses its tolerance. Their X, losses and squares mean nothing.

    Args:
        M: ``[1 or B, n, n]``, float32 or float64.
        Y: ``[1 or B, m, n]``, or None for the identity.
        rtol: tolerance of ``||R||`` relative to ``||Y||``.
        atol: absolute tolerance.
        loss: index into `LOSSES`.

    Returns:
        X ``[B, m, n]``; the losses of 0 and of X, ``[B, 2]`` in the dtype of M; ``||R||^2 [B]`` float64; status codes
        ``[B]`` int64; the number of problems left RUNNING, int64.
    """
    n, dtype = M.shape[-1], M.dtype
    wide, wanted = M.double(), torch.eye(n, dtype=torch.float64, device=M.device) if Y is None else Y.double()
    size = torch.broadcast_shapes(wide.shape[:1], wanted.shape[:-2])
    wide, wanted = wide.expand(*size, -1, -1), wanted.expand(*size, *wanted.shape[-2:])
    X = torch.linalg.solve_ex(wide, wanted, left=False).result.to(dtype).contiguous()
    r, y, x, a = (
        torch.linalg.vector_norm(t, dim=(-2, -1), dtype=torch.float64)
        for t in (X.double() @ wide - wanted, wanted, X, M)
    )
    squares, tolerance = r.square(), tolerances(y, rtol, atol)
    judged = (y > 1e-100) & (y < 1e100) & (y > tolerance)
    converged = judged & (squares <= tolerance.square())
    status = torch.where(converged, CONVERGED, RUNNING)
    if dtype == torch.float32:
        floor = FLOOR_UNITS * torch.finfo(dtype).eps * n**0.5 * (x * a + y)
        status = torch.where(~converged & judged & (r <= floor) & (r <= FLOOR_SHARE * y), STAGNATED, status)
    elements = X.shape[-2] * n
    losses = loss_of_sums(torch.stack([y.square(), squares], -1), LOSSES[loss], elements).to(dtype)
    return X, losses, squares, status, (status == RUNNING).sum()
