"""The base class of solvers: a frozen dataclass of hyperparameters that knows how to make one iteration."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import _reference, _saved
from .._ops import Plan
from ..kernels.contract import StopCriteria, Trace
from ..problem import Problem


class Iterate(NamedTuple):
    """Where an iteration stands.

    Attributes:
        X: ``[B, m, n]``, updated in place.
        state: the solver's tensors besides X, each ``[B, ...]``, updated in place.
        step: ``[B]`` int64, updates made before.
        R: ``[B, m, p]``, memory for the residual where the plan keeps it, or None.
    """

    X: Tensor
    state: tuple[Tensor, ...]
    step: Tensor
    R: Tensor | None = None


@dataclass(frozen=True)
class Ending:
    """How one problem ended, for `Solver.explain`.

    Attributes:
        status: a `Status` code.
        index: of the problem in the flattened batch.
        iterations: updates that it made.
    """

    status: int
    index: int
    iterations: int


_Solver = TypeVar("_Solver", bound="Solver")


class Solver(abc.ABC):
    """Base class of solvers: a frozen dataclass of hyperparameters with `init` and `step`.

    `solve` does the rest: exact stopping, batches, history, resuming, state dicts, progress, profiler names. A method
    that follows the gradient of the loss derives from `GradientRule` instead. See docs/adding-a-solver.md.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch, matconv_fast as mcf
        >>> @dataclass(frozen=True)
        ... class Newton(mcf.Solver):
        ...     def init(self, problem, X):
        ...         return ()
        ...     def step(self, problem, X, state, R, step):
        ...         return X - R @ torch.linalg.inv(problem.M), ()
        >>> M = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> int(mcf.solve(M, solver=Newton()).iterations)
        1
    """

    carries_state: ClassVar[bool] = True
    """Whether the state still means something on another equation, as momentum does; otherwise `init` makes it anew."""

    @abc.abstractmethod
    def init(self, problem: Problem, X: Tensor) -> tuple[Tensor, ...]:
        """The solver's state before the first iteration.

        Args:
            problem: what is to be solved.
            X: ``[B, m, n]``, where it starts.

        Returns:
            Tensors ``[B, ...]``; an empty tuple if X is all there is.
        """

    def step(
        self, problem: Problem, X: Tensor, state: tuple[Tensor, ...], R: Tensor, step: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One iteration of every problem.

        Tensor hyperparameters, one value per problem, are ``[B, 1, 1]`` on ``self`` here, so that they broadcast
        against X.

        Args:
            problem: what is solved; its `product`, `residual` and `gradient` work on whole batches.
            X: ``[B, m, n]``; not to be modified.
            state: as `init` returned it; not to be modified.
            R: ``X @ M - Y``, ``[B, m, p]``.
            step: ``[B, 1, 1]`` float64, the number of this iteration, 1 at first.

        Returns:
            ``(X, state)`` after the iteration.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step(problem, X, state, R, step) or advance()")

    def plan(self, problem: Problem) -> Plan:
        """Backend, algorithm and chunk size for a problem. The default runs `step` on any device."""
        return Plan()

    def plan_direct(self, problem: Problem) -> Plan | None:
        """How one elimination solves the problem from X = 0, in place of `init` and `advance`; None: it does not."""
        return None

    def advance(self, problem: Problem, plan: Plan, iterate: Iterate, criteria: StopCriteria, trace: Trace) -> None:
        """Make up to ``criteria.limit`` iterations of each problem; the contract is in ``_reference/advance.py``.

        The default calls `step`. A solver that overrides it can run kernels of its own.
        """
        solver = self.bound(problem, plan)

        def one_step(
            X: Tensor, state: tuple[Tensor, ...], R: Tensor, step: Tensor
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            return solver.step(problem, X, state, R, step)

        _reference.advance(one_step, problem.residual, iterate.X, iterate.state, iterate.step, criteria, trace)

    def verdict(self, problem: Problem, plan: Plan, iterate: Iterate) -> Tensor:
        """How the solver ends problems that the residual alone does not end; called after each chunk.

        Only solvers whose plan sets ``verdicts`` need it. So that the outcome does not depend on the size of the
        chunks, `advance` must stop a problem at the iterate where the verdict falls, and keep it in the state.

        Returns:
            Status codes ``[B]`` int64, RUNNING where the solver goes on. CONVERGED is the loop's to give.
        """
        raise NotImplementedError(f"{type(self).__name__} plans verdicts, so it must define verdict()")

    def is_estimate(self, plan: Plan) -> bool:
        """Whether the norms of the last residuals are estimates, by a sample; a status never rests on a close one."""
        return False

    def fallbacks(self, problem: Problem) -> tuple[Solver, ...]:
        """Solvers for the problems that this one leaves without an answer, in the order in which to try them."""
        return ()

    def reason(self, problem: Problem) -> str:
        """Why the plan is what it is, for ``Solution.method``; empty for solvers that have no choice."""
        return ""

    def explain(self, problem: Problem, ending: Ending) -> str:
        """Why a problem did not converge, if the hyperparameters are the reason; otherwise an empty string."""
        return ""

    def advice(self, problem: Problem, tolerance: float) -> str:
        """What to change when one problem, of a batch of 1, has reached `max_iters` and nothing else is wrong."""
        return "raise max_iters or the tolerance"

    def bound(self: _Solver, problem: Problem, plan: Plan) -> _Solver:
        """A copy whose tensor hyperparameters are ``[B, 1, 1]``; itself if it has none."""
        given = {name: problem.per_problem(name, t) for name, t in vars(self).items() if isinstance(t, Tensor)}
        rows = {name: t[:, None, None] for name, t in given.items() if isinstance(t, Tensor)}
        return self._with(**rows) if rows else self

    def _with(self: _Solver, **values: Any) -> _Solver:
        """A copy with other hyperparameters, unchecked."""
        copy = object.__new__(type(self))
        for name, value in {**vars(self), **values}.items():
            object.__setattr__(copy, name, value)  # the dataclass is frozen
        return copy

    def is_same(self, other: Solver, *, by_value: bool = False) -> bool:
        """Whether the hyperparameters are the same. Tensors are compared by identity, or by value if asked."""
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
            >>> mcf.HeavyBall.from_state_dict(mcf.HeavyBall(lr=0.1).state_dict()).lr
            0.1
        """
        return _saved.sealed(type(self).__name__, {name: _saved.plain(value) for name, value in vars(self).items()})

    @classmethod
    def from_state_dict(cls: type[_Solver], state_dict: Mapping[str, Any]) -> _Solver:
        """The solver that a `state_dict` describes.

        Args:
            state_dict: what `state_dict` returned, saved and loaded or not.

        Returns:
            A solver of this class or of a subclass, which must have been imported.

        Raises:
            TypeError: it is no dict.
            ValueError: it describes something else, or is in a format that this version does not read.
        """
        name = state_dict.get("kind") if isinstance(state_dict, Mapping) else None
        kind = next((kind for kind in _family(cls) if kind.__name__ == name), cls)
        names = [field.name for field in fields(kind)] if is_dataclass(kind) else []
        return kind(**_saved.opened(state_dict, kind.__name__, names))


def _family(kind: type[_Solver]) -> Iterator[type[_Solver]]:
    """A class and its subclasses, the latest definition of a name first."""
    yield kind
    for below in reversed(kind.__subclasses__()):
        yield from _family(below)


def _is_same(a: Any, b: Any, by_value: bool) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (by_value and a.device == b.device and a.dtype == b.dtype and torch.equal(a, b))
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)
