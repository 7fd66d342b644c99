"""Where a run ended, so that a later one can continue from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import _saved
from ..kernels.contract import RUNNING
from ..solvers import Solver
from .status import Status

_SAVED = ("X", "state", "iterations", "status", "last", "bail", "best", "mark", "age", "estimated")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that a later solve needs to continue as if it had never stopped.

    Attributes:
        X: ``[B, m, n]``, in the orientation that was iterated in.
        state: the solver's tensors besides X, such as ``(V,)``.
        solver: whose they are.
        iterations: ``[B]`` int64, updates so far.
        status: ``[B]`` int64, status codes; RUNNING in a fresh one.
        last: ``[B]`` float64, ``||R||^2`` of X; NaN in a fresh one, like the next three.
        bail: ``[B]`` float64, ``||R||^2`` above which a problem has diverged.
        best: ``[B]`` float64, the smallest ``||R||^2`` so far.
        mark: ``[B]`` float64, ``best`` at the last check for stagnation.
        age: updates since that check.
        estimated: whether ``last`` is an estimate; see `Solver.is_estimate`.
        version: of X where a `Solution` shares its memory, which the user may write to; None where X is not shared.
    """

    X: Tensor
    state: tuple[Tensor, ...]
    solver: Solver
    iterations: Tensor
    status: Tensor
    last: Tensor
    bail: Tensor
    best: Tensor
    mark: Tensor
    age: int = 0
    estimated: bool = False
    version: int | None = None

    @property
    def modified(self) -> bool:
        """Whether the user has written to a shared X."""
        return self.version is not None and self.X._version != self.version

    @classmethod
    def fresh(
        cls, X: Tensor, state: tuple[Tensor, ...], solver: Solver, iterations: Tensor | None = None
    ) -> Checkpoint:
        """A start of which only X and the solver's state are known."""

        def constant(value: float, dtype: torch.dtype) -> Tensor:  # [B], in the memory of one number
            return torch.full((), value, dtype=dtype, device=X.device).expand(X.shape[0])

        if iterations is None:
            iterations = constant(0, torch.int64)
        unknown, running = constant(torch.nan, torch.float64), constant(RUNNING, torch.int64)
        return cls(X, state, solver, iterations, running, unknown, unknown, unknown, unknown)

    def continued(self, *, all_problems: bool = False) -> Checkpoint:
        """The same as a start: problems that met a tolerance or a limit run again, or all of them."""
        status = self.status
        goes_on = (status == Status.MAX_ITERATIONS) | (status == Status.STOPPED) | (status == Status.CONVERGED)
        goes_on |= all_problems
        return replace(self, status=torch.where(goes_on, RUNNING, status))

    def state_dict(self) -> dict[str, Any]:
        """All of it, for `from_state_dict`."""
        X = self.X if self.version is None else self.X.clone()
        values = {name: _saved.plain({**vars(self), "X": X}[name]) for name in _SAVED}
        return _saved.sealed("Checkpoint", {**values, "solver": self.solver.state_dict()})

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint that `state_dict` was called on."""
        values = _saved.opened(state_dict, "Checkpoint", [*_SAVED, "solver"])
        return cls(**{**values, "solver": Solver.from_state_dict(values["solver"])})
