"""Gradient descent with momentum: Polyak's heavy ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks
from .._ops import advance as run_advance
from . import spectrum
from .problem import Problem
from .solver import Chunk, Prepared, Solver, advance_way


@dataclass(frozen=True)
class HeavyBall(Solver):
    """Heavy ball: ``V = momentum V + grad; X = X - lr V`` (Polyak, 1964), as ``torch.optim.SGD(momentum=momentum)``.

    On ``mse`` and ``sse`` it is stable for ``lr < 2 (1 + momentum) / (c s^2)``, with s the largest singular value of M
    and c = ``2 / (m p)`` for mse, 2 for sse.

    Args:
        lr: step size, above 0: a number, a 0-d tensor or one value per problem. None takes half of the stability
            limit (with momentum ``"auto"`` the optimum), from an estimate of s; it needs loss ``mse`` or ``sse``.
        momentum: at least 0 and below 1, likewise; ``"auto"`` takes the one that is optimal for M's largest and
            smallest singular values.
        form: ``"residual"``, two products an iteration. ``"auto"`` chooses; in this version there is the one form.

    Raises:
        TypeError, ValueError: lr, momentum or form are out of range.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> sol = mcf.solve(torch.diag(torch.tensor([1.0, 2.0])), solver=mcf.HeavyBall(lr=0.4, momentum=0.5))
        >>> sol.X.diagonal()
        tensor([1.0000, 0.5000])
    """

    lr: float | Tensor | None = None
    momentum: float | Tensor | str = 0.9
    form: str = "auto"

    def __post_init__(self) -> None:
        if self.lr is not None:
            _checks.hyperparameter("lr", self.lr, above=0)
        if isinstance(self.momentum, str):
            _checks.choice("momentum", self.momentum, ("auto",))
        else:
            _checks.hyperparameter("momentum", self.momentum, minimum=0, below=1)
        _checks.choice("form", self.form, ("auto", "residual"))

    def hyperparameters(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """``(lr, momentum)``, each ``[B]``: as given, estimated or optimal."""
        if (self.lr is None or isinstance(self.momentum, str)) and problem.loss == "fro":
            raise ValueError(
                "lr=None and momentum='auto' need loss='mse' or 'sse': the gradient of 'fro' keeps its length as the "
                "residual falls, so no constant step size suits it; give lr and momentum"
            )
        if isinstance(self.momentum, str):
            return self._optimal(problem)
        momentum = problem.per_problem("momentum", self.momentum)
        if self.lr is not None:
            return problem.per_problem("lr", self.lr), momentum
        curvature = problem.scale * spectrum.largest(problem)
        return _cast(torch.where(curvature > 0, (1 + momentum.double()) / curvature, 1.0), problem), momentum

    def _optimal(self, problem: Problem) -> tuple[Tensor, Tensor]:
        low, high = (problem.scale * value for value in spectrum.extremes(problem))
        if self.lr is None:
            lr = torch.where(high > 0, 4 / (high.sqrt() + low.sqrt()) ** 2, 1.0)
        else:
            lr = problem.per_problem("lr", self.lr).double()
        momentum = (1 - (lr * low).sqrt().clamp(max=1)) ** 2
        return _cast(lr, problem), momentum.to(problem.dtype)

    def prepare(self, problem: Problem) -> Prepared:
        """See `Solver`."""
        lr, momentum = self.hyperparameters(problem)
        way = advance_way(problem, heavy_ball=True)

        def advance(X: Tensor, buffers: tuple[Tensor, ...], chunk: Chunk) -> None:
            start = X, *buffers, problem.M, problem.Y, lr, momentum
            run_advance("heavy_ball", *start, *chunk.arguments, loss=problem.loss, way=way)

        return Prepared.of(problem, way, advance)

    def buffers(self, problem: Problem, X: Tensor) -> tuple[Tensor, ...]:
        """``(V,)``, zeros."""
        return (torch.zeros_like(X),)


def _cast(lr: Tensor, problem: Problem) -> Tensor:
    """To the problem's dtype, within its range: for an M so small or so large that the step size is beyond it."""
    limits = torch.finfo(problem.dtype)
    return lr.clamp(limits.tiny, limits.max).to(problem.dtype)
