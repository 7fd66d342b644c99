"""What a solver is: a frozen dataclass of hyperparameters that can start and advance."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .problem import Problem

# Updates between two looks at the result on paths where a look costs little beside an update.
REFERENCE_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Chunk:
    """One call of `advance`: inputs ``limit, threshold, bail [B]``, outputs ``sums [B, K + 1]`` and ``taken [B]``."""

    limit: Tensor
    threshold: Tensor
    bail: Tensor
    sums: Tensor
    taken: Tensor


@dataclass(frozen=True, eq=False)
class Prepared:
    """A solver made ready for one problem.

    Attributes:
        advance: ``advance(X, buffers, chunk)`` runs up to ``chunk.limit`` updates of each problem, in place.
        chunk: updates in one such call that stay well under a second, so that Ctrl-C is answered.
        overshoots: `advance` runs a whole chunk past a problem's stop, at a price that grows with the chunk.
    """

    advance: Callable[[Tensor, tuple[Tensor, ...], Chunk], None]
    chunk: int = REFERENCE_CHUNK
    overshoots: bool = False


class Solver(abc.ABC):
    """Hyperparameters of an iteration. The loop in `loop.py` runs every solver; contract in ``_reference.py``."""

    def is_same(self, other: Solver) -> bool:
        """Whether it has the same hyperparameters; tensors count by identity, their values are not read."""
        if type(self) is not type(other):
            return False
        mine, theirs = vars(self), vars(other)
        return all(v is theirs[k] or (not isinstance(v, Tensor) and v == theirs[k]) for k, v in mine.items())

    @abc.abstractmethod
    def prepare(self, problem: Problem) -> Prepared:
        """Resolve hyperparameters that are estimates or tensors, and choose the path that runs."""

    @abc.abstractmethod
    def buffers(self, problem: Problem, X: Tensor) -> tuple[Tensor, ...]:
        """The solver's state besides X before the first iteration, each ``[B, ...]``."""
