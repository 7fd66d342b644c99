"""The cases of the workload Aill: equations that solvers get wrong, and what float64 says of an answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import matconv_fast as mcf

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
RTOL = {torch.float32: 1e-5, torch.float64: 1e-10}  # what solve() takes


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_condition(n: int, p: int, kappa: float) -> Tensor:
    """Singular values from 1 to 1 / kappa, at equal ratios."""
    r = min(n, p)
    U, V = torch.linalg.qr(_random(n, r, seed=1))[0], torch.linalg.qr(_random(p, r, seed=2))[0]
    return (U * torch.logspace(0, -math.log10(kappa), r, dtype=torch.float64)) @ V.mT


def hilbert(n: int) -> Tensor:
    i = torch.arange(n, dtype=torch.float64)
    return 1 / (i[:, None] + i + 1)


def pascal(n: int) -> Tensor:
    return torch.tensor([[float(math.comb(i + j, i)) for j in range(n)] for i in range(n)], dtype=torch.float64)


def toeplitz(n: int) -> Tensor:
    i = torch.arange(n, dtype=torch.float64)
    return 0.9 ** (i[:, None] - i).abs() + 0.1 * (i[:, None] < i)


def poisson(n: int) -> Tensor:
    one = torch.ones(n - 1, dtype=torch.float64)
    return 2 * torch.eye(n, dtype=torch.float64) - torch.diag(one, 1) - torch.diag(one, -1)


def poisson_2d(n: int) -> Tensor:
    eye = torch.eye(n, dtype=torch.float64)
    return torch.kron(poisson(n), eye) + torch.kron(eye, poisson(n))


def _scaled(rows: bool) -> Tensor:
    scale = torch.logspace(0, -6, 12, dtype=torch.float64)
    M = _random(12, 12, seed=3) + 4 * torch.eye(12, dtype=torch.float64)
    return scale[:, None] * M if rows else M * scale


# By name, M in float64; a rank-deficient one has integer entries, so that it is so in every dtype.
CASES: dict[str, Callable[[], Tensor]] = {
    **{f"kappa 1e{k} {n}x{p}": lambda n=n, p=p, k=k: with_condition(n, p, 10.0**k)
       for k in (2, 3, 4, 5, 6) for n, p in ((16, 16), (8, 40), (40, 8))},
    **{f"kappa 1e{k} 4x200": lambda k=k: with_condition(4, 200, 10.0**k) for k in (2, 4, 6)},
    **{f"hilbert {n}": lambda n=n: hilbert(n) for n in range(4, 11)},
    "pascal 8": lambda: pascal(8),
    "toeplitz 24": lambda: toeplitz(24),
    "poisson 40": lambda: poisson(40),
    "poisson 7x7": lambda: poisson_2d(7),
    "rank 5 of 8": lambda: (_random(8, 5, seed=4) * 3).round() @ (_random(5, 8, seed=5) * 3).round(),
    "rank 3 of 4x30": lambda: (_random(4, 3, seed=4) * 3).round() @ (_random(3, 30, seed=5) * 3).round(),
    "rank 3 of 30x4": lambda: (_random(30, 3, seed=4) * 3).round() @ (_random(3, 4, seed=5) * 3).round(),
    "symmetric rank 5 of 8": lambda: (lambda A: A @ A.mT)((_random(8, 5, seed=6) * 3).round()),
    "zero": lambda: torch.zeros(4, 4, dtype=torch.float64),
    "rows scaled 1e6": lambda: _scaled(rows=True),
    "columns scaled 1e6": lambda: _scaled(rows=False),
    "tall rows scaled": lambda: with_condition(6, 50, 10) * torch.logspace(0, -6, 6, dtype=torch.float64)[:, None],
}  # fmt: skip


def right_hand_sides(M: Tensor) -> dict[str, Tensor]:
    """One with a solution, and one that is random."""
    n, p = M.shape
    return {"consistent": _random(3, n, seed=7) @ M, "random": _random(3, p, seed=8)}


def lstsq(M: Tensor, Y: Tensor) -> Tensor:
    """The minimum-norm least-squares solution, by torch.linalg.lstsq, in the dtype of M."""
    return torch.linalg.lstsq(M.mT, Y.mT, driver="gelsd").solution.mT


def residual(X: Tensor, M: Tensor, Y: Tensor) -> Tensor:
    """In float64."""
    return torch.linalg.matrix_norm(X.double() @ M.double() - Y.double())


def refuted(solution: mcf.Solution, M: Tensor, Y: Tensor, rtol: float | None = None) -> str:
    """Why float64 disagrees with a single problem's status; empty if it does not."""
    status = mcf.Status(int(solution.status))
    R = solution.X.double() @ M.double() - Y.double()
    r = float(torch.linalg.matrix_norm(R))
    tolerance = (RTOL[M.dtype] if rtol is None else rtol) * float(Y.double().norm())
    if status is mcf.Status.CONVERGED and r > tolerance * (1 + 1e-6):
        return f"CONVERGED at {r:.3g}, above {tolerance:.3g}"
    if status is mcf.Status.LEAST_SQUARES:
        least = float(residual(lstsq(M.double(), Y.double()), M, Y))
        slope = float(torch.linalg.matrix_norm(R @ M.double().mT) / torch.linalg.matrix_norm(M.double()))
        size = float(solution.X.double().norm() * M.double().norm())
        if r > 1.01 * least + 1e-12 * float(Y.double().norm()):
            return f"LEAST_SQUARES at {r:.6g}, but {least:.6g} is possible"
        if slope > 33 * EPS[M.dtype] * (r + size):
            return f"LEAST_SQUARES at ||R M^T|| / (||R|| ||M||) = {slope / r:.3g}"
    return ""


def condition(M: Tensor) -> float:
    s = torch.linalg.svdvals(M.double())
    return float(s[0] / s[-1]) if s[-1] > 0 else math.inf
