"""What a solver is: a frozen dataclass of hyperparameters that can start and advance."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._ops import backend
from . import saved
from .problem import Problem

# Updates between two looks at the result on paths where a look costs little beside an update.
REFERENCE_CHUNK = 64

# The C++ kernels run at 10 to 150 GFLOP/s, so a chunk of so many operations ends within a second. A GPU does 10 to 500
# TFLOP/s once it is full, and a chunk should outlast the 50 us that its launches take.
CHUNK_OPERATIONS = {"cpu": 10_000_000_000, "triton": 100_000_000_000}

# Iterations of a chunk that is captured as a CUDA graph: a chunk costs some fifteen small launches and a copy of X
# beside them, and the first one runs uncaptured.
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


PLAIN = backend.Way("reference", "plain", 0, exact=False, keeps_residual=False, captures=False)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A solver made ready for one problem.

    Attributes:
        advance: ``advance(X, buffers, chunk)`` runs up to ``chunk.limit`` updates of each problem, in place.
        chunk: updates in one such call, so few that Ctrl-C is answered soon: under a second up to 1,024 square.
        way: how `advance` goes about it.
    """

    advance: Advance
    chunk: int = REFERENCE_CHUNK
    way: backend.Way = PLAIN

    @classmethod
    def of(cls, problem: Problem, way: backend.Way | None, advance: Advance) -> Prepared:
        """`advance` that goes `way`, of `advance_way`."""
        if way is None:
            return cls(advance)
        product = 1 if problem.M is None else 4 * problem.p
        operations = problem.size * (problem.m * problem.n * product + 200)
        chunk = max(way.least, min(CHUNK_OPERATIONS[way.path] // max(operations, 1), 1 << 16))
        # 16 MB of sums: more than that comes fresh from the system in every solve, at 2.5 us a page
        if way.path == "cpu":
            chunk = min(chunk, max(64, (1 << 21) // max(problem.size, 1)))
        if way.captures:  # enough to hide what a chunk costs beside, few enough to replay soon
            chunk = min(max(chunk, LEAST_CAPTURED), MOST_CAPTURED)
        if not way.exact:  # each block of some 24 rows has a sum of its own for every iteration: 32 MB of them at most
            chunk = max(8, min(chunk, (24 << 22) // max(problem.size * problem.m, 1)))
        return cls(advance, chunk, way)


def advance_way(problem: Problem, *, heavy_ball: bool) -> backend.Way | None:
    """The way that `advance` goes about the problem, for the heavy ball or for another solver."""
    return backend.advance_way(
        problem.device, problem.Y.dtype, problem.size, problem.m, problem.n, problem.p,
        product=problem.M is not None, coupled=problem.loss == "fro", heavy_ball=heavy_ball,
    )  # fmt: skip


_Solver = TypeVar("_Solver", bound="Solver")


def _family(kind: type[_Solver]) -> Iterator[type[_Solver]]:
    """A class of solvers and all those below it."""
    yield kind
    for below in kind.__subclasses__():
        yield from _family(below)


def _is_same(a: Any, b: Any, by_value: bool) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (by_value and a.device == b.device and a.dtype == b.dtype and torch.equal(a, b))
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)


class Solver(abc.ABC):
    """Hyperparameters of an iteration. The loop in `loop.py` runs every solver; contract in ``_reference.py``."""

    def is_same(self, other: Solver, *, by_value: bool = False) -> bool:
        """Whether it has the same hyperparameters; tensors count by identity, and are read `by_value` alone."""
        if type(self) is not type(other):
            return False
        mine, theirs = vars(self), vars(other)
        return all(_is_same(value, theirs[name], by_value) for name, value in mine.items())

    def state_dict(self) -> dict[str, Any]:
        """Name and hyperparameters in a dict that ``torch.save`` and ``torch.load(weights_only=True)`` take.

        Returns:
            A dict of numbers, strings, None and tensors (detached, not copied), for `from_state_dict`.

        Example:
            >>> import matconv_fast as mcf
            >>> mcf.HeavyBall.from_state_dict(mcf.HeavyBall(lr=0.1).state_dict())
            HeavyBall(lr=0.1, momentum=0.9, form='auto')
        """
        return saved.sealed(type(self).__name__, {name: saved.plain(value) for name, value in vars(self).items()})

    @classmethod
    def from_state_dict(cls: type[_Solver], state_dict: Mapping[str, Any]) -> _Solver:
        """The solver that a `state_dict` is of.

        Args:
            state_dict: what `state_dict` returned, saved and loaded or not.

        Returns:
            A solver of this class, or of one below it.

        Raises:
            TypeError: it is no dict.
            ValueError: it is the state dict of something else, or in a format that this version does not read.
        """
        name = state_dict.get("kind") if isinstance(state_dict, Mapping) else None
        kind = next((kind for kind in _family(cls) if kind.__name__ == name), cls)
        names = [field.name for field in fields(kind)] if is_dataclass(kind) else []
        return kind(**saved.opened(state_dict, kind.__name__, names))

    @abc.abstractmethod
    def prepare(self, problem: Problem) -> Prepared:
        """Resolve hyperparameters that are estimates or tensors, and choose the path that runs."""

    @abc.abstractmethod
    def buffers(self, problem: Problem, X: Tensor) -> tuple[Tensor, ...]:
        """The solver's state besides X before the first iteration, each ``[B, ...]``."""
