"""``matconv_fast::distance``: ``||A - B||`` in one pass, where no gradient is asked for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .. import _reference
from . import backend


def _by_index(A: Tensor, B: Tensor, ord: int) -> Tensor:  # noqa: A002 - torch.linalg's own name
    return _reference.distance(A, B, _reference.ORDS[ord])


_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define("distance(Tensor A, Tensor B, int ord) -> Tensor")
_library.impl("distance", _by_index, "CompositeExplicitAutograd")
torch.library.register_fake("matconv_fast::distance", lambda A, B, norm: A.new_empty(A.shape[:-2]), lib=_library)


def distance(A: Tensor, B: Tensor, ord: str | int) -> Tensor:  # noqa: A002
    """``||A - B||`` of float32 or float64 matrices ``[*, m, n]``; contract in ``_reference.py``.

    The kernel takes one batch dimension at most and rows that lie together; it records no gradient. The rest, and what
    a compiler traces, goes to the reference.
    """
    if torch.compiler.is_compiling() or _is_differentiated(A, B) or not backend.runs_native(A.device):
        return _reference.distance(A, B, ord)
    if A.shape != B.shape:
        A, B = torch.broadcast_tensors(A, B)
    if A.ndim > 3 or not (_has_rows(A) and _has_rows(B)):
        return _reference.distance(A, B, ord)
    return torch.ops.matconv_fast.distance.default(A, B, _reference.ORDS.index(ord))


def _is_differentiated(*tensors: Tensor) -> bool:
    """In reverse or in forward mode, whose tangents an operator without a formula would drop."""
    recording = torch.is_grad_enabled()
    return any((recording and t.requires_grad) or unpack_dual(t).tangent is not None for t in tensors)


def _has_rows(t: Tensor) -> bool:
    return t.stride(-1) == 1 or t.shape[-1] <= 1
