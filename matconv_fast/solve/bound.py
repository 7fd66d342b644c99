"""Proven bounds on the error of a solution: Rump, "Verification methods", Acta Numerica 19, 2010, section 10.

With any P and ``G = I - A P``: if ``||G|| < 1``, A is invertible, and ``||B A^-1|| <= ||B P|| / (1 - ||G||)``. For a
square M, A is M and B the residual; for n < p, A is ``M M^T`` and B is ``R M^T``. Every product is computed in float64,
and what its rounding can hide is added: at most ``k u |a| |b|`` for sums of k products, in any order, with u = 2^-53.
The residual of a float64 X is summed in twice that precision (Ogita, Rump, Oishi, SIAM J. Sci. Comput. 26, 2005), since
its rounding would be most of the bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Problem

UNIT = 2.0**-53
# Underflow adds at most this to each product; norms and sums of the bound itself round by less than the factor.
TINY, SLACK = 5e-324, 1 + 1e-9
# Products of entries up to which the residual is summed in twice the precision: a second's work.
MOST_DOUBLED = 30_000_000


class _Enclosed:
    """A matrix in float64 and a bound on its error, elementwise."""

    def __init__(self, value: Tensor, error: Tensor | None = None) -> None:
        self.value, self.error = value, torch.zeros_like(value) if error is None else error

    def __matmul__(self, other: _Enclosed) -> _Enclosed:
        k = self.value.shape[-1]
        size, other_size = self.value.abs(), other.value.abs()
        rounding = (k + 2) * UNIT * (size @ other_size) + k * TINY
        spread = self.error @ (other_size + other.error) + size @ other.error
        return _Enclosed(self.value @ other.value, SLACK * (rounding + spread))

    def __sub__(self, other: _Enclosed) -> _Enclosed:
        value = self.value - other.value
        return _Enclosed(value, SLACK * (2 * UNIT * value.abs() + self.error + other.error))

    @property
    def T(self) -> _Enclosed:
        return _Enclosed(self.value.mT, self.error.mT)

    def norm(self) -> Tensor:
        """An upper bound on the Frobenius norm, ``[B]``."""
        largest = (self.value.abs() + self.error) * SLACK
        scale = largest.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)  # squares may overflow
        return SLACK * scale[..., 0, 0] * torch.linalg.vector_norm(largest / scale, dim=(-2, -1))


def _product_and_error(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``a * b``, rounded, and what rounding took, exactly (Dekker, 1971)."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return product, a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    big = (2.0**27 + 1) * a
    high = big - (big - a)
    return high, a - high


def _residual(X: Tensor, M: Tensor, Y: Tensor) -> _Enclosed:
    """``X @ M - Y``."""
    if X.dtype != torch.float64 or X.numel() * M.shape[-1] > MOST_DOUBLED:
        return _Enclosed(X.double()) @ _Enclosed(M) - _Enclosed(Y)
    total, rest, n = -Y, torch.zeros_like(Y), M.shape[-2]
    for k in range(n):
        product, error = _product_and_error(X[..., k : k + 1], M[..., k : k + 1, :])
        new = total + product
        part = new - total
        rest = rest + ((total - (new - part)) + (product - part) + error)
        total = new
    value, size = total + rest, X.abs() @ M.abs() + Y.abs()
    error = UNIT * value.abs() + ((2 * n + 4) * UNIT) ** 2 * size + 8 * (n + 1) * TINY
    return _Enclosed(value, SLACK * error)


def _with_exact_ridge(problem: Problem, M: Tensor) -> _Enclosed:
    """M with ``sqrt(ridge)`` as float64 has it, where the solvers use one rounded to the dtype of M."""
    ridge = torch.as_tensor(problem.ridge, dtype=torch.float64, device=M.device).reshape(-1, 1, 1)
    block = ridge.sqrt() * torch.eye(problem.n, dtype=torch.float64, device=M.device)
    value = torch.cat([M[..., : problem.columns], block.expand(len(M), -1, -1)], -1)
    error = torch.zeros_like(value)
    error[..., problem.columns :] = 2 * UNIT * block
    return _Enclosed(value, error)


@torch.no_grad()
def error_bound(problem: Problem, X: Tensor) -> Tensor:
    """``||X - X*||_F`` is at most this, ``[B]`` float64; infinity where M is too close to singular to tell.

    Args:
        problem: whose solution, or least-squares solution for n < p, X* is.
        X: ``[B, m, n]``.
    """
    Y = problem.Y.double().expand(problem.size, -1, -1)
    if problem.M is None:
        return (_Enclosed(X.double()) - _Enclosed(Y)).norm()
    none = X.new_full((problem.size,), torch.inf, dtype=torch.float64)
    if problem.n > problem.p:
        return none  # the solution is not unique
    if 0 in (problem.m, problem.n):
        return torch.zeros_like(none)
    M = _Enclosed(problem.M.double())
    if problem.has_ridge:
        M = _with_exact_ridge(problem, M.value)
        B = _Enclosed(X.double()) @ M - _Enclosed(Y)
    else:
        B = _residual(X, M.value, Y)
    A = M
    if problem.n < problem.p:
        B, A = B @ M.T, M @ M.T
    P, _ = torch.linalg.inv_ex(torch.where(A.value.isfinite().all(-1).all(-1)[:, None, None], A.value, 0))
    inverse = _Enclosed(P)
    eye = _Enclosed(torch.eye(problem.n, dtype=torch.float64, device=X.device).expand_as(P))
    gap = (eye - A @ inverse).norm().expand(problem.size)
    bound = (B @ inverse).norm() / (1 - gap) * SLACK
    return torch.where((gap < 1) & bound.isfinite(), bound, none)
