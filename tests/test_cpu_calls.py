"""The loss, the step and the distance in C++: sizes, aliasing, special values, and what they must refuse."""

from __future__ import annotations

import pytest
import torch

import matconv_fast as mcf
from matconv_fast import _ops, _reference
from matconv_fast.kernels.contract import LOSSES

pytestmark = pytest.mark.usefixtures("native")


def rand(*shape, dtype=torch.float64, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("size", [4, 8, 64])
def test_a_distance_that_float32_cannot_square(size):
    for scale in (1e-25, 1e-19, 1e19, 1e25):
        A = rand(size, size, dtype=torch.float32) * scale
        found = mcf.distance(A, torch.zeros_like(A))
        assert torch.equal(found, _ops.try_distance(A, torch.zeros_like(A), "fro"))
        torch.testing.assert_close(found, A.double().norm().float(), rtol=1e-6, atol=0)


# Below and above the size from which torch's GEMM runs; wide and tall, for blocks of columns and blocks of rows.
SHAPES = [
    (1, 1, 1),
    (5, 4, 3),
    (16, 17, 15),
    (40, 40, 40),
    (65, 63, 130),
    (500, 20, 700),
    (900, 10, 400),
    (64, 400, 64),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_and_its_gradients_are_as_near_to_the_truth_as_eager(loss, shape, dtype):
    m, n, p = shape
    given = [rand(m, n), rand(n, p, seed=1), rand(m, p, seed=2) * n / 4]
    truth = [t.clone().requires_grad_() for t in given]
    value = _reference.residual_loss(*truth, loss)
    value.backward()
    plain = [t.to(dtype, copy=True).requires_grad_() for t in given]
    _reference.residual_loss(*plain, loss).backward()
    assert _ops.try_residual_loss(*(t.to(dtype) for t in given), loss) is not None
    for wanted in ((True, True, True), (True, True, False), (True, False, False), (False, True, False)):
        ours = [t.to(dtype, copy=True).requires_grad_(w) for t, w in zip(given, wanted, strict=True)]
        found = mcf.residual_loss(*ours, loss=loss)
        assert found.grad_fn.name() == "_ResidualLossBackward"  # the kernel's
        torch.testing.assert_close(found, value.detach().to(dtype))
        (2 * found).backward(retain_graph=True)
        first = [t.grad for t in ours]
        for t, w, exact, near in zip(ours, wanted, truth, plain, strict=True):
            assert (t.grad is not None) == w
            if w:
                scale = exact.grad.abs().max()
                allowance = 2 * (near.grad - exact.grad).abs().max() + 50 * torch.finfo(dtype).eps * scale
                assert (t.grad / 2 - exact.grad).abs().max() <= allowance
        for t in ours:
            t.grad = None
        (2 * found).backward()  # the products are computed a second time, to the same bits
        for t, before in zip(ours, first, strict=True):
            assert t.grad is None or torch.equal(t.grad, before)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 4, 5), (90, 60, 2100)])
def test_a_low_precision_Y_is_converted_piece_by_piece(low, shape):
    m, n, p = shape
    X, M = rand(m, n, dtype=torch.float32).to(low), rand(n, p, dtype=torch.float32, seed=1).to(low)
    Y = (rand(m, p, dtype=torch.float32, seed=2) - 0.5).to(low)
    Y[0, :5] = torch.tensor([0.0, -0.0, 6e-8, -6e-8, 3e4]).to(low)  # 6e-8 is a float16 denormal
    X.requires_grad_()
    found = mcf.residual_loss(X, M, Y)
    torch.testing.assert_close(found, _reference.residual_loss(X.float(), M.float(), Y.float(), "mse"))
    found.backward()
    assert X.grad.dtype == low
    for special in (torch.inf, -torch.inf, torch.nan):
        Y[-1, -1] = special
        assert not mcf.residual_loss(X.detach(), M, Y).isfinite()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["small", "large", "batch", "shared M", "Y none", "M none", "long M none", "low M"])
def test_the_step_in_one_call_is_the_step(loss, kind):
    n = 90 if kind == "large" else 300 if kind == "long M none" else 5
    batch = (3,) if kind in ("batch", "shared M") else ()
    X, V = rand(*batch, n, n), rand(*batch, n, n, seed=1)
    M = None if "M none" in kind else rand(*(batch if kind == "batch" else ()), n, n, seed=2) / n
    Y = None if kind == "Y none" else rand(*batch, n, n, seed=3)
    if kind == "low M":
        X, V, M, Y = X.float(), V.float(), M.to(torch.bfloat16), Y.to(torch.bfloat16)
    wanted = mcf.heavy_ball_step(X, V, M, Y, lr=0.1, momentum=0.8, loss=loss)
    versions = X._version, V._version
    assert _ops.try_heavy_ball_step_(X.clone(), V.clone(), M, Y, 0.1, 0.8, loss) is not None  # no fallback
    before = mcf.heavy_ball_step_(X, V, M, Y, lr=0.1, momentum=0.8, loss=loss)
    for found, expected in zip((X, V, before), wanted, strict=True):
        torch.testing.assert_close(found, expected)
    assert X._version > versions[0]
    assert V._version > versions[1]


