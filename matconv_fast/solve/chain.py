"""A run, and further runs by `Solver.fallbacks` for the problems that it left without an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._ops import Plan
from ..problem import Problem
from ..solvers import Refinement, Solver
from ..solvers.measure import Measure
from . import direct, loop
from .callback import Watched
from .checkpoint import Checkpoint
from .history import least_stride
from .options import Options
from .status import Status

# No other solver would do better: the answer is there, or the input or the user's limit forbids it.
FINAL = (Status.CONVERGED, Status.LEAST_SQUARES, Status.NONFINITE, Status.MAX_ITERATIONS)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where the last run left each problem; see `loop.Outcome`.

    Attributes:
        method: what ran.
        quick: whether most problems took one elimination, so that it is easily made again.
    """

    end: Checkpoint
    history: Tensor
    every: int
    method: str
    quick: bool = False


def run(
    problem: Problem,
    solver: Solver,
    options: Options,
    start: Checkpoint,
    *,
    from_zero: bool,
    watched: Watched | None = None,
) -> Outcome:
    """One elimination where that is an answer; else `loop.run`, and the solver's fallbacks where that gives none.

    Args:
        problem: what to solve.
        solver: by what.
        options: the user's.
        start: where to start; not modified.
        from_zero: whether X0 is 0, which elimination starts from.
        watched: calls the user's callback after each chunk, of which elimination has none.
    """
    answers = direct.run(problem, solver, options, start) if from_zero and watched is None else None
    reason = solver.reason(problem)
    because = f"; {reason}" if reason else ""
    if answers is None:
        first = loop.run(problem, solver, options, start, watched)
        method = _ran(solver, first.plan) + because
        if first.end.estimated:
            method += "; ||R|| estimated from a sample of it"
        return _with_fallbacks(problem, solver, options, start, first, method, watched)
    method = _ran(solver, answers.plan) + because
    if answers.rest is None:
        return Outcome(answers.end, answers.history, answers.every, method, quick=True)
    part = problem.select(answers.rest)
    X, iterations = start.X[answers.rest], start.iterations[answers.rest]
    fresh = Checkpoint.fresh(X, solver.init(part, X), solver, iterations)
    first = loop.run(part, solver, replace(options, progress=False), fresh)
    method += f"; {part.size} of {problem.size} by {_ran(solver, first.plan)}"
    others = _with_fallbacks(part, solver, options, fresh, first, method, total=problem.size)
    end, history, every = direct.put(
        answers, others.end, others.history, others.every, bounded=options.record_every is None
    )
    return Outcome(end, history, every, others.method, quick=True)


def _ran(solver: Solver, plan: Plan) -> str:
    return f"{type(solver).__name__}: {plan.algorithm} ({plan.backend})"


def _with_fallbacks(
    problem: Problem,
    solver: Solver,
    options: Options,
    start: Checkpoint,
    first: loop.Outcome,
    method: str,
    watched: Watched | None = None,
    total: int | None = None,
) -> Outcome:
    """Each fallback runs on the problems that need it, from the same start. They are some of ``total``."""
    again, end, history, every = first, first.end, first.history, first.every
    accurate = False
    for other in solver.fallbacks(problem):
        if again.stopped:
            break
        rest = _unanswered(problem, end, accurate)
        if not len(rest):
            break
        part, X = problem.select(rest), start.X[rest]
        spent = int((end.iterations - start.iterations)[rest].max())
        if spent >= options.limit:
            break
        fresh = Checkpoint.fresh(X, other.init(part, X), other, end.iterations[rest])
        again_options = replace(options, max_iters=options.limit - spent, progress=False)
        watch = None if watched is None else watched.of_part(end, rest, spent)
        again = loop.run(part, other, again_options, fresh, watch)
        if every:
            bounded = options.record_every is None
            history, every = _appended(history, every, again, rest, bounded=bounded)
        end = _merged(end, again.end, rest)
        accurate = isinstance(other, Refinement)
        method += f"; {len(rest)} of {total or problem.size} by {type(other).__name__}: {again.plan.algorithm}"
    return Outcome(end, history, every, method)


def _unanswered(problem: Problem, end: Checkpoint, accurate: bool) -> Tensor:
    """Indices of the problems that another solver may do better on. Reads the device, which the run has waited for."""
    final = end.status == Status.CONVERGED
    if not bool(final.all()):
        final = torch.stack([end.status == status for status in FINAL]).any(0)
    if bool(final.all()):
        return final.new_empty(0, dtype=torch.int64)
    at_floor = Measure(problem).at_floor(end.X, end.last.sqrt(), accurate)
    return (~final & ~(at_floor & (end.status == Status.STAGNATED))).nonzero()[:, 0]


def _merged(end: Checkpoint, new: Checkpoint, rest: Tensor) -> Checkpoint:
    """The better of both answers of the problems ``rest``: an answer counts more than a small residual."""
    answered = (new.status == Status.CONVERGED) | (new.status == Status.LEAST_SQUARES)
    better = answered | (new.last < end.last[rest])

    def put(old: Tensor, value: Tensor) -> Tensor:
        mask = better.view(-1, *[1] * (old.ndim - 1))
        return old.index_copy(0, rest, torch.where(mask, value, old[rest]))

    fields = {name: put(getattr(end, name), getattr(new, name)) for name in ("X", "status", "last")}
    iterations = end.iterations.index_copy(0, rest, new.iterations)
    best = end.best.index_copy(0, rest, torch.fmin(new.best, end.best[rest]))
    return replace(end, **fields, iterations=iterations, best=best)


def _appended(history: Tensor, every: int, again: loop.Outcome, rest: Tensor, *, bounded: bool) -> tuple[Tensor, int]:
    """``history [B, H]`` with that of ``again [b, h]`` behind the entries of the problems ``rest``, and its stride.

    The entry of the common start is left out. Strides that double become one that suits both.
    """
    stride = max(every, again.every)
    history, more = history[:, :: stride // every], again.history[:, :: stride // again.every][:, 1:]
    if bounded:
        factor = least_stride(history.shape[0], history.shape[1], more.shape[1])
        history, more, stride = history[:, ::factor], more[:, factor - 1 :: factor], factor * stride
    begin = (~history.isnan()).sum(1)[rest]
    longest = int((begin + (~more.isnan()).sum(1)).max())
    width = max(history.shape[1], longest)
    wide = history.new_full((history.shape[0], width + more.shape[1]), torch.nan)
    wide[:, : history.shape[1]] = history
    rows = rest[:, None].expand(-1, more.shape[1])
    columns = begin[:, None] + torch.arange(more.shape[1], device=history.device)
    wide[rows, columns] = more
    return wide[:, :width].contiguous(), stride
