"""What is launched on a GPU, recorded without one: the launchers run as they are, on tensors without memory.

Triton is told that a GPU of the target is there, and what it would compile for each launch is recorded instead.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
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


# This source tree's, whatever is installed. matconv_fast itself does not run: kernels import nothing above them.
_package("matconv_fast", ROOT / "matconv_fast")
_package("matconv_fast.kernels", ROOT / "kernels")

from matconv_fast.kernels.contract import LOSSES, Shape, state_dtype  # noqa: E402
from matconv_fast.kernels.gpu import gemm, launch, launch_loss  # noqa: E402
from matconv_fast.kernels.gpu import target as gpu_target  # noqa: E402
from matconv_fast.kernels.gpu.rules import RULES  # noqa: E402

# GPUs by the name of what they are compiled for, with the multiprocessors of an A100, H100, B200 and MI300X.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 108),
    "sm_90": (GPUTarget("cuda", 90, 32), 132),
    "sm_100": (GPUTarget("cuda", 100, 32), 148),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 304),
}
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32,
              "fp64": torch.float64}  # fmt: skip


def tile_target(name: str) -> gpu_target.Target:
    """The target as the tables of block shapes know it."""
    gpu, multiprocessors = TARGETS[name]
    return gpu_target.Target(gpu.backend, gpu.arch, multiprocessors)


def _parameters(signature: Any, path: tuple[int, ...] = (), prefix: str = "") -> Iterator[tuple[tuple[int, ...], str]]:
    """The path and the name of each parameter, those within tuples too: ``sizes.0``, ``tile.BM``."""
    if isinstance(signature, dict):
        names, values = list(signature), list(signature.values())
    else:
        names, values = getattr(signature, "_fields", [str(i) for i in range(len(signature))]), list(signature)
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        if isinstance(value, tuple):
            yield from _parameters(value, (*path, i), f"{prefix}{name}.")
        else:
            yield (*path, i), prefix + name


@dataclass(frozen=True)
class Launch:
    """What Triton compiles: a kernel, the types of its arguments and what is known of their values."""

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
        """The kernel's compile-time parameters, and its block shape, by name."""
        names = dict(_parameters(self.signature))
        found = {names[path].removeprefix("tile."): value for path, value in self.constexprs.items()}
        return {
            name: getattr(value, "value", value)
            for name, value in found.items()
            if name.isupper() and value is not None
        }

    def describe(self) -> str:
        """All that sets it apart from others."""
        parameters = [(path, name) for path, name in _parameters(self.signature) if path not in self.constexprs]
        odd = [name for path, name in parameters if not self.attrs.get(path)]
        absent = [name for path, name in _parameters(self.signature) if self.constexprs.get(path, 0) is None]
        return f"{self.constants}, None: {' '.join(absent)}; not known to be multiples of 16: {' '.join(odd)}"

    @property
    def has_product(self) -> bool:
        """Whether it multiplies blocks."""
        return "PRECISION" in self.constants and self.signature["M"] != "constexpr"


