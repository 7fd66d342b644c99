"""The user's tensors, as they were when a solve read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def in_memory(name: str, t: Tensor) -> Tensor:
    """The plain tensor of a subclass, which kernels read and write directly.

    Raises:
        TypeError: the subclass has operators of its own, and perhaps no memory.
    """
    if type(t).__torch_dispatch__ is not Tensor.__torch_dispatch__:  # pyright: ignore[reportAttributeAccessIssue]
        raise TypeError(
            f"{name} must be a tensor in memory, got a {type(t).__name__}, which has operators of its own "
            "(__torch_dispatch__): pass the tensor that it wraps"
        )
    return t if type(t) in (Tensor, torch.nn.Parameter) else t.as_subclass(Tensor)


@dataclass(frozen=True, eq=False)
class Source:
    """One of the user's tensors, and its version when the solve read it."""

    tensor: Tensor | None
    version: int | None

    @classmethod
    def of(cls, t: Tensor | None) -> Source:
        """Detached. Inference tensors have no version counter."""
        if t is None or t.is_inference():
            return cls(t, None)
        return cls(t.detach() if t.requires_grad else t, t._version)

    def is_same(self, other: Source) -> bool:
        """Whether both are views of the same memory with the same geometry, unwritten in between."""
        a, b = self.tensor, other.tensor
        if a is None or b is None:
            return a is b
        return self.version == other.version and (
            a is b or (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)
        )

    def equals(self, other: Source) -> bool:
        """Whether both hold the same numbers, NaN included. Reads the device."""
        a, b = self.tensor, other.tensor
        if a is None or b is None:
            return a is b
        alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        return alike and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
