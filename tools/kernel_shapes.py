"""Problems whose launches reach every block shape that a target can be given, and the check that they do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from kernel_launches import FRO, MSE, PRECISIONS, Launch, Recorder, advance_way, tiles

RULES = ("heavy_ball", "adam")
CLASSES = (16, 32, 64, 128, 256, 512)  # of n, in the tables by rows


def record(target: str) -> list[Launch]:
    """What is compiled for a target."""
    recorder = Recorder(target)
    with recorder.recording():
        for precision in PRECISIONS:
            _small_tier(recorder, precision)
            _row_tier(recorder, precision)
            _products(recorder, precision)
            _losses(recorder, precision)
            _passes(recorder, precision)
        for columns in (1, 17, 65):
            recorder.finish_chunk(3, columns)
    return list(recorder.launches.values())


def _small_tier(recorder: Recorder, precision: str) -> None:
    sizes = [size for size in (16, 32, 64) if size <= tiles.small_limit(precision)]
    for m, n, p in itertools.product(sizes, repeat=3):
        recorder.advance("heavy_ball", MSE, precision, 64, m, n, p)
    for size in sizes:
        recorder.advance("adam", FRO, precision, 64, size - 3, size - 3, size - 3, shared=False)
        for rule in RULES:
            recorder.advance(rule, MSE, precision, 64, sizes[-1], size, size, product=False)


def _row_tier(recorder: Recorder, precision: str) -> None:
    """With n that fills its class and without: whole vectors are loaded in the one, single elements in the other."""
    for n in CLASSES:
        recorder.advance("heavy_ball", MSE, precision, 1, 8192, n, 1024, only="rows")
        if precision != "fp16":  # the same code as bf16 but for the rounding
            recorder.advance("heavy_ball", MSE, precision, 3, 8191, n - 3, 1021, shared=False, only="rows")


def _products(recorder: Recorder, precision: str) -> None:
    """Two kernels an iteration, by large tiles and by small ones."""
    for size in (4096, 512):
        for rule, loss in (("heavy_ball", MSE), ("adam", FRO)):
            recorder.advance(rule, loss, precision, 1, size, size, size, only="tiled")
            if precision != "fp16":
                recorder.advance(rule, loss, precision, 1, size - 3, size - 5, size - 7, only="tiled")


def _losses(recorder: Recorder, precision: str) -> None:
    dtype = recorder.use(precision)
    for n in CLASSES[:-1]:
        if tiles.recomputes(1, 8192, n, 4096, 2, dtype):
            recorder.products(MSE, precision, 1, 8192, n, 4096, wanted="XM")
        if precision != "fp16" and tiles.recomputes(1, 8191, n - 3, 4093, 1, dtype):
            recorder.products(FRO, precision, 1, 8191, n - 3, 4093, wanted="X", identity=True)
    recorder.products(MSE, precision, 1, 4096, 4096, 4096)
    recorder.products(MSE, precision, 1, 4096, 4096, 4096, wanted="XM")
    recorder.products(FRO, precision, 1, 512, 512, 512, wanted="XMY", identity=True)
    if precision != "fp16":
        recorder.products(FRO, precision, 3, 509, 507, 505, wanted="Y")


def _passes(recorder: Recorder, precision: str) -> None:
    """What has no product of ours: cuBLAS makes it, or M is the identity."""
    for rule, loss in (("heavy_ball", MSE), ("adam", FRO)):
        recorder.advance(rule, loss, precision, 1, 4096, 512, 4096, only="gemm")
        recorder.advance(rule, loss, precision, 1, 4096, 509, 509, product=False)
    recorder.products(MSE, precision, 3, 4096, 4096, 4096, wanted="X", product=False)
    for index in range(3):
        recorder.distance(index, precision, 1, 4096, 4096, transposed=index == 2)
    if precision == "ieee":  # the other widths of a pass
        for columns in CLASSES:
            recorder.distance(0, precision, 1, 4096, columns)
            recorder.advance("adam", MSE, precision, 1, 4096, columns, columns, product=False)


@dataclass(frozen=True)
class Entry:
    """A block shape that the tables give to a kernel; ``precision`` "" and ``rule`` "": whatever they are."""

    kernel: str
    precision: str
    tile: Any
    rule: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kernel, self.precision, self.rule, str(self.tile))))

    def is_of(self, launch: Launch) -> bool:
        """Whether the launch has this block shape."""
        has = {**launch.options, **launch.constants}
        if launch.kernel != self.kernel or not has.get("PRODUCT", True) and self.tile_has("BK"):
            return False
        if self.precision not in ("", launch.precision) or self.rule not in ("", has["RULE"]):
            return False
        stages = "STAGES" if "STAGES" in has else "num_stages"
        names = {"warps": "num_warps", "stages": stages, "dot_precision": "PRECISION"}
        for field in fields(self.tile):
            name = names.get(field.name, field.name.upper())
            if name in has and has[name] != getattr(self.tile, field.name):
                return False
        return True


def missing(launches: list[Launch], entries: set[Entry]) -> list[Entry]:
    """Entries that no launch has."""
    by_kernel: dict[str, list[Launch]] = {}
    for launch in launches:
        by_kernel.setdefault(launch.kernel, []).append(launch)
    return [e for e in entries if not any(e.is_of(launch) for launch in by_kernel.get(e.kernel, ()))]


def entries_in_tables() -> dict[str, Any]:
    """Every entry of every table of tiles, by name."""
    tables = {name: value for name, value in vars(tiles).items() if isinstance(value, dict)}
    kinds = tiles.SmallTile, tiles.RowTile, tiles.ProductTile
    return {f"{name}[{key}]": v for name, t in tables.items() for key, v in t.items() if isinstance(v, kinds)}


def reachable(target: str) -> set[Entry]:
    """What the tables answer over a dense grid of problems, each asked as the launchers ask."""
    sizes = 1, 16, 17, 33, 64, 65, 128, 129, 256, 257, 1024, 8192
    recorder = Recorder(target)
    found: set[Entry] = set()
    with recorder.recording():
        for precision in PRECISIONS:
            recorder.use(precision)
            for batch, m, n, p in itertools.product((1, 64), sizes, sizes, sizes):
                found.update(_asked(precision, batch, m, n, p))
    return found
