"""Which implementation runs: decided by the device, or forced by ``MATCONV_FAST_BACKEND``."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..kernels.cpu import launch as cpu

BACKENDS = ("reference", "cpu", "triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it once, too, when a kernel is decorated


@functools.cache
def load_native() -> str | None:
    """Load the C++ kernels; None when they are there, else why not."""
    try:
        cpu.load()
    except ImportError as error:
        return str(error)
    return None


@functools.cache
def load_triton() -> str | None:
    """Import the Triton kernels; None when they are there, else why not."""
    try:
        gpu()
    except ImportError as error:
        return f"Triton does not import: {error}"
    return None


@functools.cache
def gpu() -> ModuleType:
    """The launchers of the Triton kernels. Imported only where they run: Triton takes half a second."""
    from ..kernels.gpu import launch

    return launch


@functools.cache
def gpu_losses() -> ModuleType:
    """As `gpu`, of the losses and distances."""
    from ..kernels.gpu import launch_loss

    return launch_loss


def searches() -> bool:
    """Whether the Triton launchers look for faster block shapes than those of their tables."""
    from ..kernels.gpu import search

    return search.requested()


_PLAIN = (Tensor, torch.nn.Parameter, type(None))


def is_plain(*tensors: object) -> bool:
    """Whether an operator without formulas may take these: tensors, parameters or None, and nothing at work on them.

    A forward-mode tangent would be dropped, and a batched tensor of ``torch.func.vmap`` has no memory of its own.
    Device and layout are the operator's to look at. A compiler cannot follow what is asked here: see `is_opaque`.
    """
    if torch.compiler.is_compiling():
        return False
    for t in tensors:
        if type(t) not in _PLAIN:
            return False
    return not (forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active())


def is_opaque() -> bool:
    """Whether a function that is being compiled is to hold the operator, and not the plain PyTorch that it stands for.

    The operator never makes R, which a compiler cannot see how to do. What is exported runs where this package is not.
    """
    return torch.compiler.is_compiling() and not (
        torch.compiler.is_exporting()
        or torch._C._are_functorch_transforms_active()
        or os.environ.get("MATCONV_FAST_BACKEND") == "reference"
    )


def is_batched(t: Tensor) -> bool:
    """Whether it stands for a batch of gradients, as in ``torch.autograd.grad(..., is_grads_batched=True)``."""
    return torch._C._functorch.is_legacy_batchedtensor(t)  # pyright: ignore[reportAttributeAccessIssue]


def autocasts(t: Tensor) -> bool:
    """Whether products of a tensor like this are to be made in autocast's dtype."""
    if not torch._C._is_any_autocast_enabled():  # 0.2 us; what follows takes 1.3
        return False
    return t.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(t.device.type)


def records_grad(*tensors: Tensor | None) -> bool:
    """Whether what is made of them is differentiable."""
    if torch.is_grad_enabled():
        for t in tensors:  # any() of a generator takes twice as long
            if t is not None and t.requires_grad:
                return True
    return False


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
        missing = load_triton()
        if missing is None and not (INTERPRETED or torch.cuda.is_available()):
            missing = "there is no GPU; set TRITON_INTERPRET=1 to interpret the kernels on the CPU"
        if missing is not None:
            raise RuntimeError(f"MATCONV_FAST_BACKEND=triton: {missing}")
        return wanted
    missing = load_native()
    if wanted == "cpu" and missing is not None:
        raise RuntimeError(f"MATCONV_FAST_BACKEND=cpu: {missing}")
    return wanted


@functools.cache
def has_native() -> bool:
    """Whether the C++ kernels are there and not forbidden."""
    return forced() in (None, "cpu") and load_native() is None


