"""Adam, for losses whose gradient does not shrink with the residual.

first  = b1 first + (1 - b1) G
second = b2 second + (1 - b2) G^2
X = X - lr (first / (1 - b1^step)) / (sqrt(second / (1 - b2^step)) + eps)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks
from .._ops import register_rule
from ..problem import Problem
from .gradient_rule import GradientRule, like


@dataclass(frozen=True)
class Adam(GradientRule):
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

    @property
    def kernel_rule(self) -> str:
        """See `GradientRule`."""
        return "adam"

    def init(self, problem: Problem, X: Tensor) -> tuple[Tensor, ...]:
        """``(first moment, second moment)``, zeros."""
        return torch.zeros_like(X), torch.zeros_like(X)

    def update(
        self, X: Tensor, state: tuple[Tensor, ...], G: Tensor, step: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `GradientRule`. The bias corrections are moved to lr and eps, and computed in float64."""
        (first, second), (b1, b2) = state, self.betas
        rest1, decay2, rest2 = like(X, 1 - b1, b2, 1 - b2)
        first = first + rest1 * (G - first)
        second = decay2 * second + rest2 * G * G
        root = (1 - b2**step).sqrt()
        rate, eps = like(X, self.lr * root / (1 - b1**step), self.eps * root)
        return X - rate * first / (second.sqrt() + eps), (first, second)

    def bind(self, hyper: Tensor) -> Adam:
        """See `GradientRule`."""
        lr, b1, b2, eps = hyper
        return self._with(lr=lr, betas=(b1, b2), eps=eps)

    def hyperparameters(self, problem: Problem) -> tuple[float | Tensor, ...]:
        """``(lr, b1, b2, eps)``, numbers, or ``[B]`` for an lr per problem."""
        return problem.per_problem("lr", self.lr), *self.betas, self.eps


register_rule("adam", lambda hyper: Adam().bind(hyper[:, :, None, None]).update)
