"""Loads the CPU extension, once, and knows which problems its kernels are the faster path for."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

ISAS = ("generic", "avx2", "avx512")


@functools.cache
def load() -> str:
    """Load the extension, whose operators register themselves; the name of the instruction set that it picked.

    Raises:
        ImportError: there is no extension here, or it does not load; the message says why.
    """
    wanted = os.environ.get("MATCONV_FAST_ISA", "")
    if wanted and wanted not in ISAS:
        raise ImportError(f"MATCONV_FAST_ISA must be one of {', '.join(ISAS)}, got {wanted!r}")
    found = sorted(Path(__file__).parent.glob("_C*.so")) + sorted(Path(__file__).parent.glob("_C*.pyd"))
    if not found:
        raise ImportError(
            "the C++ extension is not built: the installation found no C++ compiler, or no PyTorch to build against; "
            "reinstall with both present: pip install --no-build-isolation matconv_fast"
        )
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        raise ImportError(f"the C++ extension does not load: {error}") from error
    isa = ctypes.CDLL(str(found[0])).matconv_fast_isa
    isa.restype = ctypes.c_char_p
    return isa().decode()


def prefers_heavy_ball(m: int, n: int, p: int) -> bool:
    """Whether the native kernel is the faster path for problems of this size.

    On two AVX2 cores in float32 it is 17 times as fast as the reference at 64 cubed, 1.4 times at 256, 1.1 at 512 and
    0.9 at 1,024 (benchmarks/results/cpu-avx2/kernels.json).
    """
    return m * n * p <= 512**3


def heavy_ball_in_lockstep(batch: int, m: int, n: int, p: int, threads: int) -> bool:
    """Whether one thread should take each problem through its iterations, slab by slab, and stop it exactly.

    Otherwise the slabs of rows run apart, on all threads: for few problems, of a size that has several slabs and
    repays the iterations that are run past a stop. On two cores that is 2.5 times as fast at 32 cubed, 1.8 at 64
    (the same file).
    """
    return batch >= threads or m * n * p < 32**3
