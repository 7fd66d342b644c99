"""``matconv_fast::heavy_ball_advance`` and ``adam_advance``: many iterations in one call, `advance` of the solvers."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _reference
from . import backend

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
_REFERENCES = {"heavy_ball": _reference.heavy_ball_advance, "adam": _reference.adam_advance}
_TRITON = {
    "heavy_ball": backend.on_its_device(
        lambda *arguments: backend.gpu().launch_heavy_ball_advance(*arguments), _reference.heavy_ball_advance
    ),
    "adam": backend.on_its_device(
        lambda *arguments: backend.gpu().launch_adam_advance(*arguments), _reference.adam_advance
    ),
}
for _solver, _function in _REFERENCES.items():
    _library.impl(f"{_solver}_advance", _function, "CompositeExplicitAutograd")
    _library.impl(f"{_solver}_advance", _TRITON[_solver], "CUDA")
    torch.library.register_fake(f"matconv_fast::{_solver}_advance", lambda *args: None, lib=_library)
_KERNELS = {solver: getattr(torch.ops.matconv_fast, f"{solver}_advance").default for solver in _REFERENCES}


def advance(solver: str, *arguments: Tensor | float | None, loss: str, way: backend.Way | None) -> None:
    """`advance` of ``"heavy_ball"`` or ``"adam"``, the way that `backend.advance_way` chose.

    ``arguments`` are those of ``_reference.heavy_ball_advance`` or ``_reference.adam_advance`` up to R, in their order.
    """
    chosen = *arguments, _reference.LOSSES.index(loss), 0 if way is None else way.code
    if way is None:
        _REFERENCES[solver](*chosen)
    else:
        backend.call(_KERNELS[solver], _TRITON[solver], *chosen)
