"""What every kernel does to a block: load, store, multiply, round, and add squares. Device functions, inlined.

A place in a matrix, the matrix's size and its strides are tuples: ``(row, column)``, ``(rows, columns)``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# Whether a kernel is interpreted is fixed when it is decorated: TRITON_INTERPRET=1 must be set before the import.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _addresses(P, at, size, strides, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers to a block of a matrix, and a mask of those that are inside it."""
    row, column = at
    rows, columns = size
    row_stride, column_stride = strides
    i = tl.arange(0, ROWS)
    j = tl.arange(0, COLUMNS)
    # one 64-bit base, 32-bit offsets within the block: 64-bit offsets cost two registers an element
    base = P + tl.cast(row, tl.int64) * row_stride + tl.cast(column, tl.int64) * column_stride
    inside = (i[:, None] < rows - row) & (j[None, :] < columns - column)
    return base + (i[:, None] * row_stride + j[None, :] * column_stride), inside


@triton.jit
def load_block(P, at, size, strides, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """ROWS rows and COLUMNS columns from place `at` on, zeros outside the matrix. P points to its element (0, 0)."""
    pointers, inside = _addresses(P, at, size, strides, ROWS, COLUMNS)
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def store_block(P, block, at, size, strides):
    """The counterpart of `load_block`; nothing is written outside the matrix."""
    pointers, inside = _addresses(P, at, size, strides, block.shape[0], block.shape[1])
    tl.store(pointers, block, mask=inside)


@triton.jit
def load_state(state, offset, at, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A block of each state matrix; ``state``: their pointers, `offset`: to the problem's first element."""
    blocks = ()
    for k in tl.static_range(len(state)):
        blocks = blocks + (load_block(state[k] + offset, at, size, (size[1], 1), ROWS, COLUMNS),)  # noqa: RUF005
    return blocks


@triton.jit
def store_state(state, blocks, offset, at, size):
    """The counterpart of `load_state`."""
    for k in tl.static_range(len(state)):
        store_block(state[k] + offset, blocks[k], at, size, (size[1], 1))


@triton.jit
def identity_block(at, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    """That block of the identity matrix of a size."""
    i = at[0] + tl.arange(0, ROWS)[:, None]
    j = at[1] + tl.arange(0, COLUMNS)[None, :]
    return tl.where((i == j) & (i < size[0]) & (j < size[1]), 1.0, 0.0).to(DTYPE)


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
    """``sum(block^2)`` in float64; added in the block's own dtype first, where that loses no square.

    Over both axes at once: a sum of row sums does not compile for sm_100.
    """
    total = tl.sum(block * block).to(tl.float64)
    if not ((total > 1e-24) & (total < 1e37)):  # squares may have under- or overflowed, or there is a NaN
        double = block.to(tl.float64)
        total = tl.sum(double * double)
    return total


@triton.jit
def column_part(block, index: tl.constexpr, PARTS: tl.constexpr):
    """Columns ``[index, index + 1) / PARTS`` of a block; PARTS is a power of two."""
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
def gradient_scale(scale, total, COUPLED: tl.constexpr):
    """The factor of ``R M^T`` in the gradient, in float64: `scale`, divided by ``||R||`` (0 at 0) if COUPLED."""
    factor = tl.full((), scale, tl.float64)
    if COUPLED:
        factor = tl.where(total > 0, factor / tl.sqrt(total), 0.0)
    return factor


_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32, torch.float64: tl.float64}


def dtype_of(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of a dtype."""
    return _DTYPES[dtype]


def descriptor(t: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A descriptor of all rows of a contiguous tensor, for blocks of ``[rows, columns]``; zeros past the last row."""
    flat = t.view(-1, t.shape[-1])
    return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), [rows, columns])


def can_describe(t: Tensor) -> bool:
    """Whether the copy engine can read it: contiguous, with rows that begin at multiples of 16 bytes."""
    return t.is_contiguous() and t.data_ptr() % 16 == 0 and t.shape[-1] * t.element_size() % 16 == 0 and t.numel() > 0
