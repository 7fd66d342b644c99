"""Squared singular values of M, for step sizes and messages."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Problem

# Up to this size the eigenvalues of a Gram matrix take 0.3 ms and at most a tenth of 200 iterations; `LANCZOS_STEPS`
# take 2 ms, and for 512 problems of 64 x 64 a quarter of the time.
EXACT_SIZE = 64
LANCZOS_STEPS = 12

# Where the largest eigenvalues lie close together, the Ritz value can agree with a smaller one of them. For 2,900
# matrices of 12 spectra, 65 to 1,000 square, the bound by its residual alone was at worst 1.7 % low.
MARGIN = 1.05


def _scaled(problem: Problem) -> tuple[Tensor, Tensor]:
    """M in float64 over its largest entry, 0 where it is not finite; and that entry, ``[1 or B]``."""
    assert problem.M is not None
    M = problem.M.double()
    finite = M.isfinite().all(-1).all(-1)[:, None, None]  # an eigensolver raises for the batch if one problem is not
    M = torch.where(finite, M, 0)
    unit = M.abs().amax((-2, -1), keepdim=True)
    return M / torch.where(unit > 0, unit, 1), unit[:, 0, 0]


def _squares(problem: Problem) -> tuple[Tensor, Tensor]:
    """All squared singular values over that of the largest entry, ascending; and the square of that entry."""
    M, unit = _scaled(problem)
    gram = M @ M.mT if M.shape[-2] <= M.shape[-1] else M.mT @ M
    return torch.linalg.eigvalsh(gram).clamp(min=0), unit.square()


def extremes(problem: Problem) -> tuple[Tensor, Tensor]:
    """Smallest nonzero and largest squared singular value, each ``[B]`` float64.

    A singular value counts as 0 within rounding of the largest, in the dtype of X. Both are 0 for an M that is 0 or not
    finite.
    """
    if problem.M is None or min(problem.n, problem.p) == 0:
        return _trivial(problem)
    squares, unit = _squares(problem)
    high, longer = squares[:, -1], max(problem.n, problem.p)
    zero = max((longer * torch.finfo(problem.dtype).eps) ** 2, longer * torch.finfo(torch.float64).eps)
    low = torch.where(squares > zero * high[:, None], squares, torch.inf).amin(1)
    low = torch.where(low.isfinite(), low, 0)
    return (low * unit).expand(problem.size), (high * unit).expand(problem.size)


def largest(problem: Problem, exact_size: int = EXACT_SIZE) -> tuple[Tensor, Tensor]:
    """A lower and an upper bound of the largest squared singular value, each ``[B]`` float64.

    Equal up to ``exact_size`` rows or columns. Beyond, they come from Lanczos steps on the Gram matrix from one fixed
    start. The largest Ritz value is below the largest eigenvalue, and within the norm of its residual of an eigenvalue
    (Parlett, The Symmetric Eigenvalue Problem, 1980); `MARGIN` allows for that one not being the largest.
    """
    if problem.M is None or min(problem.n, problem.p) == 0:
        return _trivial(problem)
    if min(problem.n, problem.p) <= exact_size:
        squares, unit = _squares(problem)
        low = high = squares[:, -1]
    else:
        low, high, unit = _lanczos(problem)
    return (low * unit).expand(problem.size), (high * unit).expand(problem.size)


def _lanczos(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of the largest eigenvalue of ``M M^T`` over the square of the largest entry of M; and that square."""
    assert problem.M is not None
    M = problem.M.to(problem.dtype)
    unit = M.abs().amax((-2, -1), keepdim=True)
    unit = torch.where(unit.isfinite() & (unit > 0), unit, 1)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, 1, problem.n, generator=generator, dtype=torch.float64, device="cpu")
    v = (start / start.norm()).to(M.device, M.dtype).expand(M.shape[0], -1, -1)
    before, beta, T = torch.zeros_like(v), torch.zeros_like(unit), M.new_zeros(M.shape[0], LANCZOS_STEPS, LANCZOS_STEPS)
    for j in range(LANCZOS_STEPS):
        w = (v / unit @ M) / unit @ M.mT - beta * before
        alpha = w @ v.mT
        w = w - alpha * v
        beta = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        T[:, j, j] = alpha[:, 0, 0]
        if j + 1 < LANCZOS_STEPS:
            T[:, j, j + 1] = T[:, j + 1, j] = beta[:, 0, 0]
        before, v = v, w / torch.where(beta > 0, beta, 1)
    finite = T.isfinite().all(-1).all(-1) & beta[:, 0, 0].isfinite()
    T = torch.where(finite[:, None, None], T, 0).double()
    values, vectors = torch.linalg.eigh(T)
    low = values[:, -1].clamp(min=0)
    error = torch.where(finite, beta[:, 0, 0], 0) * vectors[:, -1, -1].abs()
    rounding = 64 * torch.finfo(M.dtype).eps
    return low * (1 - rounding), (low + error) * MARGIN, unit[:, 0, 0].double().square()


def _trivial(problem: Problem) -> tuple[Tensor, Tensor]:
    """Those of the identity, or of an M without entries."""
    value = torch.ones(problem.size, dtype=torch.float64, device=problem.device)
    value = value if problem.M is None else 0 * value
    return value, value
