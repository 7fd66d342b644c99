"""``X @ M = Y`` as the kernels take it: one batch dimension, contiguous, in dtypes that they compute in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _reference
from .._ops import backend
from . import saved


def _flatten(t: Tensor, batch: torch.Size, dtype: torch.dtype) -> Tensor:
    """``[*, r, c]`` to contiguous ``[B, r, c]``, or ``[1, r, c]`` where all problems share it."""
    shared = t.shape[:-2].numel() == 1
    if not shared:
        t = t.expand(*batch, *t.shape[-2:])
    if t.requires_grad:
        t = t.detach()
    if t.dtype != dtype:
        t = t.to(dtype)
    t = t.reshape(1 if shared else batch.numel(), *t.shape[-2:]).contiguous()
    # products of misaligned matrices take another path in some BLAS, with other roundings
    return t if t.data_ptr() % 64 == 0 else t.clone()


def _in_memory(name: str, t: Tensor) -> Tensor:
    """The tensor without its subclass: the iteration reads and writes memory, and knows no rules but its own.

    Raises:
        TypeError: it has no memory of its own, or another use of it.
    """
    if type(t).__torch_dispatch__ is not Tensor.__torch_dispatch__:  # pyright: ignore[reportAttributeAccessIssue]
        raise TypeError(
            f"{name} must be a tensor in memory, got a {type(t).__name__}, which has operators of its own "
            "(__torch_dispatch__): give the tensor that it stands for"
        )
    return t if type(t) in (Tensor, torch.nn.Parameter) else t.as_subclass(Tensor)


@dataclass(frozen=True, eq=False)
class Source:
    """One of the user's own tensors, and its state when the solve read it."""

    tensor: Tensor | None
    version: int | None

    @classmethod
    def of(cls, t: Tensor | None) -> Source:
        """Without the graph that made it. Inference tensors keep no count of the writes to them."""
        if t is None or t.is_inference():
            return cls(t, None)
        return cls(t.detach() if t.requires_grad else t, t._version)

    def is_same(self, other: Source) -> bool:
        """Whether both are the same memory seen the same way, unwritten in between."""
        a, b = self.tensor, other.tensor
        if a is None or b is None:
            return a is b
        return self.version == other.version and (
            a is b or (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)
        )

    def equals(self, other: Source) -> bool:
        """Whether both hold the same numbers, NaN included. Reads the device."""
        a, b = self.tensor, other.tensor
        if a is None or b is None:
            return a is b
        alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        return alike and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


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
        given = ("M", M), ("Y", Y), ("X0", X0)
        for name, value in given:
            if value is not None:
                _checks.matrix(name, value)
        M, Y, X0 = (None if t is None else _in_memory(name, t) for name, t in given)
        sources = Source.of(M), Source.of(Y)
        if left:
            M, Y, X0 = (None if t is None else t.mT for t in (M, Y, X0))
        batch, m, n, p = _checks.equation(X0, M, Y)
        first = next(t for t in (M, Y, X0) if t is not None)
        if first.is_meta:
            raise ValueError(f"there are no values to iterate on, got a {_checks.describe(first)}")
        dtype = _checks.state_dtype(first.dtype)
        operand = first.dtype if backend.takes_low_precision(first.device) else dtype
        flat_M = None if M is None else _flatten(M, batch, operand)
        flat_Y = torch.eye(m, p, dtype=operand, device=first.device)[None] if Y is None else _flatten(Y, batch, operand)
        return cls(flat_M, flat_Y, loss, left, batch, m, n, p, dtype, first.dtype, Y is None, sources)

    @property
    def changed(self) -> bool:
        """Whether M or Y was written to since: a later look at the problem would see other numbers."""
        return not all(source.is_same(Source.of(source.tensor)) for source in self.sources)

    def is_same(self, other: Problem, *, by_value: bool = False) -> bool:
        """Whether it is the same equation as `other`, by the tensors that the user gave, or by their values."""
        if by_value:
            return not other.changed and all(a.equals(b) for a, b in zip(self.sources, other.sources, strict=True))
        return all(a.is_same(b) for a, b in zip(self.sources, other.sources, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What `from_state_dict` makes it of; with copies of M and Y, which are the user's to change."""
        M, Y = (None if source.tensor is None else source.tensor.clone() for source in self.sources)
        dtype = str(self.input_dtype).removeprefix("torch.")
        values = {"M": M, "Y": Y, "loss": self.loss, "left": self.left, "input_dtype": dtype, "changed": self.changed}
        return saved.sealed("Problem", {name: saved.plain(value) for name, value in values.items()})

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], X: Tensor) -> Problem:
        """The problem that X is a solution of."""
        names = ("M", "Y", "loss", "left", "input_dtype", "changed")
        values = saved.opened(state_dict, "Problem", names)
        M, Y, loss, left, dtype, changed = (values[name] for name in names)
        problem = cls.of(M, Y, X.to(getattr(torch, dtype)), loss, left)
        if changed:  # the numbers that were solved for are lost, and a later look must not take these for them
            problem = replace(problem, sources=(Source(M, -1), Source(Y, -1)))
        return problem

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
        """``||Y||_F``, ``[B]`` float64."""
        return _reference.norms(self.Y).expand(self.size)

    def start(self, X0: Tensor | None) -> Tensor:
        """A fresh ``[B, m, n]`` to iterate on: X0 in the user's orientation, or zeros."""
        shape = (self.size, self.m, self.n)
        if X0 is None:
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        X0 = _in_memory("X0", X0)
        X = torch.empty((*self.batch, self.m, self.n), dtype=self.dtype, device=self.device)
        return X.copy_(X0.mT if self.left else X0).view(shape)

    def per_problem(self, name: str, value: float | Tensor) -> Tensor:
        """A hyperparameter as ``[B]`` in the problem's dtype."""
        if not isinstance(value, Tensor):
            _checks.representable(name, value, self.dtype)
            return torch.full((self.size,), value, dtype=self.dtype, device=self.device)
        _checks.per_problem(name, value, self.batch, self.device)
        value = _in_memory(name, value).detach().to(self.device, self.dtype)
        return value.expand(self.batch).reshape(self.size).contiguous()

    def loss_of(self, sums: Tensor) -> Tensor:
        """Losses in the problem's dtype from sums of squared residuals."""
        return _reference.loss_of_sums(sums, self.loss, self.m * self.p).to(self.dtype)

    def of_user(self, X: Tensor) -> Tensor:
        """``[B, m, n]`` back to the user's batch shape and orientation."""
        X = X.view(*self.batch, *X.shape[-2:])
        return X.mT if self.left else X
