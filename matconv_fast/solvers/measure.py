"""What solvers judge their answers by: residuals in float64, norms, and the floor that rounding sets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..kernels.contract import FLOOR_SHARE, FLOOR_UNITS
from ..problem import Problem

# ||R M^T|| below this many eps of ||M|| ||R|| is rounding: no X has a smaller residual, as far as can be told.
LEAST_SQUARES_UNITS = 32

# Elements of M up to which its float64 copy is kept; a larger M is widened in blocks of columns.
MOST_WIDENED = 1 << 24


def norm(t: Tensor) -> Tensor:
    """Frobenius norm of each matrix, ``[B]`` float64."""
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
        return self.problem.Y_norm()

    @cached_property
    def M_norm(self) -> Tensor:
        """``||M||_F``, ``[B]``."""
        M, size = self.problem.M, self.problem.size
        return self.Y_norm.new_full((size,), self.problem.n**0.5) if M is None else norm(M).expand(size)

    @cached_property
    def _wide(self) -> list[tuple[slice, Tensor]]:
        """M in float64, whole."""
        assert self.problem.M is not None
        return [(slice(None), self.problem.M.double())]

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Columns, and M in float64 there."""
        M = self.problem.M
        assert M is not None
        if M.dtype == torch.float64 or M.numel() <= MOST_WIDENED:
            yield from self._wide
            return
        width = max(1, MOST_WIDENED // (M.shape[0] * M.shape[1]))
        for first in range(0, M.shape[2], width):
            columns = slice(first, first + width)
            yield columns, M[..., columns].double()

    def residual(self, X: Tensor) -> Tensor:
        """``X @ M - Y``, ``[B, m, p]`` float64. No product is made on a CPU where X is 0."""
        problem = self.problem
        if problem.M is None:
            return X.double() - problem.Y.double()
        Y = problem.Y.double().expand(problem.size, -1, -1)
        if not self.waits and not bool(X.any()):
            finite = problem.M.isfinite().all(-1).all(-1)[:, None, None]
            return torch.where(finite, -Y, torch.nan)
        blocks = [
            torch.baddbmm(Y[..., columns], X.double(), M.expand(problem.size, -1, -1), beta=-1)
            for columns, M in self._blocks()
        ]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1)

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
    gap, largest = (M - M.mT).abs().amax((-2, -1)), M.abs().amax((-2, -1))
    return gap <= 8 * torch.finfo(M.dtype).eps * largest
