"""The base class of rules that follow the gradient: one update, given G. Kernels know some of them by name."""

from __future__ import annotations

import abc
from array import array
from typing import TypeVar

import torch
from torch import Tensor

from .._ops import Descent, Plan, plan_rule
from .._ops import advance as advance_by_kernel
from ..kernels.contract import StopCriteria, Trace
from ..problem import Problem
from .solver import Iterate, Solver

_Rule = TypeVar("_Rule", bound="GradientRule")


class Estimates:
    """Whether the hyperparameters are still to be estimated: an X0 that meets the tolerance needs none."""

    def __init__(self) -> None:
        self.due = True


class GradientRule(Solver):
    """Base class of update rules: a frozen dataclass of hyperparameters with `init` and `update`.

    A rule in plain PyTorch is complete: `solve` gives it exact stopping, batches, history, resuming, state dicts,
    progress and profiler names. If `kernel_rule` names a rule that the backend's kernels know, they run instead. See
    docs/adding-a-solver.md.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch, matconv_fast as mcf
        >>> @dataclass(frozen=True)
        ... class GradientDescent(mcf.GradientRule):
        ...     lr: float
        ...     def init(self, problem, X):
        ...         return ()
        ...     def update(self, X, state, G, step):
        ...         return X - self.lr * G, ()
        >>> bool(mcf.solve(torch.eye(2) * 2, solver=GradientDescent(0.4)).converged)
        True
    """

    @property
    def kernel_rule(self) -> str | None:
        """The name under which kernels know the rule; None for plain PyTorch."""
        return None

    def hyperparameters(self, problem: Problem) -> tuple[float | Tensor, ...]:
        """Of a rule that kernels know, in the order in which they take them: numbers or ``[B]``, estimates resolved."""
        raise NotImplementedError(f"{type(self).__name__} names a kernel rule, so it must define hyperparameters()")

    def given(self, problem: Problem) -> tuple[float | Tensor | None, ...]:
        """`hyperparameters` as the user gave them, checked; None for one that is estimated from M."""
        return self.hyperparameters(problem)

    def bind(self: _Rule, hyper: Tensor) -> _Rule:
        """Of a rule that kernels know: a copy with these hyperparameters, ``[H, B, 1, 1]`` float64."""
        raise NotImplementedError(f"{type(self).__name__} names a kernel rule, so it must define bind()")

    @abc.abstractmethod
    def update(
        self, X: Tensor, state: tuple[Tensor, ...], G: Tensor, step: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One update of every problem.

        Tensor hyperparameters, one value per problem, are ``[B, 1, 1]`` on ``self`` here.

        Args:
            X: ``[B, m, n]``; not to be modified.
            state: as `init` returned it; not to be modified.
            G: the gradient of the loss by X, ``[B, m, n]``.
            step: ``[B, 1, 1]`` float64, the number of this update, 1 at first.

        Returns:
            ``(X, state)`` after the update.
        """

    def step(
        self, problem: Problem, X: Tensor, state: tuple[Tensor, ...], R: Tensor, step: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Solver`: `update`, with the gradient at the residual."""
        return self.update(X, state, problem.gradient(R), step)

    def bound(self: _Rule, problem: Problem, plan: Plan) -> _Rule:
        """See `Solver`. A rule that kernels know takes the hyperparameters that the plan resolved."""
        if plan.hyper is None:
            return super().bound(problem, plan)  # type: ignore[return-value]
        return self.bind(plan.hyper[:, :, None, None])

    def plan(self, problem: Problem) -> Plan:
        """See `Solver`: the backend's kernels where they know the rule, otherwise plain PyTorch."""
        if self.kernel_rule is None:
            return Plan()
        values = self.given(problem)
        plan = plan_rule(self.kernel_rule, problem.shape, problem.device)
        if type(None) not in map(type, values):
            return plan._replace(hyper=_rows(values, problem.size, problem.device))  # type: ignore[arg-type]
        hyper = torch.full((len(values), problem.size), torch.nan, dtype=torch.float64, device=problem.device)
        return plan._replace(hyper=hyper, estimates=True, work=Estimates())

    def advance(self, problem: Problem, plan: Plan, iterate: Iterate, criteria: StopCriteria, trace: Trace) -> None:
        """See `Solver`. The first chunk with an update makes the estimates."""
        if plan.work is not None and plan.work.due and trace.sums.shape[1] > 1:
            assert plan.hyper is not None
            plan.hyper.copy_(_rows(self.hyperparameters(problem), problem.size, problem.device))
            plan.work.due = False
        if plan.backend == "reference":
            super().advance(problem, plan, iterate, criteria, trace)
            return
        assert self.kernel_rule is not None
        assert plan.hyper is not None
        descent = Descent(
            self.kernel_rule, iterate.X, iterate.state, problem.M, problem.Y, plan.hyper, iterate.step, problem.scale,
            problem.coupled,
        )  # fmt: skip
        advance_by_kernel(descent, criteria, trace, iterate.R, plan.algorithm)

    def advice(self, problem: Problem, tolerance: float) -> str:
        """See `Solver`."""
        return "raise max_iters or the tolerance, or raise lr"


def _rows(values: tuple[float | Tensor, ...], size: int, device: torch.device) -> Tensor:
    """``[H, size]`` float64. Numbers alone take one operator, a quarter of the time of the others."""
    if Tensor not in map(type, values):  # torch.tensor takes 3 us more
        column = torch.frombuffer(array("d", values), dtype=torch.float64).view(-1, 1)  # type: ignore[arg-type]
        if device.type != "cpu":
            column = column.to(device, non_blocking=True)
        return column if size == 1 else column.expand(-1, size).contiguous()
    whole = torch.ones(size, dtype=torch.float64, device=device)
    return torch.stack([whole * value for value in values])


def like(X: Tensor, *values: float | Tensor) -> tuple[float | Tensor, ...]:
    """Hyperparameters in the dtype of X, which keeps arithmetic with them from being promoted; numbers as they are."""
    return tuple(value.to(X.dtype) if isinstance(value, Tensor) else value for value in values)
