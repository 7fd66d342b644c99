"""The base class of Krylov methods, which need no factor of M: cycles of a recursion on residuals made in float64.

From the residual R of X, a cycle solves ``D @ M = -R`` for a correction D, one recursion for each row. Its own estimate
of the residual is not trusted: where it claims success, ``X + D`` is measured, and the next cycle starts there.

Scalars never go to the host, but for a single row on a CPU. So cycles begin, and claims are measured, at fixed
iterations only, the *marks*: 4, 16 and the multiples of 32. Unfinished cycles are measured more seldom, after 4, 16
and multiples of 64 iterations, since that takes a product. In between X stays what it was; after a claim it is the X
claimed.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._ops import Plan
from ..kernels.contract import LEAST_SQUARES, RUNNING, STAGNATED, StopCriteria, Trace
from ..problem import Problem
from .factor import factor_problem
from .measure import LEAST_SQUARES_UNITS, MOST_CHECKED, Measure, norm
from .row_arithmetic import Row, Rows, row_norm
from .solver import Iterate, Solver

MARK, EARLY_MARKS = 32, (4, 16)
# Where `max_iters` ends a run, X is that of the last look: they are as seldom as that allows, and cost a product each.
LOOK, EARLY_LOOKS = 64, (4, 16)
CHUNK, LAGGING_CHUNK = 256, 64
# Of the tolerance, what a recursion must estimate to claim that it is met.
CLAIMED_SHARE = 0.8
# Of a cycle's first residual, what it may ask for: a recursion in one precision gains no more than this.
CYCLE_GAIN = 0.75  # eps to this power

# Of R, what may be removable at a least-squares minimum: its square is the share of ||R||^2.
REMOVABLE_SHARE = 0.05

# Phases of a problem: it waits for a cycle to begin, runs in a cycle, or claims success and is to be measured.
WAITS, RUNS, CLAIMS = 0.0, 1.0, 2.0


def is_mark(slot: int) -> bool:
    """Whether cycles begin, and claims are measured, at iteration number `slot`."""
    return slot % MARK == 0 or slot in EARLY_MARKS


def is_look(slot: int) -> bool:
    """Whether cycles that go on are measured there, too."""
    return slot % LOOK == 0 or slot in EARLY_LOOKS


# Of a recursion: ``[B, m, k]`` and ``[B, m, 1]`` each, or ``[k]`` and numbers; see `row_arithmetic`.
Vectors = tuple[Tensor, ...]
Scalars = tuple[Any, ...]


class Work:
    """What a run keeps: M as the recursion multiplies it, the residual of X, and the number of the iteration."""

    def __init__(self, problem: Problem, scale: Tensor | None) -> None:
        self.measure = Measure(problem)
        M = self.measure.M
        assert M is not None
        self.scale = scale  # of the rows of M
        self.A = M if scale is None else scale * M
        self.A_norm = norm(self.A).expand(problem.size)
        self.R: Tensor | None = None
        self.slot = -1  # not known yet

    def unscaled(self, D: Tensor) -> Tensor:
        """The correction of X, from that of the scaled equation."""
        return D if self.scale is None else D * self.scale.mT


@dataclass
class Cycle:
    """The state of a Krylov method, as views of the tensors that a checkpoint keeps."""

    verdict: Tensor  # [B] int64
    slots: Tensor  # [B] int64, iterations since the method began
    start: Tensor  # [B] float64, ||R|| at the start of the cycle
    slope: Tensor  # [B] float64, ||R M^T|| there
    phase: Tensor  # [B] float64
    active: Tensor  # [B, m, 1] bool, rows that go on in this cycle
    D: Tensor  # [B, m, n], the correction since X was last measured, over `start`
    own: tuple[Tensor, ...]  # the recursion's


class Krylov(Solver):
    """Base of `LSQR` and `MINRES`: a recursion is `begin` and `recur`."""

    carries_state: ClassVar[bool] = False
    needs_slope: ClassVar[bool] = False
    """Whether `begin` takes ``R M^T``."""

    @abc.abstractmethod
    def memory(self, problem: Problem) -> tuple[Tensor, ...]:
        """The recursion's own tensors, ``[B, m, k]``: its vectors, and its scalars in one tensor."""

    @abc.abstractmethod
    def begin(self, work: Work, R: Tensor, S: Tensor | None) -> tuple[Tensor, ...]:
        """These tensors at the start of a cycle for ``D @ A = -R``; S is ``R A^T``, where `needs_slope`."""

    @abc.abstractmethod
    def recur(
        self, rows: Any, A: Tensor, vectors: Vectors, scalars: Scalars
    ) -> tuple[Vectors, Scalars, tuple[Any, Tensor]]:
        """One iteration: vectors and scalars after it, and ``(a, w)``, the correction ``a * w`` of D."""

    @abc.abstractmethod
    def estimates(self, scalars: Scalars) -> tuple[Any, Any]:
        """``||R||`` and ``||R A^T||`` of each row, by the recursion."""

    def prepare(self, problem: Problem) -> Tensor | None:
        """A scale for the rows of M, or None."""
        return None

    def refuse(self, work: Work) -> Tensor | None:
        """Status codes ``[1 or B]`` for matrices that the method is not made for; RUNNING for the others."""
        return None

    def init(self, problem: Problem, X: Tensor) -> tuple[Tensor, ...]:
        """See `Cycle`."""
        if problem.M is None:
            raise ValueError(f"{type(self).__name__} needs a matrix M, got None, the identity: use Refinement()")
        size, device = problem.size, problem.device
        verdict = torch.full((size,), RUNNING, dtype=torch.int64, device=device)
        numbers = torch.zeros(size, 3, dtype=torch.float64, device=device)
        active = torch.zeros(size, problem.m, 1, dtype=torch.bool, device=device)
        return verdict, torch.zeros_like(verdict), numbers, active, torch.zeros_like(X), *self.memory(problem)

    def plan(self, problem: Problem) -> Plan:
        """See `Solver`."""
        work = Work(problem, self.prepare(problem))
        chunk = LAGGING_CHUNK if work.measure.waits else CHUNK
        return Plan(algorithm="cycles", exact=True, chunk=chunk, verdicts=True, work=work)

    def verdict(self, problem: Problem, plan: Plan, iterate: Iterate) -> Tensor:
        """See `Solver`. On CPUs, a claim of LEAST_SQUARES is checked first."""
        codes, measure = iterate.state[0], plan.work.measure
        claims = codes == LEAST_SQUARES
        if measure.waits or min(problem.n, problem.p) > MOST_CHECKED or not bool(claims.any()):
            return codes
        if not _is_minimum_of_a_regular(problem, plan.work):
            codes.masked_fill_(claims & measure.minimum_refuted(plan.work.R), STAGNATED)
        return codes

    def advance(self, problem: Problem, plan: Plan, iterate: Iterate, criteria: StopCriteria, trace: Trace) -> None:
        """See `Solver`."""
        run = _Chunk(self, plan.work, iterate, criteria, trace)
        j = 0
        while j < run.steps and (made := run.iterations(j)):
            j += made
        plan.work.R = run.R


