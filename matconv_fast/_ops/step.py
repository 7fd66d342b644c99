"""``matconv_fast::heavy_ball_step_``: one update in place, in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import _checks, _reference
from . import backend

_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define(
    "heavy_ball_step_(Tensor(a!) X, Tensor(b!) V, Tensor? M, Tensor? Y, float lr, float momentum, int loss) -> Tensor"
)


def _elsewhere(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: float, momentum: float, loss: int
) -> Tensor | None:
    """By plain PyTorch; nothing has been checked before. None for low precision, whose X needs more than this."""
    for name, t in (("X", X), ("V", V)):
        _checks.matrix(name, t)
    batch, *_ = _checks.problem(X, M, Y)
    _checks.same_device(X=X, V=V)
    _checks.writable_state(X, V, batch)
    if _checks.state_dtype(X.dtype) != X.dtype:
        return None
    backend.path(X.device.type)  # says what runs
    M, Y = (None if t is None else t.to(X.dtype) for t in (M, Y))
    rate, decay = (X.new_full((), value) for value in (lr, momentum))
    X2, V2, before = _reference.heavy_ball_step(X, V, M, Y, rate, decay, _reference.LOSSES[loss])
    X.copy_(X2)
    V.copy_(V2)
    return before


def _launch(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: float, momentum: float, loss: int
) -> Tensor | None:
    """By Triton kernels, where all tensors are as they take them; nothing has been checked before."""
    batch, factors = X.shape[:-2], [t for t in (M, Y) if t is not None]
    p = X.shape[-1] if M is None else M.shape[-1]
    if (
        X.ndim < 2
        or X.numel() * p == 0
        or X.dtype not in (torch.float32, torch.float64)
        or V.dtype != X.dtype
        or V.shape != X.shape
        or (M is not None and M.shape != (*batch, X.shape[-1], p))
        or (Y is not None and Y.shape != (*batch, X.shape[-2], p))
        or (Y is None and X.shape[-2] != p)
        or any(_checks.state_dtype(t.dtype) != X.dtype or t.dtype != factors[0].dtype for t in factors)
        or any(t.device != X.device or t.layout != torch.strided for t in (X, V, *factors))
        or _overlap(X, V)
        or any(size > 1 and stride == 0 for t in (X, V) for size, stride in zip(t.shape, t.stride(), strict=True))
    ):
        return None
    M, Y = (t.clone() if t is not None and (_overlap(t, X) or _overlap(t, V)) else t for t in (M, Y))
    if Y is None:
        Y = torch.eye(X.shape[-2], p, dtype=X.dtype if M is None else M.dtype, device=X.device)
    x, v, *given = (None if t is None else t.contiguous().view(-1, *t.shape[-2:]) for t in (X, V, M, Y))
    before = backend.gpu().launch_heavy_ball_step_(x, v, *given, lr, momentum, loss).view(batch)
    for target, updated in ((X, x), (V, v)):
        if updated is not None and not target.is_contiguous():
            target.copy_(updated.view(target.shape))
    return before


def _overlap(A: Tensor, B: Tensor) -> bool:
    """Whether two tensors may share memory: whether the stretches from their first to their last elements meet."""

    def end(t: Tensor) -> int:
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        return t.data_ptr() + (last + 1) * t.element_size()

    return A.data_ptr() < end(B) and B.data_ptr() < end(A)


def _fake(X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, *_: Any) -> Tensor:
    _checks.same_device(X=X, V=V, M=M, Y=Y)
    return X.new_empty(X.shape[:-2])


_triton = backend.on_its_device(_launch, _elsewhere)
_library.impl("heavy_ball_step_", _elsewhere, "CompositeExplicitAutograd")
_library.impl("heavy_ball_step_", _triton, "CUDA")
torch.library.register_fake("matconv_fast::heavy_ball_step_", _fake, lib=_library)
_kernel = torch.ops.matconv_fast.heavy_ball_step_.default
_NUMBERS = (float, int)


def heavy_ball_step_(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: Any, momentum: Any, loss: Any
) -> Tensor | None:
    """One heavy-ball step by a kernel; the loss before it, or None where none takes the arguments.

    Nothing has been checked before, and nothing is written with None.
    """
    if not (
        type(lr) in _NUMBERS
        and type(momentum) in _NUMBERS
        and 0 <= lr <= 1e38
        and 0 <= momentum <= 1e38
        and type(loss) is str
        and loss in _reference.LOSSES
        and X is not None
        and V is not None
        and backend.is_plain(X, V, M, Y)
        and not (X.is_neg() or V.is_neg())  # a pending negation makes them no memory to write to
        and backend.has_kernels()
        and not backend.autocasts(X)
    ):
        return None
    index = _reference.LOSSES.index(loss)
    if backend.records_grad(X, V, M, Y):
        with torch.no_grad():
            before = backend.call(_kernel, _triton, X, V, M, Y, lr, momentum, index)
    else:
        before = backend.call(_kernel, _triton, X, V, M, Y, lr, momentum, index)
    if before is not None:
        increment_version((X, V))
    return before


def heavy_ball_step(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: Any, momentum: Any, loss: Any
) -> tuple[Tensor, Tensor, Tensor] | None:
    """As `heavy_ball_step_`, on copies of X and V: ``(X', V', loss)``. None where a gradient is to be recorded, too."""
    if (
        not (isinstance(X, Tensor) and isinstance(V, Tensor) and backend.is_plain(X, V, M, Y))
        or backend.records_grad(X, V, M, Y)
        or X.layout != torch.strided
        or V.layout != torch.strided
    ):
        return None
    X, V = X.clone(), V.clone()
    before = heavy_ball_step_(X, V, M, Y, lr, momentum, loss)
    return None if before is None else (X, V, before)


def traced_step_(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: Any, momentum: Any, loss: str
) -> Tensor | None:
    """As `heavy_ball_step_`, in a function that is being compiled, of tensors that have been checked."""
    factors = [t for t in (M, Y) if t is not None]
    batch = X.shape[:-2]
    if not (
        backend.is_opaque()
        and isinstance(lr, _NUMBERS)
        and isinstance(momentum, _NUMBERS)
        and X.dtype in (torch.float32, torch.float64)
        and X.numel() > 0
        and X.ndim < 4
        and all(t.shape[:-2] == batch and t.shape[-1] > 0 for t in factors)
        and all(t.dtype == factors[0].dtype for t in factors)
    ):
        return None
    return _kernel(X, V, M, Y, lr, momentum, _reference.LOSSES.index(loss))
