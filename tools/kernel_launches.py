"""What is launched on a GPU, found out without one: the launchers run as they are, on tensors that have no memory.

Triton is told that a GPU of the target is there, and what it would compile for each launch is kept instead.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

ROOT = Path(__file__).resolve().parent.parent


def _package(name: str, folder: Path) -> None:
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


# Those of this source tree, whatever is installed. matconv_fast itself does not run: kernels import nothing above them.
_package("matconv_fast", ROOT / "matconv_fast")
_package("matconv_fast.kernels", ROOT / "kernels")

from matconv_fast.kernels.gpu import launch, launch_loss, tiles  # noqa: E402

from matconv_fast import _reference  # noqa: E402

# GPUs by the name of what they are compiled for, with the multiprocessors of an A100, H100, B200 and MI300X.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 108),
    "sm_90": (GPUTarget("cuda", 90, 32), 132),
    "sm_100": (GPUTarget("cuda", 100, 32), 148),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 304),
}
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32,
              "fp64": torch.float64}  # fmt: skip
MSE, FRO = 0, 2


def tile_target(name: str) -> tiles.Target:
    """The target as the tables of tiles know it."""
    gpu, multiprocessors = TARGETS[name]
    return tiles.Target(gpu.backend, gpu.arch, multiprocessors)


@dataclass(frozen=True)
class Launch:
    """What Triton is asked to compile: a kernel, the types of its arguments and what is known of their values."""

    target: str
    module: str
    kernel: str
    precision: str
    signature: dict[str, str]
    constexprs: dict[tuple[int, ...], Any]
    attrs: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    @property
    def constants(self) -> dict[str, Any]:
        """The kernel's compile-time parameters by name; arguments that are 1 are among ``constexprs``, too."""
        names = list(self.signature)
        return {names[path[0]]: value for path, value in self.constexprs.items() if names[path[0]].isupper()}

    def describe(self) -> str:
        """All that sets it apart from others."""
        arguments = enumerate(self.signature.items())
        odd = [name for i, (name, kind) in arguments if kind != "constexpr" and not self.attrs.get((i,))]
        return f"{self.constants}, not known to be multiples of 16: {' '.join(odd)}"

    @property
    def has_product(self) -> bool:
        """Whether it multiplies blocks."""
        return "PRECISION" in self.constants and self.constants.get("PRODUCT", True)


