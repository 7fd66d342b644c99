"""The operators themselves, as ``torch.library`` sees them: schemas, fakes, functionalisation, strides."""

from __future__ import annotations

import pytest
import torch
from problems import well_conditioned

import matconv_fast as mcf
from matconv_fast import _reference

OPS = torch.ops.matconv_fast
KINDS = ["compact", "transposed", "sliced", "empty"]


def matrix(kind, *shape, seed=0, dtype=torch.float64):
    """Of a kind of memory, with the same numbers whatever the kind."""
    batch, rows, columns = shape
    if kind == "empty":
        return torch.empty(batch, 0, 0, dtype=dtype)
    t = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    if kind == "transposed":
        return t.mT.contiguous().mT
    if kind == "sliced":
        room = torch.zeros(batch, rows + 2, 2 * columns, dtype=dtype)
        room[:, 1:-1, ::2] = t
        return room[:, 1:-1, ::2]
    return t


def vector(value, dtype=torch.float64):
    return torch.full((2,), value, dtype=dtype)


def samples(name, kind):
    """Arguments of an operator."""
    X, V, M, Y = (matrix(kind, 2, *s, seed=seed) for seed, s in enumerate([(3, 4), (3, 4), (4, 5), (3, 5)]))
    second = matrix(kind, 2, 3, 4, seed=4)
    zeros = [torch.zeros(t.shape, dtype=t.dtype) for t in (X, M, Y)]
    chunk = (
        vector(3, torch.int64), vector(-1.0), vector(torch.inf), torch.zeros(2, 4).double(), vector(0, torch.int64),
    )  # fmt: skip
    sums = matrix("compact" if kind == "empty" else kind, 1, 2, 4)[0]
    # lockstep; without a residual that is kept from call to call
    tail = (None, 0, 0)
    return {
        "residual_loss": [(X, M, Y, 0), (X, None, V, 2), (X[0], M[0], Y[0], 1)],
        "residual_products": [(X, M, Y, 0, None, None, None), (X, M, Y, 2, *zeros), (X[0], M[0], Y[0], 1, *[None] * 3)],
        "distance": [(X, V, 0), (X, V, 1), (X, V, 2), (X[0], V[0], 0)],
        "heavy_ball_step_": [(X, V, M, Y, 0.1, 0.9, 0), (X[0], V[0], M[0], Y[0], 0.1, 0.9, 2)],
        "heavy_ball_advance": [(X, V, M, Y, vector(0.1), vector(0.9), *chunk, *tail)],
        "adam_advance": [(X, V, second, vector(0.0), M, Y, vector(0.1), 0.9, 0.999, 1e-8, *chunk, *tail)],
        "start_run": [(Y, *(vector(v) for v in (1.0, 2.0, 3.0)), vector(-1, torch.int64), 1e-3, 0.0)],
        "loss_history": [
            (sums, torch.tensor([3, 4]), 0, 1, 0, 12, torch.float32),
            (sums, torch.tensor([14, 15]), 5, 3, 2, 12, torch.float64),
        ],
        "finish_chunk": [
            (
                torch.rand(2, 4).double(), vector(3, torch.int64), vector(0.1), vector(1.0), vector(10.0), vector(1.0),
                vector(1.0), vector(0, torch.int64), vector(-1, torch.int64), vector(0, torch.int64),
                torch.zeros(2, dtype=torch.int64),
            )
        ],
    }[name]  # fmt: skip


NAMES = [
    "residual_loss",
    "residual_products",
    "distance",
    "heavy_ball_step_",
    "heavy_ball_advance",
    "adam_advance",
    "start_run",
    "loss_history",
    "finish_chunk",
]


def test_every_operator_is_looked_at():
    found = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("matconv_fast::")}
    assert {name.split(".")[0] for name in found} == set(NAMES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, kind):
    """Schema, fake, registration, and that AOT autograd can make a function of it."""
    for arguments in samples(name, kind):
        torch.library.opcheck(getattr(OPS, name).default, arguments)


@pytest.mark.parametrize("kind", KINDS[1:3])
@pytest.mark.parametrize("name", NAMES[:-1])
def test_strides_change_no_result(name, kind):
    """What is returned and what is written, against the same numbers in compact memory."""
    for plain, strided in zip(samples(name, "compact"), samples(name, kind), strict=True):
        returned = [getattr(OPS, name)(*arguments) for arguments in (plain, strided)]
        if returned[0] is not None:
            torch.testing.assert_close(*returned)
        for a, b in zip(plain, strided, strict=True):
            if isinstance(a, torch.Tensor):
                torch.testing.assert_close(a, b)


def test_what_a_kernel_does_not_take_it_leaves_alone():
    A, B = matrix("compact", 3, 5, 7), matrix("compact", 3, 5, 7, seed=1)
    for arguments in ((A, B[:2], 0), (A, B.float(), 0), (A.half(), B.half(), 0), (A, B, 3), (A[0, 0], B[0, 0], 0)):
        assert OPS.distance(*arguments) is None
    X, V, M, Y = samples("heavy_ball_step_", "compact")[0][:4]
    before = X.clone(), V.clone()
    shared = torch.rand(2, 3, 4).double()
    for arguments in (
        (X, V, M.float(), Y), (X, V[:1], M, Y), (X, V, M, Y[:, :2]), (X, X, M, Y), (X.half(), V.half(), M, Y),
        (X, X.mT.contiguous().mT.float(), M, Y), (X, V.mT, M, Y),
    ):  # fmt: skip
        assert OPS.heavy_ball_step_(*arguments, 0.1, 0.9, 0) is None
    for state in ((X[:1].expand(2, 3, 4), V), (shared[:, :, ::2], shared[:, :, 1::2])):
        assert OPS.heavy_ball_step_(*state, None, state[0].clone(), 0.1, 0.9, 0) is None
    assert torch.equal(X, before[0])
    assert torch.equal(V, before[1])


def test_a_step_writes_to_views_in_place():
    """X and V in alternating columns of one buffer, with M transposed: the rest of the buffer stays."""
    room = torch.full((6, 16), 7.0, dtype=torch.float64)
    X, V = room[:, 1:8:2], room[:, 8::2]
    M, Y = well_conditioned(4).mT, torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).double()
    X.fill_(0.5)
    V.zero_()
    rates = (torch.tensor(v, dtype=torch.float64) for v in (0.1, 0.9))
    wanted = _reference.heavy_ball_step(X.clone(), V.clone(), M, Y, *rates, "mse")
    before = mcf.heavy_ball_step_(X, V, M, Y, lr=0.1, momentum=0.9)
    for found, expected in zip((X, V, before), wanted, strict=True):
        torch.testing.assert_close(found, expected)
    assert (room[:, 0:8:2] == 7.0).all()
    assert (room[:, 9::2] == 7.0).all()
