"""The dtypes that a problem is computed in."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ._ops import backend
from .kernels.contract import state_dtype


@dataclass(frozen=True)
class Precision:
    """The dtypes of one problem.

    Attributes:
        inputs: of the tensors that the user gave.
        operands: of M and Y as the backend multiplies them.
        state: of X, of the solver's state, and of losses.
        sums: of sums of squares.
    """

    inputs: torch.dtype
    operands: torch.dtype
    state: torch.dtype
    sums: torch.dtype = torch.float64

    @classmethod
    def of(cls, dtype: torch.dtype, device: torch.device) -> Precision:
        """For inputs of ``dtype``. Triton multiplies bfloat16 and float16 as they are; CPUs convert them to float32."""
        return _precision(dtype, backend.of(device.type))

    @property
    def eps(self) -> float:
        """The unit of rounding of the residual."""
        return torch.finfo(self.operands).eps


@functools.cache
def _precision(dtype: torch.dtype, backend_name: str) -> Precision:
    state = state_dtype(dtype)
    return Precision(dtype, dtype if backend_name == "triton" else state, state)
