"""What every kernel does to a block: load, store, multiply, round, and add squares. Device functions, inlined."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# Whether a kernel interprets is fixed when it is decorated: TRITON_INTERPRET=1 is set before the import, or not at all.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def load_block(
    P, row, column, rows, columns, row_stride, column_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIPTOR: tl.constexpr,
):  # fmt: skip
    """``P[row : row + ROWS, column : column + COLUMNS]``, zeros beyond ``rows`` and ``columns``.

    P is a pointer to element (0, 0), or a tensor descriptor of the same block shape.
    """
    if DESCRIPTOR:
        block = P.load([row, column])
    else:
        i = tl.arange(0, ROWS)
        j = tl.arange(0, COLUMNS)
        # one 64-bit base, 32-bit offsets within the block: 64-bit offsets cost two registers an element
        base = P + tl.cast(row, tl.int64) * row_stride + tl.cast(column, tl.int64) * column_stride
        inside = (i[:, None] < rows - row) & (j[None, :] < columns - column)
        block = tl.load(base + (i[:, None] * row_stride + j[None, :] * column_stride), mask=inside, other=0.0)
    return block


@triton.jit
def store_block(
    P, block, row, column, rows, columns, row_stride, column_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIPTOR: tl.constexpr,
):  # fmt: skip
    """The counterpart of `load_block`; what lies beyond ``rows`` and ``columns`` is not written."""
    if DESCRIPTOR:
        P.store([row, column], block)
    else:
        i = tl.arange(0, ROWS)
        j = tl.arange(0, COLUMNS)
        base = P + tl.cast(row, tl.int64) * row_stride + tl.cast(column, tl.int64) * column_stride
        inside = (i[:, None] < rows - row) & (j[None, :] < columns - column)
        tl.store(base + (i[:, None] * row_stride + j[None, :] * column_stride), block, mask=inside)


@triton.jit
def identity_block(row, column, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    """That block of the identity matrix ``[rows, columns]``."""
    i = row + tl.arange(0, ROWS)[:, None]
    j = column + tl.arange(0, COLUMNS)[None, :]
    return tl.where((i == j) & (i < rows) & (j < columns), 1.0, 0.0).to(DTYPE)


@triton.jit
def product(a, b, accumulator, PRECISION: tl.constexpr):
    """``accumulator + a @ b``, accumulated in the accumulator's dtype."""
    if INTERPRETED:  # its bfloat16 product multiplies bit patterns
        a = a.to(accumulator.dtype)
        b = b.to(accumulator.dtype)
    return tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=accumulator.dtype)


@triton.jit
def rounded(block, DTYPE: tl.constexpr):
    """To DTYPE, to nearest even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:  # the interpreter truncates
        bits = block.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        block = tl.where(block == block, bits.to(tl.float32, bitcast=True), block)
    return block.to(DTYPE)


@triton.jit
def sum_of_squares(block):
    """``sum(block^2)`` in float64; added in the block's own dtype first, where no square is lost to that.

    Over both axes at once: a sum of row sums does not compile for sm_100.
    """
    total = tl.sum(block * block).to(tl.float64)
    if not ((total > 1e-24) & (total < 1e37)):  # squares may have under- or overflowed, or there is a NaN
        double = block.to(tl.float64)
        total = tl.sum(double * double)
    return total


@triton.jit
def column_part(block, index: tl.constexpr, PARTS: tl.constexpr):
    """Columns ``[index, index + 1) / PARTS`` of a block, for PARTS 1, 2 or 4."""
    if PARTS == 1:
        part = block
    else:
        ROWS: tl.constexpr = block.shape[0]
        COLUMNS: tl.constexpr = block.shape[1]
        left, right = tl.split(tl.permute(tl.reshape(block, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        if index < PARTS // 2:
            part = column_part(left, index, PARTS // 2)
        else:
            part = column_part(right, index - PARTS // 2, PARTS // 2)
    return part


@triton.jit
def gradient_scale(elements, FRO: tl.constexpr, total):
    """The factor c in ``gradient = c R M^T``, in float64: 2 / elements, or ``1 / ||R||`` (0 at 0) under fro."""
    return tl.where(total > 0, 1.0 / tl.sqrt(total), 0.0) if FRO else 2.0 / elements.to(tl.float64)


_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32, torch.float64: tl.float64}


def dtype_of(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of a dtype."""
    return _DTYPES[dtype]


def descriptor(t: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Of all rows of a contiguous tensor, for blocks of ``[rows, columns]``; beyond the last row are zeros."""
    flat = t.view(-1, t.shape[-1])
    return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), [rows, columns])


def can_describe(t: Tensor) -> bool:
    """Whether the copy engine can read it: rows that lie together and begin at multiples of 16 bytes."""
    return t.is_contiguous() and t.data_ptr() % 16 == 0 and t.shape[-1] * t.element_size() % 16 == 0 and t.numel() > 0
