"""Subclasses of Tensor, parameters, and tensors without memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from round_trips import RESULTS, assert_same, saved
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import matconv_fast as mcf

M = torch.eye(4) + 0.1
V = torch.zeros(4, 4)
STEP = {"lr": 0.1, "momentum": 0.9}


class Sub(Tensor):
    """A plain subclass: PyTorch's functions of it return its type."""


class Logged(Tensor):
    """Records every function that is called on it."""

    calls: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        cls.calls.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("kind", [Sub, Logged])
def test_a_subclass_gives_the_numbers_of_a_plain_tensor(backend, kind):
    def of_kind(t: Tensor) -> Tensor:
        return t.clone().as_subclass(kind)

    def step(t: Tensor) -> Tensor:
        X, velocity = M.clone(), V.clone()
        mcf.heavy_ball_step_(X, velocity, t, **STEP)
        return X

    keeps_its_kind = {
        "residual_loss": lambda t: mcf.residual_loss(t, M),
        "distance": lambda t: mcf.distance(t, V),
        "functional step": lambda t: mcf.heavy_ball_step(t, V, M, **STEP)[0],
        "iterate": lambda t: mcf.iterate(lambda A: A / 2, t, V, atol=1e-3).X,
    }
    for name, call in keeps_its_kind.items():
        result = call(of_kind(M))
        assert type(result) is kind, name
        torch.testing.assert_close(result.as_subclass(kind), call(M).as_subclass(kind), rtol=1e-6, atol=1e-7, msg=name)
    torch.testing.assert_close(step(of_kind(M)), step(M), rtol=1e-6, atol=1e-7)
    X, velocity = of_kind(M), V.clone()
    mcf.heavy_ball_step_(X, velocity, M, **STEP)
    torch.testing.assert_close(X, step(M).as_subclass(kind), rtol=1e-6, atol=1e-7)

    lr = torch.tensor(0.5)
    plain = mcf.solve(M, M, V, solver=mcf.HeavyBall(lr, 0.5), rtol=1e-4)
    for M_, Y_, X_, lr_ in (
        (of_kind(M), M, V, lr),
        (M, of_kind(M), V, lr),
        (M, M, of_kind(V), lr),
        (M, M, V, of_kind(lr)),
        (of_kind(M), of_kind(M), of_kind(V), of_kind(lr)),
    ):
        sol = mcf.solve(M_, Y_, X_, solver=mcf.HeavyBall(lr_, 0.5), rtol=1e-4)
        assert_same(sol, plain)  # the same bits: a solve iterates on plain memory
        assert {type(getattr(sol, name)) for name in RESULTS} == {Tensor}
        assert sol.message == plain.message
        assert_same(mcf.solve(M_, Y_, saved(sol), rtol=1e-6), mcf.solve(M, M, plain, rtol=1e-6))


def test_a_solve_calls_no_function_of_a_subclass_while_it_iterates(backend):
    of_kind, solver = M.as_subclass(Logged), mcf.HeavyBall(torch.tensor(0.3).as_subclass(Logged), 0.5)
    Logged.calls.clear()
    mcf.solve(of_kind, of_kind, of_kind, solver=solver, max_iters=5, rtol=0.0)
    few = len(Logged.calls)
    mcf.solve(of_kind, of_kind, of_kind, solver=solver, max_iters=100, rtol=0.0)
    assert 0 < len(Logged.calls) == 2 * few
    assert not any("matmul" in name or "advance" in name for name in Logged.calls)


def test_a_parameter_is_a_tensor(backend):
    def parameter(t: Tensor) -> torch.nn.Parameter:
        return torch.nn.Parameter(t.clone())

    plain = mcf.solve(M, X0=V)
    sol = mcf.solve(parameter(M), X0=parameter(V))
    assert torch.equal(sol.X, plain.X)
    assert type(sol.X) is Tensor
    weight = parameter(M)
    mcf.solve(weight).X.sum().backward()
    assert weight.grad is not None
    loss = mcf.residual_loss(weight, M)
    assert type(loss) is Tensor
    assert loss.requires_grad
    assert mcf.heavy_ball_step_(weight, V.clone(), M, **STEP) == loss
    assert type(mcf.distance(weight, V)) is Tensor


def test_a_gradient_flows_through_a_subclass(backend):
    for kind in (Sub, Logged):
        leaf = M.clone().requires_grad_()
        plain = M.clone().requires_grad_()
        mcf.solve(leaf.as_subclass(kind)).X.sum().backward()
        mcf.solve(plain).X.sum().backward()
        torch.testing.assert_close(leaf.grad, plain.grad, rtol=1e-6, atol=1e-7)


def test_tensors_without_memory_are_refused(backend):
    fake = FakeTensorMode().from_tensor(M)
    for call in (lambda: mcf.solve(fake), lambda: mcf.solve(M, fake), lambda: mcf.solve(M, None, fake)):
        with pytest.raises(TypeError, match="must be a tensor in memory, got a FakeTensor, which has operators of its"):
            call()
    with pytest.raises(ValueError, match=r"no values to solve for, got a float32 tensor of shape \[4, 4\] on meta"):
        mcf.solve(M.to("meta"))
