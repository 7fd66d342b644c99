"""Which backend runs: the device decides, or ``MATCONV_FAST_BACKEND`` forces one.

Every public function checks its arguments, then calls an operator. There is one exception, the fast path of small
calls: on a small CPU matrix the checks in Python take longer than the kernel. So `residual_loss`, `distance` and
`heavy_ball_step_` first offer their unchecked arguments to an operator ``try_...``, which returns None, with nothing
written, unless it finds them to be what its kernel takes. Only then do they check, and call the operator proper.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
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
    """Whether the Triton launchers tune block shapes, as MATCONV_FAST_AUTOTUNE=1 asks."""
    from ..kernels.gpu import search

    return search.requested()


_PLAIN = (Tensor, torch.nn.Parameter, type(None))


def is_plain(*tensors: object) -> bool:
    """Whether an operator without autograd formulas may take these: plain tensors, parameters or None.

    False inside a transform: the operator would drop a forward-mode tangent, and a batched tensor of
    ``torch.func.vmap`` has no memory of its own. False while compiling, where `emits_operator` decides. Device and
    layout are left to the operator.
    """
    if torch.compiler.is_compiling():
        return False
    for t in tensors:
        if type(t) not in _PLAIN:
            return False
    return not (forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active())


def emits_operator() -> bool:
    """Whether to emit the custom operator, not its decomposition, while compiling.

    The operator never materializes R, which a compiler cannot arrange by itself. An exported program gets the
    decomposition: it must run where this package is not installed.
    """
    return torch.compiler.is_compiling() and not (
        torch.compiler.is_exporting()
        or torch._C._are_functorch_transforms_active()
        or os.environ.get("MATCONV_FAST_BACKEND") == "reference"
    )


def is_batched(t: Tensor) -> bool:
    """Whether it is a batch of gradients, as in ``torch.autograd.grad(..., is_grads_batched=True)``."""
    return torch._C._functorch.is_legacy_batchedtensor(t)  # pyright: ignore[reportAttributeAccessIssue]


def autocasts(t: Tensor) -> bool:
    """Whether autocast lowers the dtype of this tensor's products."""
    if not torch._C._is_any_autocast_enabled():  # 0.2 us; what follows takes 1.3
        return False
    return t.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(t.device.type)


def records_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd records operations on these."""
    if torch.is_grad_enabled():
        for t in tensors:  # any() of a generator takes twice as long
            if t is not None and t.requires_grad:
                return True
    return False


@functools.cache
def announce(message: str) -> None:
    """Say once which backend runs, where the device could have a faster one."""
    warnings.warn(f"matconv_fast: {message}", RuntimeWarning, stacklevel=2)


@functools.cache  # reading the environment takes 5 us, a step on a small matrix not much more
def forced() -> str | None:
    """The backend that MATCONV_FAST_BACKEND asks for, read once a process.

    Raises:
        ValueError: it names no backend.
        RuntimeError: it names one that is not available.
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
    """Whether the C++ kernels are built and may be used."""
    return forced() in (None, "cpu") and load_native() is None


@functools.cache
def of(device_type: str) -> str:
    """The backend of a type of device: "cpu", "triton" or "reference". Warns once where kernels are missing.

    Raises:
        RuntimeError: MATCONV_FAST_BACKEND asks for a backend that this device cannot have.
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


def takes_nothing(*_: Any) -> None:
    """The fast path of devices that have none."""


def call(operator: Callable[..., Any], interpreted: Callable[..., Any], *arguments: Any) -> Any:
    """Call an operator, or the interpreted Triton kernel for it.

    Interpreted kernels take CPU tensors, for which the dispatcher would choose the C++ kernels.
    """
    return (interpreted if INTERPRETED and forced() == "triton" else operator)(*arguments)


def on_its_device(
    launcher: Callable[..., Any], reference: Callable[..., Any], *, tensor: int = 0
) -> Callable[..., Any]:
    """A launcher that makes the GPU of its argument number ``tensor`` the current one, where Triton launches.

    It calls ``reference`` where Triton is missing or not wanted.
    """

    def launch(*arguments: Any) -> Any:
        device = arguments[tensor].device
        if of(device.type) != "triton":
            return reference(*arguments)
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return launcher(*arguments)
        with torch.cuda.device(device):
            return launcher(*arguments)

    return launch
