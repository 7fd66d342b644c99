"""Refinement and factors: right answers, true statuses, and factors that are used again."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from ill_conditioned import CASES, EPS, RTOL, condition, lstsq, refuted, residual, right_hand_sides
from problems import well_conditioned
from solving import names, random

import matconv_fast as mcf

pytestmark = pytest.mark.usefixtures("reference")  # these solvers run the same code on every backend

KINDS = {"cholesky": (6, 6), "lu": (6, 6), "qr": (6, 6), "gram": (3, 40)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_no_answer_that_float64_refutes(name, dtype):
    M = CASES[name]().to(dtype)
    for Y in right_hand_sides(CASES[name]()).values():
        Y = Y.to(dtype)
        solution = mcf.solve(M, Y, solver=mcf.Refinement())
        assert refuted(solution, M, Y) == ""
        if condition(M) <= 1 / (10 * EPS[dtype]):
            tolerance = RTOL[dtype] * float(Y.norm())
            assert residual(solution.X, M, Y) <= max(10 * float(residual(lstsq(M, Y), M, Y)), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (3, 7), (3, 50), (7, 3), (1, 9), (9, 1)])
def test_is_the_minimum_norm_least_squares_solution(shape, dtype):
    M, Y = random(*shape, dtype=dtype), random(4, shape[1], dtype=dtype, seed=1)
    solution = mcf.solve(M, Y, solver=mcf.Refinement())
    assert bool(solution.converged)
    torch.testing.assert_close(solution.X.double(), lstsq(M.double(), Y.double()), rtol=1e-4, atol=1e4 * EPS[dtype])


def test_more_unknowns_give_the_solution_nearest_to_X0():
    M, Y, X0 = random(7, 3), random(4, 3, seed=1), random(4, 7, seed=2)
    solution = mcf.solve(M, Y, X0, solver=mcf.Refinement())
    torch.testing.assert_close(solution.X, X0 + (Y - X0 @ M) @ torch.linalg.pinv(M))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_every_factor(kind, batch):
    n, p = KINDS[kind]
    M = well_conditioned(n, *batch) if n == p else random(*batch, n, p)
    Y = random(*batch, 5, n, seed=1) @ M
    solution = mcf.solve(M, Y, solver=mcf.Refinement(factor=kind))
    assert bool(solution.converged.all())
    assert kind in solution.method
    torch.testing.assert_close(solution.X @ M, Y, rtol=1e-9, atol=1e-9)


def test_the_choice_of_the_factor():
    X0 = torch.zeros(4, 4).double()  # a start of the user's is no direct solve
    assert "cholesky" in mcf.solve(well_conditioned(4), X0=X0, solver=mcf.Refinement()).method
    assert "lu" in mcf.solve(random(4, 4), X0=X0, solver=mcf.Refinement()).method
    assert "lu" in mcf.solve(-well_conditioned(4), X0=X0, solver=mcf.Refinement()).method
    assert "direct" in mcf.solve(random(4, 4), solver=mcf.Refinement()).method
    assert "qr" in mcf.solve(random(4, 6), random(2, 6), solver=mcf.Refinement()).method
    assert "gram" in mcf.solve(random(4, 60), random(2, 60), solver=mcf.Refinement()).method
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]])  # a positive diagonal: Cholesky fails, LU does not
    assert bool(mcf.solve(indefinite, X0=torch.zeros(2, 2), solver=mcf.Refinement()).converged)


def test_one_singular_and_one_bad_matrix_of_a_batch_cost_only_themselves():
    M = random(6, 5, 5)
    M[2] = 0
    M[3, 0] = M[3, 1]
    M[4, 0, 0] = torch.nan
    solution = mcf.solve(M, solver=mcf.Refinement())
    assert [name == "CONVERGED" for name in names(solution)] == [True, True, False, False, False, True]
    assert names(solution)[2] == "BREAKDOWN"
    assert names(solution)[4] == "NONFINITE"
    for b in (0, 1, 5):
        torch.testing.assert_close(solution.X[b], torch.linalg.inv(M[b]), rtol=1e-10, atol=1e-10)
    assert "2 of 6 by Refinement: qr" in solution.method
    assert solution.X.isfinite().all()


def test_the_residual_is_made_in_float64():
    """Two digits are lost to a float32 residual here."""
    M, Y = CASES["kappa 1e4 16x16"]().float(), random(3, 16, dtype=torch.float32)
    solution = mcf.solve(M, Y, solver=mcf.Refinement(), rtol=0.0)
    torch.testing.assert_close(solution.residual_norm, residual(solution.X, M, Y))
    direct = torch.linalg.solve(M.mT, Y.mT).mT
    exact = torch.linalg.solve(M.double().mT, Y.double().mT).mT
    assert (solution.X - exact).norm() < 0.1 * (direct - exact).norm()


def test_a_factor_in_lower_precision_is_refined_to_float64():
    M = well_conditioned(30)
    solution = mcf.solve(M, solver=mcf.Refinement(precision="float32"))
    assert bool(solution.converged)
    assert 2 <= int(solution.iterations) <= 4
    torch.testing.assert_close(solution.X, torch.linalg.inv(M), rtol=1e-9, atol=1e-9)
    hard = CASES["hilbert 8"]()
    Y = right_hand_sides(hard)["consistent"]
    assert bool(mcf.solve(hard, Y, solver=mcf.Refinement(precision="float32")).converged)  # by the fallback


def test_nothing_is_factored_for_an_X0_that_meets_the_tolerance(monkeypatch):
    def refuse(*_):
        raise AssertionError("a factor was made")

    M = well_conditioned(5)
    monkeypatch.setattr("matconv_fast.solvers.refinement.factor_problem", refuse)
    solution = mcf.inv(M, X0=torch.linalg.inv(M), solver=mcf.Refinement())
    assert (int(solution.iterations), bool(solution.converged)) == (0, True)


def test_a_warm_start_is_never_made_worse():
    M, Y = CASES["hilbert 10"]().float(), random(3, 10, dtype=torch.float32)
    X0 = lstsq(M, Y)
    solution = mcf.solve(M, Y, X0, solver=mcf.Refinement())
    assert solution.residual_norm <= residual(X0, M, Y)
    assert bool((solution.history.diff() <= 0).all())


@pytest.mark.parametrize("shape", [(4, 4), (3, 9), (9, 3)])
def test_a_zero_right_hand_side_ends_at_once(shape):
    M, X0 = random(5, *shape, dtype=torch.float32), random(5, 4, shape[0], dtype=torch.float32, seed=1)
    Y = random(5, 4, shape[1], dtype=torch.float32, seed=2)
    Y[0] = 0
    solution = mcf.solve(M, Y, X0, solver=mcf.Refinement())
    assert names(solution)[0] == "CONVERGED"
    assert int(solution.iterations[0]) == 0
    assert not solution.X[0].any()


def test_factorize_once_solve_many():
    M = random(6, 6)
    F = mcf.factorize(M)
    assert repr(F) == "Factor(lu of float64 tensor of shape [6, 6] on cpu)"
    for m in (1, 6, 20):
        Y = random(m, 6, seed=m)
        torch.testing.assert_close(mcf.solve(F, Y).X, torch.linalg.solve(M.mT, Y.mT).mT)
    many = random(3, 2, 6, seed=9)
    torch.testing.assert_close(mcf.solve(F, many).X @ M, many)
    torch.testing.assert_close(mcf.inv(F).X, torch.linalg.inv(M))


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (2, 50)])
def test_factors_of_the_left_equation(shape):
    M, Y = random(2, *shape), random(2, shape[0], 4, seed=1)
    F = mcf.factorize(M, left=True)
    solution = mcf.solve(F, Y, left=True)
    torch.testing.assert_close(solution.X, torch.linalg.pinv(M) @ Y)
    with pytest.raises(ValueError, match="factor was made with left=True"):
        mcf.solve(F, Y.mT)


def test_a_factor_of_a_matrix_near_M_serves_as_well():
    M = well_conditioned(8)
    drifted = M + 1e-3 * random(8, 8)
    solution = mcf.inv(drifted, solver=mcf.Refinement(mcf.factorize(M)))
    assert bool(solution.converged)
    assert int(solution.iterations) > 1
    torch.testing.assert_close(solution.X, torch.linalg.inv(drifted), rtol=1e-8, atol=1e-9)


def test_misuse_is_refused():
    M = random(4, 4)
    F = mcf.factorize(M)
    with pytest.raises(ValueError, match="solver must be None"):
        mcf.solve(F, solver=mcf.HeavyBall())
    with pytest.raises(ValueError, match="does not fit M"):
        mcf.solve(random(5, 5), solver=mcf.Refinement(F))
    with pytest.raises(ValueError, match="factor must be one of"):
        mcf.Refinement("svd")
    with pytest.raises(ValueError, match="precision must be one of"):
        mcf.Refinement(precision="float16")
    with pytest.raises(ValueError, match="'lu' needs a square M"):
        mcf.factorize(random(3, 4), kind="lu")
    with pytest.raises(ValueError, match="at least as many columns"):
        mcf.solve(random(4, 3), random(1, 3), solver=mcf.Refinement("gram"))
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor"):
        mcf.factorize([[1.0]])
    M.zero_()
    with pytest.raises(ValueError, match="modified in place since it was factored"):
        mcf.solve(F)


def test_no_matrix_and_empty_ones():
    Y = random(3, 4)
    solution = mcf.solve(None, Y, torch.zeros(3, 4, dtype=torch.float64), solver=mcf.Refinement())
    assert torch.equal(solution.X, Y)
    for M, Y in ((random(0, 0), random(2, 0)), (random(3, 0), random(2, 0)), (random(0, 3), random(2, 3))):
        assert mcf.solve(M, Y, solver=mcf.Refinement()).X.shape == (2, M.shape[0])


def test_low_precision_input_and_huge_and_tiny_scales():
    M = well_conditioned(6)
    half = mcf.inv(M.bfloat16(), solver=mcf.Refinement(), rtol=1e-6)
    torch.testing.assert_close(half.X.double(), torch.linalg.inv(M.bfloat16().double()), rtol=1e-5, atol=1e-6)
    for exponent in (-140, -30, 30, 140):
        dtype = torch.float32 if abs(exponent) < 38 else torch.float64
        A = (M * 10.0**exponent).to(dtype)
        solution = mcf.solve(A, A, solver=mcf.Refinement())
        assert bool(solution.converged), (exponent, solution)


def test_messages_say_what_float64_confirms():
    singular = mcf.solve(torch.ones(3, 3), torch.eye(3), solver=mcf.Refinement())
    assert "singular" in singular.message
    ill = CASES["hilbert 10"]().float()
    assert "the condition number of M is" in mcf.solve(ill, random(3, 10).float(), solver=mcf.Refinement()).message
    line = mcf.solve(random(2, 9), random(3, 9, seed=1), solver=mcf.Refinement())
    assert bool(line.converged)
    line.raise_for_status()
    assert line.message.startswith("least-squares minimum: ||R||_F = ")


def test_saves_and_copies():
    M = random(5, 5)
    F = mcf.factorize(M, kind="qr")
    solution = mcf.solve(F)
    for other in (copy.deepcopy(solution), pickle.loads(pickle.dumps(solution))):
        assert torch.equal(other.X, solution.X)
        assert other.state.solver == mcf.Refinement("qr")
    again = mcf.solve(M, X0=other, rtol=1e-11)
    assert bool(again.converged)


def test_another_equation_starts_anew():
    M = random(5, 5)
    stuck = mcf.solve(torch.ones(5, 5, dtype=torch.float64), torch.eye(5, dtype=torch.float64), solver=mcf.Refinement())
    assert not bool(stuck.converged)
    assert bool(mcf.solve(M, X0=stuck).converged)


def test_gradients():
    M, Y = random(5, 5).requires_grad_(), random(3, 5, seed=1).requires_grad_()
    ours = torch.autograd.grad(mcf.solve(M, Y, solver=mcf.Refinement()).X.square().sum(), (M, Y))
    theirs = torch.autograd.grad(torch.linalg.solve(M.mT, Y.mT).square().sum(), (M, Y))
    torch.testing.assert_close(ours, theirs)
