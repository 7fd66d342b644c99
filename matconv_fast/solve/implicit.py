"""Gradients of a solve by the implicit function theorem: those of the exact solution.

For n <= p, with ``A = M M^T + ridge I``:

    X = Y M^T A^-1;   with  Z A = dX:   dY = Z M,   dM = -X^T (Z M) - Z^T (X M - Y),   dridge = -<Z, X>

For n > p, the solution nearest to X0, with ``P = M (M^T M)^-1 M^T`` and ``T = (X - X0) M (M^T M)^-1``:

    X = X0 (I - P) + Y (M^T M)^-1 M^T:   dY = dX M (M^T M)^-1,   dM = -X^T dY + (I - P) dX^T T

They take one QR decomposition of M and no memory for the iterations. X is corrected once with that factor before it is
used, so that the gradient is as accurate as the factor, not as the X that met a tolerance. M must have full rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _reference
from .status import Status

# X - X0 may lie outside the columns of an M with n > p by this share, and by rounding. Adam's lies outside by some 0.3.
OUTSIDE, ROUNDING = 1e-2, 1e3


def differentiable(M: Tensor | None, Y: Tensor | None, ridge: float | Tensor, solved: tuple[Tensor, ...]) -> Tensor:
    """X, as a function of M ``[*, n, p]``, Y ``[*, m, p]`` and the ridge.

    Args:
        M: see above; None is the identity.
        Y: see above; None is the identity.
        ridge: a number, or a tensor that broadcasts against the batch.
        solved: X and X0, ``[*, m, n]``, and the status codes ``[*]``.
    """
    X = solved[0]
    if not isinstance(ridge, Tensor) and ridge == 0:
        return _Implicit.apply(M, Y, None, *solved)
    if M is None:
        M = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    return _Implicit.apply(M, Y, torch.as_tensor(ridge, device=X.device), *solved)


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, M: Tensor | None, Y: Tensor | None, ridge: Tensor | None, X: Tensor, X0: Tensor, status: Tensor
    ) -> Tensor:
        X = X.view_as(X)
        ctx.status = status
        wide = M is not None and ridge is None and M.shape[-2] > M.shape[-1]
        ctx.save_for_backward(M, Y, ridge, X, X0 if wide else None)
        return X

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        M, Y, ridge, X, X0 = ctx.saved_tensors
        _warn(ctx.status)
        if M is None:
            return None, grad, None, None, None, None
        # What the correction begins with has no part in its result, or in derivatives of that.
        X, M, Y = X.detach(), M.to(X.dtype), None if Y is None else Y.to(X.dtype)
        ridge = None if ridge is None else ridge.to(X.dtype)
        M, ridge, Y, X, X0 = _without_idle(grad, M, ridge, Y, X, X0)
        needs_M, needs_Y, needs_ridge = ctx.needs_input_grad[:3]
        dM = d_ridge = None
        if X0 is not None:
            dM, dY = _by_columns(grad, M, Y, X, X0)
        else:
            dY, others = _by_rows(grad, M, Y, ridge, X)
            if needs_M or needs_ridge:
                dM, d_ridge = others()
        return dM if needs_M else None, dY if needs_Y else None, d_ridge if needs_ridge else None, None, None, None


def _by_rows(
    grad: Tensor, M: Tensor, Y: Tensor | None, ridge: Tensor | None, X: Tensor
) -> tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]:
    """For n <= p, or with a ridge: the gradient by Y, and a function that makes those by M and the ridge."""
    p = M.shape[-1]
    A = M if ridge is None else _with_ridge(M, ridge)
    Q, r = torch.linalg.qr(A.mT)  # A A^T = r^T r, whose condition number is never squared
    r = _checked_rank(r, M, grad, "row")
    T = torch.linalg.solve_triangular(r, grad, upper=True, left=False)
    dY = (T @ Q.mT)[..., :p]

    def others() -> tuple[Tensor, Tensor]:
        Z = torch.linalg.solve_triangular(r.mT, T, upper=False, left=False)
        R = X @ A
        R = torch.cat([_reference.residual(R[..., :p], None, Y), R[..., p:]], -1)
        to = X - torch.linalg.solve_triangular(r.mT, R @ Q, upper=False, left=False)
        return -(to.mT @ dY) - Z.mT @ _reference.residual(to, M, Y), -(Z * to).sum((-2, -1))

    return dY, others


def _with_ridge(M: Tensor, ridge: Tensor) -> Tensor:
    """``[M, sqrt(ridge) I]``."""
    root = torch.where(ridge > 0, torch.where(ridge > 0, ridge, 1).sqrt(), 0 * ridge)  # finite derivatives at 0
    block = root[..., None, None] * torch.eye(M.shape[-2], dtype=M.dtype, device=M.device)
    batch = torch.broadcast_shapes(M.shape[:-2], ridge.shape)
    return torch.cat([M.expand(*batch, *M.shape[-2:]), block.expand(*batch, *block.shape[-2:])], -1)


def _by_columns(grad: Tensor, M: Tensor, Y: Tensor | None, X: Tensor, X0: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by M and Y for n > p."""
    Q, r = torch.linalg.qr(M)
    r = _checked_rank(r, M, grad, "column")

    def outside(t: Tensor) -> Tensor:
        return t - (t @ Q) @ Q.mT

    def by_pseudo_inverse(t: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(r.mT, t @ Q, upper=False, left=False)

    strayed = outside(X - X0)
    _check_nearest(strayed.detach(), X, X0)
    R = _reference.residual(X, M, Y)
    to = X - strayed - torch.linalg.solve_triangular(r, R, upper=True, left=False) @ Q.mT
    dY = by_pseudo_inverse(grad)
    return outside(grad).mT @ by_pseudo_inverse(to - X0) - to.mT @ dY, dY


def _check_nearest(strayed: Tensor, X: Tensor, X0: Tensor) -> None:
    part, moved, size = (torch.linalg.vector_norm(t, dim=(-2, -1)) for t in (strayed, X - X0, X))
    if bool((part > OUTSIDE * moved + ROUNDING * torch.finfo(X.dtype).eps * (size + moved)).any()):
        raise RuntimeError(
            "M has fewer equations than unknowns, and X is not the solution nearest to X0, so its gradient is not "
            "known: Adam and rules like it find another one; use HeavyBall, LSQR or Refinement"
        )


def _without_idle(grad: Tensor, M: Tensor, ridge: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
    """The tensors without the problems that the gradient does not concern, which may hold NaN or an M without rank.

    Their M becomes the identity, unless a problem shares it that the gradient concerns; the rest becomes 0.
    """
    concerned = (grad.detach() != 0).any(-1).any(-1)
    if concerned.ndim == 0 or (grad.device.type == "cpu" and bool(concerned.all())):
        return M, ridge, *others
    used = concerned.long().sum_to_size(M.shape[:-2]) > 0
    M = torch.where(used[..., None, None], M, torch.eye(*M.shape[-2:], dtype=M.dtype, device=M.device))
    ridge = None if ridge is None else torch.where(concerned, ridge, 0)
    return M, ridge, *(None if t is None else torch.where(concerned[..., None, None], t, 0) for t in others)


def _warn(status: Tensor) -> None:
    """Warn of problems that were cut short. STAGNATED is final: the rounding floor, or a least-squares minimum."""
    ended = (status == Status.CONVERGED) | (status == Status.STAGNATED) | (status == Status.LEAST_SQUARES)
    missing = int((~ended).sum())
    if missing:
        warnings.warn(
            f"matconv_fast: {missing} of {status.numel()} problems had not converged; the gradient is that of the "
            "exact solution, not of the X that was reached",
            RuntimeWarning, stacklevel=2,
        )  # fmt: skip


def _checked_rank(r: Tensor, M: Tensor, grad: Tensor, side: str) -> Tensor:
    """The factor, with the identity for matrices that lack rank but whose solution the gradient does not concern."""
    diagonal = r.detach().diagonal(dim1=-2, dim2=-1).abs()
    if diagonal.numel() == 0:
        return r
    floor = max(M.shape[-2:]) * torch.finfo(r.dtype).eps * diagonal.amax(-1)
    lacking = ~(diagonal > floor[..., None]).all(-1)
    concerned = lacking & (grad.detach() != 0).any(-1).any(-1)
    if bool(concerned.any()):
        other = {"row": "column", "column": "row"}[side]
        raise torch.linalg.LinAlgError(  # pyright: ignore[reportPrivateImportUsage]
            f"gradients through a solve need M of full {side} rank ({other} rank with left=True), but "
            f"{int(concerned.sum())} of {concerned.numel()} matrices [{M.shape[-2]}, {M.shape[-1]}] lack it"
        )
    if not bool(lacking.any()):
        return r
    eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    return torch.where(lacking[..., None, None], eye, r)
