"""Exact stopping, resuming, interrupting: the loop gives what a plain loop gives, however it is cut up."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import replace

import pytest
import torch
from problems import plain_heavy_ball, well_conditioned

import matconv_fast as mcf
from matconv_fast.solve import flags, graph, loop
from matconv_fast.solve.problem import Problem

SOLVERS = {"heavy ball": mcf.HeavyBall(lr=0.3, momentum=0.7), "adam": mcf.Adam(lr=0.02)}


def small(n=6, dtype=torch.float64):
    return well_conditioned(n, dtype=dtype), torch.rand(n, n, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [3, 6, pytest.param(40, marks=pytest.mark.long)])
def test_any_check_every_gives_the_same_bits(path, solver, dtype, n):
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
def test_it_stops_where_a_plain_loop_stops(path, loss):
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


def test_X0_that_meets_the_tolerance_takes_no_iteration(path):
    M, _ = small()
    X0 = torch.linalg.inv(M)
    sol = mcf.solve(M, None, X0, rtol=1e-8)
    assert int(sol.iterations) == 0
    assert bool(sol.converged)
    assert torch.equal(sol.X, X0)
    assert sol.history.shape == (1,)


def test_the_reported_residual_is_the_true_one(path):
    M, X0 = small()
    sol = mcf.solve(M, None, X0, rtol=1e-6)
    true = torch.linalg.norm(sol.X @ M - torch.eye(6))
    torch.testing.assert_close(sol.residual_norm, true, rtol=1e-9, atol=0)
    assert true <= 1e-6 * 6**0.5
    torch.testing.assert_close(sol.loss, true**2 / 36, rtol=1e-9, atol=0)
    torch.testing.assert_close(sol.history[-1], sol.loss)


def test_max_iters_that_ends_on_the_converging_iterate_counts_as_converged(path):
    M, X0 = small()
    full = mcf.solve(M, None, X0, rtol=1e-3)
    exact = mcf.solve(M, None, X0, rtol=1e-3, max_iters=int(full.iterations))
    short = mcf.solve(M, None, X0, rtol=1e-3, max_iters=int(full.iterations) - 1)
    assert mcf.Status(exact.status.item()) is mcf.Status.CONVERGED
    assert mcf.Status(short.status.item()) is mcf.Status.MAX_ITERATIONS


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_resuming_equals_one_run(path, solver, batch):
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
    for a, b in zip(whole.state.buffers, third.state.buffers, strict=True):
        assert torch.equal(a, b)
    if not batch:
        history = torch.cat([first.history, second.history[1:], third.history[1:]])
        assert torch.equal(whole.history, history)
    assert int(first.iterations.max()) == 17  # the earlier solution is left as it was


@pytest.mark.long
def test_resuming_keeps_stagnation_and_divergence_exact(path):
    M, X0 = small(dtype=torch.float32)
    options = {"rtol": 1e-9, "patience": 50}
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


def test_resuming_with_a_tighter_tolerance_goes_on(path):
    M, X0 = small()
    loose = mcf.solve(M, None, X0, rtol=1e-2)
    tight = mcf.solve(M, None, loose, rtol=1e-6)
    assert torch.equal(tight.X, mcf.solve(M, None, X0, rtol=1e-6).X)


@pytest.mark.long
def test_resuming_a_batch_leaves_the_stagnated_as_they_are(path):
    M = torch.stack([torch.diag(torch.tensor([1.0, 2.0, 0.0])), torch.diag(torch.tensor([1.0, 2.0, 0.05]))])
    whole = mcf.solve(M, patience=100)
    first = mcf.solve(M, patience=100, max_iters=700)
    second = mcf.solve(M, X0=first, patience=100)
    assert whole.status.tolist() == [mcf.Status.STAGNATED, mcf.Status.CONVERGED]
    assert torch.equal(whole.X, second.X)
    assert torch.equal(whole.iterations, second.iterations)
    assert torch.equal(whole.status, second.status)
    again = mcf.solve(M, X0=first, patience=200)  # asked for anew, it goes on
    assert again.iterations[0] > second.iterations[0]


def test_resuming_on_another_equation_forgets_what_was_known_of_the_first(path):
    M, _ = small(dtype=torch.float32)
    far = mcf.solve(M, 1e12 * torch.eye(6), X0=mcf.solve(M))
    assert bool(far.converged), far.message
    near = mcf.solve(M + 0.1, X0=mcf.solve(M, patience=20), patience=200)
    assert bool(near.converged), near.message


def test_a_solution_shares_no_memory_with_what_it_goes_on_from(path):
    M, X0 = small()
    sol, same = (mcf.solve(M, None, X0, max_iters=9) for _ in range(2))
    for t in (sol.X, sol.iterations, sol.status):
        t.zero_()
    assert torch.equal(mcf.solve(M, X0=sol, max_iters=9).X, mcf.solve(M, X0=same, max_iters=9).X)


def test_one_launch_stays_short_enough_to_answer_ctrl_c(path):
    for batch, n in ((1, 2), (1, 64), (1, 400), (1000, 8), (10, 100)):
        problem = Problem.of(well_conditioned(n, batch, dtype=torch.float32), None, None, "mse", left=False)
        launch = mcf.HeavyBall(0.1).prepare(problem).chunk
        assert launch <= 64 or launch * batch * 4 * n**3 <= (1e11 if path == "triton" else 1e10)


@pytest.mark.long
def test_a_thin_history_keeps_no_chunk_alive(path):
    M, X0 = small(n=4)
    history = mcf.solve(M, None, X0, rtol=0.0, max_iters=30_000, record_every=10_000).history
    assert history.shape == (4,)
    assert history.untyped_storage().nbytes() < 1000


def test_autocast_changes_nothing(path):
    M, X0 = small(n=40, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mcf.solve(M, None, X0, max_iters=20)
    assert torch.equal(inside.X, mcf.solve(M, None, X0, max_iters=20).X)


@pytest.mark.parametrize("every", [1, 7, 10, 1000])
def test_record_every_thins_the_history(path, every):
    M, X0 = small()
    options = {"rtol": 0.0, "max_iters": 95, "check_every": 13}
    full = mcf.solve(M, None, X0, **options).history
    assert torch.equal(mcf.solve(M, None, X0, record_every=every, **options).history, full[::every])


@pytest.mark.parametrize("every", [1, 7])
def test_a_batch_records_what_its_problems_record_alone(path, every):
    """They stop in different chunks, of which none begins where a record is due."""
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


def test_record_every_0_records_nothing(path):
    M, X0 = small()
    assert mcf.solve(M, None, X0, record_every=0, max_iters=20).history.shape == (0,)


def test_inputs_are_left_as_they_are(path):
    M, X0 = small()
    before = M.clone(), X0.clone()
    sol = mcf.solve(M, None, X0, max_iters=20)
    mcf.solve(M, None, sol, max_iters=20)
    assert torch.equal(M, before[0])
    assert torch.equal(X0, before[1])
    assert sol.X.data_ptr() != X0.data_ptr()


def test_the_same_call_gives_the_same_bits(path):
    M = well_conditioned(12, 5, dtype=torch.float32)
    first, second = (mcf.solve(M, max_iters=300, rtol=0.0) for _ in range(2))
    assert torch.equal(first.X, second.X)
    assert torch.equal(first.history, second.history)


def test_ctrl_c_interrupts_a_long_solve(path):
    M, X0 = small(dtype=torch.float32)
    before = X0.clone()
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            mcf.solve(M, None, X0, rtol=0.0, max_iters=10**9, record_every=0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert torch.equal(X0, before)


def test_progress_shows_iterations_and_loss(path, capsys):
    M, X0 = small()
    mcf.solve(M, None, X0, max_iters=50, rtol=0.0, progress=True)
    shown = capsys.readouterr().err
    assert "50/50" in shown
    assert "loss=" in shown


class LateFlags(flags.Flags):
    """Counts that come two chunks late, as they may on a GPU."""

    def __init__(self, device):
        super().__init__(device)
        self.lags = True

    def send(self, counts):
        self._sent.append((counts.clone(), None))

    def latest(self):
        found = None
        while len(self._sent) > flags.UNDER_WAY:
            running, longest = self._sent.popleft()[0].tolist()
            found = running, longest
        return found


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "n", [4, pytest.param(70, marks=pytest.mark.long)]
)  # at 70 rows the C++ slabs go beyond a stop
def test_a_stop_that_is_learned_of_late_changes_nothing(path, solver, n, monkeypatch):
    M = well_conditioned(n, 3)
    M[1] = 2 * torch.eye(n)
    method = SOLVERS[solver]
    if solver == "heavy ball":
        method = replace(method, lr=0.3 * (n / 4) ** 2)  # the gradient of mse is that much smaller
    options = {"solver": method, "rtol": 0.3, "max_iters": 200, "check_every": 7, "patience": 50}
    at_once = mcf.solve(M, **options)
    monkeypatch.setattr(loop, "Flags", LateFlags)
    late = mcf.solve(M, **options)
    assert len(set(at_once.iterations.tolist())) > 1
    for name in ("X", "iterations", "status", "loss"):
        assert torch.equal(getattr(late, name), getattr(at_once, name)), name
    assert torch.equal(late.history.nan_to_num(-1.0), at_once.history.nan_to_num(-1.0))


def test_replayed_runs_its_first_call_and_then_what_it_captured(monkeypatch):
    """On a stand-in for CUDA's graphs: calls made while one captures are remembered, and made again by a replay."""
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
    assert (len(calls), captured) == (1, [])  # as it is: it compiles, and fills caches
    replayed()
    assert (len(calls), captured) == (3, [1, 2])  # a capture launches nothing on a GPU; the replay does
    replayed()
    assert (len(calls), captured) == (4, [1, 2])