def test_the_step_raises_for_what_the_kernel_refuses():
    X, V, M = rand(3, 3), rand(3, 3, seed=1), rand(3, 3, seed=2)
    before = X.clone()
    for arguments, error in (
        ((None, V, M), TypeError),
        ((X, V[:2], M), ValueError),
        ((X, V, M[:2]), ValueError),
        ((X, X, M), ValueError),
        ((X, V.float(), M), (TypeError, ValueError)),
        ((X, V, M.int()), TypeError),
    ):
        with pytest.raises(error):
            mcf.heavy_ball_step_(*arguments, lr=0.1, momentum=0.9)
    for name, value in (("lr", -1.0), ("lr", torch.inf), ("momentum", -0.1), ("loss", "l2"), ("loss", [])):
        with pytest.raises((ValueError, TypeError)):
            mcf.heavy_ball_step_(X, V, M, **{"lr": 0.1, "momentum": 0.9, name: value})
    assert torch.equal(X, before)


def test_the_step_leaves_a_graph_that_needs_X_unusable_and_says_so():
    X, V, M = rand(3, 3).requires_grad_(), torch.zeros(3, 3, dtype=torch.float64), rand(3, 3, seed=2)
    loss = (X * X).sum()
    mcf.heavy_ball_step_(X, V, M, lr=0.1, momentum=0.9)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_spreads_a_nan_to_its_row_alone():
    for n in (3, 9, 20, 64, 90):
        X, V = torch.ones(n, n), torch.zeros(n, n)
        Y = torch.zeros(n, n)
        Y[0, 0] = torch.nan
        assert mcf.heavy_ball_step_(X, V, torch.eye(n), Y, lr=0.5, momentum=0.0, loss="sse").isnan()
        assert X[0].isnan().any()
        assert torch.equal(X[1:], torch.zeros(n - 1, n))


@pytest.mark.parametrize("n", [1, 5, 20])
def test_an_infinite_X_gives_an_infinite_loss_and_no_nan(n):
    X = torch.zeros(n, n)
    X[0, 0] = torch.inf
    M, Y = torch.ones(n, n), torch.zeros(n, n)
    assert mcf.residual_loss(X, M, Y) == torch.inf
    assert mcf.heavy_ball_step_(X, torch.zeros(n, n), M, Y, lr=0.0, momentum=0.0) == torch.inf


def test_a_step_may_write_to_the_tensors_that_it_reads():
    for n in (5, 64, 90):
        for case in ("M is V", "M is X", "Y is V"):
            X, V = rand(n, n), rand(n, n, seed=1) / n
            M, Y = rand(n, n, seed=2) / n, rand(n, n, seed=3)
            M = V if case == "M is V" else X if case == "M is X" else M
            Y = V if case == "Y is V" else Y
            wanted = mcf.heavy_ball_step(X, V, M, Y, lr=0.1, momentum=0.8)
            before = mcf.heavy_ball_step_(X, V, M, Y, lr=0.1, momentum=0.8)
            for found, expected in zip((X, V, before), wanted, strict=True):
                torch.testing.assert_close(found, expected)


def test_second_derivatives_of_a_loss_whose_arguments_depend_on_each_other():
    def gradient(function, *, create_graph):
        X = rand(4, 4).requires_grad_()
        X.register_hook(lambda g: 2 * g)
        return torch.autograd.grad(function(X), X, create_graph=create_graph)[0]

    for function in (
        lambda X: mcf.residual_loss(X, X),
        lambda X: mcf.residual_loss(X, 2 * X.mT),
        lambda X: mcf.residual_loss(X, None, X * X),
    ):
        torch.testing.assert_close(gradient(function, create_graph=True), gradient(function, create_graph=False))
        assert torch.autograd.gradgradcheck(function, rand(4, 4).requires_grad_())


def test_a_batch_of_gradients_at_once():
    X, M = rand(3, 4, 5).requires_grad_(), rand(3, 5, 6, seed=1)
    Y = rand(3, 4, 6, seed=2)
    value = mcf.residual_loss(X, M, Y)
    (batched,) = torch.autograd.grad(value, X, torch.eye(3).double(), is_grads_batched=True, retain_graph=True)
    (whole,) = torch.autograd.grad(value.sum(), X)
    torch.testing.assert_close(batched.sum(0), whole)


def test_other_devices_layouts_and_mixed_dtypes_are_refused():
    A = rand(3, 3, dtype=torch.float32)
    for other, error in ((A.to("meta"), ValueError), (A.to_sparse(), TypeError), (A.bfloat16(), TypeError)):
        with pytest.raises(error):
            mcf.residual_loss(A, A, other)
        with pytest.raises(error):
            mcf.distance(A, other)
        with pytest.raises(error):
            mcf.heavy_ball_step_(A.clone(), torch.zeros(3, 3), A, other, lr=0.1, momentum=0.9)
    for M in (A[None], A[0], A[0, 0]):
        with pytest.raises(ValueError, match=r"X must hold|must be a matrix|M \[\*, n, p\]"):
            mcf.heavy_ball_step_(A.clone(), torch.zeros(3, 3), M, lr=0.1, momentum=0.9)
