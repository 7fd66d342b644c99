"""What is special to the iterations in C++: the ways that they can go, lanes, kept residuals, threads."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from problems import plain_heavy_ball, well_conditioned

import matconv_fast as mcf
from matconv_fast import _reference
from matconv_fast._ops.backend import cpu as launch

LOSSES = _reference.LOSSES
NATIVE_ADAM = torch.ops.matconv_fast.adam_advance
NATIVE_HEAVY_BALL = torch.ops.matconv_fast.heavy_ball_advance
WAYS = dict(zip(launch.WAYS, range(len(launch.WAYS)), strict=True))


@pytest.fixture(autouse=True)
def native(force):
    force("cpu")


def rand(*shape, dtype=torch.float64, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def advance(implementation, X, buffers, M, Y, *hyperparameters, steps=6, loss="mse", way=0, R=None, known=None):
    """One chunk without a stop, on copies; X, buffers and sums."""
    size = X.shape[0]
    X, buffers = X.clone(), [t.clone() for t in buffers]
    sums = torch.full((size, steps + 1), torch.nan if known is None else known, dtype=torch.float64)
    never, bail = torch.full((2, size), -1.0, dtype=torch.float64).unbind()
    limit, taken = torch.full((size,), steps), torch.zeros(size, dtype=torch.int64)
    implementation(
        X, *buffers, M, Y, *hyperparameters, limit, never, bail + torch.inf, sums, taken, R, LOSSES.index(loss), way
    )  # fmt: skip
    assert taken.tolist() == [steps] * size
    return X, buffers, sums


@pytest.mark.parametrize("shape", [(16, 16, 16), (50, 20, 30)])
def test_adam_alone_stops_where_lockstep_does(shape):
    """Its bias correction counts the updates through every stretch, and those made again."""
    count, steps = 7, 2_000
    m, n, p = shape
    sources = rand(1, m, n), rand(1, n, p, seed=1), rand(1, m, p, seed=2)
    X, M, Y = (t.expand(count, -1, -1).contiguous() for t in sources)
    limit = torch.full((count,), steps)
    lr, bail = torch.tensor([[1e-3], [torch.inf]], dtype=torch.float64).expand(-1, count).contiguous().unbind()

    def run(way, threshold):
        state = [X.clone(), torch.zeros_like(X), torch.zeros_like(X), torch.full((count,), 3.0, dtype=torch.float64)]
        sums, taken = torch.zeros(count, steps + 1, dtype=torch.float64), torch.zeros(count, dtype=torch.int64)
        NATIVE_ADAM(*state, M, Y, lr, 0.9, 0.99, 1e-8, limit, threshold, bail, sums, taken, None, 0, WAYS[way])
        return *state, sums, taken

    whole = run("lockstep", torch.full((count,), -1.0, dtype=torch.float64))[4][0]
    threshold = whole.cummin(0).values[torch.tensor([0, 1, 63, 64, 500, 1_999, 2_000])]
    expected, found = run("lockstep", threshold), run("alone", threshold)
    assert len(set(expected[5].tolist())) > 4, "the tolerances are met at different iterates"
    visited = torch.arange(steps + 1) <= expected[5][:, None]
    for k, (a, b) in enumerate(zip(expected, found, strict=True)):
        assert torch.equal(a[visited], b[visited]) if k == 4 else torch.equal(a, b)


@pytest.mark.parametrize("way", ["lockstep", "alone", "gemm"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 4, 3), (17, 16, 15), (63, 20, 33), (30, 65, 130)])
def test_adam_takes_torch_adams_steps(way, loss, shape):
    if way == "alone" and loss == "fro":
        pytest.skip("fro couples the rows")
    m, n, p = shape
    X0, M, Y = rand(2, m, n), rand(2, n, p, seed=1), rand(2, m, p, seed=2)
    lr, zeros = torch.full((2,), 0.01, dtype=torch.float64), torch.zeros(2, m, n, dtype=torch.float64)
    count = torch.zeros(2, dtype=torch.float64)
    X, buffers, _ = advance(
        NATIVE_ADAM, X0, (zeros, zeros, count), M, Y, lr, 0.9, 0.99, 1e-8, loss=loss, way=WAYS[way]
    )  # fmt: skip
    assert buffers[2].tolist() == [6.0, 6.0]
    for b in range(2):
        plain = X0[b].clone().requires_grad_()
        optimizer = torch.optim.Adam([plain], lr=0.01, betas=(0.9, 0.99))
        for _ in range(6):
            optimizer.zero_grad()
            _reference.residual_loss(plain, M[b], Y[b], loss).backward()
            optimizer.step()
        torch.testing.assert_close(X[b], plain.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", ["lockstep", "alone"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 4), (17, 33), (100, 65)])
def test_without_M_it_iterates_on_the_difference(way, loss, shape):
    if way == "alone" and loss == "fro":
        pytest.skip("fro couples the rows")
    X0, Y, identity = rand(1, *shape), rand(1, *shape, seed=1), torch.eye(shape[1], dtype=torch.float64)
    lr, momentum = torch.tensor([0.1], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    X, _, sums = advance(
        NATIVE_HEAVY_BALL, X0, (torch.zeros_like(X0),), None, Y, lr, momentum, loss=loss, way=WAYS[way]
    )  # fmt: skip
    iterates, norms = plain_heavy_ball(X0[0], identity, Y[0], 0.1, 0.5, 6, loss)
    torch.testing.assert_close(X[0], iterates[-1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sums[0].sqrt(), torch.tensor(norms, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["alone", "gemm"])
def test_a_residual_kept_from_the_chunk_before_changes_no_bit(way):
    X0, M, Y = rand(1, 40, 50), rand(1, 50, 60, seed=1) / 8, rand(1, 40, 60, seed=2)
    rates = torch.tensor([1e-2], dtype=torch.float64), torch.tensor([0.9], dtype=torch.float64)
    state = X0, (torch.zeros_like(X0),)
    whole = advance(NATIVE_HEAVY_BALL, *state, M, Y, *rates, steps=7, way=WAYS[way])
    R, known = torch.full((1, 40, 60), torch.nan, dtype=torch.float64), None
    for steps in (0, 3, 4):
        *state, sums = advance(
            NATIVE_HEAVY_BALL, *state, M, Y, *rates, steps=steps, way=WAYS[way], R=R, known=known
        )  # fmt: skip
        known = sums[0, -1].item()
    torch.testing.assert_close(R[0], state[0][0] @ M[0] - Y[0])
    assert torch.equal(state[0], whole[0])
    assert known == whole[2][0, -1]
    # it is read, and not made again
    still, *_ = advance(NATIVE_HEAVY_BALL, *state, M, Y, *rates, steps=1, way=WAYS[way], R=0 * R, known=1.0)
    V = 0.9 * state[1][0]
    torch.testing.assert_close(still, state[0] - 1e-2 * V)


@pytest.mark.parametrize("way", ["lockstep", "alone", "lanes", "gemm"])
@pytest.mark.parametrize("size", [4, 8, 40])
@pytest.mark.parametrize("scale", [1e-25, 1e-21, 1e-15, 1e15, 1e19, 1e25])
def test_squares_that_no_float32_holds_are_added_all_the_same(way, size, scale):
    X, M = torch.zeros(3, size, size), well_conditioned(size, 3, dtype=torch.float32)
    Y = rand(3, size, size, dtype=torch.float32) * scale
    rates = torch.full((3,), 1e-3), torch.full((3,), 0.9)
    _, _, sums = advance(NATIVE_HEAVY_BALL, X, (torch.zeros_like(X),), M, Y, *rates, steps=1, way=WAYS[way])
    torch.testing.assert_close(sums[:, 0], Y.double().square().sum((1, 2)), rtol=1e-6, atol=0)


def test_lanes_are_refilled_and_stop_each_problem_where_it_stops_alone():
    M = well_conditioned(5, 67, dtype=torch.float32)
    Y = rand(67, 3, 5, dtype=torch.float32)
    solver = mcf.HeavyBall(lr=0.05, momentum=0.7)
    kind = {"product": True, "coupled": False, "lanes": True, "itemsize": 4, "threads": 2}
    assert launch.advance_way(67, 3, 5, 5, **kind) == "lanes"
    together = mcf.solve(M, Y, solver=solver, loss="sse", rtol=1e-4)
    assert together.iterations.unique().numel() > 5
    order = torch.randperm(67, generator=torch.Generator().manual_seed(0))
    shuffled = mcf.solve(M[order], Y[order], solver=solver, loss="sse", rtol=1e-4)
    assert torch.equal(shuffled.X, together.X[order])  # a lane knows nothing of the others
    assert torch.equal(shuffled.iterations, together.iterations[order])
    for b in range(67):
        alone = mcf.solve(M[b], Y[b], solver=solver, loss="sse", rtol=1e-4)
        torch.testing.assert_close(alone.X, together.X[b], rtol=1e-3, atol=1e-4)


def test_adam_without_eps_and_without_M():
    sol = mcf.solve(None, torch.ones(3, 3), torch.zeros(3, 3), solver=mcf.Adam(lr=0.1, eps=0.0), atol=1e-2, rtol=0.0)
    assert sol.converged


def solutions(size):
    """One solve of each kind: lanes, a lone problem, and one whose slabs run on all threads."""
    solver = mcf.HeavyBall(lr=0.1 * size, momentum=0.8)
    for M in (well_conditioned(6, 40, dtype=torch.float32), well_conditioned(size, dtype=torch.float32)):
        yield mcf.solve(M, solver=solver, rtol=1e-5, max_iters=300)


def same(a, b):
    return all(
        torch.equal(x.X, y.X) and torch.equal(x.iterations, y.iterations)
        and torch.equal(x.history.nan_to_num(-1), y.history.nan_to_num(-1))
        for x, y in zip(a, b, strict=True)
    )  # fmt: skip


@pytest.mark.parametrize("size", [4, 12, 90])
def test_two_threads_that_solve_at_once_get_what_they_get_alone(size):
    alone = list(solutions(size))
    assert same(alone, solutions(size))
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda _: list(solutions(size)), range(8)):
            assert same(alone, found)


def test_the_interpreter_runs_while_a_kernel_does():
    X, M, Y = rand(1, 200, 200), well_conditioned(200)[None], rand(1, 200, 200, seed=1)
    V, rates, sums = torch.zeros_like(X), torch.tensor([1e-3], dtype=torch.float64), torch.zeros(1, 401).double()
    steps, taken, bail = torch.tensor([400]), torch.zeros(1, dtype=torch.int64), torch.tensor([torch.inf]).double()
    started, done, counted = threading.Event(), threading.Event(), 0

    def one_call():  # and nothing else that would let go of the interpreter's lock
        started.set()
        NATIVE_HEAVY_BALL(X, V, M, Y, rates, rates, steps, -rates, bail, sums, taken, None, 0, WAYS["lockstep"])
        done.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # so that the lock is only ever given up, never taken
    try:
        thread = threading.Thread(target=one_call)
        thread.start()
        started.wait()
        while not done.is_set():
            counted += 1
            done.wait(1e-4)
        thread.join()
    finally:
        sys.setswitchinterval(before)
    assert counted > 20
