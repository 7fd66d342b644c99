"""``matconv_fast::start_run``, ``finish_chunk``, ``loss_history`` and ``end_run``: a run around its chunks.

Each is one call where PyTorch takes up to two dozen operators, most of the fixed cost of a small solve.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _reference
from .._reference import Standing
from ..kernels.contract import Trace
from . import backend

_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define(
    "finish_chunk(Tensor sums, Tensor steps_done, Tensor threshold, Tensor Y_squares, Tensor(a!) bail, Tensor(b!) last,"
    " Tensor(c!) best, Tensor(d!) updates, Tensor(e!) status, Tensor(f!) replay_to, Tensor(g!) counts) -> ()"
)
_library.define(
    "start_run(Tensor Y, Tensor bail, Tensor last, Tensor best, Tensor status, float rtol, float atol) -> ("
    + ", ".join(["Tensor"] * 10)
    + ")"
)
_library.define(
    "loss_history(Tensor sums, Tensor updates, int begin, int every, int loss, int elements, ScalarType dtype) "
    "-> Tensor"
)
_library.define(
    "end_run(Tensor last, Tensor iterations, Tensor status, Tensor X, int[] shape, int loss, int elements) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def _finish_by_reference(*tensors: Tensor) -> None:
    """The arguments of the operator, for ``_reference.finish_chunk``."""
    sums, steps_done, threshold, Y_squares, bail, last, best, updates, status, replay_to, counts = tensors
    judged = Standing(threshold, Y_squares, bail, last, best, updates, steps_done, replay_to, status, counts)
    _reference.finish_chunk(Trace(sums, steps_done), judged)


_finish_by_triton = backend.on_its_device(
    lambda *tensors: backend.gpu().launch_finish_chunk(*tensors), _finish_by_reference
)
_library.impl("finish_chunk", _finish_by_reference, "CompositeExplicitAutograd")
_library.impl("finish_chunk", _finish_by_triton, "CUDA")
torch.library.register_fake("matconv_fast::finish_chunk", lambda *_: None, lib=_library)
for _name in ("start_run", "loss_history", "end_run"):
    _library.impl(_name, getattr(_reference, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"matconv_fast::{_name}", getattr(_reference, _name), lib=_library)
_START, _FINISH, _LOSSES, _END = (
    getattr(torch.ops.matconv_fast, name).default for name in ("start_run", "finish_chunk", "loss_history", "end_run")
)


def start_run(
    Y: Tensor, bail: Tensor, last: Tensor, best: Tensor, status: Tensor, rtol: float, atol: float
) -> Standing:
    """See ``_reference.start_run``."""
    function = _START if backend.of(Y.device.type) == "cpu" else _reference.start_run
    return Standing(*function(Y, bail, last, best, status, rtol, atol))


def finish_chunk(trace: Trace, standing: Standing) -> None:
    """See ``_reference.finish_chunk``."""
    if backend.of(trace.sums.device.type) == "reference" or trace.sums.shape[0] == 0:
        _reference.finish_chunk(trace, standing)
        return
    backend.call(
        _FINISH, _finish_by_triton,
        trace.sums, trace.steps_done, standing.threshold, standing.Y_squares, standing.bail, standing.last,
        standing.best, standing.updates, standing.status, standing.replay_to, standing.counts,
    )  # fmt: skip


def loss_history(
    sums: Tensor, updates: Tensor, begin: int, every: int, loss: int, elements: int, dtype: torch.dtype
) -> Tensor:
    """See ``_reference.loss_history``."""
    function = _LOSSES if backend.of(sums.device.type) == "cpu" else _reference.loss_history
    return function(sums, updates, begin, every, loss, elements, dtype)


def end_run(
    last: Tensor, iterations: Tensor, status: Tensor, X: Tensor, shape: torch.Size, loss: int, elements: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``_reference.end_run``."""
    function = _END if backend.of(last.device.type) == "cpu" else _reference.end_run
    return function(last, iterations, status, X, shape, loss, elements)
