"""Q1 to Q3, and `iterate` in general."""

from __future__ import annotations

import pytest
import torch

import matconv_fast as mcf
from matconv_fast import _workloads

A, B = _workloads.question()


@pytest.mark.parametrize(("stop", "atol"), [(_workloads.equal, 0.0), (_workloads.near, 1e-6)])
def test_Q1_and_Q2_take_the_plain_loops_steps(stop, atol):
    torch.manual_seed(0)
    X, iterations = _workloads.loop_until(stop, A, B)
    torch.manual_seed(0)
    sol = mcf.iterate(_workloads.random_step, A, B, atol=atol, max_iters=100)
    assert torch.equal(sol.X, X)
    assert int(sol.iterations) == iterations == 100
    assert mcf.Status(sol.status.item()) is mcf.Status.MAX_ITERATIONS


def test_Q3_takes_torch_adams_steps(backend):
    X, iterations = _workloads.adam_loop(A, B)
    sol = mcf.solve(None, B, A, solver=mcf.Adam(lr=0.01), loss="fro", atol=1e-6, rtol=0.0, max_iters=100)
    assert int(sol.iterations) == iterations == 100
    assert torch.allclose(sol.X, X, atol=1e-5)
    truth, _ = _workloads.adam_loop(A.double(), B.double())
    double = mcf.solve(None, B.double(), A.double(), solver=mcf.Adam(lr=0.01), loss="fro", rtol=0.0, max_iters=100)
    torch.testing.assert_close(double.X, truth, rtol=1e-10, atol=1e-12)


def halve(X):
    return (X + B) / 2


@pytest.mark.parametrize("check_every", [None, 1, 7, 1000])
@pytest.mark.parametrize("norm", ["fro", "max", 1])
def test_iterate_stops_at_the_first_iterate_that_meets_it(check_every, norm):
    X, k = A, 0
    while mcf.distance(X, B, ord=norm) > 1e-3:
        X, k = halve(X), k + 1
    sol = mcf.iterate(halve, A, B, atol=1e-3, ord=norm, check_every=check_every)
    assert torch.equal(sol.X, X)
    assert int(sol.iterations) == k
    assert bool(sol.converged)
    assert sol.history.shape == (k + 1,)
    torch.testing.assert_close(sol.history[-1], mcf.distance(X, B, ord=norm))


def test_an_update_in_place_is_the_same(backend):
    before = A.clone()

    def in_place(X):
        X.add_(B).div_(2)

    for every in (1, 7):
        sol = mcf.iterate(in_place, A, B, atol=1e-3, check_every=every)
        assert torch.equal(sol.X, mcf.iterate(halve, A, B, atol=1e-3).X)
    assert torch.equal(A, before)


@pytest.mark.parametrize("check_every", [1, 5])
def test_iterate_on_a_batch_stops_one_by_one(check_every):
    starts = torch.stack([A, B + 1e-2 * (A - B), B, torch.full_like(A, torch.nan)])
    sol = mcf.iterate(halve, starts, B, atol=1e-3, check_every=check_every)
    for b in range(3):
        alone = mcf.iterate(halve, starts[b], B, atol=1e-3)
        assert torch.equal(sol.X[b], alone.X)
        assert torch.equal(sol.iterations[b], alone.iterations)
        mine = sol.history[b]
        assert torch.equal(mine[~mine.isnan()], alone.history)
    assert sol.status.tolist() == [0, 0, 0, int(mcf.Status.NONFINITE)]
    assert int(sol.iterations[2]) == 0


def test_iterate_with_a_relative_tolerance_and_a_thin_history():
    sol = mcf.iterate(halve, A, B, rtol=1e-3, record_every=4)
    assert mcf.distance(sol.X, B) <= 1e-3 * B.norm()
    assert sol.history.shape == (int(sol.iterations) // 4 + 1,)
    assert mcf.iterate(halve, A, B, rtol=1e-3, record_every=0).history.shape == (0,)


def test_iterate_that_becomes_nan_says_so():
    sol = mcf.iterate(lambda X: X * torch.nan, A, B)
    assert (int(sol.iterations), sol.status.item()) == (1, mcf.Status.NONFINITE)
    assert "check the update" in sol.message
    with pytest.raises(mcf.ConvergenceError, match="NONFINITE"):
        sol.raise_for_status()


def test_iterate_in_low_precision():
    sol = mcf.iterate(lambda X: X / 2, torch.ones(2, 2).bfloat16(), torch.zeros(2, 2).bfloat16(), atol=0.01)
    assert sol.X.dtype == torch.bfloat16
    assert sol.loss.dtype == torch.float32
    assert int(sol.iterations) == 8


def test_the_result_is_not_the_updates_own_tensor():
    target = B.clone()
    sol = mcf.iterate(lambda X: target, A, B)
    target.zero_()
    assert torch.equal(sol.X, B)


def test_float32_distances_too_small_to_square_are_not_equality():
    tiny = torch.full((2, 2), 1e-25)
    assert not bool(mcf.is_close(tiny, torch.zeros(2, 2)))
    assert int(mcf.iterate(lambda X: X / 2, tiny, torch.zeros(2, 2), max_iters=9).iterations) == 9


def test_an_update_that_needs_gradients_turns_them_on():
    def descend(X):
        with torch.enable_grad():
            X = X.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(mcf.residual_loss(X, None, B, loss="sse"), X)
        return X - 0.3 * gradient

    assert bool(mcf.iterate(descend, A, B, atol=1e-4).converged)
