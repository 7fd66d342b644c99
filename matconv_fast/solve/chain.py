"""A run, and further runs by `Solver.fallbacks` for the problems that it left without an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..problem import Problem
from ..solvers import Refinement, Solver
from ..solvers.measure import Measure
from . import loop
from .checkpoint import Checkpoint
from .options import Options
from .status import Status

# No other solver would do better: the answer is there, or the input or the user's limit forbids it.
FINAL = (Status.CONVERGED, Status.LEAST_SQUARES, Status.NONFINITE, Status.MAX_ITERATIONS)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where the last run left each problem; see `loop.Outcome`. ``method`` says what ran."""

    end: Checkpoint
    history: Tensor
    method: str


def run(problem: Problem, solver: Solver, options: Options, start: Checkpoint) -> Outcome:
    """`loop.run`, and the solver's fallbacks on the problems that need them, each from the same start."""
    first = loop.run(problem, solver, options, start)
    end, history = first.end, first.history
    method = f"{type(solver).__name__}: {first.plan.algorithm} ({first.plan.backend})"
    if reason := solver.reason(problem):
        method += f"; {reason}"
    accurate = False
    for other in solver.fallbacks(problem):
        rest = _unanswered(problem, end, accurate)
        if not len(rest):
            break
        part, X = problem.select(rest), start.X[rest]
        spent = int((end.iterations - start.iterations)[rest].max())
        if spent >= options.limit:
            break
        fresh = Checkpoint.fresh(X, other.init(part, X), other, end.iterations[rest])
        again = loop.run(part, other, replace(options, max_iters=options.limit - spent, progress=False), fresh)
        end, history = _merged(end, history, again, rest)
        accurate = isinstance(other, Refinement)
        method += f"; {len(rest)} of {problem.size} by {type(other).__name__}: {again.plan.algorithm}"
    return Outcome(end, history, method)


def _unanswered(problem: Problem, end: Checkpoint, accurate: bool) -> Tensor:
    """Indices of the problems that another solver may do better on. Reads the device, which the run has waited for."""
    final = end.status == Status.CONVERGED
    if not bool(final.all()):
        final = torch.stack([end.status == status for status in FINAL]).any(0)
    if bool(final.all()):
        return final.new_empty(0, dtype=torch.int64)
    at_floor = Measure(problem).at_floor(end.X, end.last.sqrt(), accurate)
    return (~final & ~(at_floor & (end.status == Status.STAGNATED))).nonzero()[:, 0]


def _merged(end: Checkpoint, history: Tensor, again: loop.Outcome, rest: Tensor) -> tuple[Checkpoint, Tensor]:
    """The better of both answers of the problems ``rest``: an answer counts more than a small residual."""
    new = again.end
    answered = (new.status == Status.CONVERGED) | (new.status == Status.LEAST_SQUARES)
    better = answered | (new.last < end.last[rest])

    def put(old: Tensor, value: Tensor) -> Tensor:
        mask = better.view(-1, *[1] * (old.ndim - 1))
        return old.index_copy(0, rest, torch.where(mask, value, old[rest]))

    fields = {name: put(getattr(end, name), getattr(new, name)) for name in ("X", "status", "last")}
    iterations = end.iterations.index_copy(0, rest, new.iterations)
    best = end.best.index_copy(0, rest, torch.fmin(new.best, end.best[rest]))
    return replace(end, **fields, iterations=iterations, best=best), _appended(history, again.history[:, 1:], rest)


def _appended(history: Tensor, more: Tensor, rest: Tensor) -> Tensor:
    """``history [B, H]`` with ``more [b, h]`` written behind the entries of the problems ``rest``."""
    if not history.shape[1]:
        return history
    begin = (~history.isnan()).sum(1)[rest]
    longest = int((begin + (~more.isnan()).sum(1)).max())
    width = max(history.shape[1], longest)
    wide = history.new_full((history.shape[0], width + more.shape[1]), torch.nan)
    wide[:, : history.shape[1]] = history
    rows = rest[:, None].expand(-1, more.shape[1])
    columns = begin[:, None] + torch.arange(more.shape[1], device=history.device)
    wide[rows, columns] = more
    return wide[:, :width].contiguous()
