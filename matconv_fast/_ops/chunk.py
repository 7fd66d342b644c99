"""``matconv_fast::start_run``, ``finish_chunk`` and ``loss_history``: a run before, between and after its chunks.

Each is one call where PyTorch takes up to two dozen, which a solve of a few thousand small iterations would wait for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _reference
from . import backend

_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define(
    "finish_chunk(Tensor sums, Tensor taken, Tensor threshold, Tensor Y_squares, Tensor(a!) bail, Tensor(b!) last, "
    "Tensor(c!) best, Tensor(d!) updates, Tensor(e!) status, Tensor(f!) again, Tensor(g!) counts) -> ()"
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
for _name in ("start_run", "finish_chunk", "loss_history"):
    _library.impl(_name, getattr(_reference, _name), "CompositeExplicitAutograd")
torch.library.register_fake("matconv_fast::start_run", _reference.start_run, lib=_library)
torch.library.register_fake("matconv_fast::finish_chunk", lambda *args: None, lib=_library)
torch.library.register_fake("matconv_fast::loss_history", _reference.loss_history, lib=_library)
_CODES = {name: getattr(_reference, name) for name in ("RUNNING", "CONVERGED", "DIVERGED", "NONFINITE")}


def _launch(*tensors: Tensor) -> None:
    backend.gpu().launch_finish_chunk(*tensors, bail_factor=_reference.BAIL_FACTOR, codes=_CODES)


_triton = backend.on_its_device(_launch, _reference.finish_chunk)
_library.impl("finish_chunk", _triton, "CUDA")
_START, _FINISH, _LOSSES = (
    getattr(torch.ops.matconv_fast, name).default for name in ("start_run", "finish_chunk", "loss_history")
)


def start_run(
    Y: Tensor, bail: Tensor, last: Tensor, best: Tensor, status: Tensor, rtol: float, atol: float
) -> tuple[Tensor, ...]:
    """See ``_reference.start_run``."""
    kernel = _START if backend.path(Y.device.type) == "cpu" else _reference.start_run
    return kernel(Y, bail, last, best, status, rtol, atol)


def finish_chunk(*tensors: Tensor) -> None:
    """See ``_reference.finish_chunk``, whose arguments it takes."""
    if backend.path(tensors[0].device.type) == "reference" or tensors[0].shape[0] == 0:
        _reference.finish_chunk(*tensors)
    else:
        backend.call(_FINISH, _triton, *tensors)


def loss_history(
    sums: Tensor, updates: Tensor, begin: int, every: int, loss: int, elements: int, dtype: torch.dtype
) -> Tensor:
    """See ``_reference.loss_history``."""
    kernel = _LOSSES if backend.path(sums.device.type) == "cpu" else _reference.loss_history
    return kernel(sums, updates, begin, every, loss, elements, dtype)
