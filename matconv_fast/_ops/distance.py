"""``matconv_fast::distance``: ``||A - B||`` in one pass, and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks, _reference
from ..kernels.contract import ORDS, state_dtype
from . import backend


def _by_reference(A: Tensor, B: Tensor, ord: int) -> Tensor:  # noqa: A002 - torch.linalg's own name
    backend.of(A.device.type)  # warns where kernels are missing
    dtype = state_dtype(A.dtype)
    return _reference.distance(A.to(dtype), B.to(dtype), ORDS[ord])


def _launch(A: Tensor, B: Tensor, ord: int) -> Tensor:  # noqa: A002
    """By the Triton kernel, which takes any dtype and strides."""
    if A.shape != B.shape:
        A, B = torch.broadcast_tensors(A, B)
    if A.numel() == 0:
        return _by_reference(A, B, ord)
    batch = A.shape[:-2]
    flat = (-1, *A.shape[-2:])
    return backend.gpu_losses().launch_distance(A.reshape(flat), B.reshape(flat), ord).view(batch)


def _fake(A: Tensor, B: Tensor, ord: int) -> Tensor:  # noqa: A002
    _checks.same_device(A=A, B=B)
    dtype = _checks.same_dtype(A=A, B=B)
    return A.new_empty(torch.broadcast_tensors(A, B)[0].shape[:-2], dtype=dtype)


_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define("distance(Tensor A, Tensor B, int ord) -> Tensor")
_library.define("try_distance(Tensor A, Tensor B, int ord) -> Tensor?")
_by_triton = backend.on_its_device(_launch, _by_reference)
_library.impl("distance", _by_reference, "CompositeExplicitAutograd")
_library.impl("distance", _by_triton, "CUDA")
_library.impl("try_distance", backend.takes_nothing, "CompositeExplicitAutograd")
torch.library.register_fake("matconv_fast::distance", _fake, lib=_library)
_KERNEL = torch.ops.matconv_fast.distance.default
_TRY = torch.ops.matconv_fast.try_distance.default


def try_distance(A: Tensor, B: Tensor, ord: object) -> Tensor | None:  # noqa: A002
    """The fast path of small calls, see `backend`: the distance by the C++ kernel, or None."""
    if (
        (type(ord) is str or type(ord) is int)
        and ord in ORDS
        and A is not None
        and B is not None
        and backend.is_plain(A, B)
        and backend.has_native()
        and not backend.records_grad(A, B)
    ):
        return _TRY(A, B, ORDS.index(ord))
    return None


def distance(A: Tensor, B: Tensor, ord: str | int) -> Tensor:  # noqa: A002
    """``||A - B||`` of float32 or float64 matrices ``[*, m, n]``, differentiable; already checked."""
    if A.shape != B.shape:
        A, B = torch.broadcast_tensors(A, B)
    emitted = backend.emits_operator()
    if not emitted and (not backend.is_plain(A, B) or backend.of(A.device.type) == "reference"):
        return _reference.distance(A, B, ord)
    batch = A.shape[:-2]
    if len(batch) > 1:
        A, B = (t.reshape(-1, *t.shape[-2:]) for t in (A, B))
    value = _Distance.apply(A, B, ORDS.index(ord))
    return value.view(batch) if len(batch) > 1 else value


class _Distance(torch.autograd.Function):
    """The kernel, with the gradient of plain PyTorch: 0 where A and B are equal, and shared by equal largest entries.

    The backward is composed of differentiable operators, so second derivatives work.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor, ord: int) -> Tensor:  # noqa: A002
        value = backend.call(_KERNEL, _by_triton, A, B, ord)
        ctx.ord = ORDS[ord]
        ctx.save_for_backward(A, B, value)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        A, B, value = ctx.saved_tensors
        D = A - B
        value, grad = value[..., None, None], grad[..., None, None]
        if ctx.ord == "fro":
            gradient = torch.where(value > 0, D / torch.where(value > 0, value, 1), 0.0) * grad
        elif ctx.ord == "max":
            largest = (D.abs() >= value).to(D.dtype)  # a kernel may take a denormal for 0
            gradient = D.sgn() * largest * (grad / largest.sum((-2, -1), keepdim=True))
        else:
            gradient = D.sgn() * grad
        needs_A, needs_B = ctx.needs_input_grad[:2]
        return gradient if needs_A else None, -gradient if needs_B else None, None
