"""The one loop that runs every solver, chunk by chunk, and stops each problem at exactly the right iterate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _reference
from .._ops import finish_chunk, loss_history, start_run
from . import convergence, saved
from .flags import Flags
from .graph import Replayed
from .options import Options
from .phases import Phases
from .problem import Problem
from .progress import progress_bar
from .solver import Chunk, Solver
from .status import Status

FIRST_CHUNK = 16  # where chunks grow with the run
STOPPED = 1 << 24  # more than the updates of any chunk; five times it is still an int32


@dataclass(frozen=True, eq=False)
class State:
    """Everything that a later solve needs to go on as if it had never stopped.

    Attributes:
        X: ``[B, m, n]``, in the orientation that was iterated in.
        buffers: the solver's own, such as ``(V,)``.
        solver: whose they are.
        iterations: ``[B]`` int64, updates made so far.
        status: ``[B]`` int64, the codes that the problems ended with; RUNNING in a fresh one.
        sums: ``[B]`` float64, ``||R||^2`` of X.
        bail: ``[B]`` float64, ``||R||^2`` beyond which a problem counts as diverged; like the next two, NaN at first.
        best: ``[B]`` float64, smallest ``||R||^2`` so far.
        mark: ``[B]`` float64, what ``best`` was at the last look for stagnation.
        age: updates since that look.
    """

    X: Tensor
    buffers: tuple[Tensor, ...]
    solver: Solver
    iterations: Tensor
    status: Tensor
    sums: Tensor
    bail: Tensor
    best: Tensor
    mark: Tensor
    age: int = 0

    @classmethod
    def fresh(cls, X: Tensor, buffers: tuple[Tensor, ...], solver: Solver, iterations: Tensor | None = None) -> State:
        """A start of which nothing is known but X and the buffers: all problems run, and the sums are NaN."""
        if iterations is None:
            iterations = torch.zeros(X.shape[0], dtype=torch.int64, device=X.device)
        unknown = torch.full((X.shape[0],), torch.nan, dtype=torch.float64, device=X.device)
        running = torch.full_like(iterations, _reference.RUNNING)
        return cls(X, buffers, solver, iterations, running, unknown, unknown, unknown, unknown)

    def state_dict(self) -> dict[str, Any]:
        """All of it, for `from_state_dict`."""
        values = {name: saved.plain(value) for name, value in vars(self).items() if name != "solver"}
        return saved.sealed("State", {**values, "solver": self.solver.state_dict()})

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> State:
        """The state that `state_dict` was called on."""
        values = saved.opened(state_dict, "State", [field.name for field in fields(cls)])
        return cls(**{**values, "solver": Solver.from_state_dict(values["solver"])})

    def going_on(self, *, all_problems: bool = False) -> State:
        """The same as a start: the problems that met a tolerance or a limit run again, or all of them."""
        goes_on = (self.status == Status.MAX_ITERATIONS) | (self.status == Status.CONVERGED) | all_problems
        return replace(self, status=torch.where(goes_on, _reference.RUNNING, self.status))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one run of the loop yields: the state that it ends in, and the losses on the way.

    ``history [B, H]`` holds the loss after 0, record_every, 2 record_every, ... updates of this run, NaN past the stop.
    """

    state: State
    history: Tensor


