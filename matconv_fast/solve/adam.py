"""Adam, for losses whose gradient does not shrink with the residual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks
from .._ops import advance as run_advance
from .problem import Problem
from .solver import Chunk, Prepared, Solver, advance_way


@dataclass(frozen=True)
class Adam(Solver):
    """Adam with bias correction (Kingma and Ba, 2015), as ``torch.optim.Adam``.

    Args:
        lr: step size, above 0: a number, a 0-d tensor or one value per problem.
        betas: decay of the first and of the second moment, each at least 0 and below 1.
        eps: added to the root of the second moment, at least 0.

    Raises:
        TypeError, ValueError: a hyperparameter is out of range.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> B = torch.ones(2, 2)
        >>> sol = mcf.solve(None, B, torch.zeros(2, 2), solver=mcf.Adam(lr=0.1), atol=1e-3, rtol=0.0, max_iters=500)
        >>> bool(sol.converged)
        True
    """

    lr: float | Tensor = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _checks.hyperparameter("lr", self.lr, above=0)
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, got {self.betas!r}")
        for index, beta in enumerate(self.betas):
            _checks.number(f"betas[{index}]", beta, minimum=0, below=1)
        _checks.number("eps", self.eps, minimum=0)

    def prepare(self, problem: Problem) -> Prepared:
        """See `Solver`."""
        lr = problem.per_problem("lr", self.lr)
        way = advance_way(problem, heavy_ball=False)

        def advance(X: Tensor, buffers: tuple[Tensor, ...], chunk: Chunk) -> None:
            start = X, *buffers, problem.M, problem.Y, lr, *self.betas, self.eps
            run_advance("adam", *start, *chunk.arguments, loss=problem.loss, way=way)

        return Prepared.of(problem, way, advance)

    def buffers(self, problem: Problem, X: Tensor) -> tuple[Tensor, ...]:
        """``(first moment, second moment, updates made)``, zeros."""
        count = torch.zeros(problem.size, dtype=torch.float64, device=problem.device)
        return torch.zeros_like(X), torch.zeros_like(X), count
