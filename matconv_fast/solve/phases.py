"""The phases of a solve under their own names in ``torch.profiler``; see docs/profiling.md."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from .._ops import Plan
from ..problem import Problem
from ..solvers import Solver

_OFF = contextlib.nullcontext()


def _recorded(name: str, tensors: tuple[Tensor | None, ...], **details: Any) -> Any:
    """A range that shows the shapes of ``tensors``, and ``details``, in a trace.

    ``torch.profiler.record_function`` shows neither. A GPU's trace has a row of ranges of the scope "user_scope" above
    that of its kernels.
    """
    return torch._C._profiler._RecordFunctionFast(  # pyright: ignore[reportAttributeAccessIssue]
        name, tensors, {"scope": "user_scope", **details}
    )


def whole_solve(*given: Any) -> contextlib.AbstractContextManager[Any]:
    """The range around a whole solve, with the shapes of the user's tensors."""
    if not profiler._is_profiler_enabled:
        return _OFF
    return _recorded("matconv_fast.solve", tuple(t if isinstance(t, Tensor) else None for t in given))


class Phases:
    """Ranges around the parts of one run, with problem, solver, backend and algorithm.

    Without an active profiler, one takes 0.3 us; ``torch.profiler.record_function`` takes 14 us.
    """

    def __init__(self, problem: Problem, solver: Solver, X: Tensor) -> None:
        self.problem, self.solver, self.X = problem, solver, X
        self.plan: Plan | None = None  # once it is known

    def __call__(self, name: str, sums: Tensor | None = None) -> contextlib.AbstractContextManager[Any]:
        """The range ``matconv_fast.solve.<name>``; ``sums [B, steps + 1]`` tells how many updates it makes."""
        if not profiler._is_profiler_enabled:
            return _OFF
        problem = self.problem
        details = {"B": problem.size, "m": problem.m, "n": problem.n, "p": problem.p, "loss": problem.loss}
        details["solver"] = type(self.solver).__name__
        if self.plan is not None:
            details |= {"backend": self.plan.backend, "algorithm": self.plan.algorithm}
        if sums is not None:
            details["steps"] = sums.shape[1] - 1
        return _recorded(f"matconv_fast.solve.{name}", (self.X, problem.M, problem.Y), **details)
