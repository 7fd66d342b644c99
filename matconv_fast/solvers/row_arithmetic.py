"""The arithmetic of recursions that treat each row as a problem of its own: with tensors, or with Python's numbers.

A recursion is written once, for vectors and their scalars. With `Rows` it runs for all rows of a batch, and scalars are
``[B, m, 1]``. With `Row` it runs for a single row on a CPU, where twenty operators on scalars would take longer than a
product with a matrix of a thousand rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def row_norm(t: Tensor) -> Tensor:
    """Of each row, ``[B, m, 1]``."""
    return torch.linalg.vector_norm(t, dim=-1, keepdim=True)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``, and 0 where b is not above 0."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1), 0)


class Rows:
    """Vectors ``[B, m, k]`` and scalars ``[B, m, 1]``."""

    norm = staticmethod(row_norm)
    ratio = staticmethod(ratio)
    hypot = staticmethod(torch.hypot)

    @staticmethod
    def dot(a: Tensor, b: Tensor) -> Tensor:
        """Of each row."""
        return (a * b).sum(-1, keepdim=True)

    @staticmethod
    def less(y: Tensor, scalar: Tensor, x: Tensor) -> Tensor:
        """``y - scalar * x``."""
        return y - scalar * x


class Row:
    """Vectors ``[k]`` and Python numbers."""

    hypot = staticmethod(math.hypot)

    @staticmethod
    def norm(t: Tensor) -> float:
        """Its length."""
        return float(torch.linalg.vector_norm(t))

    @staticmethod
    def ratio(a: Any, b: float) -> Any:
        """``a / b``, and 0 where b is not above 0."""
        return a / b if b > 0 else a * 0.0

    @staticmethod
    def dot(a: Tensor, b: Tensor) -> float:
        """Of the two vectors."""
        return float(torch.dot(a, b))

    @staticmethod
    def less(y: Tensor, scalar: float, x: Tensor) -> Tensor:
        """``y - scalar * x``."""
        return torch.sub(y, x, alpha=scalar)
