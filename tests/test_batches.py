"""Many problems at once: each gets what it would get alone."""

from __future__ import annotations

import pytest
import torch
from problems import well_conditioned

import matconv_fast as mcf


@pytest.mark.long
def test_one_diverging_problem_leaves_the_other_63_equal_to_their_lone_solves(backend):
    M = well_conditioned(5, 64, dtype=torch.float32)
    M[17] *= 20  # its stability limit is 400 times lower
    solver = mcf.HeavyBall(lr=0.4, momentum=0.8)
    together = mcf.solve(M, solver=solver, rtol=1e-4, max_iters=3_000)
    assert mcf.Status(together.status[17].item()) is mcf.Status.DIVERGED
    for b in range(64):
        alone = mcf.solve(M[b], solver=solver, rtol=1e-4, max_iters=3_000)
        assert torch.equal(together.X[b], alone.X)
        assert torch.equal(together.iterations[b], alone.iterations)
        assert torch.equal(together.status[b], alone.status)
        mine = together.history[b]
        # in lanes the squares of a problem are added in another order
        torch.testing.assert_close(mine[~mine.isnan()], alone.history, rtol=2e-6 if backend == "cpu" else 0, atol=0)
    assert int(together.converged.sum()) == 63


def test_a_nan_problem_stops_alone(backend):
    M = well_conditioned(5, 4)
    M[2, 0, 0] = torch.nan
    sol = mcf.solve(M, solver=mcf.HeavyBall(0.3, 0.8), rtol=1e-4)
    assert sol.status.tolist() == [0, 0, 4, 0]
    assert "problem 2" in sol.message
    assert "M holds NaN or infinity" in sol.message


@pytest.mark.parametrize(
    ("M_batch", "Y_batch", "X_batch"),
    [
        ((), (), (3,)),
        ((3,), (), ()),
        pytest.param((), (3,), (), marks=pytest.mark.long),
        pytest.param((2, 1), (3,), (), marks=pytest.mark.long),
        pytest.param((1,), (2, 3), (1, 1), marks=pytest.mark.long),
        ((0,), (), ()),
    ],
)
def test_batches_broadcast(backend, M_batch, Y_batch, X_batch):
    generator = torch.Generator().manual_seed(0)
    M = well_conditioned(4, *M_batch)
    Y = torch.rand(*Y_batch, 3, 4, generator=generator, dtype=torch.float64)
    X0 = torch.rand(*X_batch, 3, 4, generator=generator, dtype=torch.float64)
    sol = mcf.solve(M, Y, X0, solver=mcf.HeavyBall(), rtol=1e-6)
    batch = torch.broadcast_shapes(M_batch, Y_batch, X_batch)
    assert sol.X.shape == (*batch, 3, 4)
    for name in ("loss", "residual_norm", "iterations", "status", "converged"):
        assert getattr(sol, name).shape == batch
    assert sol.history.shape[:-1] == batch
    assert bool(sol.converged.all())
    torch.testing.assert_close(sol.X @ M, Y.expand(*batch, 3, 4), atol=1e-5, rtol=0)


def test_a_tolerance_per_problem_follows_from_its_own_Y(backend):
    M = well_conditioned(4)
    Y = torch.stack([torch.eye(4), 100 * torch.eye(4)]).double()
    sol = mcf.solve(M, Y, solver=mcf.HeavyBall(), rtol=1e-3)
    assert sol.residual_norm[0] <= 1e-3 * 2 < sol.residual_norm[1] <= 1e-3 * 200


def test_hyperparameters_per_problem(backend):
    M = well_conditioned(4, 2)
    lr = torch.tensor([0.1, 0.4], dtype=torch.float64)
    together = mcf.solve(M, solver=mcf.HeavyBall(lr, 0.5), max_iters=50, rtol=0.0)
    for b in range(2):
        alone = mcf.solve(M[b], solver=mcf.HeavyBall(lr[b].item(), 0.5), max_iters=50, rtol=0.0)
        assert torch.equal(together.X[b], alone.X)
    tensor = mcf.solve(M[0], solver=mcf.HeavyBall(lr[0], torch.tensor(0.5)), max_iters=50, rtol=0.0)
    assert torch.equal(tensor.X, together.X[0])
