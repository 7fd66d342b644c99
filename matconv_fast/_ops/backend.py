"""Which implementation runs: decided by the device, or forced by ``MATCONV_FAST_BACKEND``; reported by `info`."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..kernels.cpu import launch as cpu

BACKENDS = ("reference", "cpu", "triton")
NO_TRITON_KERNELS = "this version has no Triton kernels yet"


@functools.cache
def load_native() -> str | None:
    """Load the C++ kernels; None when they are there, else why not."""
    try:
        cpu.load()
    except ImportError as error:
        return str(error)
    return None


_PLAIN = (Tensor, torch.nn.Parameter, type(None))


def is_plain(*tensors: object) -> bool:
    """Whether an operator without formulas may take these: tensors, parameters or None, and nothing at work on them.

    A forward-mode tangent would be dropped, a batched tensor of ``torch.func.vmap`` has no memory of its own, and a
    compiler does better with plain operators. Device and layout are the operator's to look at.
    """
    for t in tensors:
        if type(t) not in _PLAIN:
            return False
    return not (
        forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()
    )


def is_batched(t: Tensor) -> bool:
    """Whether it stands for a batch of gradients, as in ``torch.autograd.grad(..., is_grads_batched=True)``."""
    return torch._C._functorch.is_legacy_batchedtensor(t)  # pyright: ignore[reportAttributeAccessIssue]


def requires_grad(*tensors: Tensor | None) -> bool:
    """Whether one of them requires grad."""
    return any(t is not None and t.requires_grad for t in tensors)


@functools.cache
def announce(message: str) -> None:
    """Say once which path runs, where it is not the one that the device could have."""
    warnings.warn(f"matconv_fast: {message}", RuntimeWarning, stacklevel=2)


@functools.cache  # a look at the environment takes 5 us, a step on a small matrix not much more
def forced() -> str | None:
    """The path that MATCONV_FAST_BACKEND asks for, read once a process.

    Raises:
        ValueError: it names no backend.
        RuntimeError: it names one that is not here.
    """
    wanted = os.environ.get("MATCONV_FAST_BACKEND")
    if not wanted:
        return None
    if wanted not in BACKENDS:
        raise ValueError(f"MATCONV_FAST_BACKEND must be one of {', '.join(BACKENDS)}, got {wanted!r}")
    if wanted == "triton":
        raise RuntimeError(f"MATCONV_FAST_BACKEND=triton: {NO_TRITON_KERNELS}")
    missing = load_native()
    if wanted == "cpu" and missing is not None:
        raise RuntimeError(f"MATCONV_FAST_BACKEND=cpu: {missing}")
    return wanted


@functools.cache
def has_native() -> bool:
    """Whether the C++ kernels are there and not forbidden."""
    return forced() != "reference" and load_native() is None


def runs_native(device: torch.device) -> bool:
    """Whether the C++ kernels serve this device; says once why not, where they could."""
    if forced() == "reference":
        return False
    if device.type != "cpu":
        announce(f"{NO_TRITON_KERNELS}: on {device.type} the PyTorch reference runs")
        return False
    missing = load_native()
    if missing is not None:
        announce(f"on the CPU the PyTorch reference runs: {missing}")
    return missing is None


def advance_way(
    device: torch.device, dtype: torch.dtype, batch: int, m: int, n: int, p: int, **kind: bool
) -> int | None:
    """Which way the C++ `advance` goes about problems of a kind, an index of `cpu.WAYS`; None for the reference."""
    if not runs_native(device):
        return None
    way = cpu.advance_way(batch, m, n, p, itemsize=dtype.itemsize, threads=torch.get_num_threads(), **kind)
    return cpu.WAYS.index(way)


def stops_exactly(way: int) -> bool:
    """Whether `advance` stops each problem by itself; otherwise it is replayed."""
    return cpu.WAYS[way] != "alone"


def keeps_residual(way: int) -> bool:
    """Whether `advance` can go on from the residual that it ended a chunk with."""
    return cpu.WAYS[way] in ("alone", "gemm")


@dataclass(frozen=True)
class DeviceInfo:
    """One device and the path that serves it."""

    device: str
    name: str
    path: str
    note: str


@dataclass(frozen=True)
class Info:
    """What `info` returns: versions, and the path that serves each device. ``print`` shows it as a table."""

    version: str
    torch: str
    triton: str | None
    threads: int
    forced: str | None
    devices: tuple[DeviceInfo, ...]

    def __str__(self) -> str:
        lines = [
            f"matconv_fast {self.version}, torch {self.torch}, triton {self.triton or 'not installed'}, "
            f"Python {platform.python_version()}",
            f"MATCONV_FAST_BACKEND: {self.forced or 'not set, the device decides'}",
        ]
        for d in self.devices:
            lines += [f"{d.device:<8} {d.name}", f"{'':<8} path: {d.path}", f"{'':<8} {d.note}"]
        return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_info(forced_path: str | None) -> DeviceInfo:
    name = f"{platform.machine()}, {torch.get_num_threads()} threads"
    missing = load_native()
    if missing is not None:
        return DeviceInfo("cpu", name, "reference (PyTorch operators)", f"no C++ kernels: {missing}")
    if forced_path == "reference":
        return DeviceInfo("cpu", name, "reference (PyTorch operators)", "forced by MATCONV_FAST_BACKEND")
    note = "C++: solve, residual_loss, heavy_ball_step_, distance; reference: the rest"
    return DeviceInfo("cpu", name, f"cpu (C++ kernels, {cpu.load()})", note)


def info() -> Info:
    """Versions, devices, which path serves each of them, and why a path is missing.

    Example:
        >>> import matconv_fast as mcf
        >>> mcf.info().devices[0].device
        'cpu'
    """
    try:
        forced_path = forced()
    except (ValueError, RuntimeError) as error:
        forced_path = f"{os.environ['MATCONV_FAST_BACKEND']} ({error})"
    devices = [_cpu_info(forced_path)]
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        devices.append(DeviceInfo(f"cuda:{index}", name, "reference (PyTorch operators)", NO_TRITON_KERNELS))
    if len(devices) == 1:
        reason = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no CUDA device is visible"
        devices.append(DeviceInfo("cuda", "none", "none", reason))
    version = _version("matconv_fast") or "not installed"
    return Info(version, torch.__version__, _version("triton"), torch.get_num_threads(), forced_path, tuple(devices))