@dataclass(eq=False)
class _History:
    """Losses of every `every`-th iterate of a run, kept on the device in one piece a chunk."""

    problem: Problem
    every: int
    lags: bool  # the host would have to wait to know how far a chunk went
    pieces: list[Tensor] = field(default_factory=list)

    def add(self, sums: Tensor, done: int, updates: Tensor) -> None:
        """``sums[:, j]`` belongs to the iterate after ``done + j`` updates; j = 0 is known from the chunk before."""
        if not self.every or not self.problem.size:
            return
        first = self.every - done % self.every if done else 0
        end = sums.shape[1] if self.lags else int(updates if self.problem.size == 1 else updates.max()) - done + 1
        sums = sums[:, first : max(end, first) : self.every]
        if sums.shape[1]:
            problem = self.problem
            self.pieces.append(
                loss_history(
                    sums, updates, done + first, self.every, _reference.LOSSES.index(problem.loss),
                    problem.m * problem.p, problem.dtype,
                )
            )  # fmt: skip

    def finish(self, updates: Tensor, last: Tensor) -> Tensor:
        """Losses ``[B, H]``, cut after the longest run and NaN past the end of the shorter ones.

        ``last``: the sums at the end, which are those at the start where no chunk was run.
        """
        if not self.every or not self.problem.size:
            return last.new_empty((self.problem.size, 0), dtype=self.problem.dtype)
        if not self.pieces:
            return self.problem.loss_of(last[:, None])
        losses = self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces, 1)
        if self.lags:
            losses = losses[:, : int(updates.max()) // self.every + 1].contiguous()
        return losses


class _Run:
    """The tensors of one run: all but the sums of its chunks are made before the first iteration."""

    def __init__(self, problem: Problem, solver: Solver, options: Options, start: State) -> None:
        batch, device = problem.size, problem.device
        self.problem = problem
        self.phase = Phases(problem, solver, start.X)
        with self.phase("prepare"):
            self.prepared = self.phase.prepared = solver.prepare(problem)
            (
                self.threshold, self.Y_squares, self.bail, self.last, self.best, self.updates, self.taken, self.again,
                self.status, self.counts,
            ) = start_run(
                problem.Y, start.bail, start.sums, start.best, start.status, options.relative(problem.input_dtype),
                options.atol,
            )  # fmt: skip
        self.state = [t.clone() for t in (start.X, *start.buffers)]
        replays = options.limit and not self.prepared.way.exact
        self.snapshot = [torch.empty_like(t) for t in self.state] if replays else []
        keeps = self.prepared.way.keeps_residual
        held = problem.dtype if problem.M is None else problem.Y.dtype  # what it is multiplied in
        self.R = problem.Y.new_empty((batch, problem.m, problem.p), dtype=held) if keeps else None
        self.flags = Flags(device)
        self.room: Tensor | None = None  # that of the last chunk
        self.replayed: dict[int, tuple[Tensor, Replayed]] = {}

    def look(self) -> None:
        """Where the run starts from: no update is made."""
        sums = torch.full((self.problem.size, 1), torch.nan, dtype=torch.float64, device=self.problem.device)
        self._advance(self.updates, sums, self.R)  # which are 0 so far
        self._finish(sums)
        self.flags.send(self.counts)

    def _room(self, steps: int) -> Tensor:
        return torch.empty((self.problem.size, steps + 1), dtype=torch.float64, device=self.problem.device)

    def _advance(self, limit: Tensor, sums: Tensor, R: Tensor | None) -> None:
        """Up to ``limit`` updates of each problem; R is that of X where ``sums[:, 0]`` is a number."""
        chunk = Chunk(limit, self.threshold, self.bail, sums, self.taken, R)
        with self.phase("advance", sums):
            self.prepared.advance(self.state[0], tuple(self.state[1:]), chunk)

    def _finish(self, sums: Tensor) -> None:
        with self.phase("reduce", sums):
            finish_chunk(
                sums, self.taken, self.threshold, self.Y_squares, self.bail, self.last, self.best, self.updates,
                self.status, self.again, self.counts,
            )  # fmt: skip

    def _chunk(self, steps: int, sums: Tensor) -> None:
        """Each problem that is running makes `steps` updates, or stops; all of it is decided on the device."""
        sums.select(1, 0).copy_(self.last)
        # the steps where the status is RUNNING, -1, and far below 0 elsewhere: torch.where takes 15 us more
        limit = torch.rsub(self.status, steps - STOPPED, alpha=STOPPED)
        self._advance(limit, sums, self.R)
        self._finish(sums)

    def run(self, steps: int) -> Tensor:
        """One chunk: each problem that is running makes `steps` updates or stops exactly where it should.

        Returns the sums of the chunk, which the next one writes over.
        """
        for old, state in zip(self.snapshot, self.state, strict=False):  # there may be none
            old.copy_(state)
        if self.prepared.way.captures:
            if steps not in self.replayed:
                room = self._room(steps)
                self.replayed[steps] = room, Replayed(partial(self._chunk, steps, room))
            sums, replayed = self.replayed[steps]
            with self.phase("graph", sums):  # which runs the two phases of a chunk, and shows them while it captures
                replayed()
        else:
            if self.room is None or self.room.shape[1] != steps + 1:
                self.room = self._room(steps)
            sums = self.room
            self._chunk(steps, sums)
        self.flags.send(self.counts)
        if self.snapshot:
            self._replay(steps)
        return sums

    def _replay(self, steps: int) -> None:
        """Run the problems again, from the snapshot, that have gone beyond their stop."""
        if not self.flags.lags:
            steps = int(self.counts[1])
            if steps < 0:
                return
        room = self._room(steps)
        with self.phase("replay", room):
            due = self.again >= 0
            for old, state in zip(self.snapshot, self.state, strict=True):
                state.copy_(torch.where(due.view(-1, *[1] * (state.ndim - 1)), old, state))
            self._advance(self.again, room, None)

    def stop_stagnated(self, mark: Tensor, explicit: bool) -> None:
        """Mark the problems that have come to a halt since ``best`` was `mark`."""
        halted = convergence.stagnated(self.problem, self.state[0], self.last, self.best, mark, explicit)
        halted &= self.status == _reference.RUNNING
        self.status.masked_fill_(halted, _reference.STAGNATED)
        self.counts[0] -= halted.sum()
        self.flags.send(self.counts)


def run(problem: Problem, solver: Solver, options: Options, start: State) -> Outcome:
    """Iterate until every problem has stopped or made `max_iters` updates. ``start`` is left as it is."""
    work = _Run(problem, solver, options, start)
    work.look()
    history = _History(problem, options.record_every, work.flags.lags)
    interval, age, done = options.stagnation_interval(problem.input_dtype), start.age, 0
    mark = start.mark if interval is None else torch.where(start.mark.isnan(), work.best, start.mark)
    chunk = min(options.check_every or work.prepared.chunk, work.prepared.chunk)

    running = True
    with progress_bar(options.progress, options.limit) as bar:
        while done < options.limit:
            with work.phase("poll"):  # the host waits for a GPU
                counts = work.flags.latest()
            if counts is not None:
                running = counts[0] > 0
            if not running:
                break
            steps = min(chunk, options.limit - done)
            if not work.prepared.way.exact and interval is not None:  # at most as much is run in vain as was run before
                steps = min(steps, max(FIRST_CHUNK, done))
            if interval is not None:
                age %= interval
                steps = min(steps, interval - age)
            sums = work.run(steps)
            with work.phase("history"):
                history.add(sums, done, work.updates)
            done, age = done + steps, age + steps
            if interval is not None and age == interval:
                work.stop_stagnated(mark, explicit=options.patience is not None)
                mark = work.best.clone()
            if options.progress:
                bar.update(done, problem.loss_of(work.last))

    status = work.status.masked_fill_(work.status == _reference.RUNNING, _reference.MAX_ITERATIONS)
    iterations = start.iterations + work.updates
    X, *buffers = work.state
    end = State(X, tuple(buffers), solver, iterations, status, work.last, work.bail, work.best, mark, age)
    with work.phase("history"):  # so it does here, for the number of entries
        return Outcome(end, history.finish(work.updates, work.last))
