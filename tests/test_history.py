"""The history of losses: how it is thinned, and in batches."""

from __future__ import annotations

import pytest
import torch
from problems import small, well_conditioned

import matconv_fast as mcf


@pytest.mark.long
def test_a_thin_history_keeps_no_chunk_alive(backend):
    M, X0 = small(n=4)
    history = mcf.solve(M, None, X0, rtol=0.0, max_iters=30_000, record_every=10_000).history
    assert history.shape == (4,)
    assert history.untyped_storage().nbytes() < 1000


@pytest.mark.parametrize("every", [1, 7, 10, 1000])
def test_record_every_thins_the_history(backend, every):
    M, X0 = small()
    options = {"rtol": 0.0, "max_iters": 95, "check_every": 13}
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
    assert mcf.solve(M, None, X0, record_every=0, max_iters=20).history.shape == (0,)
