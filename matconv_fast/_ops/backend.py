"""Which implementation runs: decided by the device, or forced by ``MATCONV_FAST_BACKEND``; reported by `info`."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import warnings
from dataclasses import dataclass

import torch

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


def heavy_ball_path(device: torch.device, has_M: bool, m: int, n: int, p: int) -> str:
    """``"cpu"`` (C++) or ``"reference"`` for the heavy ball's `advance` on problems of this kind."""
    if not runs_native(device):
        return "reference"
    if forced() == "cpu":
        if not has_M:
            announce("no C++ kernel for the heavy ball with M=None: the PyTorch reference runs")
        return "cpu" if has_M else "reference"
    return "cpu" if has_M and cpu.prefers_heavy_ball(m, n, p) else "reference"


def heavy_ball_in_lockstep(path: str, batch: int, m: int, n: int, p: int) -> bool:
    """Whether every problem stops inside the kernel; the reference never does, and goes by chunks small enough."""
    return path == "reference" or cpu.heavy_ball_in_lockstep(batch, m, n, p, torch.get_num_threads())


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
    note = "C++: distance, and the heavy ball up to m n p = 512^3, in float32 and float64; reference: the rest"
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
