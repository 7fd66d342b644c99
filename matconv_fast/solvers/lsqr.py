"""LSQR: conjugate gradients on the normal equations by Golub-Kahan bidiagonalization, which never forms M M^T.

Paige and Saunders, ACM Trans. Math. Softw. 8, 1982.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..problem import Problem
from .factor import power_of_2
from .krylov import Krylov, Scalars, Vectors, Work, scratch
from .row_arithmetic import ratio, row_norm

# Of the lengths of M's rows, longest over shortest, from which they are scaled to about one length. It speeds up
# convergence, but moves the minimum-norm solution, so it is done only where the solution should be unique.
SPREAD = 1e3


@dataclass(frozen=True)
class LSQR(Krylov):
    """The least-squares solution of smallest norm (nearest to X0), for any M, at two products an iteration.

    It needs no factor of M, so it suits a large M and few rows of Y; each row of X is a problem of its own. Fewer than
    ``min(n, p)`` iterations do in exact arithmetic, and about ``kappa log(1 / rtol)`` at most, kappa the condition
    number of M. `X` moves after 4, 16 and multiples of 64 iterations, and at the stop; `max_iters` ends a run with the
    X of the last move.

    It ends a problem as CONVERGED by the residual of X in float64, as LEAST_SQUARES where ``||R M^T||`` is 0 up to
    rounding, and as STAGNATED where a cycle that believed it had succeeded gained less than a factor of 2. For M up to
    256 rows or columns, on CPUs, LEAST_SQUARES is checked by a singular value decomposition in float64.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> M, Y = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]), torch.tensor([[1.0, 2.0, 2.0]])
        >>> sol = mcf.solve(M, Y, solver=mcf.LSQR())  # the straight line through three points
        >>> sol.X, mcf.Status(sol.status.item()).name, sol.converged
        (tensor([[1.1667, 0.5000]]), 'LEAST_SQUARES', tensor(True))
    """

    needs_slope: ClassVar[bool] = True

    def prepare(self, problem: Problem) -> Tensor | None:
        """See `Krylov`."""
        assert problem.M is not None
        if problem.n > problem.p or problem.M.numel() == 0:
            return None
        length = torch.linalg.vector_norm(problem.M, dim=-1, keepdim=True, dtype=problem.dtype)
        shortest = torch.where(length > 0, length, torch.inf).amin(-2, keepdim=True)
        uneven = length.amax(-2, keepdim=True) > SPREAD * shortest
        if problem.device.type == "cpu" and not bool(uneven.any()):
            return None
        return torch.where(uneven, power_of_2(length), 1)

    def memory(self, problem: Problem) -> tuple[Tensor, ...]:
        """``u, v, w``, and the scalars alpha, rhobar, phibar and ``||r A^T||``."""
        return scratch(problem, problem.p, problem.n, problem.n, 4)

    def begin(self, work: Work, R: Tensor, S: Tensor | None) -> tuple[Tensor, ...]:
        """See `Krylov`."""
        assert S is not None
        beta = row_norm(R)
        v = ratio(-S, beta)
        alpha = row_norm(v)
        v = ratio(v, alpha)
        return ratio(-R, beta), v, v, torch.cat([alpha, alpha, beta, alpha * beta], -1)

    def recur(
        self, rows: Any, A: Tensor, vectors: Vectors, scalars: Scalars
    ) -> tuple[Vectors, Scalars, tuple[Any, Tensor]]:
        """See `Krylov`."""
        (u, v, w), (alpha, rhobar, phibar, _) = vectors, scalars
        u = rows.less(v @ A, alpha, u)
        beta = rows.norm(u)
        u = rows.ratio(u, beta)
        v = rows.less(u @ A.mT, beta, v)
        alpha = rows.norm(v)
        v = rows.ratio(v, alpha)
        rho = rows.hypot(rhobar, beta)
        c, s = rows.ratio(rhobar, rho), rows.ratio(beta, rho)
        move = rows.ratio(c * phibar, rho), w
        w = rows.less(v, rows.ratio(s * alpha, rho), w)
        return (u, v, w), (alpha, -c * alpha, s * phibar, s * phibar * alpha * abs(c)), move

    def estimates(self, scalars: Scalars) -> tuple[Any, Any]:
        """See `Krylov`."""
        return scalars[2], scalars[3]
