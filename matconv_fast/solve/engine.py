"""A solve from the checked options to the `Solution`: start or resume, run the loop, attach the gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _checks, _ops
from .._ops import backend
from ..problem import Problem
from ..solvers import Auto, Factor, GradientRule, Refinement, Solver
from ..source import Source
from . import chain, implicit
from .callback import RunView, Watched
from .checkpoint import Checkpoint
from .options import Options
from .phases import whole_solve
from .solution import Solution


def solution_of(
    M: Tensor | Factor | None,
    Y: Tensor | None,
    X0: Tensor | Solution | None,
    *,
    solver: Solver | None,
    loss: str,
    left: bool,
    ridge: float | Tensor,
    callback: Callable[[RunView], Any] | None,
    **options_given: Any,
) -> Solution:
    """See `matconv_fast.solve`, whose arguments these are."""
    options = Options(**options_given)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {_checks.describe(callback)}")
    if isinstance(M, Factor):
        solver, M = _with_factor(M, solver, left=left, ridge=ridge)
    if solver is not None and not isinstance(solver, Solver):
        raise TypeError(f"solver must be a solver object such as HeavyBall(), got {_checks.describe(solver)}")
    with torch.no_grad(), _without_autocast(M, Y), whole_solve(M, Y, X0):
        _refuse_transforms(M, Y, ridge)
        problem = Problem.of(M, Y, None if isinstance(X0, Solution) else X0, loss, left, ridge)
        if isinstance(X0, Solution):
            start = _resume(problem, options, solver, X0)
            solver = solver or start.solver
        else:
            solver = solver or Auto()
            start = _fresh(problem, options, solver, X0)
        watched = None if callback is None else Watched(callback, problem, options.limit)
        outcome = chain.run(problem, solver, options, start, from_zero=X0 is None, watched=watched)
        solution = _solution(problem, options, start, outcome)
    if backend.records_grad(M, Y, ridge if isinstance(ridge, Tensor) else None):
        solution = replace(solution, X=_differentiable(M, Y, ridge, solution))
    if options.throw:
        solution.raise_for_status()
    return solution


def _with_factor(factor: Factor, solver: Solver | None, *, left: bool, ridge: float | Tensor) -> tuple[Solver, Tensor]:
    """The solver that uses the factor, and the M that it is of."""
    if isinstance(ridge, Tensor) or ridge != 0:
        raise ValueError(f"a Factor is of M without a ridge, got ridge={_checks.describe(ridge)}: pass M itself")
    if solver is not None:
        raise ValueError(f"a Factor in place of M is used by Refinement, so solver must be None, got {solver}")
    if factor.left != left:
        raise ValueError(f"the factor was made with left={factor.left}: call factorize(M, left={left})")
    if not factor.source.is_same(Source.of(factor.source.tensor)):
        raise ValueError("M was modified in place since it was factored: call factorize(M) again")
    return Refinement(factor), factor.M


def _fresh(problem: Problem, options: Options, solver: Solver, X0: Tensor | None) -> Checkpoint:
    X = problem.start(X0)
    if X0 is not None:
        X = _exact_at_zero(problem, options, solver, X)
    return Checkpoint.fresh(X, solver.init(problem, X), solver)


def _exact_at_zero(problem: Problem, options: Options, solver: Solver, X: Tensor) -> Tensor:
    """X, but 0 where Y is 0 and the tolerance therefore, too: no other X meets it but by underflow.

    A gradient rule keeps its X, from which a plain loop would go on, and ``max_iters=0`` evaluates X0.
    """
    relative = options.atol == 0 < options.relative(problem.precision.inputs)
    follows = isinstance(solver, GradientRule) or not options.limit
    if problem.identity or not relative or follows:
        return X
    zero = ~problem.Y.any(-1).any(-1)
    if zero.device.type == "cpu" and not bool(zero.any()):
        return X
    return X.masked_fill(zero[:, None, None], 0)


def _resume(problem: Problem, options: Options, solver: Solver | None, previous: Solution) -> Checkpoint:
    """The checkpoint of ``previous``, as a start.

    On the same equation it keeps everything, and a problem that had diverged or stagnated stays stopped unless the
    tolerances or the solver changed. On another equation, only X and the solver's state are kept.
    """
    end = previous.checkpoint()
    if end is None:
        raise ValueError("X0 is a Solution of iterate(), which has no state to continue from; pass its X instead")
    before, now = previous.problem, problem
    for name in ("batch", "m", "n", "columns", "loss", "left", "vector", "dtype", "device"):
        if getattr(before, name) != getattr(now, name):
            raise ValueError(
                f"X0 is a Solution of another kind of problem: its {name} is {getattr(before, name)}, this one's "
                f"{getattr(now, name)}; pass X0=solution.X to start anew from its X"
            )
    if solver is not None and type(solver) is not type(end.solver):
        was, wanted = type(end.solver).__name__, type(solver).__name__
        raise ValueError(
            f"X0 is a Solution of {was}, whose state {wanted} cannot continue from; "
            "pass X0=solution.X to start anew from its X"
        )
    by_value = previous.restored
    if not problem.is_same(previous.problem, by_value=by_value):
        solver = solver or end.solver
        X = _exact_at_zero(problem, options, solver, end.X)
        state = end.state if solver.carries_state else solver.init(problem, X)
        return Checkpoint.fresh(X, state, solver, end.iterations)
    same_solver = solver is None or solver.is_same(end.solver, by_value=by_value)
    return end.continued(all_problems=not (same_solver and options.tolerances == previous.options.tolerances))


def _differentiable(M: Tensor | None, Y: Tensor | None, ridge: float | Tensor, solution: Solution) -> Tensor:
    problem, start = solution.problem, solution.start
    assert start is not None
    M = M.mT if problem.left and M is not None else M
    Y, X = None if Y is None else problem.as_rows(Y), problem.as_rows(solution.X)
    X0 = start.X.view(*problem.batch, problem.m, problem.n)
    return problem.as_given(implicit.differentiable(M, Y, ridge, (X, X0, solution.status)))


def _without_autocast(M: Any, Y: Any) -> contextlib.AbstractContextManager[Any]:
    """The iteration chooses its own precision."""
    if not torch._C._is_any_autocast_enabled():  # 0.2 us; what follows takes 12
        return contextlib.nullcontext()
    kind = next((t.device.type for t in (M, Y) if isinstance(t, Tensor)), "cpu")
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def _refuse_transforms(M: Tensor | None, Y: Tensor | None, ridge: float | Tensor) -> None:
    """Raise where the result would silently lack a derivative, or be one problem of a batch."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "solve() does not run inside torch.func transforms: for vmap give it the batch, [*, n, p], and for grad "
            "use X.backward() or torch.autograd.grad"
        )
    if forward_ad._current_level < 0:
        return
    for name, t in (("M", M), ("Y", Y), ("ridge", ridge)):
        if isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None:
            raise NotImplementedError(
                f"{name} carries a forward-mode tangent, and solve() has reverse-mode gradients alone: pass "
                f"{name}.detach()"
            )


def _solution(problem: Problem, options: Options, start: Checkpoint, outcome: chain.Outcome) -> Solution:
    end, batch = outcome.end, problem.batch
    X = end.X
    if outcome.quick and not X.is_inference():  # a copy takes a third of the time of 100,000 inverses of 4 x 4
        end = replace(end, version=X._version)
    else:
        X = X.clone()
    loss, residual_norm, iterations, status = _ops.end_run(
        end.last, end.iterations, end.status, end.X, batch, problem.loss_code, problem.elements
    )
    return Solution(
        X=problem.of_user(X),
        loss=loss,
        residual_norm=residual_norm,
        iterations=iterations,
        status=status,
        history=outcome.history.view(*batch, outcome.history.shape[1]),
        record_every=outcome.every,
        method=outcome.method,
        state=end,
        problem=problem,
        options=options,
        start=start,
    )
