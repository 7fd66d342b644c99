"""The Newton-Schulz iteration for an inverse: X = X - R X, with R = X M - I. Schulz, ZAMM 13, 1933.

||R|| is squared by each iteration once it is below 1. The last iterations are iterative refinement, since X is then an
approximate inverse and R is made in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import _reference
from .._ops import Plan
from ..kernels.contract import BREAKDOWN, RUNNING, STAGNATED, StopCriteria, Trace
from ..problem import Problem
from .chunk import iterate_chunk
from .measure import Measure, norm
from .solver import Ending, Iterate, Solver

CHUNK, LAGGING_CHUNK = 16, 4
# ||R|| up to which the iteration may be begun by X0: below 1 it converges, near 1 slowly.
WARM = 0.99
# Where ||R||_F does not show that ||R||_2 < 1, this many power iterations estimate it, from below by a few per cent.
POWER_ITERATIONS, POWER_MARGIN = 8, 1.1
# ||R|| from which on it is made in float64. It takes three or four iterations from there to the rounding of float32.
PRECISE = 0.1

COLD, WARM_STARTED = 1, 2


class Work:
    """What a run keeps: the residual of X."""

    def __init__(self, problem: Problem) -> None:
        self.measure = Measure(problem)
        self.R: Tensor | None = None

    def residual(self, X: Tensor, before: Tensor) -> Tensor:
        """``X @ M - I`` in float64 where ``||R||`` was small before, and otherwise, on CPUs, in the dtype of X."""
        precise = before <= PRECISE
        if self.measure.waits or X.dtype == torch.float64 or bool(precise.all()):
            return self.measure.residual(X)
        problem = self.measure.problem
        R = _reference.batched_residual(X, self.measure.M, problem.Y.to(X.dtype)).double()
        if not bool(precise.any()):
            return R
        return torch.where(precise[:, None, None], self.measure.residual(X), R)


@dataclass(frozen=True)
class NewtonSchulz(Solver):
    """Inverses by products alone, two an iteration, for processors whose products are much faster than their factors.

    An X0 with ``||X0 M - I||_2 < 1``, which is checked, is improved: each iteration squares that norm. Otherwise the
    first iteration replaces X by ``M^T / (||M||_1 ||M||_inf)``, from which it converges for every invertible M, after
    about ``2 log2(kappa)`` iterations; kappa is the condition number of M.

    It ends a problem as STAGNATED where rounding stops it, and as BREAKDOWN where it has not converged in as many
    iterations as any M takes that is not singular to working precision.

    Raises:
        ValueError: Y is not the identity that ``Y=None`` stands for, or M is None.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> M = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> cold = mcf.inv(M, solver=mcf.NewtonSchulz())
        >>> warm = mcf.inv(M + 0.01, X0=cold.X, solver=mcf.NewtonSchulz())
        >>> bool(cold.converged & warm.converged), bool(warm.iterations < cold.iterations)
        (True, True)
    """

    carries_state: ClassVar[bool] = False

    def init(self, problem: Problem, X: Tensor) -> tuple[Tensor, ...]:
        """``(verdict, how it was started, iterations since then, ||R|| of the iterate before)``, each ``[B]``."""
        if problem.M is None or not problem.identity:
            raise ValueError("NewtonSchulz finds inverses: call inv(M), or solve(M) without Y")
        verdict = torch.full((problem.size,), RUNNING, dtype=torch.int64, device=problem.device)
        none = torch.zeros_like(verdict)
        return verdict, none, none.clone(), torch.zeros_like(verdict, dtype=torch.float64)

    def plan(self, problem: Problem) -> Plan:
        """See `Solver`."""
        chunk = CHUNK if problem.device.type == "cpu" else LAGGING_CHUNK
        return Plan(algorithm="products", exact=True, chunk=chunk, verdicts=True, work=Work(problem))

    def advance(self, problem: Problem, plan: Plan, iterate: Iterate, criteria: StopCriteria, trace: Trace) -> None:
        """See `Solver`."""
        work, X = plan.work, iterate.X
        work.R = work.residual(X, iterate.state[3]) if work.R is None else work.R

        def step(goes_on: Tensor) -> tuple[Tensor, Tensor]:
            work.R = self._step(work, iterate, work.R, goes_on)
            return norm(work.R).square_(), goes_on

        iterate_chunk(norm(work.R).square_(), step, iterate.state[0], criteria, trace)

    def _step(self, work: Work, iterate: Iterate, R: Tensor, goes_on: Tensor) -> Tensor:
        """One iteration of the problems that go on; returns the new residual."""
        (verdict, started, count, before), X = iterate.state, iterate.X
        r = norm(R)
        fresh = goes_on & (started == 0)
        started.masked_fill_(fresh, COLD)
        if work.measure.waits or bool(fresh.any()):
            started.masked_fill_(fresh & (_spectral(R, r) < WARM), WARM_STARTED)
        replaced = fresh & (started == COLD)
        to = X - R.to(X.dtype) @ X
        if work.measure.waits or bool(replaced.any()):
            to = torch.where(replaced[:, None, None], _cold_start(work.measure), to)
        R_to = work.residual(to, r)
        r_to = norm(R_to)
        count.add_(goes_on)
        before.copy_(torch.where(goes_on, r, before))
        near = r <= 0.5
        better = replaced | (r_to < r) | (~near & (r_to <= (1 + 1e-3) * r))  # until then ||R||_F may stand still
        mask = (goes_on & better)[:, None, None]
        X.copy_(torch.where(mask, to, X))
        # A warm start that does not contract was none: it starts again.
        failed = goes_on & (started == WARM_STARTED) & ~near & ~(r_to < r)
        started.masked_fill_(failed, 0)
        verdict.masked_fill_(goes_on & near & ~(r_to <= 0.5 * r), STAGNATED)
        most = 2 * math.log2(1 / work.measure.eps) + 8
        verdict.masked_fill_(goes_on & ~failed & ~near & ((count > most) | ~better), BREAKDOWN)
        R, ended = torch.where(mask, R_to, R), goes_on & (verdict != RUNNING)
        if work.measure.waits or not bool(ended.any()):
            return R
        return torch.where(ended[:, None, None], work.measure.residual(X), R)  # what is reported is exact

    def verdict(self, problem: Problem, plan: Plan, iterate: Iterate) -> Tensor:
        """See `Solver`."""
        return iterate.state[0]

    def explain(self, problem: Problem, ending: Ending) -> str:
        """See `Solver`."""
        return "M is singular to working precision; use Refinement()" if ending.status == BREAKDOWN else ""


def _spectral(R: Tensor, r: Tensor) -> Tensor:
    """An estimate of ``||R||_2``, ``[B]``: the Frobenius norm where that is small, otherwise by power iteration."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(R.shape[-1], 1, generator=generator, dtype=torch.float64, device="cpu").to(R.device)
    v = v.expand(R.shape[0], -1, -1)
    size = r
    for _ in range(POWER_ITERATIONS):
        w = R.mT @ (R @ (v / torch.where(norm(v) > 0, norm(v), 1)[:, None, None]))
        v, size = w, norm(w).sqrt()
    return torch.where(r < WARM, r, POWER_MARGIN * size)


def _cold_start(measure: Measure) -> Tensor:
    """``M^T / (||M||_1 ||M||_inf)``, for which ``||X M - I||_2 < 1``."""
    M = measure.M
    assert M is not None
    size = M.abs()
    if M.numel() == 0:
        return M.mT
    columns, rows = size.sum(-2).amax(-1), size.sum(-1).amax(-1)
    columns, rows = (torch.where(t > 0, t, 1)[:, None, None] for t in (columns, rows))
    return (M.mT / columns) / rows  # their product may overflow