class _Chunk:
    """One call of `advance`."""

    def __init__(self, method: Krylov, work: Work, iterate: Iterate, criteria: StopCriteria, trace: Trace) -> None:
        self.method, self.work, self.criteria, self.trace = method, work, criteria, trace
        verdict, slots, numbers, active, D, *own = iterate.state
        self.cycle = Cycle(verdict, slots, *numbers.unbind(1), active, D, tuple(own))  # type: ignore[call-arg]
        self.X, self.steps = iterate.X, trace.sums.shape[1] - 1
        self.R = work.measure.residual(self.X) if work.R is None else work.R
        self.r = norm(self.R)
        if work.slot < 0 and self.steps:
            work.slot = int(slots.max()) if len(slots) else 0  # the host's one wait
            self._refuse()
        trace.sums[:, 0] = self.r.square()
        trace.steps_done.zero_()
        self.claimed_at = torch.zeros_like(slots)

    def iterations(self, j: int) -> int:
        """Iteration j of the chunk, and of a single row those up to the next mark; 0 where nothing is left to do."""
        work, cycle, looks = self.work, self.cycle, not self.work.measure.waits
        squares = self.r.square()
        going = (j < self.criteria.limit) & (squares > self.criteria.threshold) & squares.isfinite()
        if is_mark(work.slot):  # 0 is one, too
            waiting = going & (cycle.verdict == RUNNING) & (cycle.phase == WAITS)
            if not looks or bool(waiting.any()):
                self._begin(waiting)
        going &= cycle.verdict == RUNNING
        if looks and not bool(going.any()):
            return 0
        runs, made = going & (cycle.phase == RUNS), 1
        if not looks or bool(runs.any()):
            if looks and self.X.shape[:2] == (1, 1):
                made = self._recur_alone(j)
            else:
                self._recur(runs, j)
        self.trace.steps_done.add_(going, alpha=made)
        cycle.slots.add_(going, alpha=made)
        work.slot += made
        last = j + made - 1
        self.trace.sums[:, j + 1 : last + 2] = self.r.square()[:, None]
        if is_mark(work.slot) or last + 1 == self.steps:
            due = going & ((cycle.phase == CLAIMS) | ((cycle.phase == RUNS) & is_look(work.slot)))
            if not looks or bool(due.any()):
                self._measure(due, last)
                self.trace.sums[:, last + 1] = self.r.square()
        return made

    def _refuse(self) -> None:
        codes = self.method.refuse(self.work)
        if codes is not None:
            verdict = self.cycle.verdict
            verdict.copy_(torch.where(verdict == RUNNING, codes, verdict))

    def _begin(self, waiting: Tensor) -> None:
        cycle, work = self.cycle, self.work
        unit = torch.where(self.r > 0, self.r, 1)[:, None, None]
        S = None
        if self.method.needs_slope:
            slope = work.measure.normal(self.R)
            cycle.slope.copy_(torch.where(waiting, norm(slope), cycle.slope))
            cycle.verdict.masked_fill_(waiting & work.measure.flat(norm(slope), self.r), LEAST_SQUARES)
            S = (work.unscaled(slope) / unit).to(self.X.dtype)
        mask = waiting[:, None, None]
        fresh = self.method.begin(work, (self.R / unit).to(self.X.dtype), S)
        for old, new in zip((*cycle.own, cycle.D), (*fresh, torch.zeros_like(cycle.D)), strict=True):
            old.copy_(torch.where(mask, new, old))
        cycle.active.copy_(torch.where(mask, row_norm(self.R) > 0, cycle.active))
        cycle.start.copy_(torch.where(waiting, self.r, cycle.start))
        cycle.phase.masked_fill_(waiting, RUNS)

    def _recur(self, runs: Tensor, j: int) -> None:
        cycle, work = self.cycle, self.work
        active = cycle.active & runs[:, None, None]
        *vectors, scalars = cycle.own
        fresh, now, (a, w) = self.method.recur(Rows, work.A, tuple(vectors), scalars.split(1, -1))
        cycle.D.add_(torch.where(active, a * w, 0))
        for old, new in zip(vectors, fresh, strict=True):  # MINRES moves each to the one before: in this order
            old.copy_(new)
        scalars.copy_(torch.where(active, torch.cat(now, -1), scalars))
        r, s = (t.double() for t in self.method.estimates(scalars.split(1, -1)))
        target, flat = self._targets()
        rows = (r <= (target / max(r.shape[1], 1) ** 0.5)[:, None, None]) | (s <= flat[:, None, None] * r)
        cycle.active.copy_(cycle.active & ~(rows & active))
        claims = (norm(r) <= target) | (norm(s) <= flat * norm(r)) | ~cycle.active.any(1)[:, 0]
        claims &= runs
        cycle.phase.masked_fill_(claims, CLAIMS)
        self.claimed_at.masked_fill_(claims, j + 1)

    def _targets(self) -> tuple[Tensor, Tensor]:
        """Up to which estimates of ``||R||``, and of ``||R A^T||`` over that, a cycle claims success; ``[B]``."""
        eps, tolerance = self.work.measure.eps, self.criteria.threshold.clamp(min=0).sqrt()
        target = (CLAIMED_SHARE * tolerance / self.cycle.start).clamp(min=eps**CYCLE_GAIN)
        return target, 0.5 * LEAST_SQUARES_UNITS * eps * self.work.A_norm

    def _recur_alone(self, j: int) -> int:
        """The iterations of a single row from j up to the next mark, with its scalars as numbers; how many."""
        cycle, work = self.cycle, self.work
        *states, state = cycle.own
        vectors, scalars, D = tuple(t[0, 0] for t in states), tuple(state[0, 0].tolist()), cycle.D[0, 0]
        target, flat = map(float, self._targets())
        most = min(self.steps, int(self.criteria.limit)) - j
        most = next((k for k in range(1, most) if is_mark(work.slot + k)), most)
        for made in range(1, most + 1):
            vectors, scalars, (a, w) = self.method.recur(Row, work.A[0], vectors, scalars)
            D.add_(w, alpha=a)
            r, s = self.method.estimates(scalars)
            if r <= target or s <= flat * r:
                cycle.active.fill_(False)
                cycle.phase.fill_(CLAIMS)
                self.claimed_at.fill_(j + made)
                break
        for old, new in zip(states, [t.clone() for t in vectors], strict=True):  # they may be one another's
            old[0, 0] = new
        state[0, 0] = torch.tensor(scalars, dtype=torch.float64)
        return most

    def _measure(self, due: Tensor, j: int) -> None:
        """Move X by the correction so far where that does not raise its residual; judge the cycles that claim."""
        cycle, measure = self.cycle, self.work.measure
        to = (self.X.double() + cycle.start[:, None, None] * self.work.unscaled(cycle.D).double()).to(self.X.dtype)
        to = torch.where(due[:, None, None], to, self.X)
        R = measure.residual(to)
        r = norm(R)
        moves = due & (r <= (1 + 10 * measure.eps) * self.r) & to.isfinite().all(-1).all(-1)
        mask = moves[:, None, None]
        self.X.copy_(torch.where(mask, to, self.X))
        cycle.D.copy_(torch.where(mask, 0, cycle.D))
        self.R, self.r = torch.where(mask, R, self.R), torch.where(moves, r, self.r)
        ended = due & (cycle.phase == CLAIMS)
        if not measure.waits and not bool(ended.any()):
            return
        cycle.phase.masked_fill_(ended, WAITS)
        sums, steps_done = self.trace.sums, self.trace.steps_done
        since = torch.arange(sums.shape[1], device=sums.device) >= self.claimed_at[:, None]
        since[:, j + 2 :] = False
        sums.copy_(torch.where(since & ended[:, None], self.r.square()[:, None], sums))
        fails = ended & (self.r.square() > self.criteria.threshold)
        if not measure.waits and not bool(fails.any()):
            return
        self._judge(fails)
        over = fails & (cycle.verdict != RUNNING)  # the iterations since the claim did nothing
        cycle.slots.sub_(torch.where(over, steps_done - self.claimed_at, 0))
        steps_done.copy_(torch.where(over, self.claimed_at, steps_done))

    def _judge(self, fails: Tensor) -> None:
        """Only a cycle that believed it had succeeded can show that nothing is left to gain."""
        cycle, measure, r = self.cycle, self.work.measure, self.r
        slope = norm(measure.normal(self.R))
        gained = (r <= 0.5 * cycle.start) | (slope <= 0.5 * cycle.slope)
        minimum = measure.flat(slope, r)
        halted = fails & ~gained & ~minimum
        minimum |= halted & ~measure.at_floor(self.X, r) & measure.flat_at_halt(slope, r, self.X)
        cycle.verdict.masked_fill_(halted, STAGNATED)
        cycle.verdict.masked_fill_(fails & minimum, LEAST_SQUARES)
        if not self.method.needs_slope:  # otherwise the next start measures it
            cycle.slope.copy_(torch.where(fails, slope, cycle.slope))


def _is_minimum_of_a_regular(problem: Problem, work: Work) -> bool:
    """Whether the normal equations show that nothing of R can be removed, which they do where M is well-conditioned."""
    assert work.R is not None
    R, r = work.R, norm(work.R)
    if problem.n > problem.p or not bool((r > 0).all()):
        return False
    factor = factor_problem(problem, "gram", "float32")
    if not bool(factor.full_rank.all()):
        return False
    removable = factor.correction(work.measure.normal(R / r[:, None, None]))[1]
    return bool((removable <= REMOVABLE_SHARE).all())


def scratch(problem: Problem, *columns: int) -> tuple[Tensor, ...]:
    """Zeros ``[B, m, columns]`` in the dtype of X."""
    options: dict[str, Any] = {"dtype": problem.dtype, "device": problem.device}
    return tuple(torch.zeros(problem.size, problem.m, count, **options) for count in columns)
