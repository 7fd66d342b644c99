"""Modes of the whole process, such as a default device or deterministic algorithms, change no result."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from problems import well_conditioned
from round_trips import RESULTS, assert_same
from torch import Tensor

import matconv_fast as mcf

M = torch.eye(4) + 0.1
V = torch.zeros(4, 4)
STEP = {"lr": 0.1, "momentum": 0.9}


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    before = torch.get_default_device()
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None if before.type == "cpu" else before)


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # also fills new memory with NaN
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "default device meta": lambda: default_device("meta"),
    "default device cpu": lambda: default_device("cpu"),
    "default dtype float64": default_dtype,
    "deterministic": deterministic,
    "inference": torch.inference_mode,
}
X0 = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
MANY = well_conditioned(4, 33, dtype=torch.float32)
WIDE = well_conditioned(70, dtype=torch.float32)
LARGE = torch.eye(520) + torch.rand(520, 520, generator=torch.Generator().manual_seed(0)) / 520


def step_in_place() -> tuple[Tensor, ...]:
    X, velocity = X0.clone(), V.clone()
    return mcf.heavy_ball_step_(X, velocity, M, **STEP), X, velocity


def gradients() -> tuple[Tensor, ...]:
    """With autograd where it records."""
    X, A = X0.clone(), M.clone()
    if torch.is_inference_mode_enabled():
        return mcf.residual_loss(X, A), mcf.solve(A, solver=mcf.HeavyBall()).X
    X.requires_grad_()
    A.requires_grad_()
    value, solution = mcf.residual_loss(X, A), mcf.solve(A, solver=mcf.HeavyBall()).X
    value.backward()
    solution.sum().backward()
    return value.detach(), solution.detach()


def results(sol: mcf.Solution) -> tuple[Any, ...]:
    return *(getattr(sol, name) for name in RESULTS), sol.converged, sol.message, repr(sol)


CALLS: dict[str, Callable[[], Any]] = {
    "solve": lambda: results(mcf.solve(M, X0, solver=mcf.HeavyBall(), rtol=0.3)),
    "resume": lambda: results(mcf.solve(M, X0=mcf.solve(M, solver=mcf.HeavyBall(), max_iters=5), max_iters=5)),
    "iterate": lambda: results(mcf.iterate(lambda A: A / 2, MANY[:2], V, atol=1.0)),
    "residual_loss": lambda: [mcf.residual_loss(X0, M, loss=loss) for loss in ("mse", "sse", "fro")],
    "gradients": gradients,
    "distance": lambda: [mcf.distance(X0, M, ord=norm) for norm in ("fro", "max", 1)],
    "is_close": lambda: [mcf.is_close(X0, M, atol=0.1, rtol=0.2)],
    "heavy_ball_step": lambda: mcf.heavy_ball_step(X0, V, M, **STEP),
    "heavy_ball_step_": step_in_place,
}


LONG: dict[str, Callable[[], Any]] = {
    "solve with momentum auto": lambda: results(mcf.solve(M, X0, solver=mcf.HeavyBall(momentum="auto"))),
    "solve by Adam": lambda: results(mcf.solve(M, solver=mcf.Adam(0.02), max_iters=40)),
    "solve fro": lambda: results(mcf.solve(M, solver=mcf.HeavyBall(1e-3, 0.5), loss="fro", max_iters=40)),
    "solve low precision": lambda: results(mcf.solve(M.bfloat16(), solver=mcf.HeavyBall(), max_iters=40)),
    "solve without M": lambda: results(mcf.solve(None, X0, solver=mcf.HeavyBall(0.3, 0.5))),
    "solve a batch": lambda: results(mcf.solve(MANY, solver=mcf.HeavyBall(), rtol=1e-2, record_every=3)),
    "solve 70": lambda: results(mcf.solve(WIDE, WIDE[:4], V.new_zeros(4, 70), solver=mcf.HeavyBall(), rtol=0.3)),
    "solve a large one": lambda: results(
        mcf.solve(LARGE, solver=mcf.HeavyBall(), max_iters=5)
    ),  # its step size is from power iteration
    "stagnate": lambda: results(mcf.solve(M, solver=mcf.HeavyBall(), rtol=1e-9, patience=20, max_iters=200)),
    "diverge": lambda: results(mcf.solve(M, solver=mcf.HeavyBall(1e3), max_iters=60)),
    "resume a copy": lambda: results(
        mcf.solve(M, X0=copy.deepcopy(mcf.solve(M, solver=mcf.HeavyBall(), max_iters=9)), max_iters=9)
    ),
    "iterate longer": lambda: results(mcf.iterate(lambda A: A / 2, MANY, 0 * MANY, atol=1e-2, check_every=4)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", [*CALLS, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_a_mode_of_the_process_changes_no_result(backend, call, mode):
    function = {**CALLS, **LONG}[call]
    expected = function()
    with MODES[mode]():
        found = function()
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, Tensor):
            assert (a.device, a.dtype) == (b.device, b.dtype)
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b


def test_a_solution_of_inference_mode_continues_outside_of_it(backend):
    with torch.inference_mode():
        first = mcf.solve(M, solver=mcf.HeavyBall(), max_iters=9)
    second = mcf.solve(M, X0=first, max_iters=9)
    assert not second.X.is_inference()
    assert_same(second, mcf.solve(M, X0=mcf.solve(M, solver=mcf.HeavyBall(), max_iters=9), max_iters=9))
