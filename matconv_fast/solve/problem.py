"""``X @ M = Y`` as the kernels take it: one batch dimension, contiguous, in the dtype that is computed in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks, _reference


def _flatten(t: Tensor, batch: torch.Size, dtype: torch.dtype) -> Tensor:
    """``[*, r, c]`` to contiguous ``[B, r, c]``, or ``[1, r, c]`` where all problems share it."""
    shared = t.shape[:-2].numel() == 1
    if not shared:
        t = t.expand(*batch, *t.shape[-2:])
    return t.to(dtype).reshape(1 if shared else batch.numel(), *t.shape[-2:]).contiguous()


def _version(t: Tensor | None) -> int | None:
    """Count of writes to the tensor's memory; inference tensors keep none."""
    return None if t is None or t.is_inference() else t._version


@dataclass(frozen=True, eq=False)
class Problem:
    """``M [1 or B, n, p]`` (None: identity), ``Y [1 or B, m, p]``, and what is known of the user's own tensors."""

    M: Tensor | None
    Y: Tensor
    loss: str
    left: bool
    batch: torch.Size
    m: int
    n: int
    p: int
    input_dtype: torch.dtype
    identity: bool  # Y is the identity because the user left it out
    versions: tuple[int | None, ...]  # of M and Y, which may share the user's memory

    @classmethod
    def of(cls, M: Tensor | None, Y: Tensor | None, X0: Tensor | None, loss: str, left: bool) -> Problem:
        """Check the user's tensors and bring them into shape; ``left`` transposes the equation."""
        _checks.choice("loss", loss, _reference.LOSSES)
        for name, value in (("M", M), ("Y", Y), ("X0", X0)):
            if value is not None:
                _checks.matrix(name, value)
        if left:
            M, Y, X0 = (None if t is None else t.mT for t in (M, Y, X0))
        batch, m, n, p = _checks.problem(X0, M, Y)
        first = next(t for t in (M, Y, X0) if t is not None)
        dtype = _checks.state_dtype(first.dtype)
        flat_M = None if M is None else _flatten(M, batch, dtype)
        flat_Y = torch.eye(m, p, dtype=dtype, device=first.device)[None] if Y is None else _flatten(Y, batch, dtype)
        versions = _version(flat_M), _version(flat_Y)
        return cls(flat_M, flat_Y, loss, left, batch, m, n, p, first.dtype, Y is None, versions)

    def check_unchanged(self) -> None:
        """Raise if M or Y was written to since: a later look at the problem would see other numbers."""
        if (_version(self.M), _version(self.Y)) != self.versions:
            raise ValueError("M or Y was changed in place since the solve; plot or report before, or solve on a clone")

    @property
    def size(self) -> int:
        """Number of problems, B."""
        return self.batch.numel()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of X and of all arithmetic."""
        return self.Y.dtype

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.Y.device

    @property
    def scale(self) -> float:
        """The factor c in ``gradient = c R M^T``."""
        return _reference.gradient_scale(self.loss, self.m * self.p)

    def Y_norm(self) -> Tensor:
        """``||Y||_F``, ``[B]`` float64."""
        return torch.linalg.vector_norm(self.Y, dim=(-2, -1), dtype=torch.float64).expand(self.size)

    def start(self, X0: Tensor | None) -> Tensor:
        """A fresh ``[B, m, n]`` to iterate on: X0 in the user's orientation, or zeros."""
        shape = (self.size, self.m, self.n)
        if X0 is None:
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        X = X0.mT if self.left else X0
        X = X.detach().to(self.dtype).expand(*self.batch, self.m, self.n).reshape(shape)
        return X.clone(memory_format=torch.contiguous_format)

    def per_problem(self, name: str, value: float | Tensor) -> Tensor:
        """A hyperparameter as ``[B]`` in the problem's dtype."""
        if not isinstance(value, Tensor):
            return torch.full((self.size,), value, dtype=self.dtype, device=self.device)
        _checks.per_problem(name, value, self.batch, self.device)
        value = value.detach().to(self.device, self.dtype)
        return value.expand(self.batch).reshape(self.size).contiguous()

    def loss_of(self, sums: Tensor) -> Tensor:
        """Losses in the problem's dtype from sums of squared residuals."""
        return _reference.loss_of_sums(sums, self.loss, self.m * self.p).to(self.dtype)

    def of_user(self, X: Tensor) -> Tensor:
        """``[B, m, n]`` back to the user's batch shape and orientation."""
        X = X.view(*self.batch, *X.shape[-2:])
        return X.mT if self.left else X
