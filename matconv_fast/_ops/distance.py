"""``matconv_fast::distance``: ``||A - B||`` in one pass, where no gradient is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _reference
from . import backend


def _by_index(A: Tensor, B: Tensor, ord: int) -> Tensor:  # noqa: A002 - torch.linalg's own name
    return _reference.distance(A, B, _reference.ORDS[ord])


_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define("distance(Tensor A, Tensor B, int ord) -> Tensor?")
_library.impl("distance", _by_index, "CompositeExplicitAutograd")
torch.library.register_fake("matconv_fast::distance", lambda A, B, norm: A.new_empty(A.shape[:-2]), lib=_library)
_kernel = torch.ops.matconv_fast.distance.default
_INDEX = {norm: index for index, norm in enumerate(_reference.ORDS)}


def kernel_distance(A: Tensor, B: Tensor, ord: object) -> Tensor | None:  # noqa: A002
    """``||A - B||`` by the C++ kernel, or None where it does not take the arguments. Nothing has been checked before.

    The kernel takes float32 or float64 matrices of one shape ``[m, n]`` or ``[batch, m, n]`` whose rows lie together,
    and records no gradient.
    """
    if (
        (type(ord) is str or type(ord) is int)
        and ord in _INDEX
        and A is not None
        and B is not None
        and backend.is_plain(A, B)
        and backend.has_native()
        and not (torch.is_grad_enabled() and backend.requires_grad(A, B))
    ):
        return _kernel(A, B, _INDEX[ord])
    return None


def distance(A: Tensor, B: Tensor, ord: str | int) -> Tensor:  # noqa: A002
    """``||A - B||`` of float32 or float64 matrices ``[*, m, n]``; contract in ``_reference.py``."""
    if A.shape != B.shape:
        A, B = torch.broadcast_tensors(A, B)
    found = kernel_distance(A, B, ord) if backend.runs_native(A.device) else None
    return _reference.distance(A, B, ord) if found is None else found
