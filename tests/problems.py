"""Problems with a known answer, and the plain loops that a solve must equal."""

from __future__ import annotations

import torch
from torch import Tensor


def well_conditioned(n: int, *batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """``[*batch, n, n]`` with singular values in about 1..5."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(*batch, n, n, generator=generator, dtype=torch.float64)
    return (A @ A.mT / max(n, 1) + torch.eye(n, dtype=torch.float64)).to(dtype)


def small(n: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """M and X0, ``[n, n]``."""
    return well_conditioned(n, dtype=dtype), torch.rand(n, n, generator=torch.Generator().manual_seed(1)).to(dtype)


def plain_gradient(R: Tensor, M: Tensor, loss: str) -> Tensor:
    """The gradient of the loss by X; 0 at R = 0 and for a residual without elements."""
    if loss == "fro":
        return R @ M.T / (R.norm() if R.norm() > 0 else 1)
    return 2 / (max(R.numel(), 1) if loss == "mse" else 1) * R @ M.T


def plain_heavy_ball(
    X: Tensor, M: Tensor, Y: Tensor, lr: float, momentum: float, iterations: int, loss: str = "mse"
) -> tuple[list[Tensor], list[float]]:
    """Iterates X_0 .. X_K and their ||R||_F by a loop that shares no code with the library."""
    V = torch.zeros_like(X)
    iterates, norms = [X], []
    for _ in range(iterations):
        R = X @ M - Y
        norms.append(R.norm().item())
        V = momentum * V + plain_gradient(R, M, loss)
        X = X - lr * V
        iterates.append(X)
    norms.append((X @ M - Y).norm().item())
    return iterates, norms


def plain_adam(
    X: Tensor, M: Tensor, Y: Tensor, lr: float, b1: float, b2: float, eps: float, iterations: int, loss: str = "mse"
) -> tuple[list[Tensor], list[float]]:
    """As `plain_heavy_ball`, by ``torch.optim.Adam``."""
    variable = X.clone().requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=lr, betas=(b1, b2), eps=eps)
    iterates, norms = [X], []
    for _ in range(iterations):
        R = iterates[-1] @ M - Y
        norms.append(R.norm().item())
        variable.grad = plain_gradient(R, M, loss)
        optimizer.step()
        iterates.append(variable.detach().clone())
    norms.append((iterates[-1] @ M - Y).norm().item())
    return iterates, norms
