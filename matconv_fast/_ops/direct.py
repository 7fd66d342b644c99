"""``matconv_fast::direct_solve``: ``X @ M = Y`` for a square M by elimination, many problems at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _reference
from ..kernels.contract import Shape
from . import backend
from .plan import Plan

# Rows and columns of M, and rows of X, up to which one thread solves a problem. Up to the smaller number it solves
# several, one in each lane of a vector.
MOST_DIRECT, MOST_IN_LANES = 128, 16

_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define(
    "direct_solve(Tensor M, Tensor? Y, float rtol, float atol, int loss) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_by_triton = backend.on_its_device(
    lambda *arguments: backend.gpu().launch_direct_solve(*arguments), _reference.direct_solve
)
_library.impl("direct_solve", _reference.direct_solve, "CompositeExplicitAutograd")
_library.impl("direct_solve", _by_triton, "CUDA")


def _fake(M: Tensor, Y: Tensor | None, rtol: float, atol: float, loss: int) -> tuple[Tensor, ...]:
    wanted = M if Y is None else Y
    size, m, n = torch.broadcast_shapes(M.shape[:1], wanted.shape[:1])[0], wanted.shape[1], M.shape[2]
    X, losses = M.new_empty(size, m, n), M.new_empty(size, 2)
    squares, status = M.new_empty(size, dtype=torch.float64), M.new_empty(size, dtype=torch.int64)
    return X, losses, squares, status, M.new_empty((), dtype=torch.int64)


torch.library.register_fake("matconv_fast::direct_solve", _fake, lib=_library)
_KERNEL = torch.ops.matconv_fast.direct_solve.default


class DirectSolution(NamedTuple):
    """What `direct_solve` finds of each problem; it is undefined where `status` is RUNNING.

    Attributes:
        X: ``[B, m, n]``.
        losses: ``[B, 2]``, of 0 and of X.
        squares: ``[B]`` float64, ``||R||_F^2``.
        status: ``[B]`` int64, CONVERGED, STAGNATED or RUNNING.
        running: int64, how many problems are RUNNING.
    """

    X: Tensor
    losses: Tensor
    squares: Tensor
    status: Tensor
    running: Tensor


def plan_direct(shape: Shape, device: torch.device) -> Plan | None:
    """How `direct_solve` solves problems of this shape; None where it does not."""
    batch, m, n, p, product, _, _ = shape
    name = backend.of(device.type)
    most = MOST_IN_LANES if name == "triton" else MOST_DIRECT
    if not product or n != p or 0 in (batch, m, n) or max(m, n) > most:
        return None
    if name == "cpu":
        return Plan(name, "direct_lanes" if n <= MOST_IN_LANES else "direct_rows", exact=True)
    return Plan(name, "direct", exact=True)


def direct_solve(M: Tensor, Y: Tensor | None, rtol: float, atol: float, loss: int) -> DirectSolution:
    """See ``_reference.direct_solve``; for shapes that `plan_direct` has a plan for."""
    if backend.of(M.device.type) == "reference":
        return DirectSolution(*_reference.direct_solve(M, Y, rtol, atol, loss))
    return DirectSolution(*backend.call(_KERNEL, _by_triton, M, Y, rtol, atol, loss))
