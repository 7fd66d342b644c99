"""``callback=``: what it sees after each chunk, and how it stops a run."""

from __future__ import annotations

import pytest
import torch
from derivatives import rand
from problems import small, well_conditioned
from test_conformance import LOSS, SOLVERS, equation

import matconv_fast as mcf

RULE = mcf.HeavyBall(0.2, 0.5)


def seen(**options):
    """Everything that a callback sees of a solve, and its solution."""
    views = []

    def look(view):
        views.append({name: getattr(view, name) for name in ("done", "limit", "elapsed", "iterations", "loss",
                                                             "residual_norm", "active", "X")})  # fmt: skip

    return views, mcf.solve(**options, callback=look)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_calls_it_and_is_not_changed_by_it(backend, name):
    M, Y, X0 = equation(SOLVERS[name]())
    options = {"solver": SOLVERS[name](), "loss": LOSS, "atol": 1e-6, "rtol": 0.0, "max_iters": 40, "check_every": 3}
    views, sol = seen(M=M, Y=Y, X0=X0, **options)
    plain = mcf.solve(M, Y, X0, **options)
    assert torch.equal(sol.X, plain.X)
    assert torch.equal(sol.history, plain.history)
    assert sol.status == plain.status
    assert len(views) >= 1
    last = views[-1]
    assert torch.equal(last["X"], sol.X)
    assert torch.equal(last["iterations"], sol.iterations)
    assert torch.equal(last["residual_norm"], sol.residual_norm)
    assert torch.equal(last["loss"], sol.loss)


def test_the_view_is_of_the_iterate_after_each_chunk(backend):
    M, X0 = small()
    views, _ = seen(M=M, X0=X0, solver=RULE, rtol=0.0, max_iters=20, check_every=7)
    assert [view["done"] for view in views] == [7, 14, 20]
    assert [int(view["iterations"]) for view in views] == [7, 14, 20]
    for view in views:  # kept after the callback: nothing that the run wrote later
        alone = mcf.solve(M, None, X0, solver=RULE, rtol=0.0, max_iters=view["done"])
        assert torch.equal(view["X"], alone.X)
        assert torch.equal(view["loss"], alone.loss)
        assert torch.equal(view["residual_norm"], alone.residual_norm)
        assert bool(view["active"]) == (view["done"] <= 20)
        assert view["limit"] == 20
    assert 0 < views[0]["elapsed"] <= views[1]["elapsed"]


def test_batches_orientation_and_vectors(backend):
    M = well_conditioned(4, 2, 3)
    M[0, 1] = torch.eye(4)
    for Y, left in ((rand(4, seed=1), False), (rand(4, 5, seed=1), True)):
        views, sol = seen(M=M, Y=Y, left=left, solver=mcf.HeavyBall(1.0, 0.5), rtol=1e-3, max_iters=90, check_every=9)
        assert views[0]["X"].shape == sol.X.shape
        for name in ("iterations", "loss", "residual_norm", "active"):
            assert views[0][name].shape == (2, 3)
        assert not views[-1]["active"].any() or views[-1]["done"] == 90
        counts = [int(view["active"].sum()) for view in views]
        assert counts == sorted(counts, reverse=True)


def test_true_stops_the_run(backend):
    M, X0 = small()
    options = {"solver": RULE, "rtol": 1e-9, "check_every": 5}
    sol = mcf.solve(M, None, X0, callback=lambda view: view.done >= 15, **options)
    assert int(sol.iterations) == 15
    assert mcf.Status(int(sol.status)) is mcf.Status.STOPPED
    assert not bool(sol.converged)
    assert sol.message.startswith("stopped by the callback: ||R||_F = ")
    assert torch.equal(sol.X, mcf.solve(M, None, X0, max_iters=15, **options).X)
    assert sol.history.shape == (16,)
    with pytest.raises(mcf.ConvergenceError, match="stopped by the callback"):
        mcf.solve(M, None, X0, callback=lambda view: True, throw=True, **options)


