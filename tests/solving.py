"""What the tests of solvers that give answers share: random matrices, and statuses by name."""

from __future__ import annotations

import torch

import matconv_fast as mcf


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """Normal numbers, the same ones in every dtype."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def names(solution: mcf.Solution) -> list[str]:
    """The status of each problem."""
    return [mcf.Status(code).name for code in solution.status.reshape(-1).tolist()]
