"""Block shapes of the small and the row algorithm, by shape, precision and architecture.

The numbers beside the entries are registers, and bytes of registers spilled, as the compilers report them;
docs/gpu_kernels.md has them all. ``search.py`` can start from these shapes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import triton
import triton.language as tl

from . import target
from .target import LEAST_PROGRAMS, is_ragged, padded

# What a search may change, and between which bounds.
Free = dict[str, tuple[int, int]]


class SmallConstants(NamedTuple):
    """`SmallTile` as the kernel takes it, of ``tl.constexpr``."""

    BM: tl.constexpr
    BN: tl.constexpr
    BP: tl.constexpr
    TILE: tl.constexpr


@dataclass(frozen=True)
class SmallTile:
    """The whole problem, padded; TILE columns of M are read at a time, and kept for all iterations if that is BP."""

    BM: int
    BN: int
    BP: int
    TILE: int
    warps: int

    @functools.cached_property
    def constants(self) -> SmallConstants:
        """For the kernel."""
        return SmallConstants(*map(tl.constexpr, (self.BM, self.BN, self.BP, self.TILE)))

    @property
    def registers(self) -> dict[str, int]:
        """An option of the launch."""
        return target.registers(all_of_them=True)

    @property
    def free(self) -> Free:
        """The block that holds the problem is given."""
        return {"TILE": (16, self.BP), "warps": (1, 8)}


def small_limit(precision: str, states: int) -> int:
    """Largest m, n and p of the small algorithm: what it can hold without spilling, with `states` state matrices."""
    if precision == "fp64":
        return 16  # 32 square spills 224 bytes in 8 warps, and 256 in 4
    if precision == "tf32":
        return 32  # ragged, 64 square spills 144 bytes on sm_80; the row algorithm takes it
    return 64 if states == 1 else 32  # a second state matrix at 64 square: 264 bytes and more


def small(m: int, n: int, p: int, states: int) -> SmallTile:
    """Up to 32 square with M on chip; 64 x 64 x 32 spills 280 bytes with M beside X.

    Nor does M fit beside two state matrices: at 32 square 24 bytes in tf32 on sm_90, and 568 on sm_100, under Triton
    3.9. 8 or 16 elements of X a thread.
    """
    BM, BN, BP = padded(m), padded(n), padded(p)
    area = max(BM * BN, BM * BP, BN * BP)
    if area > 1024:
        return SmallTile(BM, BN, max(BP, 32), TILE=16, warps=8)
    if states > 1:  # in 1 warp 16 square spills 88 bytes
        return SmallTile(BM, BN, BP, TILE=16, warps=max(2, area // 256))
    return SmallTile(BM, BN, BP, TILE=BP, warps=area // 256)


class RowConstants(NamedTuple):
    """`RowTile` as kernels take it, of ``tl.constexpr``."""

    BM: tl.constexpr
    BN: tl.constexpr
    BP: tl.constexpr
    SWAP: tl.constexpr
    STAGES: tl.constexpr
    DESCRIPTOR: tl.constexpr


@dataclass(frozen=True)
class RowTile:
    """BM rows of X and all n <= BN of its columns; BP columns of M at a time. ``swap``: the transposed product."""

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

    @functools.cached_property
    def constants(self) -> RowConstants:
        """For the kernel."""
        values = self.BM, self.BN, self.BP, self.swap, self.stages, self.descriptor
        return RowConstants(*map(tl.constexpr, values))

    @property
    def registers(self) -> dict[str, int]:
        """An option of the launch."""
        return target.registers(all_of_them=self.all_registers)


# By class of precision and BN, blocks loaded through pointers. Registers on sm_80 / sm_90 / sm_100 / gfx942.
_ROWS = {
    ("half", 16): RowTile(64, 16, 64, 4),  # 154 / 183 / 145 / 152
    ("half", 32): RowTile(64, 32, 32, 4),  # 128 / 150 / 110 / 151; BP 64 spills 16 bytes on sm_80
    ("half", 64): RowTile(64, 64, 32, 4),  # 255 / 224 / 162 / 175; BP 64 takes 281 on gfx942
    ("half", 128): RowTile(64, 128, 64, 8),  # 249 / 253 / 191
    ("half", 256): RowTile(32, 256, 32, 8, swap=True),  # 248 / 221 / 212; plain, 32 rows have no wgmma
    ("tf32", 16): RowTile(64, 16, 32, 4),  # 168 / 125 / 123 / 124
    ("tf32", 32): RowTile(64, 32, 64, 4),  # 255 / 244 / 206 / 324
    ("tf32", 64): RowTile(64, 64, 32, 8, all_registers=True),  # 255 / 174 / 160; else 32 bytes on sm_100
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
    ("ieee", 16): RowTile(32, 16, 16, 8, all_registers=True),  # 128; else 8 bytes on sm_80
    ("ieee", 32): RowTile(64, 32, 16, 4),  # 255
    ("ieee", 64): RowTile(64, 64, 16, 8),  # 208
    ("ieee", 128): RowTile(64, 128, 16, 8),  # 255
    ("ieee", 256): RowTile(16, 256, 16, 8),  # 255
}
# Where the copy engine loads blocks, without registers for pointers. Registers on sm_90 / sm_100.
_ROWS_BY_DESCRIPTOR = {
    ("half", 64): RowTile(128, 64, 64, 8, descriptor=True),  # 232 / 159
    ("half", 128): RowTile(64, 128, 64, 8, descriptor=True),  # 227 / 167
    ("half", 256): RowTile(64, 256, 32, 8, swap=True, descriptor=True),  # 244 / 250
    ("tf32", 64): RowTile(128, 64, 32, 8, descriptor=True),  # 195 / 152
    ("ieee", 128): RowTile(64, 128, 32, 8, descriptor=True, all_registers=True),  # 168 / 158; else 48 bytes on 3.9
}
# gfx942 has 64 KB of shared memory, and 512 registers for programs of 4 warps but 256 for those of 8.
_ROWS_GFX942 = {
    ("half", 128): RowTile(64, 128, 64, 4, swap=True),  # 386
    ("half", 256): RowTile(32, 256, 64, 4, swap=True),  # 439
}


def rows(batch: int, m: int, n: int, p: int, precision: str) -> RowTile | None:
    """None where the row algorithm does not fit: n too large for registers, or too few rows to fill the GPU."""
    key = target.kind(precision), padded(n)
    tile = _ROWS.get(key)
    gpu = target.current()
    if is_ragged(n, p):
        tile = _ROWS_RAGGED.get(key)
    elif gpu.backend == "hip":
        tile = _ROWS_GFX942.get(key, tile)
    elif gpu.has_descriptors:
        faster = _ROWS_BY_DESCRIPTOR.get(key)
        if faster is not None and fits(batch, m, n, faster):
            tile = faster
    if tile is None or (batch * triton.cdiv(m, tile.BM) < LEAST_PROGRAMS and p > 2 * n):
        return None
    return tile


def fits(batch: int, m: int, n: int, tile: RowTile) -> bool:
    """Whether blocks of M and Y, over the rows of all problems, never reach into another problem."""
    return n == tile.BN and (batch == 1 or m % tile.BM == 0)
