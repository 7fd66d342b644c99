"""Loads the C++ extension, once, and asks it which rules and algorithms it has and which algorithm suits a problem."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

from ..contract import Algorithm, Shape, state_dtype

INSTRUCTION_SETS = ("generic", "avx2", "avx512")


@functools.cache
def _extension() -> ctypes.CDLL:
    wanted = os.environ.get("MATCONV_FAST_ISA", "")
    if wanted and wanted not in INSTRUCTION_SETS:
        raise ImportError(f"MATCONV_FAST_ISA must be one of {', '.join(INSTRUCTION_SETS)}, got {wanted!r}")
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
    extension = ctypes.CDLL(str(found[0]))
    for name in ("isa", "rules", "algorithms"):
        getattr(extension, f"matconv_fast_{name}").restype = ctypes.c_char_p
    extension.matconv_fast_choose.argtypes = [ctypes.c_int64] * 4 + [ctypes.c_int] * 3
    return extension


def load() -> str:
    """Load the extension, which registers its operators; returns the instruction set that it selected.

    Raises:
        ImportError: there is no extension, or it does not load; the message says why.
    """
    return _extension().matconv_fast_isa().decode()


@functools.cache
def rules() -> tuple[str, ...]:
    """Names of the rules that `advance` has kernels for."""
    return tuple(_extension().matconv_fast_rules().decode().split())


@functools.cache
def algorithms() -> tuple[Algorithm, ...]:
    """The algorithms of `advance`; all of them stop each problem exactly. See ``choose_algorithm.h``."""
    rows = (line.split() for line in _extension().matconv_fast_algorithms().decode().splitlines())
    return tuple(
        Algorithm(name, keeps_residual=keeps == "1", least_steps=int(least_steps)) for name, keeps, least_steps in rows
    )


def choose(shape: Shape, rule: str) -> Algorithm | None:
    """The fastest algorithm for many updates of problems of this shape; None where the rule has no kernels."""
    if rule not in rules():
        return None
    batch, m, n, p, product, coupled, dtype = shape
    index = _extension().matconv_fast_choose(batch, m, n, p, product, coupled, state_dtype(dtype).itemsize)
    return algorithms()[index]
