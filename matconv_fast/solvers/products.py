"""Products with large matrices, in blocks, and inverses made of them."""

from __future__ import annotations

import torch
from torch import Tensor

# The least columns of a block.
LEAST_COLUMNS = 256
# Elements, and columns, of M in a product whose results are added up in float64.
GRAM_BLOCK, MOST_COLUMNS = 1 << 22, 1 << 16
# Rows of M from which on little more than half of ``M @ M^T`` is computed.
LEAST_HALVED = 128
# Rows from which on an inverse by blocks is faster than by LAPACK, and of a block that LAPACK inverts.
LEAST_BLOCKED, LARGEST_BLOCK = 512, 128


def multiplied(A: Tensor, B: Tensor) -> Tensor:
    """``A @ B`` of batches; a batch of one is faster without its dimension."""
    return (A[0] @ B[0])[None] if len(A) == len(B) == 1 else A @ B


def block_width(M: Tensor) -> int:
    """Columns of a block of `GRAM_BLOCK` elements."""
    return min(max(LEAST_COLUMNS, GRAM_BLOCK // max(M.shape[0] * M.shape[1], 1)), MOST_COLUMNS)


def sum_of_products(A: Tensor, M: Tensor) -> Tensor:
    """``A @ M^T``, ``[B, m, n]`` float64: blocks of columns are multiplied as they are, and added up in float64.

    Of a large symmetric product, ``M @ M^T``, little more than half is computed.
    """
    n, p = M.shape[-2:]
    total = A.new_zeros((max(len(A), len(M)), A.shape[-2], n), dtype=torch.float64)
    symmetric = A is M and n >= LEAST_HALVED
    step = -(-n // 4) if symmetric else n
    for first in range(0, p, width := block_width(M)):
        a, b = A[..., first : first + width], M[..., first : first + width]
        for row in range(0, n, max(step, 1)):
            low = slice(row if symmetric else 0, None)
            total[:, low, row : row + step] += multiplied(a[:, low], b[:, row : row + step].mT)
    if symmetric:
        total.copy_(total.tril() + total.tril(-1).mT)
    return total


def inverse_by_blocks(M: Tensor) -> Tensor | None:
    """The inverses of symmetric positive definite matrices, mostly by products; None where one is not.

    From ``M = [[A, B], [B^T, C]]``, by A^-1 and the inverse of the Schur complement ``C - B^T A^-1 B``, each made
    likewise. LAPACK's takes half as long again at 1,024 rows.
    """
    n = M.shape[-1]
    if n <= LARGEST_BLOCK:
        L, info = torch.linalg.cholesky_ex(M)
        return torch.cholesky_inverse(L) if bool((info == 0).all()) else None
    h = n // 2
    B = M[..., :h, h:]
    P = inverse_by_blocks(M[..., :h, :h])
    if P is None:
        return None
    W = P @ B
    Q = inverse_by_blocks(M[..., h:, h:] - B.mT @ W)
    if Q is None:
        return None
    out = torch.empty_like(M)
    corner = torch.neg(W @ Q, out=out[..., :h, h:])
    torch.sub(P, corner @ W.mT, out=out[..., :h, :h])
    out[..., h:, h:] = Q
    out[..., h:, :h] = corner.mT
    return out
