"""Gradient descent with momentum: Polyak's heavy ball, and Nesterov's variant.

V = momentum V + G
X = X - lr V                    (heavy ball)
X = X - lr (G + momentum V)     (Nesterov)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._ops import register_rule
from ..kernels.contract import NONFINITE
from ..problem import Problem
from . import spectrum
from .gradient_rule import GradientRule, like
from .solver import Ending

# The share of the fastest stable lr that momentum="auto" takes where M is ill-conditioned. At that lr itself, rounding
# is amplified kappa times: from condition 50 on, hardly a float32 problem converged. At a share s, ||R|| rises at most
# 1 / sqrt(1 - s) times, here twice, and the iterations grow by 1 / sqrt(s), 15 %.
LR_SHARE = 0.75
# The largest condition number that it makes momentum for: beyond, 10,000 iterations do not reach 1e-10, and momentum
# for all of M would keep the directions that do converge from it.
MOST_CONDITION = 1_000
# Up to this size a message may take an eigenvalue decomposition.
MOST_EXACT = 512


@dataclass(frozen=True)
class HeavyBall(GradientRule):
    """Heavy ball: ``V = momentum V + G; X = X - lr V`` (Polyak, 1964), as ``torch.optim.SGD(momentum=momentum)``.

    With ``nesterov=True``: ``X = X - lr (G + momentum V)`` (Nesterov, 1983; Sutskever et al., 2013), as
    ``torch.optim.SGD(momentum=momentum, nesterov=True)``.

    Under ``mse`` and ``sse`` it is stable for ``lr < 2 (1 + momentum) / (c s^2)``, where s is the largest singular
    value of M and c is ``2 / (m p)`` for mse, 2 for sse. With ``nesterov=True`` that limit is divided by
    ``1 + 2 momentum``.

    Args:
        lr: step size, above 0: a number, a 0-d tensor or one value per problem. None estimates s, never below its
            value, by 12 Lanczos steps (exactly for M of up to 64 rows or columns), and takes half of the stability
            limit; this needs loss ``mse`` or ``sse``. An X0 that meets the tolerance makes no estimate.
        momentum: at least 0 and below 1, likewise. ``"auto"`` takes an eigenvalue decomposition of ``M M^T`` or
            ``M^T M``, and from it the optimum for M's largest and smallest nonzero singular values, the latter at
            least 1/1,000 of the former. With ``lr=None`` it takes 75 % of the optimal lr, which makes 15 % more
            iterations and keeps rounding from growing.
        nesterov: take Nesterov's update, which needs an lr and a momentum.
        form: ``"residual"``, two products an iteration, is the one form of this version; ``"auto"`` chooses it.

    Raises:
        TypeError, ValueError: lr, momentum or form are out of range, or ``nesterov=True`` lacks an lr or a momentum.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> sol = mcf.solve(torch.diag(torch.tensor([1.0, 2.0])), solver=mcf.HeavyBall(lr=0.4, momentum=0.5))
        >>> sol.X.diagonal()
        tensor([1.0000, 0.5000])
    """

    lr: float | Tensor | None = None
    momentum: float | Tensor | str = 0.9
    form: str = "auto"
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.lr is not None:
            _checks.hyperparameter("lr", self.lr, above=0)
        if isinstance(self.momentum, str):
            _checks.choice("momentum", self.momentum, ("auto",))
        else:
            _checks.hyperparameter("momentum", self.momentum, minimum=0, below=1)
        _checks.choice("form", self.form, ("auto", "residual"))
        if self.nesterov and (self.lr is None or isinstance(self.momentum, str)):
            raise ValueError(
                f"nesterov=True needs an lr and a momentum, got lr={self.lr!r} and momentum={self.momentum!r}: the "
                "estimates are those of the heavy ball"
            )

    @property
    def kernel_rule(self) -> str:
        """See `GradientRule`."""
        return "nesterov" if self.nesterov else "heavy_ball"

    def init(self, problem: Problem, X: Tensor) -> tuple[Tensor, ...]:
        """``(V,)``, zeros."""
        return (torch.zeros_like(X),)

    def update(
        self, X: Tensor, state: tuple[Tensor, ...], G: Tensor, step: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `GradientRule`."""
        lr, momentum = like(X, self.lr, self.momentum)  # type: ignore[arg-type]
        V = momentum * state[0] + G
        return X - lr * (G + momentum * V if self.nesterov else V), (V,)

    def bind(self, hyper: Tensor) -> HeavyBall:
        """See `GradientRule`."""
        lr, momentum = hyper
        return self._with(lr=lr, momentum=momentum)

    def given(self, problem: Problem) -> tuple[float | Tensor | None, float | Tensor | None]:
        """See `GradientRule`: ``(lr, momentum)``."""
        automatic = isinstance(self.momentum, str)
        if (self.lr is None or automatic) and problem.loss == "fro":
            raise ValueError(
                "lr=None and momentum='auto' need loss='mse' or 'sse': the gradient of 'fro' keeps its length as the "
                "residual falls, so no constant step size suits it; give lr and momentum"
            )
        lr = None if self.lr is None else problem.per_problem("lr", self.lr)
        return lr, None if automatic else problem.per_problem("momentum", self.momentum)  # type: ignore[arg-type]

    def hyperparameters(self, problem: Problem) -> tuple[float | Tensor, float | Tensor]:
        """``(lr, momentum)``, numbers or ``[B]``: as given, estimated or optimal."""
        lr, momentum = self.given(problem)
        if momentum is None:
            return _optimal(problem, lr)
        if lr is not None:
            return lr, momentum
        curvature = problem.scale * spectrum.largest(problem)[1]
        decay = torch.as_tensor(momentum, dtype=torch.float64, device=problem.device)
        return _within_range(torch.where(curvature > 0, (1 + decay) / curvature, 1.0), problem), momentum

    def explain(self, problem: Problem, ending: Ending) -> str:
        """See `Solver`: hyperparameters that are not finite, or an lr outside its stable range."""
        lr, momentum = (
            float(value[ending.index] if isinstance(value, Tensor) else value)
            for value in self.hyperparameters(problem)
        )
        if ending.status == NONFINITE and not (_is_finite(lr) and _is_finite(momentum)):
            return f"lr is {lr} and momentum {momentum}: both must be finite"
        return self._unstable(problem, ending.index, lr, momentum)

    def _unstable(self, problem: Problem, index: int, lr: float, momentum: float) -> str:
        if problem.loss == "fro":
            return ""
        one = problem.select(torch.tensor([index], device=problem.device))
        square = float(spectrum.largest(one, MOST_EXACT)[0])  # the lower bound: an lr above its limit is above the true
        if lr <= 0:
            return f"lr is {lr:.3g}: it must be above 0"
        limits = torch.finfo(problem.dtype)
        if lr in (limits.tiny, limits.max):
            name = str(problem.dtype).removeprefix("torch.")
            return (
                f"the step size for this M, whose largest singular value is {square**0.5:.3g}, is out of range for "
                f"{name}: scale M"
            )
        if not square > 0:
            return ""
        limit, formula = 2 * (1 + momentum) / (problem.scale * square), "2 (1 + momentum) / (c s^2)"
        if self.nesterov:
            limit, formula = limit / (1 + 2 * momentum), "2 (1 + momentum) / ((1 + 2 momentum) c s^2)"
        if lr <= limit:
            return ""
        return (
            f"lr {lr:.3g} is above the stability limit {limit:.3g} for this M: "
            f"{formula} with momentum {momentum:.3g}, c {problem.scale:.3g} and largest singular "
            f"value {square**0.5:.3g}; use a smaller lr, or lr=None, which estimates one"
        )

    def advice(self, problem: Problem, tolerance: float) -> str:
        """See `Solver`."""
        advice = "raise max_iters or the tolerance"
        if problem.loss == "fro":
            return f"{advice}, or lower lr: the gradient of 'fro' keeps its length, so that constant steps overshoot"
        if self.momentum == "auto" or min(problem.n, problem.p) > MOST_EXACT:
            return advice
        low, high = spectrum.extremes(problem)
        condition, gain = float((high / low).sqrt()[0]), tolerance / float(problem.Y_norm()[0])
        # Rounding ends it at about eps times the condition number.
        if not (1 <= condition <= MOST_CONDITION and condition * torch.finfo(problem.dtype).eps <= gain < 1):
            return advice
        count = math.ceil((2 + math.log(1 / gain)) * condition / math.sqrt(4 * LR_SHARE))
        return (
            f"{advice}, or use HeavyBall(momentum='auto'), which needs about {count} iterations at condition number "
            f"{condition:.3g}"
        )


