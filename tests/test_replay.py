"""A problem that goes beyond its stop inside a chunk is put back to it: X, the solver's state, sums and history.

Every stop position of a run is tried, against a plain loop that shares no code with the library. The reference always
runs a chunk to its end and replays; the C++ slabs do for a lone problem of many rows, and so do some Triton kernels.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from problems import well_conditioned

import matconv_fast as mcf

UPDATES, MORE = 18, 6  # stops are tried after 0 to UPDATES updates; MORE are made after one


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(R, M, loss):
    if loss == "fro":
        return R @ M.mT / torch.linalg.matrix_norm(R, keepdim=True)
    return (2 / (R.shape[-2] * R.shape[-1]) if loss == "mse" else 2) * R @ M.mT


def plain_heavy_ball(X, M, Y, solver, loss):
    V = torch.zeros_like(X)
    while True:
        yield X
        V = solver.momentum * V + gradient(X @ M - Y, M, loss)
        X = X - solver.lr * V


def plain_adam(X, M, Y, solver, loss):
    first, second, count = torch.zeros_like(X), torch.zeros_like(X), 0
    (b1, b2), lr = solver.betas, solver.lr
    while True:
        yield X
        G, count = gradient(X @ M - Y, M, loss), count + 1
        first, second = b1 * first + (1 - b1) * G, b2 * second + (1 - b2) * G * G
        X = X - lr * (first / (1 - b1**count)) / ((second / (1 - b2**count)).sqrt() + solver.eps)


@pytest.fixture(autouse=True)
def threads(backend):
    """The C++ slabs need two; what is run by torch's small products is slower with them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if backend == "cpu" else 1)
    yield
    torch.set_num_threads(before)


class Run:
    """Iterates and ||R||_F, ``[K + 1, B]``, of the plain loop; the tolerances that stop problem 0 at each iterate."""

    def __init__(self, method, loss, batch, shape=(5, 4, 3)):
        m, n, p = shape
        self.M = well_conditioned(max(n, p), batch)[:, :n, :p].contiguous()
        self.X0, self.Y = rand(batch, m, n, seed=1), rand(batch, m, p, seed=2)
        self.Y *= 1 + torch.arange(batch, dtype=torch.float64)[:, None, None] / batch  # each stops elsewhere
        self.loss, self.elements = loss, m * p
        if method == "adam":
            self.solver, loop = mcf.Adam(lr=0.05, betas=(0.6, 0.9), eps=1e-2), plain_adam
        else:
            lr = {"mse": 0.015 * m * p, "sse": 0.015, "fro": 0.015 * (m * p) ** 0.5}[loss]
            self.solver, loop = mcf.HeavyBall(lr=lr, momentum=0.3), plain_heavy_ball
        steps = loop(self.X0, self.M, self.Y, self.solver, loss)
        self.iterates = [next(steps) for _ in range(UPDATES + MORE + 1)]
        self.norms = torch.stack([torch.linalg.matrix_norm(X @ self.M - self.Y) for X in self.iterates])
        falls = self.norms[:UPDATES, 0] - self.norms[1 : UPDATES + 1, 0]
        assert (falls > 1e-4 * self.norms[0, 0]).all()  # so that there is a tolerance for each stop
        roots = self.norms[:UPDATES, 0] * self.norms[1 : UPDATES + 1, 0]
        self.tolerances = [2 * float(self.norms[0, 0]), *roots.sqrt().tolist()]

    def solve(self, X0, tolerance, limit, check_every=None):
        return mcf.solve(
            self.M, self.Y, X0, solver=self.solver, loss=self.loss, atol=tolerance, rtol=0.0, max_iters=limit,
            check_every=check_every,
        )  # fmt: skip

    def ends(self, tolerance):
        """Where each problem ends, and whether it converged there."""
        meets = self.norms[: UPDATES + 1] <= tolerance
        found = meets.any(0)
        return torch.where(found, meets.int().argmax(0), UPDATES), found

    def at(self, index):
        return torch.stack([self.iterates[k][b] for b, k in enumerate(index.tolist())])

    def check_stop(self, stop, check_every):
        tolerance = self.tolerances[stop]
        ends, converged = self.ends(tolerance)
        assert ends[0] == stop
        sol = self.solve(self.X0, tolerance, UPDATES, check_every)
        assert sol.iterations.tolist() == ends.tolist()
        assert sol.converged.tolist() == converged.tolist()
        assert set(sol.status[~converged].tolist()) <= {mcf.Status.MAX_ITERATIONS}
        close = {"rtol": 1e-10, "atol": 1e-10}
        torch.testing.assert_close(sol.X, self.at(ends), **close)
        norms = self.norms.gather(0, ends[None])[0]
        torch.testing.assert_close(sol.residual_norm, norms, **close)
        self.check_history(sol, ends)
        # the state at the stop: V, or both moments and the count of updates
        more = self.solve(sol, 0.0, MORE, check_every)
        assert more.iterations.tolist() == (ends + MORE).tolist()
        torch.testing.assert_close(more.X, self.at(ends + MORE), **close)

    def check_history(self, sol, ends):
        of_norms = {"mse": lambda N: N * N / self.elements, "sse": lambda N: N * N, "fro": lambda N: N}[self.loss]
        assert sol.history.shape == (len(ends), int(ends.max()) + 1)
        for b, end in enumerate(ends.tolist()):
            wanted = of_norms(self.norms[: end + 1, b])
            torch.testing.assert_close(sol.history[b, : end + 1], wanted, rtol=1e-10, atol=1e-12)
            assert sol.history[b, end + 1 :].isnan().all()


