"""Block shapes of large products with what follows them fused, of passes without a product, and of distances.

The numbers beside the entries are registers, and bytes of registers spilled, as the compilers report them;
docs/gpu_kernels.md has them all. ``search.py`` can start from these shapes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import target
from .advance_tiles import Free
from .target import is_ragged, padded


class ProductConstants(NamedTuple):
    """`ProductTile` as kernels take it, of ``tl.constexpr``."""

    BM: tl.constexpr
    BN: tl.constexpr
    BK: tl.constexpr
    PARTS: tl.constexpr
    GROUP: tl.constexpr


@dataclass(frozen=True)
class ProductTile:
    """A block [BM, BN] of a product, BK of its inner dimension at a time (0: there is no product).

    What follows the product takes the block in `parts` of its columns.
    """

    BM: int
    BN: int
    BK: int
    warps: int
    stages: int = 3
    parts: int = 1
    descriptor: bool = False
    dot_precision: str = "ieee"
    all_registers: bool = False

    group = 8  # rows of tiles that run together: 8 x 256 columns of M in bf16 are 16 MB at n = 4,096, inside L2

    @functools.cached_property
    def constants(self) -> ProductConstants:
        """For the kernel."""
        return ProductConstants(*map(tl.constexpr, (self.BM, self.BN, self.BK, self.parts, self.group)))

    @property
    def registers(self) -> dict[str, int]:
        """An option of the launch."""
        return target.registers(all_of_them=self.all_registers)

    @property
    def free(self) -> Free:
        """Without a product there is less to choose."""
        if self.BK == 0:
            return {"BM": (1, 64), "BN": (16, 2048), "warps": (1, 16)}
        block = 16, 256
        return {"BM": block, "BN": block, "BK": block, "warps": (1, 16), "stages": (1, 5), "parts": (1, self.BN // 16)}

    def count(self, rows: int, columns: int) -> int:
        """Tiles of a matrix."""
        return triton.cdiv(rows, self.BM) * triton.cdiv(columns, self.BN)

    def programs(self, batch: int, rows: int, columns: int) -> int:
        """With a product as many as run at once, which share the tiles; without one, a program for each tile."""
        tiles = batch * self.count(rows, columns)
        if self.BK == 0:
            return tiles
        return min(tiles, target.current().multiprocessors * max(1, 8 // self.warps))


class DistanceConstants(NamedTuple):
    """`DistanceTile` as the kernel takes it, of ``tl.constexpr``."""

    BM: tl.constexpr
    BN: tl.constexpr
    SPAN: tl.constexpr


@dataclass(frozen=True)
class DistanceTile:
    """Blocks of [BM, BN] one after another, over SPAN columns."""

    BM: int
    BN: int
    SPAN: int = 1024
    warps: int = 4

    @functools.cached_property
    def constants(self) -> DistanceConstants:
        """For the kernel."""
        return DistanceConstants(*map(tl.constexpr, (self.BM, self.BN, self.SPAN)))

    @property
    def free(self) -> Free:
        """A span is of whole blocks."""
        return {"BM": (1, 256), "BN": (16, self.SPAN), "SPAN": (self.BN, 8192), "warps": (1, 16)}


def distance(columns: int) -> DistanceTile:
    """4,096 elements at a time, in rows as long as there are up to 512."""
    BN = min(512, padded(columns))
    return DistanceTile(4096 // BN, BN)


def elementwise(columns: int) -> ProductTile:
    """For a pass without a product: 8 elements a thread, in rows as long as there are up to 512."""
    BN = min(512, padded(columns))
    return ProductTile(2048 // BN, BN, 0, 8, all_registers=True)  # else the step spills 8 to 16 bytes on sm_80


# Products with what follows them fused, by class of precision. Registers of the residual, and of the step with one and
# with two state matrices, each the most on sm_80, sm_90, sm_100 and gfx942. In two parts instead of four the steps
# spill 112 bytes and more on sm_100, and with two state matrices everywgpu.
_LARGE = {
    "half": ProductTile(128, 128, 64, 8, parts=4),  # 255, 255, 255
    "tf32": ProductTile(128, 128, 32, 8, parts=4),  # 254, 180, 254
    "ieee": ProductTile(128, 128, 16, 8, stages=2, parts=2),  # 255
    "fp64": ProductTile(64, 64, 16, 8, stages=2),  # 172
}
# For results of too few large tiles to fill the GPU, and for ragged ones: 8 warps, not 4, so that elements loaded
# one by one do not spill.
_SMALL = {
    "half": ProductTile(64, 64, 64, 8, parts=2),  # 252, 208, 254
    "tf32": ProductTile(64, 64, 32, 8, parts=2),  # 254, 190, 192
    "ieee": ProductTile(64, 64, 16, 8, stages=2, parts=2),  # 188; in one part 8 bytes spill on sm_100
    "fp64": ProductTile(32, 64, 16, 8, stages=2),  # 240; in 4 warps 8 bytes spill under Triton 3.9
}
# For the step with two state matrices or more: 255. In four parts it spills 32 bytes on sm_100, loaded by pointers.
_LARGE_MANY_STATES = {"half": ProductTile(128, 128, 64, 8, parts=8)}
# On sm_90, loaded by the copy engine, what keeps the tensor cores busiest: 232 and 255 registers for the residual and
# the step with one state matrix. With two it spills 400 bytes there, and on sm_100 296.
_WIDE = ProductTile(128, 256, 64, 8, parts=8, descriptor=True)


def _product(batch: int, rows: int, columns: int, inner: int, precision: str, states: int) -> ProductTile:
    """``inner`` and ``columns``: lengths of the rows that are loaded. ``states``: state matrices that are updated.

    A product of several problems loads through pointers: a descriptor is of one matrix of all their rows, and its
    blocks would reach from one problem into the next.
    """
    kind = target.kind(precision)
    gpu = target.current()
    tile = _LARGE[kind] if states < 2 else _LARGE_MANY_STATES.get(kind, _LARGE[kind])
    ragged = is_ragged(inner, columns)
    if ragged or batch * tile.count(rows, columns) < gpu.multiprocessors:
        tile = _SMALL[kind]
    elif kind in ("half", "tf32") and gpu.has_descriptors and batch == 1:
        tile = _WIDE if kind == "half" and states < 2 and gpu.arch == 90 else replace(tile, descriptor=True)
    if gpu.backend == "hip":
        tile = replace(tile, stages=min(tile.stages, 2))
    return replace(tile, dot_precision=target.dot_precision(precision), all_registers=kind in ("half", "tf32"))


def residual(batch: int, m: int, n: int, p: int, dtype: torch.dtype) -> ProductTile:
    """For ``X M - Y``, ``[m, p]`` over n."""
    return _product(batch, m, p, n, target.precision(dtype), states=0)


def step(batch: int, m: int, n: int, p: int, dtype: torch.dtype, states: int) -> ProductTile:
    """For ``R M^T`` and the update of X and `states` state matrices, ``[m, n]`` over p."""
    return _product(batch, m, n, p, target.precision(dtype), states)
