"""The operators as ``torch.library`` sees them: schemas, fakes, functionalization, strides."""

from __future__ import annotations

import pytest
import torch
from problems import well_conditioned
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import matconv_fast as mcf
from matconv_fast import _reference

OPS = torch.ops.matconv_fast
KINDS = ["compact", "transposed", "sliced", "empty"]


def matrix(kind, *shape, seed=0, dtype=torch.float64):
    """The same numbers in each kind of memory."""
    batch, rows, columns = shape
    if kind == "empty":
        return torch.empty(batch, 0, 0, dtype=dtype)
    t = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    if kind == "transposed":
        return t.mT.contiguous().mT
    if kind == "sliced":
        larger = torch.zeros(batch, rows + 2, 2 * columns, dtype=dtype)
        larger[:, 1:-1, ::2] = t
        return larger[:, 1:-1, ::2]
    return t


def vector(value, dtype=torch.float64):
    return torch.full((2,), value, dtype=dtype)


def samples(name, kind):
    """Arguments of an operator."""
    X, V, M, Y = (matrix(kind, 2, *s, seed=seed) for seed, s in enumerate([(3, 4), (3, 4), (4, 5), (3, 5)]))
    second, square = matrix(kind, 2, 3, 4, seed=4), matrix(kind, 2, 3, 3, seed=6)
    zeros = [torch.zeros(t.shape, dtype=t.dtype) for t in (X, M, Y)]
    zero, steps = vector(0, torch.int64), vector(3, torch.int64)
    chunk = (zero, 0.1, False, steps, vector(-1.0), vector(torch.inf), torch.zeros(2, 4).double(), zero.clone())
    sums = matrix("compact" if kind == "empty" else kind, 1, 2, 4)[0]
    hyper = matrix("compact" if kind == "empty" else kind, 1, 4, 2, seed=5)[0] / 10
    losses = [(X, M, Y, 0), (X, None, V, 2), (X[0], M[0], Y[0], 1)]
    distances = [(X, V, 0), (X, V, 1), (X, V, 2), (X[0], V[0], 0)]
    steps_in_place = [(X, V, M, Y, 0.1, 0.9, 0), (X[0], V[0], M[0], Y[0], 0.1, 0.9, 2)]
    return {
        "residual_loss": losses,
        "try_residual_loss": losses,
        "residual_products": [(X, M, Y, 0, None, None, None), (X, M, Y, 2, *zeros), (X[0], M[0], Y[0], 1, *[None] * 3)],
        "distance": distances,
        "try_distance": distances,
        "heavy_ball_step_": steps_in_place,
        "try_heavy_ball_step_": steps_in_place,
        "advance": [
            ("heavy_ball", X, [V], M, Y, hyper[:2], *chunk, None, "rows"),
            ("adam", X, [V, second], M, Y, hyper, *chunk, None, "rows"),
            ("adam", X, [V, second], None, second, hyper, *chunk, None, "rows"),
            ("heavy_ball", X, [V], M, Y, hyper[:2], *chunk, torch.zeros(Y.shape, dtype=Y.dtype), "gemm"),
        ],
        "start_run": [(Y, *(vector(v) for v in (1.0, 2.0, 3.0)), vector(-1, torch.int64), 1e-3, 0.0)],
        "loss_history": [
            (sums, torch.tensor([3, 4]), 0, 1, 0, 12, torch.float32),
            (sums, torch.tensor([14, 15]), 5, 3, 2, 12, torch.float64),
        ],
        "direct_solve": [
            (square, None, 1e-10, 0.0, 0), (square, second.mT, 1e-10, 0.0, 1), (square[:1], second.mT, 1e-10, 1e9, 2),
        ],
        "end_run": [
            (vector(2.0), vector(3, torch.int64), vector(0, torch.int64), X, X.shape[:1], loss, 12) for loss in (0, 2)
        ],
        "finish_chunk": [
            (
                torch.rand(2, 4).double(), steps, vector(0.1), vector(1.0), vector(10.0), vector(1.0), vector(1.0),
                vector(0, torch.int64), vector(-1, torch.int64), vector(0, torch.int64),
                torch.zeros(2, dtype=torch.int64),
            )
        ],
    }[name]  # fmt: skip


OPTIONAL = ["try_residual_loss", "try_distance", "try_heavy_ball_step_"]
NAMES = [
    *OPTIONAL,
    "residual_loss",
    "residual_products",
    "distance",
    "heavy_ball_step_",
    "advance",
    "direct_solve",
    "start_run",
    "loss_history",
    "finish_chunk",
    "end_run",
]
pytestmark = pytest.mark.usefixtures("native")


def test_every_operator_is_tested():
    found = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("matconv_fast::")}
    assert {name.split(".")[0] for name in found} == set(NAMES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in OPTIONAL])
def test_opcheck(name, kind):
    """Schema, fake, registration, and that AOT autograd can functionalize it."""
    for arguments in samples(name, kind):
        torch.library.opcheck(getattr(OPS, name).default, arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIONAL)
