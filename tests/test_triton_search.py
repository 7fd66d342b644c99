"""The search for block shapes with MATCONV_FAST_AUTOTUNE=1, in Triton's interpreter."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import matconv_fast as mcf
from matconv_fast._ops import backend

if not backend.INTERPRETED:
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from matconv_fast.kernels.gpu import launch, search
from matconv_fast.kernels.gpu import target as gpu_target
from matconv_fast.kernels.gpu.advance_tiles import RowTile, SmallTile
from matconv_fast.kernels.gpu.product_tiles import DistanceTile, ProductTile


@pytest.fixture(autouse=True)
def asked_for(monkeypatch, tmp_path, force):
    """As if the process had been started with MATCONV_FAST_AUTOTUNE=1 and an empty cache."""
    force("triton")
    monkeypatch.setenv("MATCONV_FAST_AUTOTUNE", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(search, "_found", {})
    monkeypatch.setattr(search, "STEPS", 1)
    search.requested.cache_clear()
    search._cannot_search.cache_clear()
    yield
    monkeypatch.undo()
    search.requested.cache_clear()


@pytest.fixture
def cost(monkeypatch):
    """Set the cost of a trial to a function of its shape, and record the trials, which still run."""

    def set_to(function):
        trials = []

        def milliseconds(run):
            run()
            trials.append(run.args[0])
            return function(run.args[0])

        monkeypatch.setattr(search, "milliseconds", milliseconds)
        return trials

    return set_to


TILES = [
    SmallTile(32, 32, 32, TILE=32, warps=4),
    RowTile(64, 128, 64, 8),
    ProductTile(128, 128, 64, 8, parts=4),
    ProductTile(4, 512, 0, 8),
    DistanceTile(8, 512),
]


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: type(tile).__name__)
def test_neighbours_differ_in_one_place_and_stay_in_bounds(tile):
    found = list(search.neighbours(tile))
    assert len(found) > len(tile.free)
    for other in found:
        changed = [f.name for f in dataclasses.fields(tile) if getattr(tile, f.name) != getattr(other, f.name)]
        assert len(changed) == 1
        least, most = tile.free[changed[0]]
        assert least <= getattr(other, changed[0]) <= most


def solve(n, p, *, m=40, dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(n)
    M = (torch.randn(n, p, generator=generator) / n**0.5).to(dtype)
    Y = torch.randn(m, p, generator=generator).to(dtype)
    solver = options.pop("solver", mcf.HeavyBall(lr=0.1 * m * p, momentum=0.5))
    return mcf.solve(M, Y, solver=solver, max_iters=3, rtol=0.0, **options)


PROBLEMS = {
    "small": {"n": 17, "p": 20, "m": 15},
    "rows": {"n": 40, "p": 70, "m": 20},
    "tiled": {"n": 70, "p": 80, "m": 8, "dtype": torch.bfloat16, "loss": "fro", "solver": mcf.HeavyBall(lr=0.01)},
    "adam": {"n": 70, "p": 80, "m": 8, "solver": mcf.Adam(lr=0.01)},
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_search_leaves_the_tensors_of_the_solve_alone(kind, cost, monkeypatch):
    trials = cost(lambda tile: 1.0)  # nothing is faster: the frozen shape runs, with the bits that it gives
    found = solve(**PROBLEMS[kind])
    assert len(trials) > 3
    monkeypatch.setattr(search, "requested", lambda: False)
    plain = solve(**PROBLEMS[kind])
    assert torch.equal(found.X, plain.X)
    assert torch.equal(found.history, plain.history)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_faster_shape_is_found_and_gives_the_same_solution(kind, cost, monkeypatch):
    cost(lambda tile: 1 / tile.warps)
    found = solve(**PROBLEMS[kind])
    chosen = list(search._found.values())
    assert chosen
    for tile, key in zip(chosen, search._found, strict=True):
        most = tile.free["warps"][1]
        assert tile.warps == most, key
        assert tile != key[1]
    monkeypatch.setattr(search, "requested", lambda: False)
    plain = solve(**PROBLEMS[kind])
    torch.testing.assert_close(found.X, plain.X, rtol=1e-3, atol=1e-3 if kind == "tiled" else 1e-5)


def test_distances_and_gradients_are_searched_too(cost):
    trials = cost(lambda tile: float(tile.warps))
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(40, 48, generator=generator) for _ in range(2))
    M = torch.randn(48, 40, generator=generator)
    torch.testing.assert_close(mcf.distance(A, B), torch.linalg.norm(A - B))
    X = A.clone().requires_grad_()
    mcf.residual_loss(X, M).backward()
    Z = A.clone().requires_grad_()
    (Z @ M - torch.eye(40)).square().mean().backward()
    torch.testing.assert_close(X.grad, Z.grad)
    assert {type(tile) for tile in trials} >= {DistanceTile, ProductTile}


def test_a_search_is_made_once_and_kept_on_disk(cost, tmp_path):
    trials = cost(lambda tile: 1 / tile.warps)
    first = solve(17, 20, m=15)
    made, chosen = len(trials), dict(search._found)
    assert list(tmp_path.rglob(search.FILE))
    solve(17, 20, m=15)
    assert len(trials) == made
    search._found.clear()  # as a new process
    second = solve(17, 20, m=15)
    assert len(trials) == made
    assert search._found == chosen
    assert torch.equal(first.X, second.X)
    solve(18, 20, m=15)  # another problem
    assert len(trials) > made


def test_a_shape_that_does_not_compile_is_skipped(monkeypatch):
    from triton.runtime.errors import OutOfResources

    def out_of_resources():
        raise OutOfResources(300_000, 232_448, "shared memory")

    def gives_up():
        raise RuntimeError("PassManager::run failed")

    def breaks():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert search.milliseconds(out_of_resources) == float("inf")
    assert search.milliseconds(gives_up) == float("inf")
    assert search.milliseconds(lambda: None) < 1000
    with pytest.raises(RuntimeError, match="illegal"):
        search.milliseconds(breaks)


def test_a_capture_takes_the_tables_and_says_so(cost, monkeypatch):
    trials = cost(lambda tile: 1 / tile.warps)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    X = torch.ones(1, 8, 8)
    with pytest.warns(RuntimeWarning, match="AUTOTUNE=1 cannot search while a CUDA graph"):
        launch.launch_heavy_ball_step_(X, X.clone(), X.clone(), X.clone(), 0.1, 0.9, 0)
    assert not trials


def test_nothing_is_searched_for_by_default(cost, monkeypatch):
    trials = cost(lambda tile: 1 / tile.warps)
    for value in ("", "0"):
        monkeypatch.setenv("MATCONV_FAST_AUTOTUNE", value)
        search.requested.cache_clear()
        solve(17, 20, m=15)
    assert not trials
    assert not search._found


def test_descriptors_of_a_batch_keep_to_blocks_that_end_with_a_problem(cost, monkeypatch):
    monkeypatch.setattr(gpu_target, "current", lambda: gpu_target.Target("interpreter", 90, 4))
    trials = cost(lambda tile: 1 / getattr(tile, "BM", 1))
    generator = torch.Generator().manual_seed(0)
    M = (torch.randn(2, 128, 16, generator=generator) / 12).bfloat16()
    Y = torch.randn(2, 192, 16, generator=generator).bfloat16()
    mcf.solve(M, Y, solver=mcf.HeavyBall(lr=1.0), max_iters=1, rtol=0.0)
    tried = [tile for tile in trials if isinstance(tile, RowTile)]
    assert any(tile.descriptor for tile in tried)
    assert all(192 % tile.BM == 0 for tile in tried if tile.descriptor)
