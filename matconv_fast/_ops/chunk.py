"""``matconv_fast::finish_chunk``: the judgement after every chunk of iterations, in one call."""

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
_library.impl("finish_chunk", _reference.finish_chunk, "CompositeExplicitAutograd")
torch.library.register_fake("matconv_fast::finish_chunk", lambda *args: None, lib=_library)
_CODES = {name: getattr(_reference, name) for name in ("RUNNING", "CONVERGED", "DIVERGED", "NONFINITE")}


def _launch(*tensors: Tensor) -> None:
    backend.gpu().launch_finish_chunk(*tensors, bail_factor=_reference.BAIL_FACTOR, codes=_CODES)


_triton = backend.on_its_device(_launch, _reference.finish_chunk)
_library.impl("finish_chunk", _triton, "CUDA")
_KERNEL = torch.ops.matconv_fast.finish_chunk.default


def finish_chunk(*tensors: Tensor) -> None:
    """See ``_reference.finish_chunk``, whose arguments it takes."""
    if backend.path(tensors[0].device.type) == "reference" or tensors[0].shape[0] == 0:
        _reference.finish_chunk(*tensors)
    else:
        backend.call(_KERNEL, _triton, *tensors)
