"""What a solver is: a frozen dataclass of hyperparameters that can start and advance."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .._ops import backend
from .problem import Problem

# Updates between two looks at the result on paths where a look costs little beside an update.
REFERENCE_CHUNK = 64

# The C++ kernels run at 10 to 100 GFLOP/s, so a chunk of so many operations ends within 0.4 s. A GPU does 10 to 500
# TFLOP/s once it is full, and a chunk should outlast the 50 us that its launches take.
CHUNK_OPERATIONS = {"cpu": 4_000_000_000, "triton": 100_000_000_000}

# Iterations of a chunk that is captured as a CUDA graph: a chunk costs some ten small launches and a copy of X beside
# them, and the first one runs uncaptured.
LEAST_CAPTURED, MOST_CAPTURED = 16, 64


@dataclass(frozen=True, eq=False)
class Chunk:
    """One call of `advance`: inputs ``limit, threshold, bail [B]``, outputs ``sums [B, K + 1]`` and ``taken [B]``.

    ``R [B, m, p]`` is kept from chunk to chunk for kernels that say so, None for others.
    """

    limit: Tensor
    threshold: Tensor
    bail: Tensor
    sums: Tensor
    taken: Tensor
    R: Tensor | None

    @property
    def arguments(self) -> tuple[Tensor | None, ...]:
        """In the order in which every `advance` takes them."""
        return self.limit, self.threshold, self.bail, self.sums, self.taken, self.R


Advance = Callable[[Tensor, "tuple[Tensor, ...]", Chunk], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A solver made ready for one problem.

    Attributes:
        advance: ``advance(X, buffers, chunk)`` runs up to ``chunk.limit`` updates of each problem, in place.
        chunk: updates in one such call, so few that Ctrl-C is answered soon: under a second up to 1,024 square.
        exact: `advance` stops each problem where it should, so that none has to be replayed.
        keeps_residual: `advance` keeps the residual from chunk to chunk, which would cost it a product.
        captures: it takes several launches an iteration, which are to be captured as a CUDA graph and replayed.
    """

    advance: Advance
    chunk: int = REFERENCE_CHUNK
    exact: bool = False
    keeps_residual: bool = False
    captures: bool = False

    @classmethod
    def of(cls, problem: Problem, way: backend.Way | None, advance: Advance) -> Prepared:
        """`advance` that goes `way`, of `advance_way`."""
        if way is None:
            return cls(advance)
        product = 1 if problem.M is None else 4 * problem.p
        operations = problem.size * (problem.m * problem.n * product + 200)
        # slabs alone copy their state and pack M anew in every call: as much as a fifth of an iteration at 1,024 square
        chunk = max(1 if way.exact else 8, min(CHUNK_OPERATIONS[way.path] // max(operations, 1), 1 << 16))
        if way.captures:  # enough to hide what a chunk costs beside, few enough to replay soon
            chunk = min(max(chunk, LEAST_CAPTURED), MOST_CAPTURED)
        if not way.exact:  # each slab of some 24 rows has a sum of its own for every iteration: 32 MB of them at most
            chunk = max(8, min(chunk, (24 << 22) // max(problem.size * problem.m, 1)))
        return cls(advance, chunk, way.exact, way.keeps_residual, way.captures)


def advance_way(problem: Problem, *, heavy_ball: bool) -> backend.Way | None:
    """The way that `advance` goes about the problem, for the heavy ball or for another solver."""
    return backend.advance_way(
        problem.device, problem.Y.dtype, problem.size, problem.m, problem.n, problem.p,
        product=problem.M is not None, coupled=problem.loss == "fro", heavy_ball=heavy_ball,
    )  # fmt: skip


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
