"""``matconv_fast::distance``: ``||A - B||`` in one pass, where no gradient is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _reference
from . import backend


def _elsewhere(A: Tensor, B: Tensor, ord: int) -> Tensor | None:  # noqa: A002 - torch.linalg's own name
    """On any other device; `kernel_distance` comes here with tensors that nobody has looked at."""
    _checks.pair(A, B)
    if _checks.state_dtype(A.dtype) != A.dtype:
        return None
    backend.path(A.device.type)  # says what runs
    return _reference.distance(A, B, _reference.ORDS[ord])


@backend.on_its_device
def _triton(A: Tensor, B: Tensor, ord: int) -> Tensor:  # noqa: A002
    """By the Triton kernel: any dtype and strides; `kernel_distance` comes here as it does to `_elsewhere`."""
    _checks.pair(A, B)
    if A.shape != B.shape:
        A, B = torch.broadcast_tensors(A, B)
    if A.numel() == 0:
        return _reference.distance(A, B, _reference.ORDS[ord]).to(_checks.state_dtype(A.dtype))
    batch = A.shape[:-2]
    flat = (-1, *A.shape[-2:])
    return backend.gpu_losses().launch_distance(A.reshape(flat), B.reshape(flat), ord).view(batch)


def _fake(A: Tensor, B: Tensor, ord: int) -> Tensor:  # noqa: A002
    _checks.same_device(A=A, B=B)
    dtype = _checks.same_dtype(A=A, B=B)
    return A.new_empty(torch.broadcast_tensors(A, B)[0].shape[:-2], dtype=dtype)


_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define("distance(Tensor A, Tensor B, int ord) -> Tensor?")
_library.impl("distance", _elsewhere, "CompositeExplicitAutograd")
_library.impl("distance", _triton, "CUDA")
torch.library.register_fake("matconv_fast::distance", _fake, lib=_library)
_kernel = torch.ops.matconv_fast.distance.default


def kernel_distance(A: Tensor, B: Tensor, ord: object) -> Tensor | None:  # noqa: A002
    """``||A - B||`` by a kernel, or None where none takes the arguments. Nothing has been checked before.

    The C++ kernel takes float32 or float64 matrices of one shape ``[m, n]`` or ``[batch, m, n]`` whose rows lie
    together. None records a gradient.
    """
    if (
        (type(ord) is str or type(ord) is int)
        and ord in _reference.ORDS
        and A is not None
        and B is not None
        and backend.is_plain(A, B)
        and backend.has_kernels()
        and not (torch.is_grad_enabled() and backend.requires_grad(A, B))
    ):
        return backend.call(_kernel, _triton, A, B, _reference.ORDS.index(ord))
    return None


def distance(A: Tensor, B: Tensor, ord: str | int) -> Tensor:  # noqa: A002
    """``||A - B||`` of float32 or float64 matrices ``[*, m, n]``; contract in ``_reference.py``."""
    if A.shape != B.shape:
        A, B = torch.broadcast_tensors(A, B)
    found = kernel_distance(A, B, ord) if backend.path(A.device.type) != "reference" else None
    return _reference.distance(A, B, ord) if found is None else found
