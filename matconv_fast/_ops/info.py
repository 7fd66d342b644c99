"""What `matconv_fast.info` reports: versions, devices, and the path that serves each."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass

import torch

from ..kernels.cpu import launch as cpu
from . import backend


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


def installed_version(package: str) -> str | None:
    """Of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _triton_version() -> str | None:
    names = ("triton", "pytorch-triton", "pytorch-triton-rocm")  # the last two are what some builds of torch bring
    return next((found for name in names if (found := installed_version(name)) is not None), None)


def _cpu_info(forced_path: str | None) -> DeviceInfo:
    name = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if forced_path == "triton":
        return DeviceInfo("cpu", name, "triton (interpreted)", "MATCONV_FAST_BACKEND and TRITON_INTERPRET")
    missing = backend.load_native()
    if missing is not None:
        return DeviceInfo("cpu", name, "reference (PyTorch operators)", f"no C++ kernels: {missing}")
    if forced_path == "reference":
        return DeviceInfo("cpu", name, "reference (PyTorch operators)", "forced by MATCONV_FAST_BACKEND")
    note = "C++: solve, residual_loss, heavy_ball_step_, distance; reference: the rest"
    return DeviceInfo("cpu", name, f"cpu (C++ kernels, {cpu.load()})", note)


def _cuda_info(index: int, forced_path: str | None) -> DeviceInfo:
    name = torch.cuda.get_device_name(index)
    missing = backend.load_triton()
    if forced_path in ("reference", "cpu"):
        missing = "forced by MATCONV_FAST_BACKEND"
    if missing is not None:
        return DeviceInfo(f"cuda:{index}", name, "reference (PyTorch operators)", missing)
    shapes = "searched for (MATCONV_FAST_AUTOTUNE)" if backend.searches() else "from tables"
    note = f"Triton: solve, residual_loss, heavy_ball_step_, distance; reference: the rest; block shapes {shapes}"
    return DeviceInfo(f"cuda:{index}", name, "triton (Triton kernels)", note)


def info() -> Info:
    """Versions, devices, which path serves each of them, and why a path is missing.

    Example:
        >>> import matconv_fast as mcf
        >>> mcf.info().devices[0].device
        'cpu'
    """
    try:
        forced_path = backend.forced()
    except (ValueError, RuntimeError) as error:
        forced_path = f"{os.environ['MATCONV_FAST_BACKEND']} ({error})"
    devices = [_cpu_info(forced_path)]
    devices += [_cuda_info(index, forced_path) for index in range(torch.cuda.device_count())]
    if len(devices) == 1:
        reason = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no CUDA device is visible"
        devices.append(DeviceInfo("cuda", "none", "none", reason))
    version = installed_version("matconv_fast") or "not installed"
    return Info(version, torch.__version__, _triton_version(), torch.get_num_threads(), forced_path, tuple(devices))
