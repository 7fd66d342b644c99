"""Block shapes of every kernel, chosen by shape, precision and architecture; ``search.py`` can start from them.

The figures beside the thresholds are registers, and bytes of registers spilled, as the compilers report them;
docs/gpu_kernels.md has them all.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import triton

# How products are made: by the operands' dtype, and for float32 by torch's own setting.
PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "ieee", torch.float64: "fp64"}

ITEMSIZE = {"bf16": 2, "fp16": 2, "tf32": 4, "ieee": 4, "fp64": 8}


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums, X and buffers are in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Target:
    """What a kernel is compiled for. ``arch``: 80, 90, 100, ... on ``cuda``, ``gfx942`` on ``hip``."""

    backend: str
    arch: int | str
    multiprocessors: int

    @property
    def has_descriptors(self) -> bool:
        """Whether the copy engine loads blocks (TMA); elsewhere descriptors turn back into pointers, and spill.

        sm_120 has it, but too little shared memory for what is loaded so.
        """
        return self.backend == "interpreter" or (self.backend == "cuda" and 90 <= int(self.arch) < 120)

    @property
    def shared_memory(self) -> int:
        """Bytes that one program can have."""
        if self.backend == "hip":
            return 65536
        return {80: 166912, 86: 101376, 89: 101376}.get(int(self.arch), 232448) if self.backend == "cuda" else 232448


@functools.cache
def target() -> Target:
    """The current device's; the interpreter, where kernels are interpreted."""
    if triton.knobs.runtime.interpret:
        return Target("interpreter", 90, 4)
    current = triton.runtime.driver.active.get_current_target()
    count = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    return Target(current.backend, current.arch, count)


