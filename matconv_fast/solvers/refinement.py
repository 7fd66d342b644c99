"""Iterative refinement: X = X - R P, with P the (pseudo-)inverse of M by a factor, and R made in float64.

Wilkinson, 1963; Carson and Higham, SIAM J. Sci. Comput. 40, 2018, for a factor of lower precision than the residual;
Bjorck, Linear Algebra Appl. 88, 1987, for the normal equations with correction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import _checks
from .._ops import Plan, plan_direct
from ..kernels.contract import BREAKDOWN, LEAST_SQUARES, RUNNING, STAGNATED, StopCriteria, Trace
from ..problem import Problem
from .factor import KINDS, Factor, check_kind, chosen_kind, factor_problem
from .measure import Measure, norm
from .solver import Ending, Iterate, Solver

# Iterations a chunk. On a CPU a chunk ends as soon as its problems have; elsewhere the rest is computed and discarded.
CHUNK, LAGGING_CHUNK = 8, 2
# Of ||R P M|| over ||R||, the part that a correction can still remove: ||R|| is its minimum up to half its square.
HALTED_SHARE = 1e-3


class Work:
    """What a run keeps: the factor, made when the first problem needs it, and the residual of X."""

    def __init__(self, problem: Problem) -> None:
        self.measure = Measure(problem)
        self.factor: Factor | None = None
        self.R: Tensor | None = None  # [B, m, p] float64

    def residual(self, X: Tensor) -> Tensor:
        """That of the X that the last chunk left, or made now."""
        if self.R is None:
            self.R = self.measure.residual(X)
        return self.R


@dataclass(frozen=True)
class Refinement(Solver):
    """Factor M once, then ``X -= R P``: a direct solve, repeated on its own residual until that is small enough.

    The first iteration from ``X0=None`` is the direct solve. Each later one gains about ``log10(1 / (eps kappa))``
    digits, kappa the condition number of M, until the residual is as small as the dtype of X allows. Residuals are made
    in float64, also for float32 problems. An iteration that does not lower ``||R||`` is discarded.

    Where M is square with at most 128 rows, X0 is None and no factor or precision is named, the first iteration is an
    elimination by an operator of its own, in float64 where float32 does not do. Most problems need no other.

    Where M has more columns than rows, it finds the least-squares minimum; where it has fewer, the solution nearest to
    X0. It ends a problem as LEAST_SQUARES where no correction can lower the residual of a full-rank M, as STAGNATED
    where an iteration gains less than a factor of 2, and as BREAKDOWN where M is singular to working precision. With
    ``factor=None`` such problems are tried again with a QR factor in float64.

    Args:
        factor: ``"cholesky"``, ``"lu"``, ``"gram"`` or ``"qr"``, see `factorize`; or a `Factor` of M or of a matrix
            near it. None chooses by the shape and symmetry of M.
        precision: ``"float32"`` or ``"float64"`` to factor in; None is the dtype of X.

    Raises:
        TypeError, ValueError: factor or precision is unknown, or does not fit the shape of M.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> sol = mcf.solve(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), solver=mcf.Refinement(), rtol=1e-6)
        >>> sol.X, sol.method
        (tensor([[ 0.6000, -0.2000],
                [-0.2000,  0.4000]]), 'Refinement: direct_lanes (cpu)')
    """

    factor: str | Factor | None = None
    precision: str | None = None

    carries_state: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.factor, Factor | None):
            _checks.choice("factor", self.factor, KINDS)
        if self.precision is not None:
            _checks.choice("precision", self.precision, ("float32", "float64"))

    def init(self, problem: Problem, X: Tensor) -> tuple[Tensor, ...]:
        """``(verdict [B], ||R P M|| at the iteration before [B])``."""
        self._check(problem)
        verdict = torch.full((), RUNNING, dtype=torch.int64, device=problem.device)
        return tuple(
            t.expand(problem.size) for t in (verdict, torch.full_like(verdict, torch.inf, dtype=torch.float64))
        )

    def plan(self, problem: Problem) -> Plan:
        """See `Solver`. The factor is made later, once a residual has missed its tolerance."""
        chunk = CHUNK if problem.device.type == "cpu" else LAGGING_CHUNK
        return Plan(algorithm=self._kind(problem), exact=True, chunk=chunk, verdicts=True, work=Work(problem))

    def plan_direct(self, problem: Problem) -> Plan | None:
        """See `Solver`. Where the user has chosen a factor or its precision, that is used."""
        if self.factor is not None or self.precision is not None:
            return None
        return plan_direct(problem.shape, problem.device)

    def _kind(self, problem: Problem) -> str:
        if isinstance(self.factor, Factor):
            return self.factor.kind
        if problem.M is None:
            return "identity"
        return self.factor or chosen_kind(problem)

    def _check(self, problem: Problem) -> None:
        if isinstance(self.factor, Factor):
            if self.factor.shape != (problem.n, problem.p) or len(self.factor.full_rank) not in (1, problem.size):
                shape = [problem.size, problem.n, problem.p]
                raise ValueError(f"the factor is {self.factor!r}, which does not fit M of shape {shape} here")
        elif problem.M is not None:
            check_kind(problem, self.factor)

    def _factored(self, problem: Problem, plan: Plan) -> Factor:
        if plan.work.factor is None:
            if isinstance(self.factor, Factor):
                plan.work.factor = self.factor
            else:
                plan.work.factor = factor_problem(problem, plan.algorithm, self.precision)
        return plan.work.factor

    def advance(self, problem: Problem, plan: Plan, iterate: Iterate, criteria: StopCriteria, trace: Trace) -> None:
        """See `Solver`. It stops a problem at its tolerance, and where the verdict falls."""
        work, X = plan.work, iterate.X
        R = work.residual(X)
        squares = norm(R).square_()
        trace.sums[:, 0] = squares
        trace.steps_done.zero_()
        for j in range(trace.sums.shape[1] - 1):
            goes_on = (j < criteria.limit) & (squares > criteria.threshold) & squares.isfinite()
            goes_on &= iterate.state[0] == RUNNING
            if not work.measure.waits and not bool(goes_on.any()):
                break
            R, moved = self._step(problem, plan, iterate, R, goes_on)
            squares = norm(R).square_()
            trace.sums[:, j + 1] = squares
            trace.steps_done.add_(moved)
        work.R = R

    def _step(
        self, problem: Problem, plan: Plan, iterate: Iterate, R: Tensor, goes_on: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One iteration of the problems that go on: the new residual, and which problems have made it."""
        (verdict, before), X, measure = iterate.state, iterate.X, plan.work.measure
        r = norm(R)
        unit = torch.where(r > 0, r, 1)[:, None, None]
        if problem.M is None:
            correction, removable, S = R / unit, before.new_full(before.shape, torch.inf), r
        else:
            factor = self._factored(problem, plan)
            verdict.masked_fill_(goes_on & ~factor.full_rank, BREAKDOWN)
            correction, removable, S = factor.correction(R / unit)
            self._judge_minimum(measure, iterate, R, goes_on, removable * r, S * r)
        going = goes_on & (verdict == RUNNING)
        to = torch.addcmul(X.double(), unit, correction.double(), value=-1).to(X.dtype)
        nonzero = measure.Y_norm > 0
        if measure.waits or not bool(nonzero.all()):  # Y = 0: X = 0 is exact
            to = torch.where(nonzero[:, None, None], to, 0)
        R_to = measure.residual(to)
        r_to = norm(R_to)
        verdict.masked_fill_(going & ~r_to.isfinite(), BREAKDOWN)
        # At a least-squares minimum ||R|| no longer tells two iterates apart.
        exact = removable.isinf()
        better = torch.where(exact, r_to < r, r_to <= (1 + 10 * measure.eps) * r)
        moves = going & better & (verdict == RUNNING)
        verdict.masked_fill_(going & (verdict == RUNNING) & exact & ~(r_to <= 0.5 * r), STAGNATED)
        before.copy_(torch.where(going, removable * r, before))
        if not measure.waits and bool(moves.all()):
            X.copy_(to)
            return R_to, going
        mask = moves[:, None, None]
        X.copy_(torch.where(mask, to, X))
        return torch.where(mask, R_to, R), going

    def _judge_minimum(
        self, measure: Measure, iterate: Iterate, R: Tensor, goes_on: Tensor, removable: Tensor, S: Tensor
    ) -> None:
        """Where ``n < p``: has the part of R that a correction can remove vanished, or stopped falling?"""
        verdict, before = iterate.state
        r = norm(R)
        slow = ~(removable <= 0.5 * before) & before.isfinite()
        candidates = goes_on & removable.isfinite() & (slow | (removable <= measure.eps**0.5 * r))
        if not measure.waits:
            if not bool(candidates.any()):
                return
            S = norm(measure.normal(R))  # the factor's own rounds, and the factor may be that of another matrix
        minimum = (removable <= measure.eps**0.5 * r) & measure.flat(S, r)
        minimum |= slow & (removable <= HALTED_SHARE * r) & measure.flat_at_halt(S, r, iterate.X)
        verdict.masked_fill_(candidates & slow, STAGNATED)
        verdict.masked_fill_(candidates & minimum, LEAST_SQUARES)

    def verdict(self, problem: Problem, plan: Plan, iterate: Iterate) -> Tensor:
        """See `Solver`."""
        return iterate.state[0]

    def fallbacks(self, problem: Problem) -> tuple[Solver, ...]:
        """A more accurate factor, if the user left the choice."""
        if self.factor is not None or problem.M is None:
            return ()
        return (replace(self, factor="qr", precision="float64"),)

    def explain(self, problem: Problem, ending: Ending) -> str:
        """See `Solver`."""
        if ending.status != BREAKDOWN:
            return ""
        return "M is singular to working precision; use LSQR(), which finds the least-squares minimum"

    def advice(self, problem: Problem) -> str:
        """See `Solver`."""
        return "raise max_iters or the tolerance"

    def state_dict(self) -> dict[str, Any]:
        """See `Solver`. A `Factor` is saved as its kind, and made anew from M."""
        if isinstance(self.factor, Factor):
            return replace(self, factor=self.factor.kind).state_dict()
        return super().state_dict()
