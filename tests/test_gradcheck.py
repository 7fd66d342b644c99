"""Derivatives of `residual_loss` by every argument, loss, batch shape and backend; gradcheck in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from derivatives import CASES, LARGE, LOSSES, PLAIN, TAILS, both_orders, rand, tensors
from torch.autograd import gradcheck

import matconv_fast as mcf

ARGUMENTS = [a for size in (1, 2) for a in itertools.combinations("XMY", size)]


def scaled(loss, module=False):
    """The loss times a factor that makes its gradients of order 1: gradcheck's atol of 1e-5 would hide small ones."""

    def function(X, M, Y):
        elements = X.shape[-2] * (X if M is None else M).shape[-1]
        value = mcf.ResidualLoss(loss)(X, M, Y) if module else mcf.residual_loss(X, M, Y, loss=loss)
        return value * {"mse": elements, "sse": 1, "fro": elements**0.5}[loss]

    return function


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_residual_loss(backend, loss, case):
    both_orders(scaled(loss), tensors(CASES[case]), backend)


@pytest.mark.long
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("names", ARGUMENTS, ids="".join)
@pytest.mark.parametrize("case", ["batch", "broadcast"])
def test_residual_loss_by_some_arguments(backend, loss, names, case):
    both_orders(scaled(loss), tensors(CASES[case], names), backend)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_module_and_batches_of_gradients(backend, loss):
    inputs = tensors(CASES["batch"])
    both_orders(scaled(loss, module=True), inputs, backend, check_batched_grad=backend != "triton")


@pytest.mark.long
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("case", "names"), [("columns", "XM"), ("rows", "XM"), ("square", "XMY"), ("square", "Y")])
def test_residual_loss_beyond_the_small_kernels(backend, loss, case, names):
    inputs = tensors(LARGE[case], names)
    if case == "square":
        both_orders(scaled(loss), inputs, backend, fast_mode=True)
    else:
        assert gradcheck(scaled(loss), inputs, fast_mode=True)


def gradients(function, inputs, weights, names, **options):
    wanted = [t for t, name in zip(inputs, "XMY", strict=True) if t is not None and name in names]
    return torch.autograd.grad((function(*inputs) * weights).sum(), wanted, **options)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("names", ["XMY", "XM", "X", "M", "Y"])
@pytest.mark.parametrize(
    "shapes",
    [TAILS, CASES["batch"], CASES["one row"], *(pytest.param(s, marks=pytest.mark.long) for s in LARGE.values())],
    ids=["tails", "batch", "one row", *(f"large {name}" for name in LARGE)],
)
def test_float32_gradients_miss_no_more_than_those_of_the_formula(backend, loss, names, shapes):
    """Allowance: twice what autograd of the formula in float32 misses the float64 gradient by, plus 1e-6 of it."""
    if shapes[2] is None and "Y" in names:
        pytest.skip("there is no Y")
    given = tensors(shapes, names, torch.float32)
    exact = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in given]
    weights = 1.5 - torch.arange(math.prod(shapes[0][:-2]), dtype=torch.float64).view(shapes[0][:-2])

    def formula(X, M, Y):
        return PLAIN[loss](X @ M - (torch.eye(shapes[0][-2], shapes[1][-1], dtype=X.dtype) if Y is None else Y))

    def library(X, M, Y):
        return mcf.residual_loss(X, M, Y, loss=loss)

    plain, truth = (gradients(formula, inputs, weights, names) for inputs in (given, exact))
    for create_graph in (False, True):
        found = gradients(library, given, weights, names, create_graph=create_graph)
        for mine, theirs, t in zip(found, plain, truth, strict=True):
            allowance = 2 * (theirs.double() - t).abs().max() + 1e-6 * t.abs().max()
            assert (mine.double() - t).abs().max() <= allowance
            assert mine.dtype == torch.float32
            assert mine.requires_grad == create_graph


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", ["ragged", "no M", "no Y", "batch", pytest.param("columns", marks=pytest.mark.long)])
def test_a_later_backward_gives_the_same_bits(backend, loss, case):
    """The first one scales in place what the forward made; a later one computes it anew."""
    inputs = tensors((CASES | LARGE)[case])
    wanted = [t for t in inputs if t is not None]
    value = mcf.residual_loss(*inputs, loss=loss)
    weights = rand(*value.shape, seed=9)
    first, second, third = (
        torch.autograd.grad(value, wanted, w, retain_graph=True) for w in (weights, weights, -weights)
    )
    for a, b, negative in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, -negative)
        assert a.abs().max() > 0


NORMS = {
    "residual_loss": lambda X, M, Y: mcf.residual_loss(X, M, Y, loss="fro"),
    "distance": lambda X, M, Y: mcf.distance(X @ M, Y),
    "step": lambda X, M, Y: mcf.heavy_ball_step(X, X, M, Y, lr=0.1, momentum=0.9, loss="fro")[2],
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("function", NORMS)
def test_the_gradient_of_a_norm_is_0_at_0(backend, function, create_graph):
    """In a batch whose other problem is elsewhere; of integers, so that its residual is exactly 0."""
    X, M = rand(2, 3, 4, seed=1).mul(3).round(), rand(2, 4, 2, seed=2).mul(3).round()
    Y = X @ M
    Y[1] += 1
    inputs = [t.requires_grad_() for t in (X, M, Y)]
    value = NORMS[function](*inputs)
    assert value.tolist() == [0.0, 6**0.5]
    for gradient in torch.autograd.grad(value.sum(), inputs, create_graph=create_graph):
        assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
        assert gradient[1].isfinite().all()
        assert gradient[1].abs().max() > 0