class _Driver:
    """What a launch reads from Triton's driver before it compiles."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target][0]

    def get_current_device(self) -> str:
        return self.target

    def get_current_stream(self, device: str) -> int:
        return 0


@dataclass(frozen=True)
class Case:
    """Problems, by what their launches depend on. `loss`: a name in ``LOSSES``."""

    loss: str
    precision: str
    batch: int
    m: int
    n: int
    p: int
    product: bool = True
    shared: bool = True

    def algorithm(self, rule: str) -> str:
        """The algorithm that `choose` gives."""
        sizes = self.batch, self.m, self.n, self.p
        shape = Shape(*sizes, self.product, self.loss == "fro", PRECISIONS[self.precision])
        found = launch.choose(shape, rule)
        assert found is not None
        return found.name

    def factors(self) -> tuple[Tensor | None, Tensor]:
        """M and Y."""
        dtype, batch = PRECISIONS[self.precision], 1 if self.shared else self.batch
        M = _empty(batch, self.n, self.p, dtype=dtype) if self.product else None
        return M, _empty(batch, self.m, self.p, dtype=dtype)


class Recorder:
    """Calls launchers with problems of given shapes, and records each launch once, in order of appearance."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.precision = ""
        self.launches: dict[tuple[str, str], Launch] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Launches inside are for the target, and are recorded."""

        def keep(kernel, key, signature, device, constexprs, options, attrs, warmup):
            name = kernel.__name__
            values = dict(constexprs), attrs, options.__dict__
            self.launches.setdefault(
                (name, key), Launch(self.target, kernel.__module__, name, self.precision, signature, *values)
            )

        here = tile_target(self.target)

        before = triton.runtime.driver._active
        fp32_precision = torch.backends.cuda.matmul.fp32_precision
        triton.runtime.driver.set_active(_Driver(self.target))  # type: ignore[arg-type]
        try:
            with (
                mock.patch.object(triton.runtime.jit.JITFunction, "_do_compile", keep),
                mock.patch.object(gpu_target, "current", return_value=here),
                mock.patch.object(gemm, "multiply"),
            ):
                yield
        finally:
            triton.runtime.driver._active = before
            torch.backends.cuda.matmul.fp32_precision = fp32_precision

    def use(self, precision: str) -> torch.dtype:
        """Set how the products of what follows are made."""
        self.precision = precision
        torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        return PRECISIONS[precision]

    def advance(self, rule: str, case: Case, *, kept: bool = False, only: str | None = None) -> None:
        """Two iterates by the algorithm that `choose` gives; nothing if that is not `only`.

        ``kept``: from a residual of an earlier chunk, where the algorithm keeps one.
        """
        state = state_dtype(self.use(case.precision))
        algorithm = case.algorithm(rule)
        if only not in (None, algorithm):
            return
        batch, m, n, p = case.batch, case.m, case.n, case.p
        X, *matrices = (_empty(batch, m, n, dtype=state) for _ in range(1 + RULES[rule].states))
        hyper = _empty(RULES[rule].hyperparameters, batch, dtype=torch.float64)
        step, limit, steps_done = (_empty(batch, dtype=torch.int64) for _ in range(3))
        threshold, bail = (_empty(batch, dtype=torch.float64) for _ in range(2))
        R = _empty(batch, m, p, dtype=PRECISIONS[case.precision]) if kept else None
        launch.launch_advance(
            rule, X, matrices, *case.factors(), hyper, step, 0.5, case.loss == "fro",
            limit, threshold, bail, _empty(batch, 2, dtype=torch.float64), steps_done, R, algorithm,
        )  # fmt: skip

    def step(self, case: Case) -> None:
        """One heavy-ball step."""
        state = state_dtype(self.use(case.precision))
        X, V = (_empty(case.batch, case.m, case.n, dtype=state) for _ in range(2))
        launch.launch_heavy_ball_step_(X, V, *case.factors(), 0.1, 0.9, LOSSES.index(case.loss))

    def products(self, case: Case, *, wanted: str = "", identity: bool = False) -> None:
        """The loss with what is ``wanted`` of the gradients of X, M and Y; ``identity``: there is no Y."""
        dtype = self.use(case.precision)
        batch, m, n, p = case.batch, case.m, case.n, case.p
        M, Y = replace(case, shared=False).factors()
        launch_loss.launch_residual_products(
            _empty(batch, m, n, dtype=dtype), M, None if identity else Y, LOSSES.index(case.loss),
            _empty(batch, m, n, dtype=state_dtype(dtype)) if "X" in wanted else None,
            _empty(batch, n, p, dtype=state_dtype(dtype)) if "M" in wanted else None,
            _empty(batch, m, p, dtype=dtype) if "Y" in wanted else None,
        )  # fmt: skip

    def distance(self, ord: int, precision: str, batch: int, m: int, n: int, *, transposed: bool = False) -> None:  # noqa: A002
        """``ord`` indexes `ORDS`."""
        dtype = self.use(precision)
        A = _empty(batch, n, m, dtype=dtype).mT if transposed else _empty(batch, m, n, dtype=dtype)
        launch_loss.launch_distance(A, _empty(batch, m, n, dtype=dtype), ord)

    def direct_solve(self, precision: str, n: int, *, m: int | None = None) -> None:
        """Of 64 problems; without ``m`` their inverses."""
        dtype = self.use(precision)
        Y = None if m is None else _empty(64, m, n, dtype=dtype)
        launch.launch_direct_solve(_empty(64, n, n, dtype=dtype), Y, 1e-5, 0.0, LOSSES.index("mse"))

    def finish_chunk(self, batch: int, columns: int) -> None:
        """The end of a chunk."""
        self.use("fp64")
        steps_done, updates, status, replay_to = (_empty(batch, dtype=torch.int64) for _ in range(4))
        threshold, squares, bail, last, best = (_empty(batch, dtype=torch.float64) for _ in range(5))
        launch.launch_finish_chunk(
            _empty(batch, columns, dtype=torch.float64), steps_done, threshold, squares, bail, last, best, updates,
            status, replay_to, _empty(2, dtype=torch.int64),
        )  # fmt: skip


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
