"""Resuming: a solve in several calls gives the bits of a solve in one call."""

from __future__ import annotations

import pytest
import torch
from problems import small, well_conditioned

import matconv_fast as mcf

SOLVERS = {"heavy ball": mcf.HeavyBall(lr=0.3, momentum=0.7), "adam": mcf.Adam(lr=0.02)}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_resuming_equals_one_run(backend, solver, batch):
    M = well_conditioned(6, *batch)
    X0 = torch.rand(*batch, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = {"solver": SOLVERS[solver], "rtol": 0.05}
    whole = mcf.solve(M, None, X0, max_iters=400, **options)
    first = mcf.solve(M, None, X0, max_iters=17, **options)
    second = mcf.solve(M, None, first, max_iters=120, **options)
    third = mcf.solve(M, None, second, max_iters=400 - 17 - 120, rtol=0.05)
    assert torch.equal(whole.X, third.X)
    assert torch.equal(whole.iterations, third.iterations)
    assert torch.equal(whole.status, third.status)
    for a, b in zip(whole.state.state, third.state.state, strict=True):
        assert torch.equal(a, b)
    if not batch:
        history = torch.cat([first.history, second.history[1:], third.history[1:]])
        assert torch.equal(whole.history, history)
    assert int(first.iterations.max()) == 17  # the earlier solution is unchanged


@pytest.mark.long
def test_resuming_keeps_stagnation_and_divergence_exact(backend):
    M, X0 = small(dtype=torch.float32)
    options = {"solver": mcf.HeavyBall(), "rtol": 1e-9, "patience": 50}
    whole = mcf.solve(M, None, X0, **options)
    first = mcf.solve(M, None, X0, max_iters=77, **options)
    second = mcf.solve(M, None, first, **options)
    assert mcf.Status(whole.status.item()) is mcf.Status.STAGNATED
    assert torch.equal(whole.iterations, second.iterations)
    assert torch.equal(whole.X, second.X)
    unstable = {"solver": mcf.HeavyBall(lr=8.0, momentum=0.9), "rtol": 1e-3}
    whole = mcf.solve(M, None, X0, **unstable)
    second = mcf.solve(M, None, mcf.solve(M, None, X0, max_iters=3, **unstable), **unstable)
    assert mcf.Status(whole.status.item()) is mcf.Status.DIVERGED
    assert int(whole.iterations) > 3
    assert torch.equal(whole.iterations, second.iterations)
    assert torch.equal(whole.X, second.X)


def test_resuming_with_a_tighter_tolerance_continues(backend):
    M, X0 = small()
    loose = mcf.solve(M, None, X0, solver=mcf.HeavyBall(), rtol=1e-2)
    tight = mcf.solve(M, None, loose, rtol=1e-6)
    assert torch.equal(tight.X, mcf.solve(M, None, X0, solver=mcf.HeavyBall(), rtol=1e-6).X)


@pytest.mark.long
def test_resuming_a_batch_leaves_the_stagnated_as_they_are(backend):
    M = torch.stack([torch.diag(torch.tensor([1.0, 2.0, 0.0])), torch.diag(torch.tensor([1.0, 2.0, 0.05]))])
    whole = mcf.solve(M, solver=mcf.HeavyBall(), patience=100)
    first = mcf.solve(M, solver=mcf.HeavyBall(), patience=100, max_iters=700)
    second = mcf.solve(M, X0=first, patience=100)
    assert whole.status.tolist() == [mcf.Status.STAGNATED, mcf.Status.CONVERGED]
    assert torch.equal(whole.X, second.X)
    assert torch.equal(whole.iterations, second.iterations)
    assert torch.equal(whole.status, second.status)
    patient = mcf.solve(M, X0=first, patience=200)  # another tolerance: the stagnated problem runs on
    assert patient.iterations[0] > second.iterations[0]


def test_resuming_on_another_equation_keeps_no_status(backend):
    M, _ = small(dtype=torch.float32)
    far = mcf.solve(M, 1e12 * torch.eye(6), X0=mcf.solve(M, solver=mcf.HeavyBall()))
    assert bool(far.converged), far.message
    near = mcf.solve(M + 0.1, X0=mcf.solve(M, solver=mcf.HeavyBall(), patience=20), patience=200)
    assert bool(near.converged), near.message


def test_a_solution_shares_no_memory_with_its_checkpoint(backend):
    M, X0 = small()
    sol, same = (mcf.solve(M, None, X0, solver=mcf.HeavyBall(), max_iters=9) for _ in range(2))
    for t in (sol.X, sol.iterations, sol.status):
        t.zero_()
    assert torch.equal(mcf.solve(M, X0=sol, max_iters=9).X, mcf.solve(M, X0=same, max_iters=9).X)
