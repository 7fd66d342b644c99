"""The choice of a solver for a problem whose user names none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._ops import Plan
from ..kernels.contract import StopCriteria, Trace
from ..problem import Problem
from .lsqr import LSQR
from .measure import is_symmetric
from .minres import MINRES
from .refinement import Refinement
from .solver import Ending, Iterate, Solver

# Up to this many rows or columns, a factor of M costs less than the iterations that it replaces.
MOST_FACTORED = 512


@dataclass(frozen=True)
class _Chosen:
    """The solver that runs, and its own plan."""

    solver: Solver
    plan: Plan


@dataclass(frozen=True)
class Auto(Solver):
    """A right answer, or a true status, with no options.

    | if | it uses |
    | --- | --- |
    | M is None | `Refinement`: X = Y |
    | ``min(n, p) <= 512``, or X has as many rows as columns | `Refinement`: one factor, and corrections |
    | otherwise, if M is symmetric | `MINRES` |
    | otherwise | `LSQR` |

    Problems that this leaves without an answer, because M is singular or too ill-conditioned for the factor, are solved
    again: by a QR factor in float64 and then by `LSQR`, which finds the least-squares solution of smallest norm for any
    M; after `MINRES`, by `LSQR`. Only these problems are, and X is the better of both answers. ``Solution.method`` says
    what ran, and why.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> sol = mcf.solve(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), solver=mcf.Auto())
        >>> sol.method
        'Auto: refinement_direct_lanes (cpu); M has at most 512 rows or columns'
        >>> mcf.solve(torch.ones(2, 2), torch.eye(2), solver=mcf.Auto()).X  # the pseudo-inverse
        tensor([[0.2500, 0.2500],
                [0.2500, 0.2500]])
    """

    carries_state: ClassVar[bool] = False

    def choice(self, problem: Problem) -> tuple[Solver, str]:
        """The solver for a problem, and why. Reads M only where its symmetry decides."""
        if problem.M is None:
            return Refinement(), "M is the identity"
        if min(problem.n, problem.p) <= MOST_FACTORED:
            return Refinement(), f"M has at most {MOST_FACTORED} rows or columns"
        if problem.m >= problem.n:
            return Refinement(), f"X has {problem.m} rows, at least as many as M"
        few = f"X has {problem.m} rows, fewer than M, {problem.n}"
        if problem.n == problem.p and bool(is_symmetric(problem.M).all()):
            return MINRES(), f"M is symmetric, and {few}"
        return LSQR(), few

    def reason(self, problem: Problem) -> str:
        """See `Solver`."""
        return self.choice(problem)[1]

    def init(self, problem: Problem, X: Tensor) -> tuple[Tensor, ...]:
        """That of the solver chosen."""
        return self.choice(problem)[0].init(problem, X)

    def plan(self, problem: Problem) -> Plan:
        """See `Solver`."""
        solver = self.choice(problem)[0]
        plan = solver.plan(problem)
        name = type(solver).__name__.lower()
        algorithm = f"{name}_{plan.algorithm}"
        return plan._replace(algorithm=algorithm, work=_Chosen(solver, plan))

    def plan_direct(self, problem: Problem) -> Plan | None:
        """That of the solver chosen."""
        solver = self.choice(problem)[0]
        plan = solver.plan_direct(problem)
        return plan if plan is None else plan._replace(algorithm=f"{type(solver).__name__.lower()}_{plan.algorithm}")

    def advance(self, problem: Problem, plan: Plan, iterate: Iterate, criteria: StopCriteria, trace: Trace) -> None:
        """See `Solver`."""
        plan.work.solver.advance(problem, plan.work.plan, iterate, criteria, trace)

    def verdict(self, problem: Problem, plan: Plan, iterate: Iterate) -> Tensor:
        """See `Solver`."""
        return plan.work.solver.verdict(problem, plan.work.plan, iterate)

    def is_estimate(self, plan: Plan) -> bool:
        """See `Solver`."""
        return plan.work.solver.is_estimate(plan.work.plan)

    def fallbacks(self, problem: Problem) -> tuple[Solver, ...]:
        """See `Solver`."""
        solver = self.choice(problem)[0]
        if problem.M is None or isinstance(solver, LSQR):
            return ()
        return (*solver.fallbacks(problem), LSQR())

    def explain(self, problem: Problem, ending: Ending) -> str:
        """See `Solver`."""
        return self.choice(problem)[0].explain(problem, ending)
