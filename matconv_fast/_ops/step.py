"""``matconv_fast::heavy_ball_step_``: one update in place, in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import _reference
from . import backend

_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define(
    "heavy_ball_step_(Tensor(a!) X, Tensor(b!) V, Tensor? M, Tensor? Y, float lr, float momentum, int loss) -> Tensor?"
)
_library.impl("heavy_ball_step_", lambda *args: None, "CompositeExplicitAutograd")
_kernel = torch.ops.matconv_fast.heavy_ball_step_.default
_NUMBERS = (float, int)


def heavy_ball_step_(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: Any, momentum: Any, loss: Any
) -> Tensor | None:
    """One heavy-ball step on the C++ kernel; the loss before it, or None where that kernel does not take the arguments.

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
        and backend.has_native()
        and not torch.is_autocast_enabled("cpu")
    ):
        return None
    index = _reference.LOSSES.index(loss)
    if torch.is_grad_enabled() and backend.requires_grad(X, V, M, Y):
        with torch.no_grad():
            before = _kernel(X, V, M, Y, lr, momentum, index)
    else:
        before = _kernel(X, V, M, Y, lr, momentum, index)
    if before is not None:
        increment_version((X, V))
    return before
