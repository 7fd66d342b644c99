"""The loop under every solver: chunk by chunk, until each problem has stopped at exactly the right iterate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._ops import Plan
from ..kernels.contract import MAX_ITERATIONS, RUNNING, STOPPED
from ..problem import Problem
from ..solvers import Solver
from .checkpoint import Checkpoint
from .history import History
from .options import Options
from .progress import progress_bar
from .run import Run

FIRST_CHUNK = 16  # where chunks grow with the run


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run yields.

    Attributes:
        end: where it ended.
        history: ``[B, H]``, losses after 0, every, 2 every, ... updates of this run; NaN past the stop.
        every: updates between two entries of the history.
        plan: how it ran.
        stopped: whether ``watch`` asked for the end.
    """

    end: Checkpoint
    history: Tensor
    every: int
    plan: Plan
    stopped: bool = False


Watch = Callable[[Run, int], bool]
"""Called after each chunk with the run and the updates made; ends it by returning True."""


def run(problem: Problem, solver: Solver, options: Options, start: Checkpoint, watch: Watch | None = None) -> Outcome:
    """Iterate until every problem has stopped or made `max_iters` updates. ``start`` is not modified."""
    work = Run(problem, solver, options, start)
    try:
        return _run(work, options, watch)
    finally:
        work.close()


def _run(work: Run, options: Options, watch: Watch | None) -> Outcome:
    problem, start, plan, standing = work.problem, work.start, work.plan, work.standing
    work.check_start()
    history = History.recorded(problem, options.record_every, work.flags.lags)
    interval, age, done = options.stagnation_interval(problem.precision.inputs), start.age, 0
    if plan.verdicts:  # the solver knows better
        interval = options.patience
    mark = start.mark if interval is None else torch.where(start.mark.isnan(), standing.best, start.mark)
    chunk = min(options.check_every or plan.chunk, plan.chunk)

    running, stopped = True, False
    with progress_bar(options.progress, options.limit) as bar:
        while done < options.limit and not stopped:
            with work.phase("poll"):  # the host waits for a GPU
                counts = work.flags.latest(wait=plan.estimates and not done)
            if counts is not None:
                running = counts[0] > 0
            if not running:
                break
            steps = min(chunk, options.limit - done)
            if not plan.exact and interval is not None:  # grow geometrically: discarded work never exceeds useful work
                steps = min(steps, max(FIRST_CHUNK, done))
            if interval is not None:
                age %= interval
                steps = min(steps, interval - age)
            sums = work.chunk(steps)
            with work.phase("history"):
                history.add(sums, done, standing.updates)
            done, age = done + steps, age + steps
            if interval is not None and age == interval:
                work.stop_stagnated(mark, explicit=options.patience is not None)
                mark = standing.best.clone()
            if options.progress:
                bar.update(done, problem.loss_of(standing.last))
            if watch is not None:
                stopped = watch(work, done)

    code = STOPPED if stopped else MAX_ITERATIONS
    status = standing.status.masked_fill_(standing.status == RUNNING, code)
    X, state = work.iterate.X, work.iterate.state
    iterations = start.iterations + standing.updates
    end = Checkpoint(
        X, state, work.solver, iterations, status, standing.last, standing.bail, standing.best, mark, age,
        work.solver.is_estimate(plan),
    )  # fmt: skip
    with work.phase("history"):  # the host waits for the number of entries
        return Outcome(end, history.finish(standing.updates, standing.last), history.every, plan, stopped)