class _Driver:
    """Answers what a launch asks of Triton's driver before it compiles."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target][0]

    def get_current_device(self) -> str:
        return self.target

    def get_current_stream(self, device: str) -> int:
        return 0


def advance_way(rule: str, loss: int, precision: str, batch: int, m: int, n: int, p: int, *, product: bool) -> str:
    """The tier that the dispatcher takes."""
    kind = {"product": product, "coupled": loss == FRO, "heavy_ball": rule == "heavy_ball"}
    return launch.advance_way(batch, m, n, p, **kind, dtype=PRECISIONS[precision])


class Recorder:
    """Calls launchers with problems of given shapes, and keeps each launch once, in the order of the first."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.precision = ""
        self.launches: dict[tuple[str, str], Launch] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Launches in here are for the target, and are kept."""

        def keep(kernel, key, signature, device, constexprs, options, attrs, warmup):
            name = kernel.__name__
            values = dict(constexprs), attrs, options.__dict__
            self.launches.setdefault(
                (name, key), Launch(self.target, kernel.__module__, name, self.precision, signature, *values)
            )

        here = tile_target(self.target)

        def current() -> tiles.Target:
            return here

        before = triton.runtime.driver._active
        fp32_precision = torch.backends.cuda.matmul.fp32_precision
        triton.runtime.driver.set_active(_Driver(self.target))
        try:
            with (
                mock.patch.object(triton.runtime.jit.JITFunction, "_do_compile", keep),
                mock.patch.object(tiles, "target", current),
                mock.patch.object(launch, "multiply"),  # by cuBLAS
                mock.patch.object(launch_loss, "multiply"),
            ):
                yield
        finally:
            triton.runtime.driver._active = before
            torch.backends.cuda.matmul.fp32_precision = fp32_precision

    def use(self, precision: str) -> torch.dtype:
        """Problems that follow are multiplied so."""
        self.precision = precision
        torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        return PRECISIONS[precision]

    def advance(
        self, rule: str, loss: int, precision: str, batch: int, m: int, n: int, p: int, *,
        product: bool = True, shared: bool = True, kept: bool = False, only: str | None = None,
    ) -> None:  # fmt: skip
        """Two iterates, the way that the dispatcher takes; nothing if that is not the one asked for.

        ``kept``: from a residual that is there, where the way keeps one.
        """
        dtype = self.use(precision)
        way = advance_way(rule, loss, precision, batch, m, n, p, product=product)
        if only not in (None, way):
            return
        state = tiles.state_dtype(dtype)
        X, first, second = (_empty(batch, m, n, dtype=state) for _ in range(3))
        M = _empty(1 if shared else batch, n, p, dtype=dtype) if product else None
        Y = _empty(1 if shared else batch, m, p, dtype=dtype)
        lr, momentum = _empty(batch, dtype=state), _empty(batch, dtype=state)
        limit, taken = _empty(batch, dtype=torch.int64), _empty(batch, dtype=torch.int64)
        threshold, bail, count = (_empty(batch, dtype=torch.float64) for _ in range(3))
        R = _empty(batch, m, p, dtype=dtype) if kept else None
        sums = _empty(batch, 2, dtype=torch.float64)
        chunk = limit, threshold, bail, sums, taken, R, loss, launch.WAYS.index(way)
        if rule == "heavy_ball":
            launch.launch_heavy_ball_advance(X, first, M, Y, lr, momentum, *chunk)
        else:
            launch.launch_adam_advance(X, first, second, count, M, Y, lr, 0.9, 0.999, 1e-8, *chunk)

    def step(self, loss: int, precision: str, batch: int, m: int, n: int, p: int, *, product: bool = True) -> None:
        """One heavy-ball step."""
        dtype = self.use(precision)
        X, V = (_empty(batch, m, n, dtype=tiles.state_dtype(dtype)) for _ in range(2))
        M = _empty(1, n, p, dtype=dtype) if product else None
        launch.launch_heavy_ball_step_(X, V, M, _empty(1, m, p, dtype=dtype), 0.1, 0.9, loss)

    def products(
        self, loss: int, precision: str, batch: int, m: int, n: int, p: int, *,
        wanted: str = "", identity: bool = False, product: bool = True,
    ) -> None:  # fmt: skip
        """The loss with what is ``wanted`` of the gradients of X, M and Y; ``identity``: there is no Y."""
        dtype = self.use(precision)
        state = tiles.state_dtype(dtype)
        launch_loss.launch_residual_products(
            _empty(batch, m, n, dtype=dtype), _empty(batch, n, p, dtype=dtype) if product else None,
            None if identity else _empty(batch, m, p, dtype=dtype), loss,
            _empty(batch, m, n, dtype=state) if "X" in wanted else None,
            _empty(batch, n, p, dtype=state) if "M" in wanted else None,
            _empty(batch, m, p, dtype=dtype) if "Y" in wanted else None,
        )  # fmt: skip

    def distance(self, ord: int, precision: str, batch: int, m: int, n: int, *, transposed: bool = False) -> None:  # noqa: A002
        """``ord`` indexes "fro", "max" and 1."""
        dtype = self.use(precision)
        A = _empty(batch, n, m, dtype=dtype).mT if transposed else _empty(batch, m, n, dtype=dtype)
        launch_loss.launch_distance(A, _empty(batch, m, n, dtype=dtype), ord)

    def finish_chunk(self, batch: int, columns: int) -> None:
        """The judgement of a chunk."""
        self.use("fp64")
        taken, updates, status, again = (_empty(batch, dtype=torch.int64) for _ in range(4))
        threshold, squares, bail, last, best = (_empty(batch, dtype=torch.float64) for _ in range(5))
        codes = {name: getattr(_reference, name) for name in ("RUNNING", "CONVERGED", "DIVERGED", "NONFINITE")}
        launch.launch_finish_chunk(
            _empty(batch, columns, dtype=torch.float64), taken, threshold, squares, bail, last, best, updates, status,
            again, _empty(2, dtype=torch.int64), bail_factor=_reference.BAIL_FACTOR, codes=codes,
        )  # fmt: skip


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
