"""Solves in C++: problems that share vectors, calls from several threads, and the interpreter meanwhile."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from problems import well_conditioned

import matconv_fast as mcf
from matconv_fast.kernels.contract import StopCriteria, Trace
from matconv_fast.kernels.cpu import launch

pytestmark = pytest.mark.usefixtures("native")


def test_lanes_are_refilled_and_stop_each_problem_where_it_stops_by_itself(generator):
    M = well_conditioned(5, 67, dtype=torch.float32)
    Y = torch.rand(67, 3, 5, generator=generator)
    solver = mcf.HeavyBall(lr=0.05, momentum=0.7)
    together = mcf.solve(M, Y, solver=solver, loss="sse", rtol=1e-4)
    assert launch.choose(together.problem.shape, "heavy_ball").name == "lanes"
    assert together.method == "HeavyBall: lanes (cpu)"
    assert together.iterations.unique().numel() > 5
    order = torch.randperm(67, generator=torch.Generator().manual_seed(0))
    shuffled = mcf.solve(M[order], Y[order], solver=solver, loss="sse", rtol=1e-4)
    assert torch.equal(shuffled.X, together.X[order])  # a lane does not depend on the others
    assert torch.equal(shuffled.iterations, together.iterations[order])
    for b in range(67):
        single = mcf.solve(M[b], Y[b], solver=solver, loss="sse", rtol=1e-4)
        torch.testing.assert_close(single.X, together.X[b], rtol=1e-3, atol=1e-4)


def test_adam_without_eps_and_without_M():
    sol = mcf.solve(None, torch.ones(3, 3), torch.zeros(3, 3), solver=mcf.Adam(lr=0.1, eps=0.0), atol=1e-2, rtol=0.0)
    assert sol.converged


def solutions(size):
    """A batch in lanes, and one problem: by one thread, or with its slabs shared by all threads."""
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
def test_two_threads_that_solve_at_once_get_what_one_gets(size):
    expected = list(solutions(size))
    assert same(expected, solutions(size))
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda _: list(solutions(size)), range(8)):
            assert same(expected, found)


def test_the_interpreter_runs_while_a_kernel_does(generator):
    X, Y = torch.rand(2, 1, 200, 200, generator=generator, dtype=torch.float64)
    M, hyper, step = well_conditioned(200)[None], torch.full((2, 1), 1e-3).double(), torch.zeros(1, dtype=torch.int64)
    criteria, trace = StopCriteria.steps(1, 400, X.device), Trace.empty(1, 400, X.device)
    arguments = (
        "heavy_ball", X, [torch.zeros_like(X)], M, Y, hyper, step, 1e-5, False,
        criteria.limit, criteria.threshold, criteria.bail, trace.sums, trace.steps_done, None, "rows",
    )  # fmt: skip
    started, done, counted = threading.Event(), threading.Event(), 0

    def one_call():  # and nothing else that releases the interpreter's lock
        started.set()
        torch.ops.matconv_fast.advance(*arguments)
        done.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # the lock is only ever released voluntarily
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
