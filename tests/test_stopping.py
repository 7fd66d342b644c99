"""Exact stopping: `solve` stops where a plain loop stops, whatever its chunks are, and can be interrupted."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import replace

import pytest
import torch
from problems import plain_heavy_ball, small, well_conditioned

import matconv_fast as mcf
from matconv_fast.solve import flags, graph
from matconv_fast.solve import run as run_module
from matconv_fast.solvers import spectrum

SOLVERS = {"heavy ball": mcf.HeavyBall(lr=0.3, momentum=0.7), "adam": mcf.Adam(lr=0.02)}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [3, 6, pytest.param(40, marks=pytest.mark.long)])
def test_any_check_every_gives_the_same_bits(backend, solver, dtype, n):
    M, X0 = small(n, dtype)
    options = {"solver": SOLVERS[solver], "rtol": 0.3, "max_iters": 2_000}
    if solver == "heavy ball":
        options["solver"] = mcf.HeavyBall(lr=0.05 * n, momentum=0.7)
    first, *others = (mcf.solve(M, None, X0, check_every=every, **options) for every in (1, 7, 1000, None))
    assert bool(first.converged)
    assert 10 < int(first.iterations) < 2_000
    for other in others:
        assert torch.equal(first.X, other.X)
        assert torch.equal(first.iterations, other.iterations)
        assert torch.equal(first.history, other.history)
        assert torch.equal(first.residual_norm, other.residual_norm)


@pytest.mark.parametrize("loss", ["mse", "sse", "fro"])
def test_it_stops_where_a_plain_loop_stops(backend, loss):
    M, X0 = small()
    lr = {"mse": 0.3, "sse": 0.005, "fro": 0.005}[loss]
    iterates, norms = plain_heavy_ball(X0, M, torch.eye(6, dtype=torch.float64), lr, 0.7, 1_500, loss)
    tolerance = 0.02
    expected = next(k for k, norm in enumerate(norms) if norm <= tolerance)
    sol = mcf.solve(M, None, X0, solver=mcf.HeavyBall(lr, 0.7), loss=loss, atol=tolerance, rtol=0.0)
    assert int(sol.iterations) == expected > 0
    torch.testing.assert_close(sol.X, iterates[expected], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sol.residual_norm.item(), norms[expected], rtol=1e-9, atol=0)
    assert sol.history.shape == (expected + 1,)


def test_X0_that_meets_the_tolerance_needs_no_iteration(backend):
    M, _ = small()
    X0 = torch.linalg.inv(M)
    sol = mcf.solve(M, None, X0, solver=mcf.HeavyBall(), rtol=1e-8)
    assert int(sol.iterations) == 0
    assert bool(sol.converged)
    assert torch.equal(sol.X, X0)
    assert sol.history.shape == (1,)


def test_the_reported_residual_is_the_true_one(backend):
    M, X0 = small()
    sol = mcf.solve(M, None, X0, solver=mcf.HeavyBall(), rtol=1e-6)
    true = torch.linalg.norm(sol.X @ M - torch.eye(6))
    torch.testing.assert_close(sol.residual_norm, true, rtol=1e-9, atol=0)
    assert true <= 1e-6 * 6**0.5
    torch.testing.assert_close(sol.loss, true**2 / 36, rtol=1e-9, atol=0)
    torch.testing.assert_close(sol.history[-1], sol.loss)


def test_max_iters_that_ends_on_the_converging_iterate_counts_as_converged(backend):
    M, X0 = small()
    full = mcf.solve(M, None, X0, solver=mcf.HeavyBall(), rtol=1e-3)
    exact = mcf.solve(M, None, X0, solver=mcf.HeavyBall(), rtol=1e-3, max_iters=int(full.iterations))
    short = mcf.solve(M, None, X0, solver=mcf.HeavyBall(), rtol=1e-3, max_iters=int(full.iterations) - 1)
    assert mcf.Status(exact.status.item()) is mcf.Status.CONVERGED
    assert mcf.Status(short.status.item()) is mcf.Status.MAX_ITERATIONS


def test_a_chunk_is_short_enough_to_answer_ctrl_c(backend):
    for batch, n in ((1, 2), (1, 64), (1, 400), (1000, 8), (10, 100)):
        problem = mcf.Problem.of(well_conditioned(n, batch, dtype=torch.float32), None, None, "mse", left=False)
        chunk = mcf.HeavyBall(0.1).plan(problem).chunk
        assert chunk <= 64 or chunk * batch * 4 * n**3 <= (1e11 if backend == "triton" else 1e10)


def test_autocast_changes_nothing(backend):
    M, X0 = small(n=40, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mcf.solve(M, None, X0, solver=mcf.HeavyBall(), max_iters=20)
    assert torch.equal(inside.X, mcf.solve(M, None, X0, solver=mcf.HeavyBall(), max_iters=20).X)


def test_inputs_are_not_modified(backend):
    M, X0 = small()
    before = M.clone(), X0.clone()
    sol = mcf.solve(M, None, X0, solver=mcf.HeavyBall(), max_iters=20)
    mcf.solve(M, None, sol, max_iters=20)
    assert torch.equal(M, before[0])
    assert torch.equal(X0, before[1])
    assert sol.X.data_ptr() != X0.data_ptr()


def test_the_same_call_gives_the_same_bits(backend):
    M = well_conditioned(12, 5, dtype=torch.float32)
    first, second = (mcf.solve(M, solver=mcf.HeavyBall(), max_iters=300, rtol=0.0) for _ in range(2))
    assert torch.equal(first.X, second.X)
    assert torch.equal(first.history, second.history)


def test_ctrl_c_interrupts_a_long_solve(backend):
    M, X0 = small(dtype=torch.float32)
    before = X0.clone()
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            mcf.solve(M, None, X0, solver=mcf.HeavyBall(), rtol=0.0, max_iters=10**9, record_every=0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert torch.equal(X0, before)


def test_progress_shows_iterations_and_loss(backend, capsys):
    M, X0 = small()
    mcf.solve(M, None, X0, solver=mcf.HeavyBall(), max_iters=50, rtol=0.0, progress=True)
    shown = capsys.readouterr().err
    assert "50/50" in shown
    assert "loss=" in shown


class LateFlags(flags.Flags):
    """Counts that arrive two chunks late, as they may on a GPU."""

    def __init__(self, device):
        super().__init__(device)
        self.lags = True

    def send(self, counts):
        self._sent.append((counts.clone(), None))

    def latest(self, wait=False):
        found = None
        while len(self._sent) > (0 if wait else flags.IN_FLIGHT):
            running, longest = self._sent.popleft()[0].tolist()
            found = running, longest
        return found


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [4, pytest.param(70, marks=pytest.mark.long)])  # 70 rows: several slabs in C++
def test_counts_that_arrive_late_change_no_result(backend, solver, n, monkeypatch):
    M = well_conditioned(n, 3)
    M[1] = 2 * torch.eye(n)
    method = SOLVERS[solver]
    if solver == "heavy ball":
        method = replace(method, lr=0.3 * (n / 4) ** 2)  # the gradient of mse is that much smaller
    options = {"solver": method, "rtol": 0.3, "max_iters": 200, "check_every": 7, "patience": 50}
    at_once = mcf.solve(M, **options)
    monkeypatch.setattr(run_module, "Flags", LateFlags)
    late = mcf.solve(M, **options)
    assert len(set(at_once.iterations.tolist())) > 1
    for name in ("X", "iterations", "status", "loss"):
        assert torch.equal(getattr(late, name), getattr(at_once, name)), name
    assert torch.equal(late.history.nan_to_num(-1.0), at_once.history.nan_to_num(-1.0))


def test_an_estimate_waits_for_counts_that_arrive_late(backend, monkeypatch):
    """X0 meets the tolerance: no estimate is made, though the host could have gone on."""
    monkeypatch.setattr(run_module, "Flags", LateFlags)
    monkeypatch.setattr(spectrum, "largest", lambda problem: pytest.fail("estimated"))
    M = well_conditioned(4)
    assert bool(mcf.solve(M, None, torch.linalg.inv(M), solver=mcf.HeavyBall()).converged)


def test_replayed_runs_its_first_call_uncaptured_and_then_replays(monkeypatch):
    """On a stand-in for a CUDA graph, which records the calls between begin and end and repeats them in a replay."""
    calls, captured = [], []

    class Graph:
        def capture_begin(self, capture_error_mode):
            captured.append(len(calls))

        def capture_end(self):
            captured.append(len(calls))

        def replay(self):
            calls.extend(calls[captured[0] : captured[1]])

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    replayed = graph.Replayed(lambda: calls.append("launch"))
    replayed()
    assert (len(calls), captured) == (1, [])  # uncaptured: it compiles, and fills caches
    replayed()
    assert (len(calls), captured) == (3, [1, 2])  # a capture launches nothing on a GPU; the replay does
    replayed()
    assert (len(calls), captured) == (4, [1, 2])
