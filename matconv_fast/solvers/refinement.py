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
from .chunk import iterate_chunk
from .factor import KINDS, Factor, check_kind, chosen_kind, factor_problem
from .measure import TOO_SMALL, is_symmetric, norm
from .products import LEAST_BLOCKED, inverse_by_blocks
from .residual import Residual, Work
from .solver import Ending, Iterate, Solver

# Iterations a chunk. On a CPU a chunk ends as soon as its problems have; elsewhere the rest is computed and discarded.
CHUNK, LAGGING_CHUNK = 8, 2
# Of ||R P M|| over ||R||, the part that a correction can still remove: ||R|| is its minimum up to half its square.
HALTED_SHARE = 1e-3


# Of ||Y||, an ||R|| from which on it is ||Y||^2 - <X, Y M^T> without much cancellation.
LARGE_SHARE = 0.03
# Multiplications of a residual from which on it is worth a sample that may prove nothing.
LEAST_SAMPLED_PRODUCTS = 1 << 26


@dataclass(frozen=True)
class Refinement(Solver):
    """Factor M once, then ``X -= R P``: a direct solve, repeated on its own residual until that is small enough.

    The first iteration from ``X0=None`` is the direct solve. Each later one gains about ``log10(1 / (eps kappa))``
    digits, kappa the condition number of M, until the residual is as small as the dtype of X allows. Residuals are made
    in float64, also for float32 problems. An iteration that does not lower ``||R||`` is discarded.

    Where M is square with at most 128 rows, X0 is None and no factor or precision is named, the first iteration is an
    elimination by an operator of its own, in float64 where float32 does not do. Most problems need no other.

    On CPUs, from about 128 x 128 on, the residual of the direct solve is sampled by 16 random combinations of its rows.
    If that is far below the tolerance, the solve ends, and ``residual_norm`` is an estimate, as `Solution.method` says;
    otherwise the residual is computed in full.

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
        kind = self._kind(problem)
        return Plan(algorithm=kind, exact=True, chunk=chunk, verdicts=True, work=Work(problem, kind == "gram"))

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
                gram = plan.work.factor.gram
                if gram is not None:  # saves a pass over M
                    plan.work.measure.M_norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt().expand(problem.size)
        return plan.work.factor

    def advance(self, problem: Problem, plan: Plan, iterate: Iterate, criteria: StopCriteria, trace: Trace) -> None:
        """See `Solver`. It stops a problem at its tolerance, and where the verdict falls."""
        work = plan.work

        def step(goes_on: Tensor) -> tuple[Tensor, Tensor]:
            direct = None
            if work.residual is None:
                direct = self._direct(problem, plan, iterate, goes_on, criteria.threshold)
            work.squares, made = direct or self._step(problem, plan, iterate, goes_on)
            return work.squares, made

        if work.squares is None:
            work.squares = work.first_squares(iterate.X, criteria.threshold)
        iterate_chunk(work.squares, step, iterate.state[0], criteria, trace)

    def _direct(
        self, problem: Problem, plan: Plan, iterate: Iterate, goes_on: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The direct solution, and a sample of its residual; None, with X as it was, where that proves nothing.

        The solution of a square problem does not depend on X0, whose residual is then never made.
        """
        work, X = plan.work, iterate.X
        measure = work.measure
        if not measure.is_large or not bool(goes_on.all()):
            return None
        mix = measure.samples()
        if mix is not None and plan.algorithm in ("cholesky", "lu"):
            to = self._answer(problem, plan)
            if to is None:
                return None
            squares = measure.sampled_norm(to, mix).square()
            if not bool((squares * TOO_SMALL**2 <= threshold).all()):
                return None
            work.estimated = True
        elif work.normal and measure.is_zero(X) and bool(self._factored(problem, plan).full_rank.all()):
            found = self._direct_minimum(problem, work, X, threshold)
            if found is None:
                return None
            to, squares = found
            work.estimated = False
            iterate.state[0].fill_(LEAST_SQUARES)
        else:
            return None
        X.copy_(to)
        return squares, goes_on

    def _answer(self, problem: Problem, plan: Plan) -> Tensor | None:
        """``Y P`` for a square M of full rank, otherwise None."""
        M, chosen = problem.M, self.factor is None and self.precision is None
        blocked = chosen and plan.algorithm == "cholesky" and problem.identity and problem.n >= LEAST_BLOCKED
        if blocked and M is not None and bool(is_symmetric(M).all()):
            X = inverse_by_blocks(M)
            return None if X is None else X.expand(problem.size, -1, -1)
        factor = self._factored(problem, plan)
        return factor.answer(problem) if bool(factor.full_rank.all()) else None

    def _direct_minimum(
        self, problem: Problem, work: Work, X: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """From ``X = 0``: the solution of the normal equations and its ``||R||^2``, if that is the minimum."""
        measure, factor = work.measure, work.factor
        assert factor is not None
        work.residual = work.start(X)
        S, Y_norm = work.residual
        gram = factor.gram
        if not work.rough or gram is None:
            return None
        unit = torch.where(Y_norm > 0, Y_norm, 1)[:, None, None]
        to = torch.mul(factor.correction(S / unit)[0], -unit).to(X.dtype)
        squares = Y_norm.square() + (to * S).sum((-2, -1))  # since <X, R M^T> is 0
        if not bool(((squares > (LARGE_SHARE * Y_norm) ** 2) & (squares > threshold)).all()):
            return None
        r = squares.sqrt()
        samples: list[tuple[Tensor | None, float]] = [(None, 1)]
        if measure.samples() is not None and X.numel() * problem.p >= LEAST_SAMPLED_PRODUCTS:
            samples.insert(0, (measure.samples(), TOO_SMALL))
        for mix, margin in samples:
            _, removable, slope = factor.correction(measure.slope(to, gram, mix) / r[:, None, None])
            minimum = (margin * removable <= measure.eps**0.5) & measure.flat(2 * margin * slope * r, r)
            if bool(minimum.all()):
                return to, squares
        return None

    def _step(self, problem: Problem, plan: Plan, iterate: Iterate, goes_on: Tensor) -> tuple[Tensor, Tensor]:
        """One iteration of the problems that go on: the new ``||R||^2``, and which problems have made it."""
        work, (verdict, before), X = plan.work, iterate.state, iterate.X
        measure = work.measure
        if work.residual is None:
            work.residual = work.start(X)
        part, r = work.residual
        unit = torch.where(r > 0, r, 1)[:, None, None]
        if problem.M is None:
            correction, removable = part / unit, before.new_full(before.shape, torch.inf)
        else:
            factor = self._factored(problem, plan)
            verdict.masked_fill_(goes_on & ~factor.full_rank, BREAKDOWN)
            correction, removable, S = factor.correction(part / unit)
            self._judge_minimum(work, iterate, goes_on, removable * r, S * r)
        going = goes_on & (verdict == RUNNING)
        if not measure.waits and not bool(going.any()):
            return r.square(), going
        to = work.corrected(X, unit, correction)
        nonzero = measure.Y_norm > 0
        if measure.waits or not bool(nonzero.all()):  # Y = 0: X = 0 is exact
            to = torch.where(nonzero[:, None, None], to, 0)
        part_to, r_to = work.residual_of(to)
        verdict.masked_fill_(going & ~r_to.isfinite(), BREAKDOWN)
        # At a least-squares minimum ||R|| no longer tells two iterates apart.
        exact = removable.isinf()
        better = torch.where(exact, r_to < r, r_to <= (1 + 10 * measure.eps) * r)
        moves = going & better & (verdict == RUNNING)
        verdict.masked_fill_(going & (verdict == RUNNING) & exact & ~(r_to <= 0.5 * r), STAGNATED)
        before.copy_(torch.where(going, removable * r, before))
        if not measure.waits and bool(moves.all()):
            X.copy_(to)
            work.residual = Residual(part_to, r_to)
        else:
            mask = moves[:, None, None]
            X.copy_(torch.where(mask, to, X))
            work.residual = Residual(torch.where(mask, part_to, part), torch.where(moves, r_to, r))
        work.rough = work.estimated = False
        return work.residual.norm.square(), going

    def _judge_minimum(self, work: Work, iterate: Iterate, goes_on: Tensor, removable: Tensor, S: Tensor) -> None:
        """Where ``n < p``: has the part of R that a correction can remove vanished, or stopped falling?"""
        (verdict, before), measure = iterate.state, work.measure
        assert work.residual is not None
        part, r = work.residual
        slow = ~(removable <= 0.5 * before) & before.isfinite()
        candidates = goes_on & removable.isfinite() & (slow | (removable <= measure.eps**0.5 * r))
        if not measure.waits:
            if not bool(candidates.any()):
                return
            if work.rough:
                S = norm(measure.normal_equations(iterate.X)[0])
            elif not work.normal:  # the factor's own rounds, and the factor may be that of another matrix
                S = norm(measure.normal(part))
        minimum = (removable <= measure.eps**0.5 * r) & measure.flat(S, r)
        minimum |= slow & (removable <= HALTED_SHARE * r) & measure.flat_at_halt(S, r, iterate.X)
        verdict.masked_fill_(candidates & slow, STAGNATED)
        verdict.masked_fill_(candidates & minimum, LEAST_SQUARES)

    def verdict(self, problem: Problem, plan: Plan, iterate: Iterate) -> Tensor:
        """See `Solver`."""
        return iterate.state[0]

    def is_estimate(self, plan: Plan) -> bool:
        """See `Solver`."""
        return plan.work.estimated

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

    def advice(self, problem: Problem, tolerance: float) -> str:
        """See `Solver`."""
        return "raise max_iters or the tolerance"

    def state_dict(self) -> dict[str, Any]:
        """See `Solver`. A `Factor` is saved as its kind, and made anew from M."""
        if isinstance(self.factor, Factor):
            return replace(self, factor=self.factor.kind).state_dict()
        return super().state_dict()
