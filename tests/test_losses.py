"""residual_loss, distance, is_close and the heavy-ball steps: values, gradients, zeros, empties, low precision."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import matconv_fast as mcf

pytestmark = pytest.mark.usefixtures("backend")


def rand(*shape, dtype=torch.float64, seed=0, requires_grad=False):
    t = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return t.requires_grad_(requires_grad)


VALUES = {
    "mse": lambda R: (R**2).mean((-2, -1)),
    "sse": lambda R: (R**2).sum((-2, -1)),
    "fro": lambda R: (R**2).sum((-2, -1)).sqrt(),
}


@pytest.mark.parametrize("loss", VALUES)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_residual_loss_is_the_formula(loss, batch):
    X, M, Y = rand(*batch, 3, 4), rand(4, 5, seed=1), rand(*batch[-1:], 3, 5, seed=2)
    torch.testing.assert_close(mcf.residual_loss(X, M, Y, loss=loss), VALUES[loss](X @ M - Y))
    torch.testing.assert_close(mcf.ResidualLoss(loss)(X, M, Y), VALUES[loss](X @ M - Y))
    torch.testing.assert_close(mcf.residual_loss(X, None, X / 2, loss=loss), VALUES[loss](X / 2))
    square = rand(4, 3, seed=3)
    torch.testing.assert_close(mcf.residual_loss(X, square, loss=loss), VALUES[loss](X @ square - torch.eye(3)))


@pytest.mark.long
@pytest.mark.parametrize("loss", VALUES)
def test_residual_loss_is_differentiable_twice_by_everything(loss):
    tensors = [
        rand(2, 3, 4, requires_grad=True),
        rand(4, 5, seed=1, requires_grad=True),
        rand(3, 5, seed=2, requires_grad=True),
    ]
    assert gradcheck(lambda *t: mcf.residual_loss(*t, loss=loss), tensors)
    assert gradgradcheck(lambda *t: mcf.residual_loss(*t, loss=loss), tensors)


def test_the_gradient_of_a_norm_is_0_at_0():
    X = torch.eye(3, requires_grad=True)
    mcf.residual_loss(X, torch.eye(3), loss="fro").backward()
    assert torch.equal(X.grad, torch.zeros(3, 3))
    A = torch.ones(2, 2, requires_grad=True)
    for ord_ in ("fro", "max", 1):
        (gradient,) = torch.autograd.grad(mcf.distance(A, torch.ones(2, 2), ord=ord_), A)
        assert torch.equal(gradient, torch.zeros(2, 2))


@pytest.mark.parametrize("loss", VALUES)
@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 2), (3, 3, 0)])
def test_empty_shapes(loss, shape):
    m, n, p = shape
    X = torch.ones(m, n, requires_grad=True)
    value = mcf.residual_loss(X, torch.ones(n, p), torch.zeros(m, p), loss=loss)
    assert float(value.detach()) == 0.0
    value.backward()
    assert torch.equal(X.grad, torch.zeros(m, n))
    for ord_ in ("fro", "max", 1):
        assert float(mcf.distance(torch.ones(m, n)[:, :0], torch.ones(m, 0), ord=ord_)) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype):
    X, M, Y = rand(30, 40, dtype=dtype, requires_grad=True), rand(40, 50, dtype=dtype), rand(30, 50, dtype=dtype)
    loss = mcf.residual_loss(X, M, Y)
    truth = ((X.double() @ M.double() - Y.double()) ** 2).mean()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    loss.backward()
    assert X.grad.dtype == dtype
    assert mcf.distance(X, X + 1).dtype == torch.float32
    # float32 state beside low-precision data
    assert mcf.residual_loss(X.float(), M, Y).dtype == torch.float32


def test_distance_is_the_formula_and_broadcasts():
    A, B = rand(2, 3, 4), rand(3, 4, seed=1)
    D = A - B
    torch.testing.assert_close(mcf.distance(A, B), (D**2).sum((-2, -1)).sqrt())
    torch.testing.assert_close(mcf.distance(A, B, ord="max"), D.abs().amax((-2, -1)))
    torch.testing.assert_close(mcf.distance(A, B, ord=1), D.abs().sum((-2, -1)))
    big = torch.full((2, 2), 1e200, dtype=torch.float64)
    torch.testing.assert_close(mcf.distance(big, -big, ord="max").item(), 2e200)


def test_is_close_is_the_stated_rule():
    B = torch.diag(torch.tensor([3.0, 4.0]))  # norm 5
    A = B.clone()
    assert bool(mcf.is_close(A, B))
    A[0, 1] = 0.01
    assert not bool(mcf.is_close(A, B))
    assert bool(mcf.is_close(A, B, atol=0.011))
    assert bool(mcf.is_close(A, B, rtol=0.0021))
    assert not bool(mcf.is_close(A, B, atol=0.009, rtol=0.0019))
    A[1, 0] = torch.nan
    assert not bool(mcf.is_close(A, B, atol=1e9))
    batch = mcf.is_close(torch.stack([B, B + 1]), B, rtol=1e-3)
    assert batch.tolist() == [True, False]


@pytest.mark.parametrize("loss", VALUES)
def test_a_step_is_sgds(loss):
    X, M, Y = rand(3, 4, requires_grad=True), rand(4, 5, seed=1), rand(3, 5, seed=2)
    optimizer = torch.optim.SGD([X], lr=0.1, momentum=0.9)
    mine, V = X.detach().clone(), torch.zeros(3, 4, dtype=torch.float64)
    functional = mine.clone(), V.clone()
    for _ in range(5):
        optimizer.zero_grad()
        value = VALUES[loss](X @ M - Y)
        value.backward()
        optimizer.step()
        *functional, before = mcf.heavy_ball_step(*functional, M, Y, lr=0.1, momentum=0.9, loss=loss)
        torch.testing.assert_close(before, value.detach())
        torch.testing.assert_close(mcf.heavy_ball_step_(mine, V, M, Y, lr=0.1, momentum=0.9, loss=loss), value.detach())
    torch.testing.assert_close(mine, X.detach())
    torch.testing.assert_close(functional[0], X.detach())
    torch.testing.assert_close(V, optimizer.state[X]["momentum_buffer"])


@pytest.mark.long
@pytest.mark.parametrize("loss", VALUES)
def test_the_functional_step_is_differentiable_by_lr_and_momentum_too(loss):
    X, V, M, Y = (rand(*s, seed=k, requires_grad=True) for k, s in enumerate([(3, 4), (3, 4), (4, 5), (3, 5)]))
    lr, momentum = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 0.9))

    def step(X, V, M, Y, lr, momentum):
        return mcf.heavy_ball_step(X, V, M, Y, lr=lr, momentum=momentum, loss=loss)

    assert gradcheck(step, (X, V, M, Y, lr, momentum))
    assert gradgradcheck(step, (X, V, M, Y, lr, momentum))


def test_the_step_in_place_serves_leaves_and_views():
    X = torch.zeros(4, 4, requires_grad=True)
    storage = torch.zeros(4, 8)
    V = storage[:, ::2]
    mcf.heavy_ball_step_(X, V, torch.eye(4), lr=0.5, momentum=0.9)
    assert X.grad is None
    assert torch.equal(X.detach(), 0.0625 * torch.eye(4))
    assert torch.equal(storage[:, 1::2], torch.zeros(4, 4))


def test_a_step_with_a_value_per_problem():
    X, V, M = torch.zeros(2, 3, 3), torch.zeros(2, 3, 3), torch.eye(3)
    lr = torch.tensor([0.0, 0.9])
    losses = mcf.heavy_ball_step_(X, V, M, lr=lr, momentum=0.0, loss="sse")
    assert losses.tolist() == [3.0, 3.0]
    assert torch.equal(X[0], torch.zeros(3, 3))
    torch.testing.assert_close(X[1], 1.8 * torch.eye(3))
