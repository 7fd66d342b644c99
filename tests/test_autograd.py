"""First and second derivatives of loss, functional step and distance by every argument, and function transforms."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import matconv_fast as mcf

pytestmark = pytest.mark.usefixtures("backend")
LOSSES = ("mse", "sse", "fro")
PLAIN = {
    "mse": lambda R: R.square().mean((-2, -1)),
    "sse": lambda R: R.square().sum((-2, -1)),
    "fro": lambda R: R.square().sum((-2, -1)).sqrt(),
}


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensors(*batch):
    return [rand(*batch, *shape, seed=seed) for seed, shape in enumerate([(3, 4), (3, 4), (4, 5), (3, 5)])]


def loss(X, V, M, Y):
    return mcf.residual_loss(X, M, Y)


def step(X, V, M, Y, *, kind="mse", lr=0.1, momentum=0.9):
    return mcf.heavy_ball_step(X, V, M, Y, lr=lr, momentum=momentum, loss=kind)


def distance(X, V, M, Y):
    return mcf.distance(X, V)


def plain_step(X, V, M, Y, *, kind="mse", lr=0.1, momentum=0.9):
    """With autograd's own gradient of the loss, which is itself differentiable."""
    X = X if X.requires_grad else X.detach().requires_grad_()
    value = PLAIN[kind](X @ M - Y)
    (G,) = torch.autograd.grad(value.sum(), X, create_graph=True)
    V = momentum * V + G
    return X - lr * V, V, value


FUNCTIONS = {"loss": loss, "step": step, "distance": distance}


def mixture(result):
    """A scalar of everything that a function returns, with a different gradient by each entry."""
    results = result if isinstance(result, tuple) else (result,)
    return sum((k + 1) * (r * torch.arange(1, r.numel() + 1).view(r.shape)).sum() for k, r in enumerate(results))


@pytest.mark.parametrize("batch", [(), (2,), (2, 2)])
@pytest.mark.parametrize("kind", LOSSES)
def test_a_step_is_differentiated_as_autograd_would(kind, batch):
    mine, plain = ([t.requires_grad_() for t in tensors(*batch)] for _ in range(2))
    rates = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 0.9)]
    first = torch.autograd.grad(mixture(step(*mine, kind=kind, lr=rates[0], momentum=rates[1])), (*mine, *rates))
    truth = torch.autograd.grad(
        mixture(plain_step(*plain, kind=kind, lr=rates[0], momentum=rates[1])), (*plain, *rates)
    )
    torch.testing.assert_close(first, truth)


@pytest.mark.long
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("case", ["batch", "no M", "no Y", "broadcast"])
def test_a_step_has_first_and_second_derivatives(kind, case):
    X, V, M, Y = tensors(2)
    if case == "no M":
        inputs, function = (X, V, Y[..., :4]), lambda X, V, Y: step(X, V, None, Y, kind=kind)
    elif case == "no Y":
        inputs, function = (X, V, M[..., :3]), lambda X, V, M: step(X, V, M, None, kind=kind)
    elif case == "broadcast":
        inputs, function = (X, V, M[0], Y), lambda *t: step(*t, kind=kind)
    else:
        inputs, function = (X, V, M, Y), lambda *t: step(*t, kind=kind)
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_a_step_at_the_solution_has_gradient_0_of_fro():
    X = torch.eye(3, dtype=torch.float64, requires_grad=True)
    X2, V2, value = step(X, torch.zeros(3, 3).double(), torch.eye(3).double(), None, kind="fro")
    assert value == 0
    assert torch.equal(V2, torch.zeros(3, 3).double())
    (gradient,) = torch.autograd.grad(X2.sum(), X)
    assert torch.equal(gradient, torch.ones(3, 3).double())


@pytest.mark.long
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("norm", ["fro", "max", 1])
def test_a_distance_has_first_and_second_derivatives(norm, batch):
    A, B = (rand(*batch, 3, 4, seed=seed).requires_grad_() for seed in (0, 1))
    assert gradcheck(lambda A, B: mcf.distance(A, B, ord=norm), (A, B))
    assert gradgradcheck(lambda A, B: mcf.distance(A, B, ord=norm), (A, B))


