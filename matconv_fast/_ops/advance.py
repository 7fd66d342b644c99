"""``matconv_fast::heavy_ball_advance`` and ``adam_advance``: many iterations in one call, `advance` of the solvers."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _reference

_library = torch.library.Library("matconv_fast", "FRAGMENT")
_CHUNK = (
    "Tensor limit, Tensor threshold, Tensor bail, Tensor({}!) sums, Tensor({}!) taken, Tensor({}!)? R, "
    "int loss, int way"
)
_library.define(
    "heavy_ball_advance(Tensor(a!) X, Tensor(b!) V, Tensor? M, Tensor Y, Tensor lr, Tensor momentum, "
    + _CHUNK.format("c", "d", "e")
    + ") -> ()"
)
_library.define(
    "adam_advance(Tensor(a!) X, Tensor(b!) first, Tensor(c!) second, Tensor(d!) count, Tensor? M, Tensor Y, Tensor lr, "
    "float first_decay, float second_decay, float eps, " + _CHUNK.format("e", "f", "g") + ") -> ()"
)
for _name, _function in (
    ("heavy_ball_advance", _reference.heavy_ball_advance),
    ("adam_advance", _reference.adam_advance),
):
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"matconv_fast::{_name}", lambda *args: None, lib=_library)


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
    R: Tensor | None,
    *,
    loss: str,
    way: int | None,
) -> None:
    """`advance` of the heavy ball, the way that `backend.advance_way` chose; contract in ``_reference.py``."""
    native = torch.ops.matconv_fast.heavy_ball_advance.default
    function, way = (_reference.heavy_ball_advance, 0) if way is None else (native, way)
    function(X, V, M, Y, lr, momentum, limit, threshold, bail, sums, taken, R, _reference.LOSSES.index(loss), way)


def adam_advance(
    X: Tensor,
    first: Tensor,
    second: Tensor,
    count: Tensor,
    M: Tensor | None,
    Y: Tensor,
    lr: Tensor,
    betas: tuple[float, float],
    eps: float,
    limit: Tensor,
    threshold: Tensor,
    bail: Tensor,
    sums: Tensor,
    taken: Tensor,
    R: Tensor | None,
    *,
    loss: str,
    way: int | None,
) -> None:
    """`advance` of Adam, likewise."""
    native = torch.ops.matconv_fast.adam_advance.default
    function, way = (_reference.adam_advance, 0) if way is None else (native, way)
    index = _reference.LOSSES.index(loss)
    function(X, first, second, count, M, Y, lr, *betas, eps, limit, threshold, bail, sums, taken, R, index, way)