def precision(dtype: torch.dtype) -> str:
    """How operands of `dtype` are multiplied: bf16, fp16, tf32, ieee or fp64."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return PRECISIONS[dtype]


def dot_precision(precision: str) -> str:
    """What a product of two blocks is told; it matters for float32 alone."""
    return "tf32" if precision == "tf32" else "ieee"


def padded(size: int) -> int:
    """The block that holds `size`: a power of two, at least 16, which is the least that a product takes."""
    return max(16, triton.next_power_of_2(size))


def _registers(*, all_of_them: bool) -> dict[str, int]:
    """An option that lets a kernel have as many as there are.

    Left to itself, NVIDIA's compiler makes some kernels fit in 128 registers at the price of 8 to 48 bytes spilled, for
    more programs at a time, where 166 need none. Others, those on the units of float32 and float64 and most of the row
    tier, it makes spill 16 to 184 bytes if it is let.
    """
    return {"maxnreg": 255} if all_of_them and target().backend == "cuda" else {}


# What a search may change, and between which bounds.
Free = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class SmallTile:
    """Small tier: the whole problem, padded; ``TILE`` columns of M are read at a time, BP of them once for all."""

    BM: int
    BN: int
    BP: int
    TILE: int
    warps: int

    @property
    def registers(self) -> dict[str, int]:
        """An option of the launch."""
        return _registers(all_of_them=True)

    @property
    def free(self) -> Free:
        """The block that holds the problem is given."""
        return {"TILE": (16, self.BP), "warps": (1, 8)}


def small_limit(precision: str, *, heavy_ball: bool) -> int:
    """Largest m, n and p of the small tier: what it can hold without spilling, with the buffers of the solver."""
    if precision == "fp64":
        return 16  # 32 square spills 224 bytes in 8 warps, and 256 in 4
    if precision == "tf32":
        return 32  # ragged, 64 square spills 144 bytes on sm_80; the row tier takes it
    return 64 if heavy_ball else 32  # Adam's second buffer at 64 square: 264 bytes and more


def small(m: int, n: int, p: int, *, heavy_ball: bool) -> SmallTile:
    """Up to 32 square with M on chip; beyond, it does not fit beside X: so kept, 64 x 64 x 32 spills 280 bytes.

    Nor does it beside Adam's buffers: at 32 square 24 bytes in tf32 on sm_90, and 568 on sm_100, under Triton 3.9.
    8 or 16 elements of X a thread.
    """
    BM, BN, BP = padded(m), padded(n), padded(p)
    area = max(BM * BN, BM * BP, BN * BP)
    if area > 1024:
        return SmallTile(BM, BN, max(BP, 32), TILE=16, warps=8)
    if not heavy_ball:  # in 1 warp 16 square spills 88 bytes
        return SmallTile(BM, BN, BP, TILE=16, warps=max(2, area // 256))
    return SmallTile(BM, BN, BP, TILE=BP, warps=area // 256)


@dataclass(frozen=True)
class RowTile:
    """Row tier: BM rows of X and all n <= BN of its columns; BP columns of M at a time."""

    BM: int
    BN: int
    BP: int
    warps: int
    swap: bool = False
    stages: int = 2
    descriptor: bool = False
    all_registers: bool = False

    free: ClassVar[Free] = {
        "BM": (16, 256),
        "BP": (16, 256),
        "warps": (1, 16),
        "swap": (0, 1),
        "stages": (1, 4),
        "all_registers": (0, 1),
    }

    @property
    def registers(self) -> dict[str, int]:
        """An option of the launch."""
        return _registers(all_of_them=self.all_registers)


# By class of precision and BN, blocks loaded through pointers. Registers on sm_80 / sm_90 / sm_100 / gfx942.
_ROWS = {
    ("half", 16): RowTile(64, 16, 64, 4),  # 154 / 183 / 145 / 152
    ("half", 32): RowTile(64, 32, 32, 4),  # 128 / 150 / 110 / 151; BP 64 spills 16 bytes on sm_80
    ("half", 64): RowTile(64, 64, 32, 4),  # 255 / 224 / 162 / 175; BP 64 takes 281 on gfx942
    ("half", 128): RowTile(64, 128, 64, 8),  # 249 / 253 / 191
    ("half", 256): RowTile(32, 256, 32, 8, swap=True),  # 248 / 221 / 212; plain, 32 rows have no wgmma
    ("tf32", 16): RowTile(64, 16, 32, 4),  # 168 / 125 / 123 / 124
    ("tf32", 32): RowTile(64, 32, 64, 4),  # 255 / 244 / 206 / 324
    ("tf32", 64): RowTile(64, 64, 32, 8),  # 255 / 159 / 121; 128 rows spill 16 bytes on sm_80 under Triton 3.6
    ("tf32", 128): RowTile(64, 128, 16, 8),  # 194 / 191 / 186 / 166; BP 32 spills 8 bytes on sm_90 under Triton 3.6
    ("ieee", 16): RowTile(32, 16, 16, 2),  # 94 / 96 / 92 / 68; 64 rows in 4 warps spill 8 bytes on sm_80
    ("ieee", 32): RowTile(64, 32, 16, 4),  # 128 / 124 / 108 / 119; BP 32 spills 24 to 40 bytes
    ("ieee", 64): RowTile(64, 64, 32, 8),  # 128 / 124 / 112 / 220
    ("ieee", 128): RowTile(64, 128, 16, 8),  # 210 / 178 / 150 / 166; BP 32 spills 32 bytes on sm_80
    ("ieee", 256): RowTile(32, 256, 16, 8),  # 222 / 214 / 192 / 240
}
# Where n or p is no multiple of 16: elements are loaded one by one then, through registers. The most on the four.
_ROWS_RAGGED = {
    ("half", 16): RowTile(64, 16, 32, 4),  # 227; BP 64 spills 72 bytes
    ("half", 32): RowTile(64, 32, 32, 4),  # 251
    ("half", 64): RowTile(64, 64, 32, 8),  # 255
    ("half", 128): RowTile(64, 128, 16, 8),  # 255; BP 64 spills 112 bytes
    ("half", 256): RowTile(16, 256, 32, 8, swap=True),  # 255; 32 rows spill 216 bytes on sm_80
    ("tf32", 16): RowTile(64, 16, 32, 4),  # 254
    ("tf32", 32): RowTile(64, 32, 32, 4),  # 255; BP 64 spills 224 bytes
    ("tf32", 64): RowTile(64, 64, 16, 8),  # 255
    ("tf32", 128): RowTile(32, 128, 16, 8, all_registers=True),  # 212; 64 rows spill 120 bytes under Triton 3.9
    ("ieee", 16): RowTile(32, 16, 16, 8),  # 94; 2 warps spill 16 bytes, 4 warps 8 on sm_100 under Triton 3.9
    ("ieee", 32): RowTile(64, 32, 16, 4),  # 255
    ("ieee", 64): RowTile(64, 64, 16, 8),  # 208
    ("ieee", 128): RowTile(64, 128, 16, 8),  # 255
    ("ieee", 256): RowTile(16, 256, 16, 8),  # 255
}
# Where the copy engine loads them, without registers for pointers. Registers on sm_90 / sm_100.
_ROWS_BY_DESCRIPTOR = {
    ("half", 64): RowTile(128, 64, 64, 8, descriptor=True),  # 232 / 159
    ("half", 128): RowTile(64, 128, 64, 8, descriptor=True),  # 227 / 167
    ("half", 256): RowTile(64, 256, 32, 8, swap=True, descriptor=True),  # 244 / 250
    ("tf32", 64): RowTile(128, 64, 32, 8, descriptor=True),  # 195 / 152
    ("ieee", 128): RowTile(64, 128, 32, 8, descriptor=True),  # 182 / 159
}
# gfx942 has 64 KB of shared memory, and 512 registers for programs of 4 warps but 256 for those of 8.
_ROWS_GFX942 = {
    ("half", 128): RowTile(64, 128, 64, 4, swap=True),  # 386
    ("half", 256): RowTile(32, 256, 64, 4, swap=True),  # 439
}


def _is_ragged(*sizes: int) -> bool:
    """Whether rows of one of these lengths are loaded element by element."""
    return any(size % 16 for size in sizes)


# Fewer programs than this leave most of a GPU idle through every iteration; products then spread better.
LEAST_PROGRAMS = 16


def rows(batch: int, m: int, n: int, p: int, precision: str) -> RowTile | None:
    """None where the row tier does not fit: n too large for registers, or too few rows to fill the GPU."""
    kind = "half" if precision in ("bf16", "fp16") else precision
    key = kind, padded(n)
    tile = _ROWS.get(key)
    here = target()
    if _is_ragged(n, p):
        tile = _ROWS_RAGGED.get(key)
    elif here.backend == "hip":
        tile = _ROWS_GFX942.get(key, tile)
    elif here.has_descriptors:
        faster = _ROWS_BY_DESCRIPTOR.get(key)
        if faster is not None and fits(batch, m, n, faster):
            tile = faster
    if tile is None or (batch * triton.cdiv(m, tile.BM) < LEAST_PROGRAMS and p > 2 * n):
        return None
    return tile


def fits(batch: int, m: int, n: int, tile: RowTile) -> bool:
    """Whether blocks of M and Y, over the rows of all problems, never reach into another problem."""
    return n == tile.BN and (batch == 1 or m % tile.BM == 0)


@dataclass(frozen=True)
class ProductTile:
    """A block [BM, BN] of a result, of a product BK at a time (0: none is made). What follows takes column parts."""

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

    @property
    def registers(self) -> dict[str, int]:
        """An option of the launch."""
        return _registers(all_of_them=self.all_registers)

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
        """With a product as many as run at once, one after another of the tiles each; without one, one a tile."""
        tiles = batch * self.count(rows, columns)
        if self.BK == 0:
            return tiles
        return min(tiles, target().multiprocessors * max(1, 8 // self.warps))


@dataclass(frozen=True)
class DistanceTile:
    """Blocks of [BM, BN] one after another, over SPAN columns."""

    BM: int
    BN: int
    SPAN: int = 1024
    warps: int = 4

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
    return ProductTile(2048 // BN, BN, 0, 8)


# Products with what follows them fused, by class of precision. Registers of the residual, of the heavy ball's and of
# Adam's step, each the most on sm_80, sm_90, sm_100 and gfx942. In two parts instead of four the steps spill 112 bytes
# and more on sm_100, and Adam's everywhere.
_LARGE = {
    "half": ProductTile(128, 128, 64, 8, parts=4),  # 255, 255, 255
    "tf32": ProductTile(128, 128, 32, 8, parts=4),  # 254, 180, 254
    "ieee": ProductTile(128, 128, 16, 8, stages=2, parts=2),  # 255
    "fp64": ProductTile(64, 64, 16, 8, stages=2),  # 172
}
# For results that large tiles would not fill the GPU with, and for ragged ones: 8 warps, not 4, so that elements loaded
# one by one do not spill.
_SMALL = {
    "half": ProductTile(64, 64, 64, 8, parts=2),  # 252, 208, 254
    "tf32": ProductTile(64, 64, 32, 8, parts=2),  # 254, 190, 192
    "ieee": ProductTile(64, 64, 16, 8, stages=2, parts=2),  # 188; in one part 8 bytes spill on sm_100
    "fp64": ProductTile(32, 64, 16, 8, stages=2),  # 240; in 4 warps 8 bytes spill under Triton 3.9
}
# On sm_90, loaded by the copy engine, what the tensor cores are busiest with: 232 and 255 registers for the residual
# and the heavy ball's step. Adam's spills 400 bytes there, and sm_100 296.
_WIDE = ProductTile(128, 256, 64, 8, parts=8, descriptor=True)


def _product(batch: int, rows: int, columns: int, inner: int, precision: str, wide: bool) -> ProductTile:
    """``inner`` and ``columns``: lengths of the rows that are loaded.

    A product of several problems loads through pointers: a descriptor is of one matrix of all their rows, and its
    blocks would reach from one problem into the next.
    """
    kind = "half" if precision in ("bf16", "fp16") else precision
    here = target()
    tile = _LARGE[kind]
    ragged = _is_ragged(inner, columns)
    if ragged or batch * tile.count(rows, columns) < here.multiprocessors:
        tile = _SMALL[kind]
    elif kind in ("half", "tf32") and here.has_descriptors and batch == 1:
        tile = _WIDE if kind == "half" and wide and here.arch == 90 else replace(tile, descriptor=True)
    if here.backend == "hip":
        tile = replace(tile, stages=min(tile.stages, 2))
    return replace(tile, dot_precision=dot_precision(precision), all_registers=kind in ("half", "tf32"))


def residual(batch: int, m: int, n: int, p: int, dtype: torch.dtype) -> ProductTile:
    """For ``X M - Y``, ``[m, p]`` over n."""
    return _product(batch, m, p, n, precision(dtype), wide=True)


def step(batch: int, m: int, n: int, p: int, dtype: torch.dtype, rule: str) -> ProductTile:
    """For ``R M^T`` and the update, ``[m, n]`` over p."""
    return _product(batch, m, n, p, precision(dtype), wide=rule == "heavy_ball")


# By class of precision and BN, for the gradient without R: whole and ragged, straight and transposed. The most
# registers on the four.
_GRADIENT = {
    ("half", 16): RowTile(64, 16, 32, 4),  # 152
    ("half", 32): RowTile(64, 32, 32, 8),  # 209
    ("half", 64): RowTile(64, 64, 32, 4),  # 244
    ("half", 128): RowTile(64, 128, 32, 8),  # 242
    ("half", 256): RowTile(64, 256, 32, 8),  # 255, and where it is ragged 160 bytes spilled
    ("tf32", 16): RowTile(64, 16, 32, 4, all_registers=True),
    ("tf32", 32): RowTile(64, 32, 32, 4, all_registers=True),
    ("tf32", 64): RowTile(64, 64, 32, 4, all_registers=True),  # 254
    ("tf32", 128): RowTile(64, 128, 16, 8, all_registers=True),  # 233
    ("ieee", 16): RowTile(32, 16, 16, 4),  # 32 rows in 2 warps spill 16 bytes on sm_90, 64 in 4 spill 8
    ("ieee", 32): RowTile(64, 32, 16, 4),  # 128
    ("ieee", 64): RowTile(64, 64, 16, 8, all_registers=True),  # 208; left to itself, 16 bytes on sm_90
    ("ieee", 128): RowTile(32, 128, 16, 4),  # 212; 64 rows in 8 warps spill 32 bytes on sm_100
    ("ieee", 256): RowTile(32, 256, 16, 8),
}


def gradient(m: int, n: int, p: int, precision: str) -> RowTile | None:
    """For ``(X M - Y) M^T`` in one pass; None where a row of the result does not fit in registers."""
    key = "half" if precision in ("bf16", "fp16") else precision, padded(n)
    if key == ("half", 256) and (_is_ragged(m, n, p) or target().backend == "hip"):  # gfx942: 228 bytes spilled
        return None
    return _GRADIENT.get(key)


# Operations that a GPU does in the time in which it moves a byte (H100: 800, 400, 60 and 60 TFLOP/s, 3 TB/s).
BALANCE = {"bf16": 267, "fp16": 267, "tf32": 133, "ieee": 20, "fp64": 20}


def recomputes(batch: int, m: int, n: int, p: int, wanted: int, dtype: torch.dtype) -> bool:
    """Whether gradients are made without holding R, by making it once for each of the `wanted` (1 or 2) gradients.

    An element of R takes ``4 n`` operations then for each gradient. Held, it takes ``2 n`` once and ``2 n`` for each
    gradient, and is written once and read for each.
    """
    kind = precision(dtype)
    tile = gradient(m, n, p, kind)
    if tile is None or batch * triton.cdiv(min(m, p), tile.BM) < LEAST_PROGRAMS:
        return False
    return 4 * n * wanted <= (2 * n + ITEMSIZE[kind] * BALANCE[kind]) * (1 + wanted)
