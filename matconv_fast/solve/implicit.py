"""Gradients of a solve by the implicit function theorem: those of the exact solution.

    X = Y M^T (M M^T)^-1;  with  Z (M M^T) = dX:   dY = Z M,   dM = -X^T (Z M) - Z^T R

They take one QR decomposition of M and no memory for the iterations. M must have full row rank; otherwise X depends on
where the iteration started.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _reference
from .status import Status


def differentiable(M: Tensor | None, Y: Tensor | None, X: Tensor, status: Tensor) -> Tensor:
    """X, as a function of M ``[*, n, p]`` and Y ``[*, m, p]``. None is the identity."""
    if M is not None and M.shape[-2] > M.shape[-1]:
        raise ValueError(
            f"gradients through a solve need M of full row rank, but {_checks.describe(M)} has more rows than columns "
            "(more columns than rows with left=True): many X solve the equation, and which one is found depends on "
            "X0; call solve under torch.no_grad()"
        )
    return _Implicit.apply(M, Y, X, status)


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, M: Tensor | None, Y: Tensor | None, X: Tensor, status: Tensor) -> Tensor:
        X = X.view_as(X)
        ctx.status = status
        ctx.save_for_backward(M, Y, X)
        return X

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        M, Y, X = ctx.saved_tensors
        _warn(ctx.status)
        needs_M, needs_Y = ctx.needs_input_grad[:2]
        if M is None:
            return None, grad, None, None
        M, Y = M.to(X.dtype), None if Y is None else Y.to(X.dtype)
        Q, r = torch.linalg.qr(M.mT)  # M M^T = r^T r, whose condition number is never squared
        r = _checked_rank(r, M, grad)
        T = torch.linalg.solve_triangular(r, grad, upper=True, left=False)
        dY = T @ Q.mT
        if not needs_M:
            return None, dY, None, None
        Z = torch.linalg.solve_triangular(r.mT, T, upper=False, left=False)
        dM = -(X.mT @ dY) - Z.mT @ _reference.residual(X, M, Y)
        return dM, dY if needs_Y else None, None, None


def _warn(status: Tensor) -> None:
    """Warn of problems that were cut short. STAGNATED is final: the rounding floor, or a least-squares minimum."""
    ended = (status == Status.CONVERGED) | (status == Status.STAGNATED) | (status == Status.LEAST_SQUARES)
    missing = int((~ended).sum())
    if missing:
        warnings.warn(
            f"matconv_fast: {missing} of {status.numel()} problems had not converged; the gradient is that of the "
            "exact solution, evaluated at the X that was reached",
            RuntimeWarning, stacklevel=2,
        )  # fmt: skip


def _checked_rank(r: Tensor, M: Tensor, grad: Tensor) -> Tensor:
    """The factor, with the identity for matrices that lack rank but whose solution the gradient does not concern."""
    diagonal = r.detach().diagonal(dim1=-2, dim2=-1).abs()
    if diagonal.numel() == 0:
        return r
    floor = max(M.shape[-2:]) * torch.finfo(r.dtype).eps * diagonal.amax(-1)
    lacking = (diagonal <= floor[..., None]).any(-1)
    concerned = lacking & (grad.detach() != 0).any(-1).any(-1)
    if bool(concerned.any()):
        raise torch.linalg.LinAlgError(  # pyright: ignore[reportPrivateImportUsage]
            f"gradients through a solve need M of full row rank (column rank with left=True), but "
            f"{int(concerned.sum())} of {concerned.numel()} matrices [{M.shape[-2]}, {M.shape[-1]}] lack it"
        )
    if not bool(lacking.any()):
        return r
    eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    return torch.where(lacking[..., None, None], eye, r)