def test_equal_largest_entries_share_the_gradient():
    A = torch.tensor([[3.0, -3.0], [1.0, 3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(mcf.distance(A, torch.zeros(2, 2), ord="max"), A)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0], [0.0, 1.0]]) / 3)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_second_backward_gives_the_same_and_nothing_saved_is_written_to(name):
    inputs = [t.requires_grad_() for t in tensors()]
    result = FUNCTIONS[name](*inputs)
    value = mixture(result)
    versions = [t._version for t in inputs]
    before = [t.detach().clone() for t in inputs]
    first = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
    first = [None if t is None else t.clone() for t in first]
    for _ in range(2):
        later = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
        for a, b in zip(first, later, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
    assert versions == [t._version for t in inputs]
    for t, old in zip(inputs, before, strict=True):
        assert torch.equal(t, old)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_single_arguments(name):
    for wanted in range(4):
        inputs = tensors()
        everything = [t.clone().requires_grad_() for t in inputs]
        all_of_them = torch.autograd.grad(mixture(FUNCTIONS[name](*everything)), everything, allow_unused=True)
        inputs[wanted].requires_grad_()
        value = mixture(FUNCTIONS[name](*inputs))
        if all_of_them[wanted] is None:
            assert not value.requires_grad
        else:
            torch.testing.assert_close(torch.autograd.grad(value, inputs[wanted])[0], all_of_them[wanted])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_batch_of_gradients_at_once(name):
    inputs = [t.requires_grad_() for t in tensors(3)]
    result = FUNCTIONS[name](*inputs)
    result = result if isinstance(result, torch.Tensor) else result[2]
    (batched,) = torch.autograd.grad(result, inputs[0], torch.eye(3).double(), is_grads_batched=True, retain_graph=True)
    (whole,) = torch.autograd.grad(result.sum(), inputs[0])
    torch.testing.assert_close(batched.sum(0), whole)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_transforms(name):
    """vmap, grad and jvp, against a loop, autograd and finite differences."""
    function, inputs = FUNCTIONS[name], tensors(3)
    each = [function(*(t[b] for t in inputs)) for b in range(3)]
    together = torch.func.vmap(function)(*inputs)
    if isinstance(together, tuple):
        for k, t in enumerate(together):
            torch.testing.assert_close(t, torch.stack([e[k] for e in each]))
    else:
        torch.testing.assert_close(together, torch.stack(each))

    lone = [t[0] for t in inputs]
    leaves = [t.clone().requires_grad_() for t in lone]
    (truth,) = torch.autograd.grad(mixture(function(*leaves)), leaves[0])
    found = torch.func.grad(lambda X: mixture(function(X, *lone[1:])))(lone[0])
    torch.testing.assert_close(found, truth)

    direction = rand(3, 4, seed=9)
    _, tangent = torch.func.jvp(lambda X: mixture(function(X, *lone[1:])), (lone[0],), (direction,))
    torch.testing.assert_close(tangent, (truth * direction).sum())


@pytest.mark.parametrize("name", ["loss", "step"])
def test_autocast_follows_matmul(name):
    """The product is in autocast's dtype, as ``X @ M`` is; the rest is in the inputs' dtype."""
    X, V, M, Y = (t.float() for t in tensors())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = mcf.residual_loss(X, M, Y) if name == "loss" else step(X, V, M, Y)[2]
        R = X @ M - Y
    assert (value.dtype, R.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(value, R.square().mean(), rtol=1e-6, atol=0.0)
    assert value != mcf.residual_loss(X, M, Y)


def test_autocast_does_not_change_distances_and_steps_in_place():
    X, V, M, Y = (t.float() for t in tensors())
    plain = X.clone(), V.clone()
    wanted = mcf.distance(X, V)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mcf.distance(X, V), wanted)
        before = mcf.heavy_ball_step_(X, V, M, Y, lr=0.1, momentum=0.9)
    assert X.dtype == V.dtype == before.dtype == torch.float32
    exact = mcf.heavy_ball_step_(*plain, M, Y, lr=0.1, momentum=0.9)
    torch.testing.assert_close(before, exact, rtol=2e-2, atol=0.0)
    torch.testing.assert_close(X, plain[0], rtol=2e-2, atol=2e-2)


def test_a_step_in_place_refuses_transforms_by_name():
    X, V, M, Y = tensors(3)
    before = X.clone()
    with pytest.raises(NotImplementedError, match=r"use heavy_ball_step, or pass the whole batch"):
        torch.func.vmap(lambda *t: mcf.heavy_ball_step_(*t, lr=0.1, momentum=0.9))(X, V, M, Y)
    assert torch.equal(X, before)
