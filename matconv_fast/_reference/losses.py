"""Losses of the residual ``R = X @ M - Y``, distances, and one heavy-ball step, all differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def residual(X: Tensor, M: Tensor | None, Y: Tensor | None) -> Tensor:
    """``X @ M - Y`` for any batch dimensions; None is the identity."""
    product = X if M is None else X @ M
    if Y is None:
        Y = torch.eye(product.shape[-2], product.shape[-1], dtype=product.dtype, device=product.device)
    return product - Y


def loss_of_sums(sums: Tensor, loss: str, elements: int) -> Tensor:
    """The loss from ``sum(R^2)``; a residual without elements has loss 0."""
    if loss == "mse":
        return sums / max(elements, 1)
    return sums if loss == "sse" else sums.sqrt()


def gradient_scale(loss: str, elements: int) -> float:
    """The factor c of the gradient ``c R M^T``; 1 under ``fro``, whose factor ``1 / ||R||`` depends on the residual."""
    return {"mse": 2 / max(elements, 1), "sse": 2.0, "fro": 1.0}[loss]


def residual_loss(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: str) -> Tensor:
    """One loss per problem, differentiable in every tensor."""
    return loss_of_residual(residual(X, M, Y), loss)


def loss_of_residual(R: Tensor, loss: str) -> Tensor:
    """The loss from the residual."""
    if loss == "fro":
        return torch.linalg.vector_norm(R, dim=(-2, -1))  # its gradient is 0 at R = 0
    return loss_of_sums((R * R).sum((-2, -1)), loss, R.shape[-2] * R.shape[-1])


def loss_gradient(R: Tensor, M: Tensor | None, loss: str) -> Tensor:
    """The gradient of the loss by X, from the residual."""
    R = R * gradient_scale(loss, R.shape[-2] * R.shape[-1])
    if loss == "fro":
        norm = torch.linalg.vector_norm(R, dim=(-2, -1), keepdim=True)
        R = R / torch.where(norm > 0, norm, torch.inf)  # infinity, so that the derivative is 0 at R = 0 as well
    return R if M is None else R @ M.mT


def distance(A: Tensor, B: Tensor, ord: str | int) -> Tensor:  # noqa: A002 - torch.linalg's own name
    """``||A - B||`` over the last two dimensions: Frobenius, largest entry, or sum of absolute entries."""
    D = A - B
    if ord == "fro":  # in float64: the square of 1e-25 underflows float32
        return torch.linalg.vector_norm(D, dim=(-2, -1), dtype=torch.float64).to(D.dtype)
    if ord == 1:
        return D.abs().sum((-2, -1))
    if D.shape[-1] * D.shape[-2] == 0:
        return D.sum((-2, -1))
    return D.abs().amax((-2, -1))


def heavy_ball_step(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: Tensor, momentum: Tensor, loss: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``(X', V', loss before the step)``, differentiable in every tensor."""
    R = residual(X, M, Y)
    V = momentum[..., None, None] * V + loss_gradient(R, M, loss)
    return X - lr[..., None, None] * V, V, loss_of_residual(R, loss)
