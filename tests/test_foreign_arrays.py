"""Arrays of other libraries and other layouts: the error names the conversion."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import matconv_fast as mcf


class Foreign:
    """An array of another library that speaks DLPack, and no NumPy."""

    def __init__(self, t: Tensor) -> None:
        self.t = t

    def __dlpack__(self, **options: Any) -> object:
        return self.t.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.t.__dlpack_device__()


M = torch.eye(4) + 0.1
V = torch.zeros(4, 4)
STEP = {"lr": 0.1, "momentum": 0.9}


TAKERS: dict[str, Callable[[Any], object]] = {
    "solve M": lambda t: mcf.solve(t),
    "solve Y": lambda t: mcf.solve(M, t),
    "solve X0": lambda t: mcf.solve(M, None, t),
    "inv": lambda t: mcf.inv(t),
    "iterate": lambda t: mcf.iterate(lambda A: A / 2, t, V),
    "residual_loss": lambda t: mcf.residual_loss(M, t),
    "distance": lambda t: mcf.distance(M, t),
    "is_close": lambda t: mcf.is_close(t, M),
    "heavy_ball_step": lambda t: mcf.heavy_ball_step(M, V, t, **STEP),
    "heavy_ball_step_ M": lambda t: mcf.heavy_ball_step_(M.clone(), V.clone(), t, **STEP),
    "heavy_ball_step_ X": lambda t: mcf.heavy_ball_step_(t, V.clone(), M, **STEP),
}


def masked(t: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype
        return torch.masked.masked_tensor(t, t > 0.5)


FOREIGN = {
    "NumPy": (lambda: M.numpy(), "must be a torch.Tensor, got ndarray.*; torch.as_tensor converts it"),
    "list": (lambda: M.tolist(), "must be a torch.Tensor, got list.*; torch.as_tensor converts it"),
    "DLPack": (lambda: Foreign(M), "must be a torch.Tensor, got Foreign.*; torch.from_dlpack takes it over"),
    "sparse": (lambda: M.to_sparse(), r"must be dense, got layout torch.sparse_coo; .*to_dense\(\)"),
    "masked": (lambda: masked(M), r"must be dense, got a masked tensor; .*to_tensor\(0.0\) converts it"),
    "jagged": (
        lambda: torch.nested.nested_tensor([M, M], layout=torch.jagged),
        r"must be dense, got a nested tensor; .*to_padded_tensor\(0.0\) converts it",
    ),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_other_arrays_are_refused_with_the_conversion_to_use(backend, kind, taker):
    make, pattern = FOREIGN[kind]
    with pytest.raises(TypeError, match=re.compile(pattern, re.DOTALL)):
        TAKERS[taker](make())


def test_the_conversions_work():
    assert torch.equal(torch.from_dlpack(Foreign(M)), M)
    assert torch.equal(torch.as_tensor(M.numpy()), M)
    assert mcf.solve(torch.from_dlpack(Foreign(M))).converged
    assert mcf.solve(masked(M).to_tensor(0.0)).converged
