"""A solve by one call of an operator, for the problems of which that is enough."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _ops
from .._ops import Plan
from .._ops.info import record
from ..kernels.contract import RUNNING
from ..problem import Problem
from ..solvers import Solver
from .checkpoint import Checkpoint
from .history import least_stride
from .options import Options
from .phases import Phases


class Answers(NamedTuple):
    """What `run` finds.

    Attributes:
        end: where each problem ended, after one iteration; RUNNING where there is no answer.
        history: ``[B, H]``, losses after 0, every, ... iterations.
        every: iterations from one entry to the next.
        plan: how it ran.
        rest: the indices of the problems without an answer, or None where there are none.
    """

    end: Checkpoint
    history: Tensor
    every: int
    plan: Plan
    rest: Tensor | None


def run(problem: Problem, solver: Solver, options: Options, start: Checkpoint) -> Answers | None:
    """The answers that one elimination gives; None where the solver, or the problem, is of another kind.

    ``start`` is a fresh one, from X = 0. Reads from the device how many problems are left.
    """
    plan = solver.plan_direct(problem) if options.limit else None
    if plan is None:
        return None
    assert problem.M is not None
    phase = Phases(problem, solver, start.X)
    phase.plan = plan
    record(problem.device, plan)
    with phase("direct"):
        M, Y = problem.M.to(problem.dtype), None if problem.identity else problem.Y.to(problem.dtype)
        rtol = options.relative(problem.precision.inputs)
        found = _ops.direct_solve(M, Y, rtol, float(options.atol), problem.loss_code)
        running = bool(found.running)
    every = least_stride(problem.size, 2) if options.record_every is None else options.record_every
    losses = found.losses if every == 1 else found.losses[:, : int(every > 1)].contiguous()
    end = replace(
        start, X=found.X, iterations=_one(start.iterations), status=found.status, last=found.squares, best=found.squares
    )
    return Answers(end, losses, every, plan, (found.status == RUNNING).nonzero()[:, 0] if running else None)


def _one(iterations: Tensor) -> Tensor:
    """1 for each problem, which takes no memory."""
    return iterations.new_ones(()).expand(iterations.shape)


def put(
    answers: Answers, end: Checkpoint, history: Tensor, every: int, *, bounded: bool
) -> tuple[Checkpoint, Tensor, int]:
    """The answers, with those of the rest, of which ``end`` is, and ``history [b, H]`` with its stride."""
    rest, before = answers.rest, answers.end
    assert rest is not None
    names = ("X", "iterations", "status", "last", "bail", "best", "mark")
    fields = {name: getattr(before, name).index_copy(0, rest, getattr(end, name)) for name in names}
    state = tuple(old.index_copy(0, rest, new) for old, new in zip(before.state, end.state, strict=True))
    whole = replace(before, **fields, state=state, estimated=end.estimated)
    stride = max(every, answers.every)
    if not stride:
        return whole, answers.history, stride
    losses, history = answers.history[:, :: stride // answers.every], history[:, :: stride // every]
    width = max(losses.shape[1], history.shape[1])
    factor = least_stride(len(losses), width) if bounded else 1
    losses, history, width = losses[:, ::factor], history[:, ::factor], -(-width // factor)
    losses, history = (torch.nn.functional.pad(t, (0, width - t.shape[1]), value=torch.nan) for t in (losses, history))
    return whole, losses.index_copy(0, rest, history), stride * factor
