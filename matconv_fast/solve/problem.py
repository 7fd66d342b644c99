"""``X @ M = Y`` as the kernels take it: one batch dimension, contiguous, in dtypes that they compute in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks, _reference
from .._ops import backend


def _flatten(t: Tensor, batch: torch.Size, dtype: torch.dtype) -> Tensor:
    """``[*, r, c]`` to contiguous ``[B, r, c]``, or ``[1, r, c]`` where all problems share it."""
    shared = t.shape[:-2].numel() == 1
    if not shared:
        t = t.expand(*batch, *t.shape[-2:])
    t = t.detach().to(dtype).reshape(1 if shared else batch.numel(), *t.shape[-2:]).contiguous()
    # products of misaligned matrices take another path in some BLAS, with other roundings
    return t if t.data_ptr() % 64 == 0 else t.clone()


@dataclass(frozen=True, eq=False)
class Source:
    """One of the user's own tensors, and its state when the solve read it."""

    tensor: Tensor | None
    version: int | None

    @classmethod
    def of(cls, t: Tensor | None) -> Source:
        """Inference tensors keep no count of the writes to them."""
        return cls(t, None if t is None or t.is_inference() else t._version)

    def is_same(self, other: Source) -> bool:
        """Whether both are the same memory seen the same way, unwritten in between."""
        a, b = self.tensor, other.tensor
        if a is None or b is None:
            return a is b
        return self.version == other.version and (
            a is b or (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)
        )


@dataclass(frozen=True, eq=False)
class Problem:
    """``M [1 or B, n, p]`` (None: identity), ``Y [1 or B, m, p]``, and what is known of the user's own tensors.

    ``dtype`` is that of X and of the sums. M and Y have it too, or are of low precision as the user gave them, where
    the path multiplies that.
    """

    M: Tensor | None
    Y: Tensor
    loss: str
    left: bool
    batch: torch.Size
    m: int
    n: int
    p: int
    dtype: torch.dtype
    input_dtype: torch.dtype
    identity: bool  # Y is the identity because the user left it out
    sources: tuple[Source, Source]  # M and Y as the user gave them

    @classmethod
    def of(cls, M: Tensor | None, Y: Tensor | None, X0: Tensor | None, loss: str, left: bool) -> Problem:
        """Check the user's tensors and bring them into shape; ``left`` transposes the equation."""
        _checks.choice("loss", loss, _reference.LOSSES)
        for name, value in (("M", M), ("Y", Y), ("X0", X0)):
            if value is not None:
                _checks.matrix(name, value)
        sources = Source.of(M), Source.of(Y)
        if left:
            M, Y, X0 = (None if t is None else t.mT for t in (M, Y, X0))
        batch, m, n, p = _checks.problem(X0, M, Y)
        first = next(t for t in (M, Y, X0) if t is not None)
        dtype = _checks.state_dtype(first.dtype)
        operand = first.dtype if backend.takes_low_precision(first.device) else dtype
        flat_M = None if M is None else _flatten(M, batch, operand)
        flat_Y = torch.eye(m, p, dtype=operand, device=first.device)[None] if Y is None else _flatten(Y, batch, operand)
        return cls(flat_M, flat_Y, loss, left, batch, m, n, p, dtype, first.dtype, Y is None, sources)

    @property
    def changed(self) -> bool:
        """Whether M or Y was written to since: a later look at the problem would see other numbers."""
        return not all(source.is_same(Source.of(source.tensor)) for source in self.sources)

    def is_same(self, other: Problem) -> bool:
        """Whether it is the same equation, by the tensors that the user gave."""
        return all(a.is_same(b) for a, b in zip(self.sources, other.sources, strict=True))

    def one(self, index: int) -> tuple[Tensor | None, Tensor]:
        """M ``[n, p]`` and Y ``[m, p]`` of one problem of the flattened batch."""
        M = None if self.M is None else self.M[index if self.M.shape[0] > 1 else 0]
        return M, self.Y[index if self.Y.shape[0] > 1 else 0]

    @property
    def size(self) -> int:
        """Number of problems, B."""
        return self.batch.numel()

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.Y.device

    @property
    def scale(self) -> float:
        """The factor c in ``gradient = c R M^T``."""
        return _reference.gradient_scale(self.loss, self.m * self.p)

    def Y_norm(self) -> Tensor:
        """``||Y||_F``, ``[B]`` float64; scaled where the squares of a float64 could under- or overflow."""
        Y = self.Y
        if self.dtype != torch.float64 or 0 in Y.shape:
            return torch.linalg.vector_norm(Y, dim=(-2, -1), dtype=torch.float64).expand(self.size)
        largest = Y.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(Y.dtype).tiny)
        return (largest * torch.linalg.vector_norm(Y / largest, dim=(-2, -1), keepdim=True)).view(-1).expand(self.size)

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
            _checks.representable(name, value, self.dtype)
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
