"""The phases of a solve under their own names in ``torch.profiler``; see docs/profiling.md."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from .problem import Problem
from .solver import Prepared, Solver

_OFF = contextlib.nullcontext()


def _recorded(name: str, tensors: tuple[Tensor | None, ...], **details: Any) -> Any:
    """A range with the shapes of `tensors`, and `details`, among its arguments in a trace.

    ``torch.profiler.record_function`` shows neither. The scope is the user's, of which a GPU's trace has a row above
    that of its kernels.
    """
    return torch._C._profiler._RecordFunctionFast(  # pyright: ignore[reportAttributeAccessIssue]
        name, tensors, {"scope": "user_scope", **details}
    )


def whole_solve(*given: Any) -> contextlib.AbstractContextManager[Any]:
    """The range around all of a solve, of what the user gave."""
    if not profiler._is_profiler_enabled:
        return _OFF
    return _recorded("matconv_fast.solve", tuple(t if isinstance(t, Tensor) else None for t in given))


class Phases:
    """Ranges around the parts of one run, which say what is solved, by what, and which way that goes.

    Where no profiler is on, one takes 0.3 us; ``torch.profiler.record_function`` takes 14 us then.
    """

    def __init__(self, problem: Problem, solver: Solver, X: Tensor) -> None:
        self.problem, self.solver, self.X = problem, solver, X
        self.prepared: Prepared | None = None  # once it is known

    def __call__(self, name: str, sums: Tensor | None = None) -> contextlib.AbstractContextManager[Any]:
        """A range ``matconv_fast.solve.<name>``, of a phase that makes the updates that `sums` has room for."""
        if not profiler._is_profiler_enabled:
            return _OFF
        problem = self.problem
        details = {"B": problem.size, "m": problem.m, "n": problem.n, "p": problem.p, "loss": problem.loss}
        details["solver"] = type(self.solver).__name__
        if self.prepared is not None:
            details |= {"path": self.prepared.way.path, "way": self.prepared.way.name}
        if sums is not None:
            details["steps"] = sums.shape[1] - 1
        return _recorded(f"matconv_fast.solve.{name}", (self.X, problem.M, problem.Y), **details)
