"""What `matconv_fast.info` reports: versions, devices, the backend of each, and the algorithm that ran last."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass, replace

import torch

from ..kernels.cpu import launch as cpu
from . import backend
from .plan import Plan


@dataclass(frozen=True)
class DeviceInfo:
    """One device and its backend.

    Attributes:
        device: "cpu", "cuda:0", ...
        name: of the hardware.
        backend: what runs there.
        note: what the kernels cover, or why there are none.
        last: backend and algorithm of the last solve on this device, or None.
    """

    device: str
    name: str
    backend: str
    note: str
    last: str | None = None


@dataclass(frozen=True)
class Info:
    """What `info` returns: versions, and the backend of each device. ``print`` shows it as a table."""

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
            lines += [f"{d.device:<8} {d.name}", f"{'':<8} backend: {d.backend}", f"{'':<8} {d.note}"]
            if d.last is not None:
                lines.append(f"{'':<8} last solve: {d.last}")
        return "\n".join(lines)


# By device, what ran last; see `record`.
_last: dict[torch.device, Plan] = {}


def record(device: torch.device, plan: Plan) -> None:
    """Remember what a solve on ``device`` ran, for `info`."""
    _last[device] = plan


def _last_on(device: torch.device) -> str | None:
    plan = _last.get(device)
    return None if plan is None else f"{plan.algorithm} ({plan.backend})"


def installed_version(package: str) -> str | None:
    """Of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _triton_version() -> str | None:
    names = ("triton", "pytorch-triton", "pytorch-triton-rocm")  # the last two are what some builds of torch bring
    return next((found for name in names if (found := installed_version(name)) is not None), None)


def _cpu_info(forced: str | None) -> DeviceInfo:
    name = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if forced == "triton":
        return DeviceInfo("cpu", name, "triton (interpreted)", "MATCONV_FAST_BACKEND and TRITON_INTERPRET")
    missing = backend.load_native()
    if missing is not None:
        return DeviceInfo("cpu", name, "reference (PyTorch operators)", f"no C++ kernels: {missing}")
    if forced == "reference":
        return DeviceInfo("cpu", name, "reference (PyTorch operators)", "forced by MATCONV_FAST_BACKEND")
    note = "C++: solve, residual_loss, heavy_ball_step_, distance; reference: the rest"
    return DeviceInfo("cpu", name, f"cpu (C++ kernels, {cpu.load()})", note)


def _cuda_info(index: int, forced: str | None) -> DeviceInfo:
    name = torch.cuda.get_device_name(index)
    missing = backend.load_triton()
    if forced in ("reference", "cpu"):
        missing = "forced by MATCONV_FAST_BACKEND"
    if missing is not None:
        return DeviceInfo(f"cuda:{index}", name, "reference (PyTorch operators)", missing)
    shapes = "tuned on request (MATCONV_FAST_AUTOTUNE)" if backend.searches() else "from tables"
    note = f"Triton: solve, residual_loss, heavy_ball_step_, distance; reference: the rest; block shapes {shapes}"
    return DeviceInfo(f"cuda:{index}", name, "triton (Triton kernels)", note)


def info() -> Info:
    """Versions, devices, the backend of each, why a faster one is missing, and the algorithm that ran last.

    Example:
        >>> import matconv_fast as mcf
        >>> mcf.info().devices[0].device
        'cpu'
    """
    try:
        forced = backend.forced()
    except (ValueError, RuntimeError) as error:
        forced = f"{os.environ['MATCONV_FAST_BACKEND']} ({error})"
    devices = [replace(_cpu_info(forced), last=_last_on(torch.device("cpu")))]
    for index in range(torch.cuda.device_count()):
        devices.append(replace(_cuda_info(index, forced), last=_last_on(torch.device("cuda", index))))
    if len(devices) == 1:
        reason = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no CUDA device is visible"
        devices.append(DeviceInfo("cuda", "none", "none", reason))
    version = installed_version("matconv_fast") or "not installed"
    return Info(version, torch.__version__, _triton_version(), torch.get_num_threads(), forced, tuple(devices))
