"""What solvers judge their answers by: residuals in float64, norms, and the floor that rounding sets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, cached_property

import torch
from torch import Tensor

from ..problem import Problem
from .products import LEAST_COLUMNS, block_width, multiplied, sum_of_products

# ||R M^T|| below this many eps of ||M|| ||R|| is rounding: no X has a smaller residual, as far as can be told.
LEAST_SQUARES_UNITS = 32
# ||R|| below this many eps sqrt(n) of ||X|| ||M|| + ||Y|| is rounding ...
FLOOR_UNITS = 16
# ... unless that is as large as Y itself: then X has grown along what M hardly sees.
FLOOR_SHARE = 0.1

# Elements of M that are widened to float64 at a time, in blocks of columns: 8 MB, which a cache holds.
MOST_WIDENED = 1 << 20
# Elements of a float32 matrix from which its norm is made by pieces; a piece rounds by some 1e-7.
LEAST_SPLIT, PIECE, SAFE_NORMS = 1 << 18, 1 << 10, (1e-10, 1e15)

# A residual is sampled by so many random combinations of its rows. Their length comes out 8 times too small with a
# probability below 2e-12, and 4 times too large with one below 1e-40 (chi-squared with 16 degrees), whatever R is.
SAMPLES, TOO_SMALL, TOO_LARGE = 16, 8, 4
# Rows and columns from which on a sample is worth its fixed cost.
LEAST_SAMPLED = 8 * SAMPLES


def norm(t: Tensor) -> Tensor:
    """Frobenius norm of each matrix, ``[B]`` float64."""
    if t.dtype == torch.float32 and t.device.type == "cpu" and t.numel() >= LEAST_SPLIT * max(len(t), 1):
        return _split_norm(t)
    return torch.linalg.vector_norm(t, dim=(-2, -1), dtype=torch.float64)


def _split_norm(t: Tensor) -> Tensor:
    """`norm` by float32 norms of short pieces, which takes a tenth of the time that widening takes."""
    flat = t.reshape(len(t), -1)
    whole = flat.shape[1] // PIECE * PIECE
    pieces = torch.linalg.vector_norm(flat[:, :whole].view(len(t), -1, PIECE), dim=-1).double()
    total = torch.hypot(torch.linalg.vector_norm(pieces, dim=-1), norm(flat[:, None, whole:]))
    low, high = SAFE_NORMS
    if bool(((total > low) & (total < high)).all()):  # no square has over- or underflowed
        return total
    return torch.linalg.vector_norm(t, dim=(-2, -1), dtype=torch.float64)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``, and 0 where b is 0."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))


class Measure:
    """A problem, measured in float64 whatever its dtype.

    A float32 residual is wrong by about ``eps ||X|| ||M||``, which hides what an ill-conditioned problem is judged by.

    Attributes:
        problem: what is measured.
        eps: the unit of rounding of X.
        waits: whether reading a tensor's values would make the host wait for the device.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.eps = torch.finfo(problem.dtype).eps
        self.waits = problem.device.type != "cpu"

    @cached_property
    def M(self) -> Tensor | None:
        """``[1 or B, n, p]`` in the dtype of X."""
        return None if self.problem.M is None else self.problem.M.to(self.problem.dtype)

    @cached_property
    def Y_norm(self) -> Tensor:
        """``||Y||_F``, ``[B]``."""
        problem = self.problem
        if problem.identity:
            return problem.Y.new_full((problem.size,), min(problem.m, problem.p) ** 0.5, dtype=torch.float64)
        return problem.Y_norm() if problem.Y.dtype == torch.float64 else norm(problem.Y).expand(problem.size)

    @cached_property
    def M_norm(self) -> Tensor:
        """``||M||_F``, ``[B]``."""
        M, size = self.problem.M, self.problem.size
        return self.Y_norm.new_full((size,), self.problem.n**0.5) if M is None else norm(M).expand(size)

    @cached_property
    def M_is_finite(self) -> bool:
        """Whether all of M is finite. Reads the device."""
        M = self.problem.M
        return M is None or math.isfinite(float(M.sum())) or bool(M.isfinite().all())  # a sum may overflow

    @cached_property
    def _wide(self) -> Tensor:
        """M in float64, whole."""
        assert self.problem.M is not None
        return self.problem.M.double()

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Columns, and M in float64 there, in memory that the next block overwrites."""
        M = self.problem.M
        assert M is not None
        width = max(LEAST_COLUMNS, MOST_WIDENED // max(M.shape[0] * M.shape[1], 1))
        if width >= M.shape[2]:
            yield slice(None), self._wide
            return
        memory = None if M.dtype == torch.float64 else M.new_empty(*M.shape[:2], width, dtype=torch.float64)
        for first in range(0, M.shape[2], width):
            columns = slice(first, first + width)
            block = M[..., columns]
            yield columns, block if memory is None else memory[..., : block.shape[-1]].copy_(block)

    def _residuals(self, X: Tensor, mix: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of columns of ``X @ M - Y``, of ``mix @ (X @ M - Y)`` where mix is given, and of M; float64."""
        problem, X = self.problem, X.double()
        X = X if mix is None else mix @ X
        for columns, M in self._blocks():
            if mix is not None and problem.identity and problem.m == problem.p:
                Y = mix[None, :, columns]
            else:
                Y = problem.Y[..., columns].double()
                Y = Y if mix is None else mix @ Y
            yield torch.baddbmm(Y.expand(len(X), -1, -1), X, M.expand(len(X), -1, -1), beta=-1), M

    def is_zero(self, X: Tensor) -> bool:
        """Whether X is 0, so that a residual takes no product; False where the host would have to wait for it."""
        if self.waits or X.numel() == 0:
            return not self.waits
        low, high = X.aminmax()  # `any` takes ten times as long
        return float(low) == 0 == float(high)

    def unless_M_is_bad(self, t: Tensor) -> Tensor:
        """``t [B, ...]``, NaN where M is not finite, which the residual of ``X = 0`` would not show otherwise."""
        if self.M_is_finite:
            return t
        assert self.problem.M is not None
        finite = self.problem.M.isfinite().all(-1).all(-1)
        return torch.where(finite.view(-1, *[1] * (t.ndim - 1)), t, torch.nan)

    def residual(self, X: Tensor) -> Tensor:
        """``X @ M - Y``, ``[B, m, p]`` float64. No product is made on a CPU where X is 0."""
        problem = self.problem
        if problem.M is None:
            return X.double() - problem.Y.double()
        if self.is_zero(X):
            return self.unless_M_is_bad(-problem.Y.double().expand(problem.size, -1, -1))
        blocks = [R for R, _ in self._residuals(X)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1)

    def normal_equations(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """``R M^T [B, m, n]`` and ``||R||_F [B]``, float64, in one pass over M, without R."""
        S, norms = torch.zeros_like(X, dtype=torch.float64), []
        for R, M in self._residuals(X):
            norms.append(norm(R))
            S.baddbmm_(R, M.mT.expand(len(X), -1, -1))
        return S, norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)

    def normal_Y(self) -> Tensor:
        """``Y M^T``, ``[B, m, n]`` float64; see `sum_of_products`."""
        M, dtype = self.problem.M, self.problem.dtype
        assert M is not None
        return sum_of_products(self.problem.Y.to(dtype), M.to(dtype)).expand(self.problem.size, -1, -1)

    def slope(self, X: Tensor, gram: Tensor, mix: Tensor | None) -> Tensor:
        """``R M^T``, ``[B, m, n]`` float64, or combinations of its rows, ``[B, SAMPLES, n]``, of about its norm.

        R is made in the dtype of X, block by block, and its products with M are added up in float64. At a least-squares
        minimum, R is about as large as Y, so that little of it is rounding.

        Args:
            X: ``[B, m, n]``.
            gram: ``M M^T``, ``[1 or B, n, n]`` float64.
            mix: what `samples` returned, or None for all rows.
        """
        problem = self.problem
        M, Y = problem.M, problem.Y.to(X.dtype)
        assert M is not None
        M, S = M.to(X.dtype), torch.zeros_like(gram[..., :1, :])
        if mix is not None:
            mixed = (mix @ X.double()) / SAMPLES**0.5
            X, mix = mixed.to(X.dtype), (mix / SAMPLES**0.5).to(X.dtype)
            S = (mixed - X.double()) @ gram  # what rounding takes from the combinations of X
        for first in range(0, problem.p, width := block_width(M)):
            columns = slice(first, first + width)
            part = Y[..., columns] if mix is None else mix @ Y[..., columns]
            R = torch.baddbmm(part.expand(len(X), -1, -1), X, M[..., columns].expand(len(X), -1, -1), beta=-1)
            S = S + multiplied(R, M[..., columns].mT)
        return S

    def samples(self) -> Tensor | None:
        """Combinations of rows, ``[SAMPLES, m]`` float64; None where there are few rows."""
        return _combinations(self.problem.m) if self.problem.m >= 2 * SAMPLES else None

    @property
    def is_large(self) -> bool:
        """Whether a direct solution pays whose residual is only sampled. Never where the host would have to wait."""
        return not self.waits and self.problem.M is not None and self.problem.n * self.problem.p >= LEAST_SAMPLED**2

    def sampled_norm(self, X: Tensor, mix: Tensor) -> Tensor:
        """An estimate of ``||R||_F``, ``[B]``: see `SAMPLES`. It takes products with a few rows, in float64."""
        norms = [norm(R) for R, _ in self._residuals(X, mix)]
        return (norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)) / SAMPLES**0.5

    def normal(self, R: Tensor) -> Tensor:
        """``R @ M^T``, ``[B, m, n]`` float64: 0 at the least-squares minimum."""
        if self.problem.M is None:
            return R
        blocks = [R[..., columns] @ M.mT for columns, M in self._blocks()]
        return blocks[0] if len(blocks) == 1 else torch.stack(blocks).sum(0)

    def flat(self, S_norm: Tensor, r: Tensor) -> Tensor:
        """Whether ``||R M^T||`` is 0 up to the rounding of R, ``[B]`` bool."""
        return S_norm <= LEAST_SQUARES_UNITS * self.eps * self.M_norm * r

    def flat_at_halt(self, S_norm: Tensor, r: Tensor, X: Tensor) -> Tensor:
        """The same for an iteration that gains nothing more: up to the rounding of X, too."""
        return S_norm <= LEAST_SQUARES_UNITS * self.eps * self.M_norm * (r + norm(X) * self.M_norm)

    def at_floor(self, X: Tensor, r: Tensor, accurate: bool = False) -> Tensor:
        """Whether ``||R||`` is as small as rounding lets it be, ``[B]`` bool.

        Args:
            X: ``[B, m, n]``.
            r: its ``||R||``.
            accurate: whether X is the solution up to rounding, by a factor in float64. Then its norm is no accident,
                and r itself may be compared with ``||Y||``.
        """
        floor = FLOOR_UNITS * self.eps * max(self.problem.n, 1) ** 0.5 * (norm(X) * self.M_norm + self.Y_norm)
        return (r <= floor) & ((r if accurate else floor) <= FLOOR_SHARE * self.Y_norm)

    def minimum_refuted(self, R: Tensor) -> Tensor:
        """Whether some X has a residual smaller than R by more than 0.5 %, ``[B]`` bool.

        By the singular value decomposition of M in float64: the part of R in the row space of M could be removed.
        """
        M = self.problem.M
        if M is None:
            return torch.zeros_like(self.Y_norm, dtype=torch.bool)
        M = torch.where(M.isfinite().all(-1).all(-1)[:, None, None], M.double(), 0)
        _, s, Vh = torch.linalg.svd(M, full_matrices=False)
        cut = max(M.shape[-2:]) * torch.finfo(torch.float64).eps * s.amax(-1, keepdim=True)
        return norm((R @ Vh.mT) * (s > cut)[..., None, :]) > 0.1 * norm(R)


def is_symmetric(M: Tensor) -> Tensor:
    """Whether each square matrix is symmetric, exactly or as nearly as rounding makes ``A @ A.mT``; ``[1 or B]``."""
    if M.numel() == 0:
        return torch.ones(M.shape[0], dtype=torch.bool, device=M.device)
    if M.device.type == "cpu" and _equals_its_transpose(M):
        return torch.ones(M.shape[0], dtype=torch.bool)
    gap, largest = (M - M.mT).abs().amax((-2, -1)), M.abs().amax((-2, -1))
    return gap <= 8 * torch.finfo(M.dtype).eps * largest


def _equals_its_transpose(M: Tensor) -> bool:
    """Exactly; by panels that a cache holds where M is large."""
    n = M.shape[-1]
    panel = n if n <= 512 else 64
    panels = (slice(first, first + panel) for first in range(0, n, panel))
    return all(torch.equal(M[:, rows, : rows.stop], M[:, : rows.stop, rows].mT) for rows in panels)


@cache
def _combinations(m: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, m, generator=generator, dtype=torch.float32, device="cpu").double()
