"""MINRES: the least residual over a Krylov space of a symmetric M, by the Lanczos recursion.

Paige and Saunders, SIAM J. Numer. Anal. 12, 1975.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels.contract import BREAKDOWN, RUNNING
from ..problem import Problem
from .krylov import Krylov, Scalars, Vectors, Work, scratch
from .measure import is_symmetric
from .row_arithmetic import row_norm
from .solver import Ending


@dataclass(frozen=True)
class MINRES(Krylov):
    """For a symmetric M, definite or not, at one product an iteration, half the cost of `LSQR`.

    It takes about ``kappa log(1 / rtol)`` iterations at most, and the root of that where M is definite; kappa is the
    condition number of M. Each row of X is a problem of its own. `X` moves as that of `LSQR` does; the residual never
    rises. For a singular M it finds a least-squares solution, but not always the one of smallest norm, which `LSQR`
    finds.

    It ends a problem as `LSQR` does, and as BREAKDOWN where M is not symmetric: where
    ``max|M - M^T| > 8 eps max|M|``.

    Raises:
        ValueError: M is not square, or there is a ridge.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> M = torch.tensor([[2.0, 1.0], [1.0, -3.0]])
        >>> X = mcf.solve(M, torch.tensor([[1.0, 4.0]]), solver=mcf.MINRES()).X
        >>> torch.allclose(X, torch.tensor([[1.0, -1.0]]))
        True
    """

    def init(self, problem: Problem, X: Tensor) -> tuple[Tensor, ...]:
        """See `Cycle`."""
        if problem.has_ridge:
            raise ValueError("MINRES needs a symmetric M, which a ridge has no place in; use LSQR()")
        if problem.n != problem.p:
            raise ValueError(f"MINRES needs a symmetric M, got [{problem.n}, {problem.p}]; use LSQR()")
        return super().init(problem, X)

    def refuse(self, work: Work) -> Tensor:
        """See `Krylov`."""
        return torch.where(is_symmetric(work.A), RUNNING, BREAKDOWN)

    def memory(self, problem: Problem) -> tuple[Tensor, ...]:
        """Two residuals of the Lanczos recursion, two directions, and eight scalars."""
        return scratch(problem, *[problem.n] * 4, 8)

    def begin(self, work: Work, R: Tensor, S: Tensor | None) -> tuple[Tensor, ...]:
        """See `Krylov`."""
        beta, zero = row_norm(R), torch.zeros_like(R)
        none = torch.zeros_like(beta)
        scalars = torch.cat([none, beta, none, none, none - 1, none, beta, none + torch.inf], -1)
        return -R, -R, zero, zero, scalars

    def recur(
        self, rows: Any, A: Tensor, vectors: Vectors, scalars: Scalars
    ) -> tuple[Vectors, Scalars, tuple[Any, Tensor]]:
        """See `Krylov`."""
        r1, r2, w2, w = vectors
        oldb, beta, dbar, epsln, cs, sn, phibar, _ = scalars
        v = rows.ratio(r2, beta)
        y = rows.less(v @ A, rows.ratio(beta, oldb), r1)
        alpha = rows.dot(v, y)
        y = rows.less(y, alpha, v)
        oldb, beta = beta, rows.norm(y)
        delta, gbar = cs * dbar + sn * alpha, sn * dbar - cs * alpha
        oldeps, epsln, dbar = epsln, sn * beta, -cs * beta
        slope = phibar * rows.hypot(gbar, dbar)  # of the iterate before
        gamma = rows.hypot(gbar, beta)
        cs, sn = rows.ratio(gbar, gamma), rows.ratio(beta, gamma)
        w2, w = w, rows.ratio(rows.less(rows.less(v, oldeps, w2), delta, w), gamma)
        return (r2, y, w2, w), (oldb, beta, dbar, epsln, cs, sn, sn * phibar, slope), (cs * phibar, w)

    def estimates(self, scalars: Scalars) -> tuple[Any, Any]:
        """See `Krylov`."""
        return scalars[6], scalars[7]

    def explain(self, problem: Problem, ending: Ending) -> str:
        """See `Solver`."""
        return "M is not symmetric; use LSQR()" if ending.status == BREAKDOWN else ""
