"""Block shapes of the gradient that never holds R, and the choice between it and holding R."""

from __future__ import annotations

import torch
import triton

from . import target
from .advance_tiles import RowTile
from .target import LEAST_PROGRAMS, is_ragged, padded

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
    ("ieee", 64): RowTile(64, 64, 16, 8, all_registers=True),  # 208; without the option, 16 bytes on sm_90
    ("ieee", 128): RowTile(32, 128, 16, 4),  # 212; 64 rows in 8 warps spill 32 bytes on sm_100
    ("ieee", 256): RowTile(32, 256, 16, 16),  # 120; 8 warps spill 32 bytes on sm_100
}
_GRADIENT_GFX942 = {("ieee", 256): RowTile(32, 256, 16, 8)}  # 240; 16 warps spill 388 bytes


def gradient(m: int, n: int, p: int, precision: str) -> RowTile | None:
    """For ``(X M - Y) M^T`` in one pass; None where a row of the result does not fit in registers."""
    key = target.kind(precision), padded(n)
    hip = target.current().backend == "hip"
    if key == ("half", 256) and (is_ragged(m, n, p) or hip):  # gfx942: 228 bytes spilled
        return None
    return _GRADIENT_GFX942.get(key, _GRADIENT.get(key)) if hip else _GRADIENT.get(key)


# Operations that a GPU does in the time in which it moves a byte (H100: 800, 400, 60 and 60 TFLOP/s, 3 TB/s).
BALANCE = {"bf16": 267, "fp16": 267, "tf32": 133, "ieee": 20, "fp64": 20}


def recomputes(batch: int, m: int, n: int, p: int, wanted: int, dtype: torch.dtype) -> bool:
    """Whether R is computed once for each of the `wanted` (1 or 2) gradients, rather than once and held.

    Each gradient then costs ``4 n`` operations for an element of R. With R held, R itself costs ``2 n``, each gradient
    ``2 n``, and R is written once and read for each gradient.
    """
    precision = target.precision(dtype)
    tile = gradient(m, n, p, precision)
    if tile is None or batch * triton.cdiv(min(m, p), tile.BM) < LEAST_PROGRAMS:
        return False
    return 4 * n * wanted <= (2 * n + target.ITEMSIZE[precision] * BALANCE[precision]) * (1 + wanted)
