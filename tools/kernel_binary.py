"""Compiles a launch ahead of time, and reads registers, spills, memory and matrix instructions from the result."""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import triton
from kernel_launches import TARGETS, Launch, tile_target
from triton.backends import nvidia
from triton.compiler import ASTSource, CompiledKernel

_TOOLS = Path(nvidia.__file__).parent / "bin"

TENSOR_COLUMNS = 512  # of tensor memory on sm_100; a kernel with more compiles, and traps

# Matrix instructions in assembly, from the fastest units to the slowest. In SASS they are HGMMA, UTC*MMA, and HMMA or
# DMMA; reading those would take a disassembler.
_MATRIX = {
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "mma": r"\bmma\.sync",
    "mfma": r"\bv_mfma",
}


@dataclass(frozen=True)
class Binary:
    """What a launch compiled to.

    ``stack``: bytes a thread. ``spills``: instructions that move registers to the stack and back (cuda), or registers
    that are moved (hip). ``matrix``: kinds of matrix instructions. ``error``: why there is no binary.
    """

    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    tensor_columns: int = 0
    matrix: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str = ""


def faults(launch: Launch, binary: Binary) -> list[str]:
    """The faults of a binary."""
    if binary.error:
        return [f"does not compile: {binary.error}"]
    found = []
    target = tile_target(launch.target)
    # on cuda, a stack that nothing is loaded from is that of a called function
    if binary.spills if target.backend == "cuda" else binary.stack + binary.spills:
        found.append(f"spills: {binary.stack} bytes of stack, {binary.spills} moves")
    if binary.shared > target.shared_memory:
        found.append(f"{binary.shared} bytes of shared memory, of {target.shared_memory}")
    if binary.tensor_columns > TENSOR_COLUMNS:
        found.append(f"{binary.tensor_columns} columns of tensor memory, of {TENSOR_COLUMNS}")
    if launch.target == "sm_90" and _should_have_wgmma(launch) and "wgmma" not in binary.matrix:
        found.append("no wgmma")
    return found


def _should_have_wgmma(launch: Launch) -> bool:
    # It multiplies 64 rows at a time. Blocks of the small algorithm are as small as its problems, down to 16 rows.
    if launch.precision not in ("bf16", "fp16") or not launch.has_product or launch.kernel == "_advance_small_kernel":
        return False
    constants = launch.constants
    rows = max(constants["BP"], constants["BN"]) if constants.get("SWAP") else constants["BM"]
    return rows >= 64


def compile_launch(launch: Launch) -> Binary:
    """Compile with the compilers that come with Triton."""
    start = time.perf_counter()
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    source = ASTSource(kernel, launch.signature, launch.constexprs, launch.attrs)
    try:
        compiled = triton.compile(source, target=TARGETS[launch.target][0], options=launch.options)
    except Exception as error:  # whatever a compiler raises is a result
        text = " ".join(str(error).split())
        return Binary(seconds=time.perf_counter() - start, error=f"{type(error).__name__}: {text[-300:]}")
    seconds = time.perf_counter() - start
    registers, stack, spills = _cubin(compiled) if "cubin" in compiled.asm else _amdgcn(compiled)
    assembly = compiled.asm["ptx" if "cubin" in compiled.asm else "amdgcn"]
    matrix = tuple(name for name, pattern in _MATRIX.items() if re.search(pattern, assembly))
    metadata = compiled.metadata
    columns = getattr(metadata, "tmem_size", None) or 0
    return Binary(registers, stack, spills, metadata.shared, columns, matrix, seconds)


def _cubin(compiled: CompiledKernel) -> tuple[int, int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        assert found is not None, usage
        registers, stack = int(found[1]), int(found[2])
        spills = len(re.findall(r"\b(?:LDL|STL)\b", _run("nvdisasm", "-c", file.name))) if stack else 0
    return registers, stack, spills


def _amdgcn(compiled: CompiledKernel) -> tuple[int, int, int]:
    def value(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", compiled.asm["amdgcn"])
        assert found is not None, key
        return int(found[1])

    return value("vgpr_count"), value("private_segment_fixed_size"), value("vgpr_spill_count")


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
