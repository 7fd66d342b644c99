"""Auto: what it chooses, what it does where that fails, and that its answers are right."""

from __future__ import annotations

import pytest
import torch
from ill_conditioned import CASES, EPS, RTOL, condition, lstsq, refuted, residual, right_hand_sides
from problems import well_conditioned
from solving import names, random

import matconv_fast as mcf
from matconv_fast.solvers import auto

pytestmark = pytest.mark.usefixtures("reference")  # these solvers run the same code on every backend

AUTO = mcf.Auto()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_is_right_or_says_so(name, dtype):
    M = CASES[name]().to(dtype)
    for kind, Y in right_hand_sides(CASES[name]()).items():
        Y = Y.to(dtype)
        solution = mcf.solve(M, Y, solver=AUTO)
        assert refuted(solution, M, Y) == ""
        best = float(residual(lstsq(M, Y), M, Y))
        if condition(M) <= 1 / (10 * EPS[dtype]) or kind == "consistent" or "rank" in name:
            assert residual(solution.X, M, Y) <= max(10 * best, RTOL[dtype] * float(Y.norm()))
        if "rank" in name and kind == "random":
            assert names(solution) == ["LEAST_SQUARES"]


def test_the_choice_is_by_shape_and_symmetry(monkeypatch):
    monkeypatch.setattr(auto, "MOST_FACTORED", 4)
    symmetric, other = well_conditioned(6), random(6, 6)
    for M, m, method in (
        (other[:4], 2, "refinement_qr"),
        (other, 6, "refinement_direct"),
        (symmetric, 2, "minres_cycles"),
        (other, 2, "lsqr_cycles"),
        (random(6, 9), 2, "lsqr_cycles"),
        (random(6, 9), 7, "refinement_qr"),
    ):
        solution = mcf.solve(M, random(m, M.shape[1], seed=1), solver=AUTO)
        assert solution.method.startswith(f"Auto: {method} (reference); ")
        assert bool(solution.converged)
    assert "X has 2 rows, fewer than M, 6" in mcf.solve(other, random(2, 6), solver=AUTO).method
    assert "M is the identity" in mcf.solve(None, random(2, 6), random(2, 6), solver=AUTO).method


def test_what_is_left_unanswered_is_solved_again_alone():
    M = random(100, 6, 6)
    M[17] = torch.ones(6, 6)
    solution = mcf.inv(M, solver=AUTO)
    assert names(solution) == ["LEAST_SQUARES" if b == 17 else "CONVERGED" for b in range(100)]
    assert solution.method.endswith("1 of 100 by Refinement: qr; 1 of 100 by LSQR: cycles")
    torch.testing.assert_close(solution.X, torch.linalg.pinv(M), rtol=1e-8, atol=1e-8)
    entries = (~solution.history.isnan()).sum(1)
    assert torch.equal(entries, solution.iterations + 1)


def test_minres_is_followed_by_lsqr(monkeypatch):
    monkeypatch.setattr(auto, "MOST_FACTORED", 4)
    M = CASES["symmetric rank 5 of 8"]()
    Y = right_hand_sides(M)["random"]
    solution = mcf.solve(M, Y, solver=AUTO)
    assert names(solution) == ["LEAST_SQUARES"]
    torch.testing.assert_close(solution.X, lstsq(M, Y), rtol=1e-8, atol=1e-8)


def test_never_worse_than_X0():
    for name in ("hilbert 10", "rank 5 of 8", "columns scaled 1e6"):
        M = CASES[name]().float()
        Y = right_hand_sides(M.double())["random"].float()
        X0 = lstsq(M, Y)
        assert mcf.solve(M, Y, X0, solver=AUTO).residual_norm <= residual(X0, M, Y) * (1 + 1e-5)


def test_the_limit_on_iterations_holds_for_all_runs_together():
    M, Y = torch.ones(4, 4), torch.eye(4)
    for limit in (0, 1, 2, 3):
        solution = mcf.solve(M, Y, solver=AUTO, max_iters=limit)
        assert int(solution.iterations) <= limit


def test_a_padded_batch_with_a_warm_start_ends_at_once():
    M, Y = torch.eye(4) + 0.1 * random(200, 4, 4).float(), random(200, 4, 4, seed=1).float()
    Y[0] = 0
    solution = mcf.solve(M, Y, random(200, 4, 4, seed=2).float(), solver=AUTO)
    assert bool(solution.converged.all())
    assert not solution.X[0].any()
    assert int(solution.iterations.max()) <= 3
    assert solution.history.shape[1] <= 4


def test_one_singular_problem_makes_no_long_history():
    M = torch.eye(4) + 0.1 * random(200, 4, 4).float()
    M[0, 0] = M[0, 1]
    assert mcf.inv(M, solver=AUTO).history.shape[1] < 100


def test_resumes_and_is_saved():
    M, Y = random(5, 5), random(3, 5, seed=1)
    rough = mcf.solve(M, Y, solver=AUTO, rtol=1e-3)
    loaded = mcf.Solution.from_state_dict(rough.state_dict())
    assert loaded.state.solver == AUTO
    assert bool(mcf.solve(M, Y, loaded, rtol=1e-12).converged)
    singular = mcf.solve(torch.ones(3, 3), torch.eye(3), solver=AUTO)
    again = mcf.solve(torch.ones(3, 3), torch.eye(3), singular, rtol=1e-9)
    torch.testing.assert_close(again.X, singular.X)


def test_gradients_of_a_batch():
    M, Y = random(4, 5, 5).requires_grad_(), random(4, 3, 5, seed=1).requires_grad_()
    ours = torch.autograd.grad(mcf.solve(M, Y, solver=AUTO).X.square().sum(), (M, Y))
    theirs = torch.autograd.grad(torch.linalg.solve(M.mT, Y.mT).square().sum(), (M, Y))
    torch.testing.assert_close(ours, theirs)


def test_regression_is_an_answer():
    M, Y = random(4, 500), random(2, 500, seed=1)
    solution = mcf.solve(M, Y, solver=AUTO, throw=True)
    assert bool(solution.converged.all())
    torch.testing.assert_close(solution.X, lstsq(M, Y))


def test_a_singular_problem_spoils_no_other_gradient():
    """The gradient does not concern it: its cotangent is 0."""
    M = (torch.eye(4) + 0.1 * random(3, 4, 4).float()).requires_grad_()
    with torch.no_grad():
        M[1, 0] = M[1, 1]
    solution = mcf.inv(M, solver=AUTO)
    (ours,) = torch.autograd.grad(solution.X[solution.converged].sum(), M, retain_graph=True)
    good = M.detach()[[0, 2]].requires_grad_()
    (theirs,) = torch.autograd.grad(torch.linalg.inv(good).sum(), good)
    torch.testing.assert_close(ours[[0, 2]], theirs, rtol=1e-4, atol=1e-5)
    assert not ours[1].any()
    with pytest.raises(torch.linalg.LinAlgError, match="but 1 of 3 matrices"):
        torch.autograd.grad(solution.X.sum(), M)