@functools.cache
def path(device_type: str) -> str:
    """What serves a type of device: "cpu", "triton" or "reference". Says once why not, where it could be another.

    Raises:
        RuntimeError: MATCONV_FAST_BACKEND asks for what this device cannot have.
    """
    wanted = forced()
    if wanted == "reference":
        return wanted
    if device_type == "cpu":
        if wanted == "triton":
            if not INTERPRETED:
                raise RuntimeError("MATCONV_FAST_BACKEND=triton: tensors on the CPU need TRITON_INTERPRET=1")
            return wanted
        missing = load_native()
    elif device_type == "cuda":
        missing = "MATCONV_FAST_BACKEND=cpu" if wanted == "cpu" else load_triton()
    else:
        missing = "there are no kernels for it"
    if missing is None:
        return "cpu" if device_type == "cpu" else "triton"
    announce(f"on {'the CPU' if device_type == 'cpu' else device_type} the PyTorch reference runs: {missing}")
    return "reference"


@functools.cache
def has_kernels() -> bool:
    """Whether any tensor could meet a kernel: an operator's composite fallback, slower to reach, is left out if not."""
    return forced() == "triton" or has_native() or (forced() is None and torch.cuda.is_available())


def call(operator: Callable[..., Any], interpreted: Callable[..., Any], *arguments: Any) -> Any:
    """Call an operator; where Triton kernels are interpreted, what it stands for.

    There a tensor is on the CPU, whose kernels the dispatcher would take.
    """
    return (interpreted if INTERPRETED and forced() == "triton" else operator)(*arguments)


def on_its_device(launcher: Callable[..., Any], reference: Callable[..., Any]) -> Callable[..., Any]:
    """A launcher that makes its first tensor's GPU the current one, which is where Triton launches.

    ``reference`` takes its place where Triton is missing or not wanted.
    """

    def launch(first: Tensor, *rest: Any) -> Any:
        if path(first.device.type) != "triton":
            return reference(first, *rest)
        if first.device.type != "cuda" or first.device.index == torch.cuda.current_device():
            return launcher(first, *rest)
        with torch.cuda.device(first.device):
            return launcher(first, *rest)

    return launch


def takes_low_precision(device: torch.device) -> bool:
    """Whether products are made of bfloat16 and float16 as they come, rather than of their float32 copies."""
    return path(device.type) == "triton"


@dataclass(frozen=True)
class Way:
    """How a kernel goes about `advance`.

    Attributes:
        path: "cpu" or "triton".
        name: of the ways that the path has.
        code: its index among them.
        exact: it stops each problem by itself; otherwise the caller replays it.
        keeps_residual: it can go on from the residual that it ended a chunk with.
        captures: it takes several launches an iteration, which a CUDA graph is to replay.
        least: updates that repay a call, beside what it prepares.
    """

    path: str
    name: str
    code: int
    exact: bool
    keeps_residual: bool
    captures: bool
    least: int = 1


def advance_way(
    device: torch.device, dtype: torch.dtype, batch: int, m: int, n: int, p: int, *,
    product: bool, coupled: bool, heavy_ball: bool,
) -> Way | None:  # fmt: skip
    """The way in which problems of a kind are run, by a path's own judgement; None for the reference.

    ``dtype``: that of M and Y. ``product``: there is an M. ``coupled``: the loss makes the rows of X depend on each
    other. ``heavy_ball``: the solver is the heavy ball, which has more ways than others.
    """
    kind = path(device.type)
    if kind == "reference":
        return None
    sizes = batch, m, n, p
    if kind == "cpu":
        launch: ModuleType = cpu
        name = cpu.advance_way(
            *sizes, product=product, coupled=coupled, lanes=heavy_ball, itemsize=dtype.itemsize,
            threads=torch.get_num_threads(),
        )  # fmt: skip
    elif 0 in sizes:
        return None
    else:
        launch = gpu()
        name = launch.advance_way(*sizes, product=product, coupled=coupled, heavy_ball=heavy_ball, dtype=dtype)
    code = launch.WAYS.index(name)
    captures = device.type == "cuda" and name in launch.MANY_LAUNCHES
    exact, keeps = name in launch.STOPS_EXACTLY, name in launch.KEEPS_RESIDUAL
    return Way(kind, name, code, exact, keeps, captures, launch.LEAST_UPDATES.get(name, 1))
