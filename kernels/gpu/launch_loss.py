"""Launchers of the loss with its gradients, and of distances: grids, workspaces, and whether R is held.

The caller has checked the tensors: one batch dimension, and no empty dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from ..contract import LOSSES, ORDS, state_dtype
from . import gemm, gradient_tiles, product_tiles, search
from .block import dtype_of
from .distance import _distance_kernel
from .gradient import launch_row_gradient
from .product_tiles import DistanceTile
from .reduce import launch_finish_norm
from .residual import launch_residual, new_partials, residual_tile

# Most bytes of R that are held at a time: far below a GPU's memory, far above what keeps it busy.
PIECE = 1 << 26


def launch_residual_products(
    X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int,
    R_Mt: Tensor | None, Xt_R: Tensor | None, R: Tensor | None,
) -> Tensor:  # fmt: skip
    """The loss of each problem, and of ``R M^T``, ``X^T R`` and ``R = X M - Y`` those that are given, filled.

    X ``[B, m, n]``, M ``[B, n, p]``, Y ``[B, m, p]`` contiguous and of one dtype; R ``[B, m, p]`` of that dtype too;
    ``R_Mt [B, m, n]`` and ``Xt_R [B, n, p]`` float32, or float64 for float64.
    """
    batch, m, n = X.shape
    p = n if M is None else M.shape[2]
    wanted = (R_Mt is not None) + (Xt_R is not None)
    if R is None and M is not None and wanted and gradient_tiles.recomputes(batch, m, n, p, wanted, M.dtype):
        partials = _recomputed(X, M, Y, R_Mt, Xt_R)
    elif R is None and M is not None and wanted:
        partials = _held_in_pieces(X, M, Y, R_Mt, Xt_R)
    else:
        partials = _residual(X, M, Y, R if R is not None or R_Mt is None else R_Mt)
        held = R if R is not None else R_Mt
        if M is not None and R_Mt is not None and held is not None:
            gemm.multiply(held, M.mT, out=R_Mt)
        elif R_Mt is not None and held is not None and held is not R_Mt:
            R_Mt.copy_(held)
        if Xt_R is not None and held is not None:
            gemm.multiply(X.mT, held, out=Xt_R)
    out, name = X.new_empty(batch, dtype=state_dtype(X.dtype)), LOSSES[loss]
    launch_finish_norm(partials, out, elements=m * p if name == "mse" else 1, how="root" if name == "fro" else "sum")
    return out


def _residual(X: Tensor, M: Tensor | None, Y: Tensor | None, R: Tensor | None) -> Tensor:
    """Partial sums of squares ``[B, tiles]``; R is filled unless it is None."""
    tile = residual_tile(X, M, Y, R)
    partials = new_partials(X, X.shape[2] if M is None else M.shape[2], tile)
    launch_residual(X, M, Y, R, partials, tile)
    return partials


def _recomputed(X: Tensor, M: Tensor, Y: Tensor | None, R_Mt: Tensor | None, Xt_R: Tensor | None) -> Tensor:
    """R is computed once for each gradient, and never held."""
    partials = None
    if R_Mt is not None:
        partials = launch_row_gradient(X, M, Y, R_Mt)
    if Xt_R is not None:  # of M^T X^T = Y^T, with the identity its own transpose
        transposed = launch_row_gradient(M.mT, X.mT, None if Y is None else Y.mT, Xt_R.mT)
        partials = transposed if partials is None else partials
    assert partials is not None
    return partials


def _held_in_pieces(X: Tensor, M: Tensor, Y: Tensor | None, R_Mt: Tensor | None, Xt_R: Tensor | None) -> Tensor:
    """Some rows of R are held at a time, in the dtype in which they are multiplied."""
    batch, m, _ = X.shape
    p = M.shape[2]
    most = max(128, PIECE // (p * X.element_size()) // 128 * 128)
    partials = []
    for b in range(batch):  # a slice of rows is contiguous within a problem
        for start in range(0, m, most):
            rows = slice(start, min(start + most, m))
            x = X[b : b + 1, rows]
            R = x.new_empty(1, x.shape[1], p)
            if Y is None:
                y = torch.eye(m, p, dtype=X.dtype, device=X.device)[None, rows] if start else None
            else:
                y = Y[b : b + 1, rows]
            partials.append(_residual(x, M[b : b + 1], y, R).view(-1))
            if R_Mt is not None:
                gemm.multiply(R, M[b : b + 1].mT, out=R_Mt[b : b + 1, rows])
            if Xt_R is not None:
                gemm.multiply(x.mT, R, out=Xt_R[b : b + 1], accumulate=start > 0)
    return torch.cat(partials).view(batch, -1)


def launch_distance(A: Tensor, B: Tensor, ord: int) -> Tensor:  # noqa: A002 - torch.linalg's own name
    """``||A - B||`` of ``[B, m, n]``, any strides; ``ord`` indexes `ORDS`."""
    key = *A.shape, A.stride(), B.stride(), A.dtype, B.dtype, ord

    def trial() -> Callable[[DistanceTile], Tensor]:
        return lambda tile: _distances(A, B, ord, tile)

    tile = search.best(_distance_kernel, product_tiles.distance(A.shape[2]), key, trial)
    partials = _distances(A, B, ord, tile)
    out = A.new_empty(A.shape[0], dtype=state_dtype(A.dtype))
    launch_finish_norm(partials, out, elements=1, how={"fro": "root", "max": "max", 1: "sum"}[ORDS[ord]])
    return out


def _distances(A: Tensor, B: Tensor, ord: int, tile: DistanceTile) -> Tensor:  # noqa: A002
    """Partial results ``[batch, blocks]``."""
    batch, m, n = A.shape
    blocks = triton.cdiv(m, tile.BM) * triton.cdiv(n, tile.SPAN)
    partials = A.new_empty((batch, blocks), dtype=torch.float64)
    _distance_kernel[batch * blocks,](
        A, B, partials, (m, n), (A.stride(), B.stride()), tile.constants,
        ORD=str(ORDS[ord]), T=dtype_of(state_dtype(A.dtype)), num_warps=tile.warps,
    )  # fmt: skip
    return partials
