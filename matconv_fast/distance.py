"""``||A - B||``, and the test whether it is within a tolerance."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks, _ops
from .kernels.contract import ORDS, state_dtype


def distance(A: Tensor, B: Tensor, *, ord: str | int = "fro") -> Tensor:  # noqa: A002 - torch.linalg's own name
    """Distance of two matrices, one value per problem, differentiable, with gradient 0 where they are equal.

    Args:
        A: ``[*, m, n]``, floating-point.
        B: ``[*, m, n]``, of the same dtype and device; leading dimensions broadcast.
        ord: ``"fro"``: ``sqrt(sum((A - B)^2))``; ``"max"``: the largest ``|A - B|``; ``1``: ``sum(|A - B|)``. All are
            norms of the entries.

    Returns:
        The distances, of the batch's shape; float64 for float64 inputs and float32 for all others. Matrices without
        elements are at distance 0.

    Raises:
        TypeError: an argument is no dense real floating-point tensor, or their dtypes differ.
        ValueError: shapes do not fit, devices differ, or `ord` is unknown.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> A, B = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
        >>> [mcf.distance(A, B, ord=ord).item() for ord in ("fro", "max", 1)]
        [5.0, 4.0, 7.0]
    """
    value = _ops.try_distance(A, B, ord)
    if value is not None:
        return value
    _checks.choice("ord", ord, ORDS)
    _checks.pair(A, B)
    dtype = state_dtype(A.dtype)
    if dtype != A.dtype:
        A, B = A.to(dtype), B.to(dtype)
    return _ops.distance(A, B, ord)


def is_close(A: Tensor, B: Tensor, *, atol: float = 0.0, rtol: float = 0.0) -> Tensor:
    """Whether ``||A - B||_F <= max(atol, rtol ||B||_F)``: one bool per problem, left on the device.

    Args:
        A: ``[*, m, n]``, floating-point.
        B: ``[*, m, n]``, of the same dtype and device; leading dimensions broadcast.
        atol: absolute tolerance on the Frobenius norm of the difference, at least 0.
        rtol: tolerance relative to ``||B||_F``, at least 0.

    Returns:
        Bool tensor of the batch's shape. With both tolerances 0 it tests for equality. NaN is not close to anything.

    Raises:
        TypeError: an argument is no dense real floating-point tensor, or their dtypes differ.
        ValueError: shapes do not fit, devices differ, or a tolerance is negative.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> mcf.is_close(torch.eye(2), torch.eye(2) + 1e-4, rtol=1e-3)
        tensor(True)
    """
    _checks.number("atol", atol, minimum=0)
    _checks.number("rtol", rtol, minimum=0)
    gap = distance(A, B).detach()
    if rtol == 0:
        return gap <= atol
    norm = torch.linalg.vector_norm(B.detach().to(gap.dtype), dim=(-2, -1))
    return gap <= (rtol * norm).clamp(min=atol)
