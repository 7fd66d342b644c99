"""The GPU that kernels are compiled for, and how products are made on it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

# How products are made: by the operands' dtype, and for float32 by torch's own setting.
PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "ieee", torch.float64: "fp64"}

ITEMSIZE = {"bf16": 2, "fp16": 2, "tf32": 4, "ieee": 4, "fp64": 8}

# Fewer programs than this leave most of a GPU idle.
LEAST_PROGRAMS = 16


@dataclass(frozen=True)
class Target:
    """What a kernel is compiled for. ``arch``: 80, 90, 100, ... on ``cuda``, ``gfx942`` on ``hip``."""

    backend: str
    arch: int | str
    multiprocessors: int

    @property
    def has_descriptors(self) -> bool:
        """Whether the copy engine loads blocks (TMA). Elsewhere descriptors turn back into pointers, and spill.

        sm_120 has TMA, but too little shared memory for the blocks that are loaded with it.
        """
        return self.backend == "interpreter" or (self.backend == "cuda" and 90 <= int(self.arch) < 120)

    @property
    def shared_memory(self) -> int:
        """Bytes that one program can have."""
        if self.backend == "hip":
            return 65536
        return {80: 166912, 86: 101376, 89: 101376}.get(int(self.arch), 232448) if self.backend == "cuda" else 232448


def current() -> Target:
    """The current device; the interpreter, where kernels are interpreted."""
    if triton.knobs.runtime.interpret:
        return Target("interpreter", 90, 4)
    return _of(torch.cuda.current_device())


@functools.cache
def _of(device: int) -> Target:
    gpu = triton.runtime.driver.active.get_current_target()
    return Target(gpu.backend, gpu.arch, torch.cuda.get_device_properties(device).multi_processor_count)


def precision(dtype: torch.dtype) -> str:
    """How operands of `dtype` are multiplied: bf16, fp16, tf32, ieee or fp64."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return PRECISIONS[dtype]


def kind(precision: str) -> str:
    """The key of `precision` in tables of block shapes: bf16 and fp16 share theirs."""
    return "half" if precision in ("bf16", "fp16") else precision


def dot_precision(precision: str) -> str:
    """``input_precision`` of ``tl.dot``; it matters for float32 alone."""
    return "tf32" if precision == "tf32" else "ieee"


def padded(size: int) -> int:
    """The block that holds `size`: a power of two, at least 16, which is the least that ``tl.dot`` takes."""
    return max(16, triton.next_power_of_2(size))


def is_ragged(*sizes: int) -> bool:
    """Whether rows of one of these lengths are loaded element by element."""
    return any(size % 16 for size in sizes)


def registers(*, all_of_them: bool) -> dict[str, int]:
    """A launch option that allows a kernel as many registers as there are.

    By default NVIDIA's compiler fits some kernels into 128 registers, so that more programs run at a time, and spills 8
    to 48 bytes where 166 registers need no spill. Others, those that multiply float32 and float64 without tensor cores
    and most of the row algorithm, spill 16 to 184 bytes with the option.
    """
    return {"maxnreg": 255} if all_of_them and current().backend == "cuda" else {}
