"""Problems with a known answer, and the plain loop that a solve must equal."""

from __future__ import annotations

import torch
from torch import Tensor


def well_conditioned(n: int, *batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """``[*batch, n, n]`` with singular values in about 1..5."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(*batch, n, n, generator=generator, dtype=torch.float64)
    return (A @ A.mT / max(n, 1) + torch.eye(n, dtype=torch.float64)).to(dtype)


def plain_heavy_ball(
    X: Tensor, M: Tensor, Y: Tensor, lr: float, momentum: float, iterations: int, loss: str = "mse"
) -> tuple[list[Tensor], list[float]]:
    """Iterates X_0 .. X_K and their ||R||_F by a loop that shares no code with the library."""
    V = torch.zeros_like(X)
    iterates, norms = [X], []
    for _ in range(iterations):
        R = X @ M - Y
        norms.append(R.norm().item())
        if loss == "mse":
            G = 2 / R.numel() * R @ M.T
        elif loss == "sse":
            G = 2 * R @ M.T
        else:
            G = R @ M.T / R.norm()
        V = momentum * V + G
        X = X - lr * V
        iterates.append(X)
    norms.append((X @ M - Y).norm().item())
    return iterates, norms
