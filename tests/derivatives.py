"""Tensors, formulas and the two checks that the tests of derivatives share."""

from __future__ import annotations

import torch
from torch.autograd import gradcheck, gradgradcheck

LOSSES = ("mse", "sse", "fro")
ORDS = ("fro", "max", 1)
PLAIN = {
    "mse": lambda R: R.square().mean((-2, -1)),
    "sse": lambda R: R.square().sum((-2, -1)),
    "fro": lambda R: torch.linalg.vector_norm(R, dim=(-2, -1)),
}
# shapes of X, M and Y; None: left out
CASES = {
    "ragged": ((3, 4), (4, 5), (3, 5)),
    "one row": ((1, 3), (3, 4), (1, 4)),
    "one column of X": ((3, 1), (1, 2), (3, 2)),
    "one column of M": ((3, 4), (4, 1), (3, 1)),
    "no M": ((2, 3, 4), None, (2, 3, 4)),
    "no Y": ((3, 2), (2, 3), None),
    "no M, no Y": ((3, 3), None, None),
    "batch": ((2, 3, 2), (2, 2, 3), (2, 3, 3)),
    "batch, no Y": ((2, 3, 2), (2, 2, 3), None),
    "two batch dimensions": ((2, 2, 1, 2), (2, 2, 2, 3), (2, 2, 1, 3)),
    "shared M and Y": ((2, 2, 3), (3, 2), (2, 2)),
    "broadcast": ((2, 1, 2, 2), (3, 2, 1), (2, 3, 2, 1)),
    "broadcast, no Y": ((2, 1, 2, 3), (3, 3, 2), None),
}
TAILS = ((5, 9), (9, 17), (5, 17))  # of vectors
# Beyond the 80^3 products of the small kernels: GEMMs, by blocks of columns or of rows where Y needs no gradient.
LARGE = {
    "columns": ((8, 4), (4, 40_000), (8, 40_000)),
    "rows": ((40_000, 4), (4, 8), (40_000, 8)),
    "square": ((90, 80), (80, 100), (90, 100)),
    "batch": ((2, 30, 150), (2, 150, 120), (2, 30, 120)),
    "no Y": ((90, 80), (80, 90), None),
}


def rand(*shape, seed=0, dtype=torch.float64):
    """Normal numbers: of both signs, so that a sign that is lost shows."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tensors(shapes, requires_grad="XMY", dtype=torch.float64):
    """X, M and Y of these shapes, of which those named require a gradient."""
    made = [None if s is None else rand(*s, seed=k + 1, dtype=dtype) for k, s in enumerate(shapes)]
    return [t if t is None else t.requires_grad_(name in requires_grad) for name, t in zip("XMY", made, strict=True)]


def both_orders(function, inputs, backend, **options):
    """gradcheck and gradgradcheck by all the tensors among `inputs` that require a gradient.

    The second, and in Triton's interpreter the first, too, in fast mode: random projections of each Jacobian, from a
    fixed seed.
    """
    options.setdefault("fast_mode", backend == "triton")
    given = [t for t in inputs if t is not None]

    def of_given(*tensors):
        left = iter(tensors)
        return function(*(None if t is None else next(left) for t in inputs))

    assert gradcheck(of_given, given, **options)
    assert gradgradcheck(of_given, given, **{**options, "fast_mode": True})