@pytest.mark.long
def test_a_stopped_run_can_be_resumed(backend):
    M, X0 = small()
    whole = mcf.solve(M, None, X0, solver=RULE, rtol=1e-6)
    part = mcf.solve(M, None, X0, solver=RULE, rtol=1e-6, callback=lambda view: True, check_every=5)
    saved = mcf.Solution.from_state_dict(part.state_dict())
    for start in (part, saved):
        rest = mcf.solve(M, None, start, rtol=1e-6)
        assert torch.equal(rest.X, whole.X)
        assert torch.equal(rest.iterations, whole.iterations)


def test_problems_that_had_ended_keep_their_status(backend):
    M, Y = torch.stack([torch.eye(4), well_conditioned(4).float()]), torch.ones(2, 1, 4)
    X0 = torch.ones(2, 1, 4)  # the first problem's solution
    sol = mcf.solve(M, Y, X0, solver=RULE, rtol=1e-5, check_every=5, callback=lambda view: True)
    assert sol.status.tolist() == [mcf.Status.CONVERGED, mcf.Status.STOPPED]
    done = mcf.solve(M, Y, solver=mcf.Refinement(), rtol=1e-5, callback=lambda view: True)
    assert done.status.tolist() == [mcf.Status.CONVERGED] * 2


def test_what_is_falsy_goes_on(backend):
    M, X0 = small()
    for answer in (None, False, 0, torch.tensor(False)):
        sol = mcf.solve(M, None, X0, solver=RULE, rtol=0.0, max_iters=9, callback=lambda view, answer=answer: answer)
        assert int(sol.iterations) == 9


def test_fallbacks_are_seen_as_part_of_the_whole_batch(backend):
    M = rand(5, 20, 20, seed=1)
    M[3, 0] = M[3, 1]
    views, sol = seen(M=M, solver=mcf.Auto())
    assert "LSQR" in sol.method
    assert all(view["X"].shape == (5, 20, 20) for view in views)
    assert [view["done"] for view in views] == sorted(view["done"] for view in views)
    later = views[-1]
    assert not later["active"][[0, 1, 2, 4]].any()
    assert torch.equal(later["X"][0], sol.X[0])
    assert torch.equal(later["iterations"], sol.iterations)


def test_a_stop_also_ends_the_fallbacks(backend):
    M = rand(5, 20, 20, seed=1)
    M[3, 0] = M[3, 1]
    sol = mcf.solve(M, solver=mcf.Auto(), callback=lambda view: True)
    assert "LSQR" not in sol.method
    total, calls = len(seen(M=M, solver=mcf.Auto(), check_every=4)[0]), []

    def late(view):
        calls.append(view.done)
        return len(calls) == total - 1

    sol = mcf.solve(M, solver=mcf.Auto(), check_every=4, callback=late)
    assert "LSQR" in sol.method
    assert len(calls) == total - 1
    assert mcf.Status(int(sol.status[3])) in (mcf.Status.STOPPED, mcf.Status.STAGNATED)


def test_an_error_in_it_ends_the_solve(backend):
    def fail(view):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        mcf.solve(well_conditioned(4), solver=mcf.HeavyBall(), callback=fail)
    with pytest.raises(TypeError, match="callback must be callable, got int 3"):
        mcf.solve(well_conditioned(4), solver=mcf.HeavyBall(), callback=3)


@pytest.mark.long
def test_writing_to_the_view_changes_nothing(backend):
    M, X0 = small()

    def write(view):
        for t in (view.X, view.loss, view.residual_norm, view.iterations):
            t.zero_()
        view.active.fill_(False)

    options = {"solver": RULE, "rtol": 1e-6, "check_every": 5}
    sol, plain = mcf.solve(M, None, X0, callback=write, **options), mcf.solve(M, None, X0, **options)
    assert torch.equal(sol.X, plain.X)
    assert torch.equal(sol.iterations, plain.iterations)


def test_its_gradient_warns(backend):
    M = well_conditioned(4).requires_grad_()
    X = mcf.solve(M, solver=mcf.HeavyBall(), callback=lambda view: True, check_every=2).X
    with pytest.warns(RuntimeWarning, match="1 of 1 problems had not converged"):
        X.sum().backward()