def _optimal(problem: Problem, lr: float | Tensor | None) -> tuple[Tensor, Tensor]:
    """``(lr, momentum)`` for the extreme curvatures of the loss, or the momentum for a given lr (Polyak)."""
    low, high = (problem.scale * value for value in spectrum.extremes(problem))
    low = torch.maximum(low, high / MOST_CONDITION**2)
    if lr is None:
        # All of the optimum where the singular values are equal: then one update arrives.
        share = LR_SHARE + (1 - LR_SHARE) * low / torch.where(high > 0, high, 1)
        lr = torch.where(high > 0, share * 4 / (high.sqrt() + low.sqrt()) ** 2, 1.0)
    else:
        lr = torch.as_tensor(lr, dtype=torch.float64, device=problem.device)
    # The larger of the two extremes: beyond the optimal lr, the largest singular value is the limit.
    momentum = torch.maximum((1 - (lr * low).sqrt()) ** 2, (1 - (lr * high).sqrt()) ** 2).clamp(max=1)
    return _within_range(lr, problem), momentum.to(problem.dtype)


def _is_finite(value: Any) -> bool:
    return abs(value) < float("inf")


def _within_range(lr: Tensor, problem: Problem) -> Tensor:
    """In the problem's dtype, clamped to its range: the step size for a very small or large M may lie outside."""
    limits = torch.finfo(problem.dtype)
    return lr.clamp(limits.tiny, limits.max).to(problem.dtype)


register_rule("heavy_ball", lambda hyper: HeavyBall().bind(hyper[:, :, None, None]).update)
register_rule("nesterov", lambda hyper: HeavyBall(1.0, nesterov=True).bind(hyper[:, :, None, None]).update)
