"""Factors of M, which give the best step there is: ``X -= R P``, with P the inverse or pseudo-inverse of M.

R P is computed from one of four factors of the scaled matrix ``A = D M E``, D and E powers of 2 on the diagonal:

cholesky  A = L L^T,        symmetric positive definite
lu        A^T = Q L U,      square, with partial pivoting
gram      A A^T = L L^T,    n < p: the normal equations
qr        A^T = Q U,        n <= p;  A = Q U  for n > p: the solution nearest to X
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..problem import Problem
from ..source import Source
from .measure import is_symmetric, norm
from .products import sum_of_products

KINDS = ("cholesky", "lu", "gram", "qr")

# Columns a row from which the normal equations are factored: QR takes twice as long, and four times M's memory.
GRAM_ASPECT = 8

# Rows and columns that are compared before a factor is chosen.
LEAST_COMPARED = 64

# Squared lengths of M's rows between which float32 neither over- nor underflows in ``M M^T``.
SAFE_SQUARES = 1e-24, 1e24
# Largest over smallest row of M up to which it is factored as it is.
LEVEL = 64
# A condition number from which the first correction by the normal equations is followed by another one.
ILL_CONDITIONED = 10.0


# What `Factor.correction` returns.
Correction = tuple[Tensor, Tensor, Tensor]


class _Parts(NamedTuple):
    """What a kind of factor consists of; see the attributes of `Factor`."""

    full_rank: Tensor
    apply: Callable[[Tensor], Correction]
    condition: Tensor | None = None
    gram: Tensor | None = None
    inverse: Callable[[], Tensor] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Factor:
    """A factored M, made by `factorize`, that any number of solves can use.

    Attributes:
        M: the matrix, as it was given.
        kind: ``"cholesky"``, ``"lu"``, ``"gram"`` or ``"qr"``.
        precision: the dtype that it was factored in.
        left: whether it solves ``M @ X = Y``.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> mcf.factorize(torch.diag(torch.tensor([1.0, 2.0])))
        Factor(cholesky of float32 tensor of shape [2, 2] on cpu)
    """

    M: Tensor
    kind: str
    precision: torch.dtype
    left: bool
    source: Source = field(repr=False)
    shape: tuple[int, int] = field(repr=False)
    _parts: _Parts = field(repr=False)

    @property
    def full_rank(self) -> Tensor:
        """Whether each matrix has full rank, to working precision; bool, one a matrix of the flattened batch."""
        return self._parts.full_rank

    @property
    def condition(self) -> Tensor | None:
        """For ``"gram"``, estimates of the condition numbers, from below; None for other kinds."""
        return self._parts.condition

    @property
    def gram(self) -> Tensor | None:
        """For ``"gram"``, ``M M^T [1 or B, n, n]`` float64, where products with M do not under- or overflow."""
        return self._parts.gram

    def answer(self, problem: Problem) -> Tensor:
        """``Y P``, ``[B, m, n]``: the direct solution of a square problem. It may overflow where Y is very large."""
        if problem.identity and self._parts.inverse is not None:
            X = self._parts.inverse()
        else:
            X = self._parts.apply(problem.Y.to(self.precision))[0]
        return X.to(problem.dtype).expand(problem.size, -1, -1)

    def correction(self, R: Tensor) -> Correction:
        """What to subtract from X so that the residual R vanishes, or becomes orthogonal to the rows of M.

        Args:
            R: ``[B, m, p]``, of about unit length; for ``"gram"``, ``R M^T [B, m, n]`` in float64.

        Returns:
            ``(R P [B, m, n], ||R P M||_F [B], ||R M^T||_F [B])``; the norms float64, and infinite where ``n >= p``,
            where the least-squares minimum of a full-rank M is 0.
        """
        return self._parts.apply(R if self.kind == "gram" else R.to(self.precision))

    def __repr__(self) -> str:
        return f"Factor({self.kind} of {_checks.describe(self.M)})"


def factorize(M: Tensor, *, kind: str | None = None, precision: str | None = None, left: bool = False) -> Factor:
    """Factor M once, for many solves: ``solve(F, Y)``.

    Args:
        M: ``[*, n, p]``, floating-point. It must not be modified while the factor is in use.
        kind: ``"cholesky"`` (M symmetric positive definite), ``"lu"`` (square), ``"gram"`` (more columns than rows) or
            ``"qr"``. None takes Cholesky for a symmetric M with a positive diagonal, LU for other square ones, the Gram
            matrix for 8 or more columns a row, and QR otherwise.
        precision: ``"float32"`` or ``"float64"``, the dtype to factor in; None is that of X. A factor of lower
            precision costs half, and refinement makes up for it unless M is ill-conditioned.
        left: for solves with ``left=True``: ``M [*, p, n]``.

    Returns:
        A `Factor`. A singular M raises nothing: solves with it end with the status BREAKDOWN.

    Raises:
        TypeError: M is no dense real floating-point tensor.
        ValueError: kind or precision is unknown or does not fit the shape.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> F = mcf.factorize(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
        >>> [mcf.solve(F, Y).converged.item() for Y in (torch.eye(2), torch.ones(5, 2))]
        [True, True]
    """
    _checks.matrix("M", M)
    with torch.no_grad():
        shape = M.shape[:-2] + ((M.shape[-2], 1) if left else (1, M.shape[-1]))
        problem = Problem.of(M, M.new_zeros(shape), None, "mse", left)
        return factor_problem(problem, kind, precision, M)


def factor_problem(problem: Problem, kind: str | None, precision: str | None, given: Tensor | None = None) -> Factor:
    """`factorize` for a checked problem with a matrix."""
    assert problem.M is not None
    check_kind(problem, kind)
    dtype = problem.dtype if precision is None else getattr(torch, precision)
    M = problem.M.to(problem.dtype)
    kind = kind or chosen_kind(problem)
    make = {"cholesky": _cholesky, "lu": _lu, "gram": _gram, "qr": _qr if problem.n <= problem.p else _qr_wide}[kind]
    given, shape = problem.M if given is None else given, (problem.n, problem.p)
    return Factor(given, kind, dtype, problem.left, problem.sources[0], shape, make(M, dtype))


def check_kind(problem: Problem, kind: str | None) -> None:
    """Raise unless the factor exists for the shape of M."""
    if kind in ("cholesky", "lu") and problem.n != problem.p:
        raise ValueError(f"factor {kind!r} needs a square M, got [{problem.n}, {problem.p}]; use 'qr' or None")
    if kind == "gram" and problem.n > problem.p:
        raise ValueError(
            f"factor 'gram' needs an M with at least as many columns as rows, got [{problem.n}, {problem.p}]; "
            "use 'qr' or None"
        )


def chosen_kind(problem: Problem) -> str:
    """The factor for a problem whose user named none. Reads M on a CPU; elsewhere the shape alone decides."""
    M, n, p = problem.M, problem.n, problem.p
    assert M is not None
    if n != p:
        return "gram" if p >= GRAM_ASPECT * n else "qr"
    if M.device.type != "cpu" or M.numel() == 0:
        return "lu"
    if not float(M.diagonal(dim1=-2, dim2=-1).amin()) > 0:
        return "lu"
    some = slice(None, None, max(1, n // LEAST_COMPARED))  # `_cholesky` compares all
    return "cholesky" if bool(is_symmetric(M[..., some, some].contiguous()).all()) else "lu"


def power_of_2(length: Tensor) -> Tensor:
    """``1 / length`` to the nearest power of 2, by which a product does not round; 1 where it is 0 or not finite."""
    most = 120 if length.dtype == torch.float32 else 1_000
    exponent = torch.frexp(length)[1].clamp(-most, most)
    scale = torch.ldexp(torch.ones_like(length), -exponent)
    return torch.where((length > 0) & length.isfinite(), scale, 1)


def _shared(apply: Callable[[Tensor], Tensor], factors: int) -> Callable[[Tensor], Tensor]:
    """For one factor of many problems: their rows are those of one large problem."""

    def joined(R: Tensor) -> Tensor:
        if factors != 1 or R.shape[0] == 1:
            return apply(R)
        return apply(R.reshape(1, -1, R.shape[-1])).view(*R.shape[:2], -1)

    return joined


def _exact(apply: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Correction]:
    """For ``n >= p``: the residual vanishes, so there is nothing to say about its minimum."""

    def correction(R: Tensor) -> Correction:
        unknown = torch.full((R.shape[0],), torch.inf, dtype=torch.float64, device=R.device)
        return apply(R), unknown, unknown

    return correction


def _cholesky(M: Tensor, dtype: torch.dtype) -> _Parts:
    diagonal, D, D_T = M.diagonal(dim1=-2, dim2=-1), None, None
    if not _is_level(diagonal):
        D_T = power_of_2(diagonal.abs().sqrt())[..., None].to(dtype)
        D = D_T.mT
    A = _scaled(_scaled(M.to(dtype), D_T), D)
    L, info = torch.linalg.cholesky_ex(A)
    positive = (info == 0) & is_symmetric(M)
    solve = _shared(lambda R: _scaled(torch.cholesky_solve(_scaled(R, D).mT, L).mT, D), len(M))
    if M.device.type == "cpu" and bool(positive.all()):
        return _Parts(positive, _exact(solve), inverse=lambda: _scaled(_scaled(torch.cholesky_inverse(L), D), D_T))
    full_rank, by_lu, *_ = _lu(M, dtype)  # for the matrices that are not positive definite

    def correction(R: Tensor) -> Correction:
        other, size, true_size = by_lu(R)
        return torch.where(positive[:, None, None], solve(R), other), size, true_size

    return _Parts(positive | full_rank, correction)


def _lu(M: Tensor, dtype: torch.dtype) -> _Parts:
    largest = M.abs().amax(-1, keepdim=True) if M.numel() else M[..., :1]
    D = None if _is_level(largest) else power_of_2(largest).to(dtype).mT
    LU, pivots, info = torch.linalg.lu_factor_ex(_scaled(M.to(dtype).mT, D))
    solve = _shared(lambda R: _scaled(torch.linalg.lu_solve(LU, pivots, R.mT).mT, D), len(M))
    return _Parts((info == 0) & LU.isfinite().all(-1).all(-1), _exact(solve))


def _is_level(size: Tensor) -> bool:
    """Whether sizes are so much alike that a scale would gain nothing, which saves a copy of M; read on a CPU alone."""
    if size.device.type != "cpu" or size.numel() == 0:
        return False
    low, high = map(float, size.aminmax())
    return SAFE_SQUARES[0] < low <= high <= min(LEVEL * low, SAFE_SQUARES[1])


def _scaled(t: Tensor, D: Tensor | None) -> Tensor:
    return t if D is None else t * D


def _has_rank(diagonal: Tensor, least: float) -> Tensor:
    """By the diagonal of a triangular factor, whose ratio bounds the condition number from below."""
    if diagonal.shape[-1] == 0:
        return torch.ones(diagonal.shape[:-1], dtype=torch.bool, device=diagonal.device)
    d = diagonal.abs()
    return (d.amin(-1) > least * d.amax(-1)) & d.isfinite().all(-1)


def _gram(M: Tensor, dtype: torch.dtype) -> _Parts:
    """The normal equations, made in ``dtype`` and factored in float64, which costs little: they are n x n."""
    M = M.to(dtype)
    G = sum_of_products(M, M)
    squares, (low, high) = G.diagonal(dim1=-2, dim2=-1), SAFE_SQUARES
    safe = M.device.type == "cpu" and bool(((squares > low) & (squares < high)).all())
    if safe:
        D = power_of_2(squares.sqrt())[..., None]
        L, info = torch.linalg.cholesky_ex(D * G * D.mT)
    else:
        length = power_of_2(torch.linalg.vector_norm(M, dim=-1, keepdim=True))
        A, D = length * M, length.double()
        L, info = torch.linalg.cholesky_ex(sum_of_products(A, A))
    # The normal equations square the condition number.
    diagonal = L.diagonal(dim1=-2, dim2=-1)
    most = 100 if dtype == torch.float64 else 1  # there QR is asked for 16 digits; corrections must gain four each
    full_rank = (info == 0) & _has_rank(diagonal, most * (8 * M.shape[-2] * torch.finfo(dtype).eps) ** 0.5)
    condition = diagonal.amax(-1) / diagonal.amin(-1) if M.shape[-2] else torch.ones_like(squares.sum(-1))

    def correction(S: Tensor) -> Correction:
        scaled = S * D.mT
        Z = torch.cholesky_solve(scaled.mT, L).mT
        return Z * D.mT, (Z * scaled).sum((-2, -1)).clamp(min=0).sqrt(), norm(S)

    return _Parts(full_rank, correction, condition, G if safe else None)


def _qr(M: Tensor, dtype: torch.dtype) -> _Parts:
    D = power_of_2(torch.linalg.vector_norm(M, dim=-1, keepdim=True)).to(dtype)
    Q, U = torch.linalg.qr(M.to(dtype).mT * D.mT)
    full_rank = _has_rank(U.diagonal(dim1=-2, dim2=-1), 8 * max(M.shape[-2:]) * torch.finfo(dtype).eps)
    square = M.shape[-2] == M.shape[-1]

    def correction(R: Tensor) -> Correction:
        T = R @ Q
        Z = torch.linalg.solve_triangular(U.mT, T, upper=False, left=False) * D.mT
        if square:
            unknown = torch.full((R.shape[0],), torch.inf, dtype=torch.float64, device=R.device)
            return Z, unknown, unknown
        return Z, norm(T), norm((T @ U) / D.mT)

    return _Parts(full_rank, correction)


def _qr_wide(M: Tensor, dtype: torch.dtype) -> _Parts:
    E = power_of_2(torch.linalg.vector_norm(M, dim=-2, keepdim=True)).to(dtype)
    Q, U = torch.linalg.qr(M.to(dtype) * E)
    full_rank = _has_rank(U.diagonal(dim1=-2, dim2=-1), 8 * max(M.shape[-2:]) * torch.finfo(dtype).eps)
    return _Parts(full_rank, _exact(lambda R: torch.linalg.solve_triangular(U, R * E, upper=True, left=False) @ Q.mT))
