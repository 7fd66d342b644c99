"""Compiles one launch ahead of time, and reads registers, spills, shared memory and instructions from the result."""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import triton
from kernel_launches import TARGETS, Launch, tile_target
from triton.backends import nvidia
from triton.compiler import ASTSource

TENSOR_COLUMNS = 512  # of tensor memory on sm_100; a kernel with more compiles, and traps

# Matrix instructions by what they are called in a binary, from the fastest units to the slowest.
_MATRIX = {
    "wgmma": r"\bHGMMA", "tcgen05": r"\bUTC\w*MMA", "mma": r"\b[HD]MMA", "mfma": r"\bv_mfma",
}  # fmt: skip


@dataclass(frozen=True)
class Binary:
    """What became of a launch. ``spilled``: stack bytes that registers go to and come from; ``error``: why there is none."""

    registers: int = 0
    stack: int = 0
    spilled: int = 0
    shared: int = 0
    tensor_columns: int = 0
    matrix: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str = ""


def compile_launch(launch: Launch) -> Binary:
    """Compile, with the compilers that Triton brings along."""
    started = time.perf_counter()
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    source = ASTSource(kernel, launch.signature, launch.constexprs, launch.attrs)
    try:
        compiled = triton.compile(source, target=TARGETS[launch.target][0], options=launch.options)
    except Exception as error:
        return Binary(error=f"{type(error).__name__}: {' '.join(str(error).split())[-400:]}", seconds=time.perf_counter() - started)
    ...
