"""``matconv_fast::heavy_ball_step_``: one update in place, in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import _checks, _reference
from ..kernels.contract import LOSSES, state_dtype
from . import backend

_SIGNATURE = "(Tensor(a!) X, Tensor(b!) V, Tensor? M, Tensor? Y, float lr, float momentum, int loss)"
_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define(f"heavy_ball_step_{_SIGNATURE} -> Tensor")
_library.define(f"try_heavy_ball_step_{_SIGNATURE} -> Tensor?")


def _by_reference(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: float, momentum: float, loss: int
) -> Tensor:
    backend.of(X.device.type)  # warns where kernels are missing
    M, Y = (None if t is None else t.to(X.dtype) for t in (M, Y))
    rate, decay = (X.new_full((), value) for value in (lr, momentum))
    X2, V2, before = _reference.heavy_ball_step(X, V, M, Y, rate, decay, LOSSES[loss])
    X.copy_(X2)
    V.copy_(V2)
    return before


def _launch(X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: float, momentum: float, loss: int) -> Tensor:
    """By Triton kernels, which take contiguous tensors."""
    batch, p = X.shape[:-2], X.shape[-1] if M is None else M.shape[-1]
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
    """Whether two tensors may share memory: whether the ranges from their first to their last element intersect."""

    def end(t: Tensor) -> int:
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        return t.data_ptr() + (last + 1) * t.element_size()

    return A.data_ptr() < end(B) and B.data_ptr() < end(A)


def _fake(X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, *_: Any) -> Tensor:
    _checks.same_device(X=X, V=V, M=M, Y=Y)
    return X.new_empty(X.shape[:-2])


_by_triton = backend.on_its_device(_launch, _by_reference)
_library.impl("heavy_ball_step_", _by_reference, "CompositeExplicitAutograd")
_library.impl("heavy_ball_step_", _by_triton, "CUDA")
_library.impl("try_heavy_ball_step_", backend.takes_nothing, "CompositeExplicitAutograd")
torch.library.register_fake("matconv_fast::heavy_ball_step_", _fake, lib=_library)
_KERNEL = torch.ops.matconv_fast.heavy_ball_step_.default
_TRY = torch.ops.matconv_fast.try_heavy_ball_step_.default
_NUMBERS = (float, int)


def try_heavy_ball_step_(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: Any, momentum: Any, loss: Any
) -> Tensor | None:
    """The fast path of small calls, see `backend`: one step by the C++ kernel, or None with nothing written."""
    if not (
        type(lr) in _NUMBERS
        and type(momentum) in _NUMBERS
        and 0 <= lr <= 1e38
        and 0 <= momentum <= 1e38
        and type(loss) is str
        and loss in LOSSES
        and X is not None
        and V is not None
        and backend.is_plain(X, V, M, Y)
        and not (X.is_neg() or V.is_neg())  # a pending negation: their memory holds other numbers
        and backend.has_native()
        and not backend.autocasts(X)
    ):
        return None
    index = LOSSES.index(loss)
    if backend.records_grad(X, V, M, Y):
        with torch.no_grad():
            before = _TRY(X, V, M, Y, lr, momentum, index)
    else:
        before = _TRY(X, V, M, Y, lr, momentum, index)
    if before is not None:
        increment_version((X, V))
    return before


def try_heavy_ball_step(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: Any, momentum: Any, loss: Any
) -> tuple[Tensor, Tensor, Tensor] | None:
    """`try_heavy_ball_step_` on copies: ``(X', V', loss)``. None also where autograd records."""
    if (
        not (isinstance(X, Tensor) and isinstance(V, Tensor) and backend.is_plain(X, V, M, Y))
        or backend.records_grad(X, V, M, Y)
        or X.layout != torch.strided
        or V.layout != torch.strided
    ):
        return None
    X, V = X.clone(), V.clone()
    before = try_heavy_ball_step_(X, V, M, Y, lr, momentum, loss)
    return None if before is None else (X, V, before)


def heavy_ball_step_(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: Any, momentum: Any, loss: str
) -> Tensor | None:
    """One step by the operator, in eager code on a GPU and in compiled code; already checked.

    None where the reference must run: no kernel takes the arguments.
    """
    if torch.compiler.is_compiling():
        takes = backend.emits_operator()
    else:
        takes = backend.of(X.device.type) == "triton" and backend.is_plain(X, V, M, Y) and not backend.autocasts(X)
        takes = takes and not (X.is_neg() or V.is_neg())
    factors, batch = [t for t in (M, Y) if t is not None], X.shape[:-2]
    if not (
        takes
        and isinstance(lr, _NUMBERS)
        and isinstance(momentum, _NUMBERS)
        and X.dtype == state_dtype(X.dtype)
        and X.numel() > 0
        and X.ndim < 4
        and all(t.shape[:-2] == batch and t.shape[-1] > 0 for t in factors)
        and all(t.dtype == factors[0].dtype for t in factors)
    ):
        return None
    before = backend.call(_KERNEL, _by_triton, X, V, M, Y, lr, momentum, LOSSES.index(loss))
    if not torch.compiler.is_compiling():
        increment_version((X, V))
    return before
