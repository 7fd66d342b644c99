"""Squared singular values of M, for step sizes and messages."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Problem

# Up to this size an eigendecomposition of the Gram matrix costs less than the iterations that it speeds up.
EXACT_SIZE = 512
POWER_ITERATIONS = 32


def _gram(M: Tensor) -> Tensor:
    """The smaller of ``M M^T`` and ``M^T M``, in float64."""
    M = M.double()
    return M @ M.mT if M.shape[-2] <= M.shape[-1] else M.mT @ M


def extremes(problem: Problem) -> tuple[Tensor, Tensor]:
    """Smallest and largest squared singular value, each ``[B]`` float64.

    The smallest at least at rounding level; both are 0 for a non-finite M.
    """
    ones = torch.ones(problem.size, dtype=torch.float64, device=problem.device)
    if problem.M is None:
        return ones, ones
    if min(problem.n, problem.p) == 0:
        return 0 * ones, 0 * ones
    gram = _gram(problem.M)
    finite = gram.isfinite().all(-1).all(-1)[:, None, None]  # eigvalsh raises for the batch if one problem is not
    squares = torch.linalg.eigvalsh(torch.where(finite, gram, 0))
    high = squares[:, -1].clamp(min=0)
    low = squares[:, 0].clamp(min=0).maximum(high * torch.finfo(problem.dtype).eps ** 2)
    return low.expand(problem.size), high.expand(problem.size)


def largest(problem: Problem) -> Tensor:
    """The largest squared singular value, ``[B]`` float64.

    Exact up to `EXACT_SIZE`; beyond, power iteration from a fixed start, which comes out a few per cent low at worst:
    a step size at half of the stability limit has room for that.
    """
    M = problem.M
    if M is None or min(problem.n, problem.p) <= EXACT_SIZE:
        return extremes(problem)[1]
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(problem.n, 1, generator=generator, dtype=torch.float64, device="cpu")
    M = M.to(problem.dtype)
    v = v.to(problem.device, problem.dtype)
    v = v.expand(M.shape[0], -1, -1)
    square = v.new_zeros(M.shape[0], 1, 1)
    for _ in range(POWER_ITERATIONS):
        w = M @ (M.mT @ v)
        square = torch.linalg.vector_norm(w, dim=1, keepdim=True) / torch.linalg.vector_norm(v, dim=1, keepdim=True)
        v = w / torch.where(square > 0, square, 1)
    return square.reshape(-1).double().expand(problem.size)
