"""``matconv_fast::heavy_ball_advance``: many heavy-ball iterations in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _reference

_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define(
    "heavy_ball_advance(Tensor(a!) X, Tensor(b!) V, Tensor? M, Tensor Y, Tensor lr, Tensor momentum, Tensor limit, "
    "Tensor threshold, Tensor bail, Tensor(c!) sums, Tensor(d!) taken, int loss, bool lockstep) -> ()"
)
_library.impl("heavy_ball_advance", _reference.heavy_ball_advance, "CompositeExplicitAutograd")
torch.library.register_fake("matconv_fast::heavy_ball_advance", lambda *args: None, lib=_library)


def heavy_ball_advance(
    X: Tensor,
    V: Tensor,
    M: Tensor | None,
    Y: Tensor,
    lr: Tensor,
    momentum: Tensor,
    limit: Tensor,
    threshold: Tensor,
    bail: Tensor,
    sums: Tensor,
    taken: Tensor,
    *,
    loss: str,
    path: str,
    lockstep: bool,
) -> None:
    """`advance` of the heavy ball on the path that `backend.heavy_ball_path` chose; contract in ``_reference.py``."""
    function = _reference.heavy_ball_advance if path == "reference" else torch.ops.matconv_fast.heavy_ball_advance
    function(
        X, V, M, Y, lr, momentum, limit, threshold, bail, sums, taken, _reference.LOSSES.index(loss), lockstep
    )  # fmt: skip
