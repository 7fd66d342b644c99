"""Products by cuBLAS."""

from __future__ import annotations

import torch
from torch import Tensor


def multiply(A: Tensor, B: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
    """``out [B, m, n] = A [B, m, k] @ B [B or 1, k, n]``, or ``out +=`` that; ``out`` may have a wider dtype."""
    if B.shape[0] == 1 and A.shape[0] > 1:
        A, out = A.reshape(1, -1, A.shape[2]), out.view(1, -1, out.shape[2])
    if A.dtype == out.dtype:
        torch.baddbmm(out, A, B, beta=1 if accumulate else 0, out=out)
    elif A.device.type == "cpu":  # only GPUs have products that widen
        torch.baddbmm(out, A.to(out.dtype), B.to(out.dtype), beta=1 if accumulate else 0, out=out)
    else:
        torch.baddbmm(out, A, B, out.dtype, beta=1 if accumulate else 0, out=out)
