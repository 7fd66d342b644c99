"""``X @ M = Y`` as solvers take it: one batch dimension, contiguous, in the dtypes that they compute in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import _checks, _reference, _saved
from .kernels.contract import LOSSES, Shape
from .precision import Precision
from .source import Source, in_memory


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
    # Some BLAS multiply misaligned matrices by another algorithm, which rounds differently.
    return t if t.data_ptr() % 64 == 0 else t.clone()


@dataclass(frozen=True, eq=False)
class Problem:
    """A batch of equations ``X @ M = Y``, as a `Solver` sees it.

    Attributes:
        M: ``[1 or B, n, p]`` contiguous, or None for the identity.
        Y: ``[1 or B, m, p]`` contiguous.
        loss: ``"mse"``, ``"sse"`` or ``"fro"``.
        left: whether the user's equation is ``M @ X = Y``, which is solved transposed.
        batch: the user's batch shape; its number of elements is B, `size`.
        m: rows of X.
        n: columns of X.
        p: columns of M and Y; with a ridge, n of them are those that stand for it.
        precision: the dtypes of M and Y, of X, and of sums.
        identity: whether Y is the identity because the user passed None.
        sources: M, Y and a ridge tensor as the user passed them.
        columns: of the user's M and Y, ``p - n`` with a ridge and p otherwise.
        vector: whether the user's Y is ``[p]`` and X ``[*, n]``; then m is 1.
        ridge: a number, or ``[1 or B]`` float64. Where there is one, M is ``[M, sqrt(ridge) I]`` and Y is ``[Y, 0]``,
            whose ``||R||^2`` is ``||X M - Y||^2 + ridge ||X||^2`` of the user's.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> problem = mcf.solve(torch.eye(2), max_iters=0).problem
        >>> problem.residual(torch.zeros(1, 2, 2))[0, 0]
        tensor([-1.,  0.])
    """

    M: Tensor | None
    Y: Tensor
    loss: str
    left: bool
    batch: torch.Size
    m: int
    n: int
    p: int
    precision: Precision
    identity: bool
    sources: tuple[Source, ...]
    columns: int
    vector: bool = False
    ridge: float | Tensor = 0.0

    @classmethod
    def of(
        cls,
        M: Tensor | None,
        Y: Tensor | None,
        X0: Tensor | None,
        loss: str,
        left: bool,
        ridge: float | Tensor = 0.0,
    ) -> Problem:
        """Check the user's tensors and bring them into shape; ``left`` transposes the equation."""
        _checks.choice("loss", loss, LOSSES)
        vector = _checks.is_vector(Y)
        given = ("M", M), ("Y", Y), ("X0", X0)
        for name, value in given:
            if value is not None and (name == "M" or not vector):
                _checks.matrix(name, value)
        M, Y, X0 = (None if t is None else in_memory(name, t) for name, t in given)
        sources = Source.of(M), Source.of(Y)
        if vector:
            Y, X0 = _checks.row("Y", Y), None if X0 is None else _checks.row("X0", X0)
            M = M.mT if left and M is not None else M
        elif left:
            M, Y, X0 = (None if t is None else t.mT for t in (M, Y, X0))
        batch, m, n, p = _checks.equation(X0, M, Y)
        first = next(t for t in (M, Y, X0) if t is not None)
        if first.is_meta:
            raise ValueError(f"a meta tensor has no values to solve for, got a {_checks.describe(first)}")
        precision = Precision.of(first.dtype, first.device)
        operand = precision.operands
        flat_M = None if M is None else _flatten(M, batch, operand)
        flat_Y = torch.eye(m, p, dtype=operand, device=first.device)[None] if Y is None else _flatten(Y, batch, operand)
        problem = cls(flat_M, flat_Y, loss, left, batch, m, n, p, precision, Y is None, sources, p, vector)
        return problem if type(ridge) is float and ridge == 0 else problem._with_ridge(ridge)

    def _with_ridge(self, ridge: float | Tensor) -> Problem:
        """The same equation with a ridge: n more columns, ``sqrt(ridge) I`` of M and 0 of Y."""
        _checks.hyperparameter("ridge", ridge, minimum=0)
        if isinstance(ridge, Tensor):
            _checks.per_problem("ridge", ridge, self.batch, self.device)
            source = Source.of(in_memory("ridge", ridge))
            ridge = ridge.detach().to(self.device, torch.float64)
            ridge = ridge.reshape(1) if ridge.ndim == 0 else ridge.expand(self.batch).reshape(self.size)
            root = ridge.sqrt()[:, None, None]
        elif ridge == 0:
            return self
        else:
            source, root = Source.of(None), ridge**0.5
        like = {"dtype": self.Y.dtype, "device": self.device}
        eye = torch.eye(self.n, **like)[None]
        block = (root * eye).to(self.Y.dtype)
        M = eye if self.M is None else self.M
        count = max(len(M), len(block)) if self.size else min(len(M), len(block))
        M = torch.cat([M.expand(count, -1, -1), block.expand(count, -1, -1)], -1)
        Y = torch.cat([self.Y, torch.zeros(len(self.Y), self.m, self.n, **like)], -1)
        return replace(
            self, M=M, Y=Y, p=self.p + self.n, identity=False, sources=(*self.sources, source), ridge=ridge
        )  # fmt: skip

    @property
    def has_ridge(self) -> bool:
        """Whether M and Y have the columns that stand for a ridge."""
        return self.columns != self.p

    @property
    def size(self) -> int:
        """Number of problems, B."""
        return self.batch.numel()

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.Y.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of X."""
        return self.precision.state

    @property
    def loss_code(self) -> int:
        """What operators call the loss."""
        return LOSSES.index(self.loss)

    @property
    def coupled(self) -> bool:
        """Whether the loss couples the rows of X, as the norm ``fro`` does."""
        return self.loss == "fro"

    @property
    def scale(self) -> float:
        """The factor c in ``gradient = c R M^T``."""
        return _reference.gradient_scale(self.loss, self.elements)

    @property
    def elements(self) -> int:
        """Of the user's residual, by whose number mse divides."""
        return self.m * self.columns

    @property
    def shape(self) -> Shape:
        """What the choice of an algorithm depends on."""
        product, dtype = self.M is not None, self.precision.operands
        return Shape(self.size, self.m, self.n, self.p, product, self.coupled, dtype)

    @cached_property
    def _factors(self) -> tuple[Tensor | None, Tensor]:
        """M and Y in the dtype of X."""
        return None if self.M is None else self.M.to(self.dtype), self.Y.to(self.dtype)

    def product(self, X: Tensor) -> Tensor:
        """``X @ M``, for ``X [B, m, n]``."""
        M = self._factors[0]
        return X if M is None else X @ M

    def residual(self, X: Tensor) -> Tensor:
        """``R = X @ M - Y``, ``[B, m, p]``."""
        return _reference.batched_residual(X, *self._factors)

    def gradient(self, R: Tensor) -> Tensor:
        """The gradient of the loss by X, ``[B, m, n]``, from the residual; 0 where the residual is."""
        return _reference.batched_gradient(R, self._factors[0], self.scale, self.coupled)

    def per_problem(self, name: str, value: float | Tensor) -> float | Tensor:
        """A hyperparameter, checked: a number as it is, a tensor as ``[B]`` in the dtype of X.

        Args:
            name: for errors.
            value: a number, a 0-d tensor or one value per problem of the user's batch.
        """
        if not isinstance(value, Tensor):
            _checks.representable(name, value, self.dtype)
            return value
        _checks.per_problem(name, value, self.batch, self.device)
        value = in_memory(name, value).detach().to(self.device, self.dtype)
        return value.expand(self.batch).reshape(self.size).contiguous()

    def start(self, X0: Tensor | None) -> Tensor:
        """``[B, m, n]`` to start from: a copy of X0 in the user's orientation, or one 0, expanded."""
        shape = (self.size, self.m, self.n)
        if X0 is None:
            return torch.zeros((), dtype=self.dtype, device=self.device).expand(shape)
        X0 = in_memory("X0", X0)
        X = torch.empty((*self.batch, self.m, self.n), dtype=self.dtype, device=self.device)
        return X.copy_(self.as_rows(X0)).view(shape)

    def as_rows(self, t: Tensor) -> Tensor:
        """The user's X or Y in the orientation that is iterated in: ``[*, m, n]`` or ``[*, m, p]``."""
        if self.vector:
            return t.unsqueeze(-2)
        return t.mT if self.left else t

    def one(self, index: int) -> tuple[Tensor | None, Tensor]:
        """M ``[n, p]`` and Y ``[m, p]`` of one problem of the flattened batch."""
        M = None if self.M is None else self.M[index if self.M.shape[0] > 1 else 0]
        return M, self.Y[index if self.Y.shape[0] > 1 else 0]

    def select(self, index: Tensor) -> Problem:
        """The problems ``index [b]`` of the flattened batch, as a batch of their own."""
        M = self.M if self.M is None or self.M.shape[0] == 1 else self.M[index]
        Y = self.Y if self.Y.shape[0] == 1 else self.Y[index]
        ridge = self.ridge[index] if isinstance(self.ridge, Tensor) and len(self.ridge) > 1 else self.ridge
        return replace(self, M=M, Y=Y, ridge=ridge, batch=torch.Size(index.shape))

    def Y_norm(self) -> Tensor:
        """``||Y||_F``, ``[B]`` float64."""
        return _reference.norms(self.Y).expand(self.size)

    def loss_of(self, sums: Tensor) -> Tensor:
        """Losses in the dtype of X from sums of squared residuals."""
        return _reference.loss_of_sums(sums, self.loss, self.elements).to(self.dtype)

    def of_user(self, X: Tensor) -> Tensor:
        """``[B, m, n]`` back to the user's batch shape and orientation."""
        return self.as_given(X.view(*self.batch, *X.shape[-2:]))

    def as_given(self, X: Tensor) -> Tensor:
        """The inverse of `as_rows`."""
        if self.vector:
            return X.squeeze(-2)
        return X.mT if self.left else X

    @property
    def changed(self) -> bool:
        """Whether M or Y was written to since: reading the problem again would see other numbers."""
        return not all(source.is_same(Source.of(source.tensor)) for source in self.sources)

    def is_same(self, other: Problem, *, by_value: bool = False) -> bool:
        """Whether it is the same equation as ``other``, by the identity of the user's tensors or by their values."""
        numbers = [ridge for ridge in (self.ridge, other.ridge) if not isinstance(ridge, Tensor)]
        if len(self.sources) != len(other.sources) or len(set(numbers)) > 1:
            return False
        if by_value:
            return not other.changed and all(a.equals(b) for a, b in zip(self.sources, other.sources, strict=True))
        return all(a.is_same(b) for a, b in zip(self.sources, other.sources, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """For `from_state_dict`. M, Y and a ridge tensor are copied, since the user may change them."""
        M, Y, *more = (None if source.tensor is None else source.tensor.clone() for source in self.sources)
        dtype = str(self.precision.inputs).removeprefix("torch.")
        values = {"M": M, "Y": Y, "loss": self.loss, "left": self.left, "input_dtype": dtype, "changed": self.changed}
        values["ridge"] = more[0] if isinstance(self.ridge, Tensor) else self.ridge
        return _saved.sealed("Problem", {name: _saved.plain(value) for name, value in values.items()})

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], X: Tensor) -> Problem:
        """The problem that X is a solution of."""
        names = ("M", "Y", "loss", "left", "input_dtype", "changed", "ridge")
        values = _saved.opened(state_dict, "Problem", names)
        M, Y, loss, left, dtype, changed, ridge = (values[name] for name in names)
        problem = cls.of(M, Y, X.to(getattr(torch, dtype)), loss, left, ridge)
        if changed:  # the numbers that were solved for are lost; these must not be taken for them
            problem = replace(problem, sources=tuple(Source(source.tensor, -1) for source in problem.sources))
        return problem