a_run = functools.cache(Run)
METHODS = [("heavy ball", "mse"), ("heavy ball", "sse"), ("heavy ball", "fro"), ("adam", "mse"), ("adam", "fro")]
SOME = [m if m[1] == "mse" else pytest.param(*m, marks=pytest.mark.long) for m in METHODS]


@pytest.mark.parametrize("check_every", [7, pytest.param(None, marks=pytest.mark.long)])
@pytest.mark.parametrize("batch", [3, *(pytest.param(size, marks=pytest.mark.long) for size in (1, 20))])
@pytest.mark.parametrize(("method", "loss"), METHODS)
def test_every_stop_of_a_small_problem(backend, method, loss, batch, check_every):
    run = a_run(method, loss, batch)
    if batch > 1:
        assert len(set(run.ends(run.tolerances[UPDATES // 2])[0].tolist())) > 1
    some = backend == "triton" or batch == 20  # problems stop all over the run, in C++ each in a lane of a vector
    for stop in (2, 9) if some else range(UPDATES + 1):
        run.check_stop(stop, check_every)


@pytest.mark.parametrize("stop", [9, *(pytest.param(stop, marks=pytest.mark.long) for stop in (0, 1, UPDATES))])
@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize(("method", "loss"), SOME)
def test_stops_of_a_problem_of_many_rows(backend, method, loss, batch, stop):
    """Slabs of rows, of which some are beyond the stop that all of them together decide."""
    a_run(method, loss, batch, (70, 20, 18)).check_stop(stop, None)


@pytest.mark.long
@pytest.mark.parametrize(("method", "loss"), METHODS)
def test_stops_of_a_problem_of_wide_rows(backend, method, loss):
    run = a_run(method, loss, 1, (40, 150, 140))
    for stop in (0, 5, UPDATES):
        run.check_stop(stop, 5)


@pytest.mark.parametrize("stop", [5, *(pytest.param(stop, marks=pytest.mark.long) for stop in (1, 16, 17))])
def test_a_problem_without_M(backend, stop):
    """Where nothing couples the entries, and each update is a sweep."""
    X0, Y = rand(2, 9, 20, seed=1), rand(9, 20, seed=2)
    factor = 1 - 0.1
    first = float(torch.linalg.matrix_norm(X0[0] - Y))
    tolerance = first * factor ** (stop - 0.5)
    solver = mcf.HeavyBall(lr=0.1 * 180 / 2, momentum=0.0)
    sol = mcf.solve(None, Y, X0, solver=solver, atol=tolerance, rtol=0.0, max_iters=40)
    second = float(torch.linalg.matrix_norm(X0[1] - Y))
    assert sol.iterations.tolist() == [stop, max(0, math.ceil(math.log(tolerance / second, factor)))]
    powers = torch.tensor([factor**k for k in sol.iterations.tolist()], dtype=torch.float64)
    torch.testing.assert_close(sol.X, Y + powers[:, None, None] * (X0 - Y), rtol=1e-12, atol=1e-12)


def test_the_history_of_a_problem_that_is_done_at_once(backend):
    """It is the loss of X0; the other problem goes on."""
    X0 = torch.tensor([[[1.0]], [[0.0]]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    sol = mcf.solve(one, one, X0, solver=mcf.HeavyBall(0.25, 0.0), rtol=1e-1)
    assert sol.iterations.tolist() == [0, 4]
    wanted = torch.tensor([[0.0] + 4 * [math.nan], [0.25**k for k in range(5)]], dtype=torch.float64)
    torch.testing.assert_close(sol.history, wanted, equal_nan=True)


def test_what_is_restored_when_a_problem_diverges_inside_a_chunk(backend):
    """``||R||^2`` beyond 1e10 times its first value: a factor of 10 an iteration takes 6 of them."""
    Y = torch.ones(2, 1, 1, dtype=torch.float64)
    M = torch.ones(2, 1, 1, dtype=torch.float64)
    rates = torch.tensor([11 / 2, 0.25], dtype=torch.float64)  # R times -10, and times a half
    sol = mcf.solve(M, Y, solver=mcf.HeavyBall(rates, 0.0), rtol=0.0, max_iters=30)
    assert [mcf.Status(code).name for code in sol.status.tolist()] == ["DIVERGED", "MAX_ITERATIONS"]
    assert sol.iterations.tolist() == [6, 30]
    torch.testing.assert_close(sol.X.flatten(), torch.tensor([1 - 1e6, 1 - 0.5**30], dtype=torch.float64))
    assert sol.history[0, :7].isfinite().all()
    assert sol.history[0, 7:].isnan().all()