def test_optional_operators(name, kind):
    """opcheck's fake tensors cannot tell None from a Tensor; these operators are never traced. Schema and values."""
    checked = getattr(OPS, name.removeprefix("try_"))
    for arguments in samples(name, kind):
        torch.library.opcheck(getattr(OPS, name).default, arguments, test_utils="test_schema")
    for arguments, others in zip(samples(name, kind), samples(name, kind), strict=True):
        arguments, others = ([t.clone() if isinstance(t, torch.Tensor) else t for t in a] for a in (arguments, others))
        found, expected = getattr(OPS, name)(*arguments), checked(*others)
        assert torch.equal(found, expected)
        for a, b in zip(arguments, others, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def tensors(arguments):
    for value in arguments:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list):
            yield from value


@pytest.mark.parametrize("kind", KINDS[1:3])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "finish_chunk"])
def test_strides_change_no_result(name, kind):
    """What is returned and what is written, against the same numbers in compact memory."""
    for plain, strided in zip(samples(name, "compact"), samples(name, kind), strict=True):
        returned = [getattr(OPS, name)(*arguments) for arguments in (plain, strided)]
        if returned[0] is not None:
            torch.testing.assert_close(*returned)
        for a, b in zip(tensors(plain), tensors(strided), strict=True):
            torch.testing.assert_close(a, b)


def test_fake_tensors_have_the_shapes_and_dtypes_of_the_results():
    with FakeTensorMode() as mode:
        for name in (
            "residual_loss",
            "distance",
            "heavy_ball_step_",
            "start_run",
            "loss_history",
            "end_run",
            "direct_solve",
        ):
            for arguments in samples(name, "compact"):
                fake = [mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in arguments]
                found = getattr(OPS, name)(*fake)
                with unset_fake_temporarily():
                    expected = getattr(OPS, name)(*arguments)
                for a, b in zip(*(r if isinstance(r, tuple | list) else [r] for r in (found, expected)), strict=True):
                    assert (a.shape, a.dtype) == (b.shape, b.dtype)


def refusals():
    """Arguments that the C++ kernels do not take, by operator."""
    A, B = matrix("compact", 3, 5, 7), matrix("compact", 3, 5, 7, seed=1)
    X, V, M, Y = samples("heavy_ball_step_", "compact")[0][:4]
    shared, end = torch.rand(2, 3, 4).double(), (0.1, 0.9, 0)
    state = [(X[:1].expand(2, 3, 4), V), (shared[:, :, ::2], shared[:, :, 1::2])]
    return {
        "distance": [
            (A, B[:2], 0), (A, B.float(), 0), (A.half(), B.half(), 0), (A, B, 3), (A[0, 0], B[0, 0], 0),
            (A[None], B[None], 0),
        ],
        "residual_loss": [
            (X, M.float(), Y, 0), (X, M[:, :3], Y, 0), (X, M, Y[:, :2], 0), (X, M, Y, 3), (X[0, 0], M, Y, 0),
            (X, None, None, 0), (X.half(), M.half(), Y.half(), 0), (X.long(), M.long(), Y.long(), 0),
        ],
        "heavy_ball_step_": [
            (X, V, M.float(), Y, *end), (X, V[:1], M, Y, *end), (X, V, M, Y[:, :2], *end), (X, X, M, Y, *end),
            (X.half(), V.half(), M, Y, *end), (X, X.mT.contiguous().mT.float(), M, Y, *end), (X, V.mT, M, Y, *end),
            (X, V, M, Y, 0.1, 0.9, 3), *((*pair, None, pair[0].clone(), *end) for pair in state),
        ],
    }  # fmt: skip


@pytest.mark.parametrize("name", refusals())
def test_what_a_kernel_does_not_take_is_left_as_it_is(name):
    """``try_...`` returns None, the operator proper raises, and neither writes."""
    for arguments in refusals()[name]:
        before = [t.clone() for t in tensors(arguments)]
        assert getattr(OPS, f"try_{name}")(*arguments) is None
        with pytest.raises(RuntimeError, match=name):
            getattr(OPS, name)(*arguments)
        for t, old in zip(tensors(arguments), before, strict=True):
            assert torch.equal(t, old)


def test_the_schemas_promise_what_is_returned():
    counts = {"advance": 0, "finish_chunk": 0, "start_run": 10, "end_run": 4, "direct_solve": 5}
    for name in NAMES:
        returns = [str(value.type) for value in getattr(OPS, name).default._schema.returns]
        if name in OPTIONAL:
            assert returns == ["Optional[Tensor]"]
        else:
            assert returns == ["Tensor"] * counts.get(name, 1)


def test_a_step_writes_to_views_in_place():
    """X and V in alternating columns of one tensor, with M transposed: its other columns stay."""
    whole = torch.full((6, 16), 7.0, dtype=torch.float64)
    X, V = whole[:, 1:8:2], whole[:, 8::2]
    M, Y = well_conditioned(4).mT, torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).double()
    X.fill_(0.5)
    V.zero_()
    rates = (torch.tensor(v, dtype=torch.float64) for v in (0.1, 0.9))
    wanted = _reference.heavy_ball_step(X.clone(), V.clone(), M, Y, *rates, "mse")
    before = mcf.heavy_ball_step_(X, V, M, Y, lr=0.1, momentum=0.9)
    for found, expected in zip((X, V, before), wanted, strict=True):
        torch.testing.assert_close(found, expected)
    assert (whole[:, 0:8:2] == 7.0).all()
    assert (whole[:, 9::2] == 7.0).all()
