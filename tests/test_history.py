"""The history of losses: how it is thinned, and in batches."""

from __future__ import annotations

import sys

import pytest
import torch
from derivatives import rand
from problems import small, well_conditioned

import matconv_fast as mcf
from matconv_fast.solve import history as history_module
from matconv_fast.solve.snapshots import curves

iterate_module = sys.modules["matconv_fast.solve.iterate"]  # the name is that of the function, too


@pytest.mark.long
def test_a_thin_history_keeps_no_chunk_alive(backend):
    M, X0 = small(n=4)
    history = mcf.solve(M, None, X0, solver=mcf.HeavyBall(), rtol=0.0, max_iters=30_000, record_every=10_000).history
    assert history.shape == (4,)
    assert history.untyped_storage().nbytes() < 1000


@pytest.mark.parametrize("every", [1, 7, 10, 1000])
def test_record_every_thins_the_history(backend, every):
    M, X0 = small()
    options = {"solver": mcf.HeavyBall(), "rtol": 0.0, "max_iters": 95, "check_every": 13}
    full = mcf.solve(M, None, X0, **options).history
    assert torch.equal(mcf.solve(M, None, X0, record_every=every, **options).history, full[::every])


@pytest.mark.parametrize("every", [1, 7])
def test_a_batch_records_what_its_problems_record_one_by_one(backend, every):
    """They stop in different chunks, and no chunk starts at a recorded iterate."""
    M = well_conditioned(4, 3)
    M[1] *= 0.6
    options = {"solver": mcf.HeavyBall(0.3, 0.5), "rtol": 1e-3, "check_every": 13, "record_every": every}
    together = mcf.solve(M, **options)
    assert len({int(count) // 13 for count in together.iterations}) > 1
    for b in range(3):
        alone = mcf.solve(M[b], **options).history
        torch.testing.assert_close(together.history[b, : len(alone)], alone)
        assert together.history[b, len(alone) :].isnan().all()
    assert together.history.shape[1] == int(together.iterations.max()) // every + 1


def test_record_every_0_records_nothing(backend):
    M, X0 = small()
    assert mcf.solve(M, None, X0, solver=mcf.HeavyBall(), record_every=0, max_iters=20).history.shape == (0,)


MOST = 60  # entries, in place of 2^24


@pytest.fixture
def few_entries(monkeypatch):
    for module in (history_module, iterate_module):
        monkeypatch.setattr(module, "MOST_ENTRIES", MOST)


def thinned_to(full):
    """The stride at which it fits."""
    every = 1
    while full.numel() // full.shape[-1] * -(-full.shape[-1] // every) > MOST:
        every *= 2
    return every


@pytest.mark.parametrize("check_every", [1, 7, 13, None])
@pytest.mark.parametrize("iterations", [19, 20, 21, 200])
def test_by_default_every_kth_entry_is_kept(backend, few_entries, check_every, iterations):
    M = well_conditioned(4, 3)
    options = {"solver": mcf.HeavyBall(), "rtol": 0.0, "max_iters": iterations, "check_every": check_every}
    full = mcf.solve(M, record_every=1, **options)
    sol = mcf.solve(M, **options)
    every = thinned_to(full.history)
    assert sol.record_every == every
    assert sol.history.numel() <= MOST < full.history.numel() or every == 1
    assert torch.equal(sol.history, full.history[:, ::every])
    assert full.record_every == 1


def test_one_slow_problem_keeps_no_history_for_all(backend, few_entries):
    M = torch.eye(3).repeat(10, 1, 1)
    M[4] = torch.diag(torch.tensor([1.0, 1.0, 0.05]))
    sol = mcf.solve(M, solver=mcf.HeavyBall(1.0, 0.5), rtol=1e-3, max_iters=500)
    assert sol.history.numel() <= MOST
    assert sol.record_every > 1
    assert sol.history[4].isfinite().all()
    full = mcf.solve(M, solver=mcf.HeavyBall(1.0, 0.5), rtol=1e-3, max_iters=500, record_every=1)
    torch.testing.assert_close(sol.history, full.history[:, :: sol.record_every], equal_nan=True, rtol=0, atol=0)


def test_fallbacks_share_the_bound(backend, few_entries):
    """Nine problems are done by one factor; one is singular, and LSQR takes more iterations than fit."""
    M = rand(10, 30, 30, seed=1)
    M[4, 0] = M[4, 1]
    full = mcf.solve(M, solver=mcf.Auto(), record_every=1)
    sol = mcf.solve(M, solver=mcf.Auto())
    assert full.history.numel() > MOST >= sol.history.numel()
    assert torch.equal(sol.X, full.X)
    assert sol.record_every > 1
    assert full.record_every == 1
    assert sol.history[4].isfinite().sum() > 1


def test_the_memory_of_a_history_is_not_taken_up_front(backend):
    """Nor kept for entries that are thinned out: 2,000 problems, 10^9 iterations allowed, one made."""
    M = torch.eye(2).expand(2_000, 2, 2)
    sol = mcf.solve(M, torch.eye(2), solver=mcf.Refinement(), max_iters=10**9)
    assert sol.history.shape == (2_000, 2)
    assert sol.history.untyped_storage().nbytes() < 10**5


@pytest.mark.parametrize("every", [1, 2, 7])
def test_a_number_is_kept_to(backend, few_entries, every):
    M, X0 = small()
    sol = mcf.solve(M, None, X0, solver=mcf.HeavyBall(), rtol=0.0, max_iters=300, record_every=every)
    assert sol.history.shape == (300 // every + 1,)
    assert sol.record_every == every


def test_iterate_is_bounded_too(backend, few_entries):
    A, B = torch.ones(5, 2, 2), torch.zeros(5, 2, 2)
    full = mcf.iterate(lambda A: A * 0.9, A, B, record_every=1)
    sol = mcf.iterate(lambda A: A * 0.9, A, B)
    assert sol.record_every == thinned_to(full.history) == 16
    assert torch.equal(sol.history, full.history[:, ::16])


def test_plots_know_the_stride(backend, few_entries):
    M = well_conditioned(4, 3)
    sol = mcf.solve(M, solver=mcf.HeavyBall(), rtol=0.0, max_iters=100)
    (first, *_) = curves(sol, ["a", "b", "c"])
    assert list(first.iterations[:3]) == [0, sol.record_every, 2 * sol.record_every]


def test_a_saved_solution_knows_the_stride(backend, few_entries):
    sol = mcf.solve(well_conditioned(4, 3), solver=mcf.HeavyBall(), rtol=0.0, max_iters=100)
    assert mcf.Solution.from_state_dict(sol.state_dict()).record_every == sol.record_every > 1
