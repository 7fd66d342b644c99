"""What a launch of `advance` works on: the solver's tensors, and what is asked of one call."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FRO = 2  # of LOSSES: mse, sse, fro


@dataclass(frozen=True, eq=False)
class Solver:
    """The tensors of a solver: X ``[B, m, n]``, its buffers, and its hyperparameters.

    ``hyper``: momentum ``[B]`` of the heavy ball, whose only buffer is ``first``; of Adam the constants of its rule.
    """

    rule: str
    X: Tensor
    first: Tensor
    second: Tensor
    count: Tensor
    lr: Tensor
    hyper: Tensor

    def copy(self) -> Solver:
        """One that may be run without a trace."""
        state = {name: getattr(self, name).clone() for name in ("X", "first", "second", "count")}
        return replace(self, **state)


def unstopped(batch: int, updates: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A limit of `updates`, a threshold that nothing meets and no bail, each ``[batch]``."""
    threshold = torch.full((batch,), -1.0, dtype=torch.float64, device=device)
    limit = torch.full((batch,), updates, dtype=torch.int64, device=device)
    return limit, threshold, torch.full_like(threshold, math.inf)


@dataclass(frozen=True, eq=False)
class Chunk:
    """What is asked of one call of `advance`, and where its results go."""

    limit: Tensor
    threshold: Tensor
    bail: Tensor
    sums: Tensor
    taken: Tensor
    R: Tensor | None
    loss: int

    @property
    def columns(self) -> int:
        """Iterates that ``sums`` has room for."""
        return self.sums.shape[1]

    def elements(self, m: int, p: int) -> int:
        """What the sum of squares is divided by."""
        return m * p if self.loss == 0 else 1

    @classmethod
    def of(cls, X: Tensor, updates: int, loss: int) -> Chunk:
        """`updates` of each problem, whatever its iterates are: nothing stops it."""
        limit, threshold, bail = unstopped(X.shape[0], updates, X.device)
        sums = X.new_empty((X.shape[0], updates + 1), dtype=torch.float64)
        return cls(limit, threshold, bail, sums, torch.empty_like(limit), None, loss)
