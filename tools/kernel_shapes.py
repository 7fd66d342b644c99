"""Problems whose launches reach every block shape that a target can have, and the check that they do."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from kernel_launches import PRECISIONS, RULES, Case, Launch, Recorder, gpu_target

from matconv_fast.kernels import gpu
from matconv_fast.kernels.gpu import advance_tiles, gradient_tiles, product_tiles

# Each rule with a loss, the two kinds of loss in turn: one that divides the gradient by ||R||, and one that does not.
SOLVES = tuple(zip(RULES, itertools.cycle(("mse", "fro"))))
CLASSES = (16, 32, 64, 128, 256, 512)  # of n, in the tables by rows


def record(target: str, *, thorough: bool = False) -> list[Launch]:
    """What is compiled for a target; ``thorough``: with every mix of sizes that the small algorithm takes."""
    recorder = Recorder(target)
    with recorder.recording():
        for precision in PRECISIONS:
            _small(recorder, precision, thorough)
            _rows(recorder, precision)
            _products(recorder, precision)
            _losses(recorder, precision)
            _passes(recorder, precision)
        for precision in ("ieee", "fp64"):
            recorder.direct_solve(precision, 16, m=16)
            recorder.direct_solve(precision, 4)
        for columns in (1, 17, 65):
            recorder.finish_chunk(3, columns)
    return list(recorder.launches.values())


# fp16 is the same code as bf16 but for the rounding: every block shape of bf16 is compiled for it, not every variant.


def _small(recorder: Recorder, precision: str, thorough: bool) -> None:
    """Cubes, and mixes of the least and the largest size."""
    sizes = [size for size in (16, 32, 64) if size <= advance_tiles.small_limit(precision, states=1)]
    high = sizes[-1]
    for m, n, p in itertools.product(sizes, repeat=3):
        shape = m, n, p
        cube = m == n == p
        if not thorough and precision == "fp16" and shape != (high, high, high):
            continue
        for rule, loss in SOLVES:
            if loss == "mse" and (thorough or cube or 32 not in shape):
                recorder.advance(rule, Case(loss, precision, 64, m, n, p), only="small")
            if loss == "fro" and (thorough or cube):
                recorder.advance(rule, Case(loss, precision, 64, m - 3, n - 3, p - 3, shared=False), only="small")
    if precision != "fp16":
        recorder.step(Case("mse", precision, 64, high, high, high))
        for rule in RULES:
            recorder.advance(rule, Case("mse", precision, 64, high, high, high, product=False), only="small")


def _rows(recorder: Recorder, precision: str) -> None:
    """Rows of whole vectors, which descriptors take where n fills its class too, and rows of single elements."""
    for rule, n in itertools.product(RULES, CLASSES):
        recorder.advance(rule, Case("mse", precision, 1, 8192, n, 1024), only="rows")
        if precision != "fp16":
            recorder.advance(rule, Case("mse", precision, 3, 8191, n - 3, 1021, shared=False), only="rows")
            if gpu_target.current().has_descriptors and n > 32:
                recorder.advance(rule, Case("mse", precision, 1, 8192, n - 16, 1024), only="rows")


def _products(recorder: Recorder, precision: str) -> None:
    """Two kernels an iteration, by large tiles and by small ones; of several problems, by pointers alone."""
    for rule, loss in SOLVES:
        for size in (4096, 512):
            case = Case(loss, precision, 1, size, size, size)
            if precision != "fp16" or rule == next(iter(RULES)):
                recorder.advance(rule, case, only="tiled", kept=True)
            if precision != "fp16" and gpu_target.current().has_descriptors:
                recorder.advance(rule, replace(case, batch=2), only="tiled")
        if precision != "fp16":
            recorder.advance(rule, Case(loss, precision, 1, 509, 507, 505), only="tiled")
    if precision == "bf16":
        recorder.step(Case("fro", precision, 1, 512, 512, 512))


def _losses(recorder: Recorder, precision: str) -> None:
    dtype = recorder.use(precision)
    for n in CLASSES[:-1]:
        if gradient_tiles.recomputes(1, 8192, n, 4096, 2, dtype):
            recorder.products(Case("mse", precision, 1, 8192, n, 4096), wanted="X" if precision == "fp16" else "XM")
        if precision != "fp16" and gradient_tiles.recomputes(1, 8191, n - 3, 4093, 1, dtype):
            recorder.products(Case("fro", precision, 1, 8191, n - 3, 4093), wanted="M", identity=True)
    large, medium = (Case(loss, precision, 1, size, size, size) for loss, size in (("mse", 4096), ("fro", 512)))
    recorder.products(large)
    if precision != "fp16":
        recorder.products(large, wanted="XM")
        recorder.products(medium, wanted="XMY", identity=True)
    if precision in ("ieee", "fp64"):  # the others got these tiles before
        recorder.products(Case("fro", precision, 1, 509, 507, 505), wanted="Y")


def _passes(recorder: Recorder, precision: str) -> None:
    """Passes without a product of ours: cuBLAS makes it, or M is the identity."""
    for rule, loss in SOLVES:
        recorder.advance(rule, Case(loss, precision, 1, 4096, 512, 4096), only="gemm")
        if precision not in ("fp16", "tf32"):
            recorder.advance(rule, Case(loss, precision, 1, 4096, 509, 509, product=False), kept=loss == "mse")
    recorder.products(Case("mse", precision, 3, 4096, 4096, 4096, product=False), wanted="X")
    for index in range(3):
        recorder.distance(index, precision, 1, 4096, 4096, transposed=index == 2)
    if precision == "ieee":  # the other widths of a pass
        most = max(RULES, key=lambda rule: RULES[rule].states)
        for columns in CLASSES:
            recorder.distance(0, precision, 1, 4096, columns)
            recorder.advance(most, Case("mse", precision, 1, 4096, columns, columns, product=False))


@dataclass(frozen=True)
class Entry:
    """A block shape that the tables give to a kernel; ``precision`` "" and ``rule`` "" stand for any."""

    kernel: str
    precision: str
    tile: Any
    rule: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kernel, self.precision, self.rule, str(self.tile))))

    def is_of(self, launch: Launch) -> bool:
        """Whether the launch has this block shape."""
        has = {**launch.options, **launch.constants}
        # fp16 is the same code as bf16 but for the rounding: it is compiled once or twice a table entry
        if launch.kernel != self.kernel or self.precision.replace("fp16", "bf16") not in ("", launch.precision):
            return False
        if self.rule not in ("", has.get("RULE")):
            return False
        stages = "STAGES" if "STAGES" in has else "num_stages"
        names = {"warps": "num_warps", "stages": stages, "dot_precision": "PRECISION"}
        values = {names.get(f.name, f.name.upper()): getattr(self.tile, f.name) for f in fields(self.tile)}
        if values.get("BK") == 0:  # without a product there is nothing to load ahead
            del values["num_stages"]
        return all(has[name] == value for name, value in values.items() if name in has)


def missing(launches: list[Launch], entries: set[Entry]) -> list[Entry]:
    """Entries that no launch has."""
    by_kernel: dict[str, list[Launch]] = {}
    for launch in launches:
        by_kernel.setdefault(launch.kernel, []).append(launch)
    return [e for e in entries if not any(e.is_of(launch) for launch in by_kernel.get(e.kernel, ()))]


def unused_kernels(launches: list[Launch]) -> set[str]:
    """Kernels of the package that have no launch."""
    names = {launch.kernel for launch in launches}
    modules = (importlib.import_module(f"{gpu.__name__}.{found.name}") for found in pkgutil.iter_modules(gpu.__path__))
    return {name for module in modules for name in vars(module) if re.fullmatch(r"_\w+_kernel", name)} - names


def unused_entries(entries: set[Entry]) -> list[str]:
    """Entries of the tables that no problem gets, by name."""
    kinds = advance_tiles.SmallTile, advance_tiles.RowTile, product_tiles.ProductTile
    named: dict[str, Any] = {}
    for module in (advance_tiles, gradient_tiles, product_tiles):
        named.update(vars(module))
        for name, table in vars(module).items():
            if isinstance(table, dict):
                named.update((f"{name}[{key}]", tile) for key, tile in table.items())
    given = {_as_in_table(entry.tile) for entry in entries}
    return [name for name, tile in named.items() if isinstance(tile, kinds) and _as_in_table(tile) not in given]


def _as_in_table(tile: Any) -> Any:
    """Without the fields that `product_tiles` sets outside the table."""
    if isinstance(tile, product_tiles.ProductTile):
        return replace(tile, stages=0, descriptor=False, dot_precision="", all_registers=False)
    return tile


def reachable(target: str) -> set[Entry]:
    """The entries that launchers would get over a dense grid of problems."""
    sizes = 1, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 1024, 8192
    recorder = Recorder(target)
    found: set[Entry] = set()
    with recorder.recording():
        for precision in PRECISIONS:
            recorder.use(precision)
            for batch, m, n, p in itertools.product((1, 64), sizes, sizes, sizes):
                found.update(_asked(precision, batch, m, n, p))
    return found


def _asked(precision: str, batch: int, m: int, n: int, p: int) -> Iterator[Entry]:
    dtype = PRECISIONS[precision]
    for rule, loss in (*SOLVES, *((rule, "fro") for rule, loss in SOLVES if loss == "mse")):
        algorithm, states = Case(loss, precision, batch, m, n, p).algorithm(rule), RULES[rule].states
        if algorithm == "small":
            if len({m, n, p}) == 1:  # any mix of sizes is compiled on demand
                yield Entry("_advance_small_kernel", precision, advance_tiles.small(m, n, p, states), rule)
        elif algorithm == "rows":
            yield Entry("_advance_rows_kernel", precision, advance_tiles.rows(batch, m, n, p, precision), rule)
        elif algorithm == "tiled":
            yield Entry("_step_kernel", precision, product_tiles.step(batch, m, n, p, dtype, states), rule)
    yield Entry("_residual_kernel", precision, product_tiles.residual(batch, m, n, p, dtype))
    if any(gradient_tiles.recomputes(batch, m, n, p, wanted, dtype) for wanted in (1, 2)):
        yield Entry("_row_gradient_kernel", precision, gradient_tiles.gradient(m, n, p, precision))
    yield Entry("_residual_kernel", "", product_tiles.elementwise(n))
    yield Entry("_step_kernel", "", product_tiles.elementwise(n))
    yield Entry("_distance_kernel", "", product_tiles.distance(n))
