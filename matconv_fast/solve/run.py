"""One run: its tensors, and a chunk of it. All decisions are made on the device."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import _ops
from .._ops.info import record
from ..kernels.contract import RUNNING, STAGNATED, Trace
from ..problem import Problem
from ..solvers import Iterate, Solver
from . import convergence
from .checkpoint import Checkpoint
from .flags import Flags
from .graph import Replayed
from .options import Options
from .phases import Phases

# Puts the limit of a problem that has stopped far below 0: so often its status, and once more. Eight times is an int32.
STOPPED = 1 << 24


class Run:
    """The tensors of one run. All but the sums of its chunks are allocated before the first iteration.

    Attributes:
        plan: how the solver runs on this problem.
        standing: how each problem stands.
        iterate: X, the solver's state, and the updates made before the current chunk.
        snapshot: X and the state before the current chunk, where the plan may overshoot a stop.
        flags: what the host knows of it.
        phase: profiler ranges.
    """

    def __init__(self, problem: Problem, solver: Solver, options: Options, start: Checkpoint) -> None:
        self.problem, self.solver, self.start = problem, solver, start
        self.phase = Phases(problem, solver, start.X)
        with self.phase("prepare"):
            self.plan = self.phase.plan = solver.plan(problem)
            self.standing = _ops.start_run(
                problem.Y, start.bail, start.last, start.best, start.status,
                options.relative(problem.precision.inputs), options.atol,
            )  # fmt: skip
        record(problem.device, self.plan)
        X, state = start.X.clone(), tuple(t.clone() for t in start.state)
        held = problem.dtype if problem.M is None else problem.precision.operands  # the dtype it is multiplied in
        keeps = self.plan.keeps_residual
        R = problem.Y.new_empty((problem.size, problem.m, problem.p), dtype=held) if keeps else None
        self.iterate = Iterate(X, state, start.iterations.clone(), R)
        replays = options.limit and not self.plan.exact
        self.snapshot = [torch.empty_like(t) for t in (X, *state)] if replays else []
        self.flags = Flags(problem.device)
        self._sums: Tensor | None = None  # buffer of the last chunk
        self._graphs: dict[int, tuple[Tensor, Replayed]] = {}

    def check_start(self) -> None:
        """Judge the initial residual; no update is made."""
        sums = torch.full((self.problem.size, 1), torch.nan, dtype=torch.float64, device=self.problem.device)
        self._finish(self._advance(self.iterate, self.standing.updates, sums))  # the updates are still 0
        self.flags.send(self.standing.counts)

    def chunk(self, steps: int) -> Tensor:
        """Each running problem makes ``steps`` updates, or stops exactly where it should.

        Returns:
            The sums ``[B, steps + 1]`` of the chunk, which the next one overwrites.
        """
        for old, t in zip(self.snapshot, (self.iterate.X, *self.iterate.state), strict=False):  # may be empty
            old.copy_(t)
        if self.plan.captured:
            if steps not in self._graphs:
                sums = self._new_sums(steps)
                self._graphs[steps] = sums, Replayed(partial(self._chunk, steps, sums))
            sums, replayed = self._graphs[steps]
            with self.phase("graph", sums):  # its two phases are visible while they are captured
                replayed()
        else:
            if self._sums is None or self._sums.shape[1] != steps + 1:
                self._sums = self._new_sums(steps)
            sums = self._sums
            self._chunk(steps, sums)
        self.flags.send(self.standing.counts)
        if self.snapshot:
            self._replay(steps)
        return sums

    def stop_stagnated(self, mark: Tensor, explicit: bool) -> None:
        """Stop the problems whose best residual has stagnated since it was ``mark``."""
        standing = self.standing
        halted = convergence.stagnated(self.problem, self.iterate.X, standing.last, standing.best, mark, explicit)
        halted &= standing.status == RUNNING
        standing.status.masked_fill_(halted, STAGNATED)
        standing.counts[0] -= halted.sum()
        self.flags.send(standing.counts)

    def close(self) -> None:
        """Free the graphs, which refer to this run."""
        self._graphs.clear()

    def _new_sums(self, steps: int) -> Tensor:
        return torch.empty((self.problem.size, steps + 1), dtype=torch.float64, device=self.problem.device)

    def _chunk(self, steps: int, sums: Tensor) -> None:
        # The sum of X serves a problem that has stopped, and one whose R is kept. Neither exists where a lone problem
        # runs without R; copying takes 11 us, 2 % of the 10,000 iterations of a 4 x 4 problem.
        if self.problem.size > 1 or self.iterate.R is not None:
            sums.select(1, 0).copy_(self.standing.last)
        torch.add(self.start.iterations, self.standing.updates, out=self.iterate.step)
        # ``steps`` where the status is RUNNING, which is -1, and far below 0 elsewhere: torch.where takes 15 us more.
        limit = torch.rsub(self.standing.status, steps - STOPPED, alpha=STOPPED)
        self._finish(self._advance(self.iterate, limit, sums))

    def _advance(self, iterate: Iterate, limit: Tensor, sums: Tensor) -> Trace:
        """Up to ``limit`` updates of each problem. Its R is that of X where ``sums[:, 0]`` is a number."""
        with self.phase("advance", sums):
            trace = Trace(sums, self.standing.steps_done)
            self.solver.advance(self.problem, self.plan, iterate, self.standing.criteria(limit), trace)
        return trace

    def _finish(self, trace: Trace) -> None:
        with self.phase("reduce", trace.sums):
            _ops.finish_chunk(trace, self.standing)
            if self.plan.verdicts:
                self._apply(self.solver.verdict(self.problem, self.plan, self.iterate))

    def _apply(self, verdict: Tensor) -> None:
        """End the running problems that the solver has given a status."""
        if not self.flags.lags and bool((verdict == RUNNING).all()):
            return
        status = self.standing.status
        status.copy_(torch.where(status == RUNNING, verdict, status))
        self.standing.counts[0] = (status == RUNNING).sum()

    def _replay(self, steps: int) -> None:
        """Restore the problems that overshot their stop, and run them up to it."""
        if not self.flags.lags:
            steps = int(self.standing.counts[1])
            if steps < 0:
                return
        sums = self._new_sums(steps)
        with self.phase("replay", sums):
            due = self.standing.replay_to >= 0
            for old, t in zip(self.snapshot, (self.iterate.X, *self.iterate.state), strict=True):
                t.copy_(torch.where(due.view(-1, *[1] * (t.ndim - 1)), old, t))
            without_R = Iterate(self.iterate.X, self.iterate.state, self.iterate.step)
            self._advance(without_R, self.standing.replay_to, sums)
