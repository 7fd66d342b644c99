"""Gradients of minimum-norm and least-squares solutions, of one good problem among bad ones, and their accuracy."""

from __future__ import annotations

import warnings

import pytest
import torch
from derivatives import rand
from problems import well_conditioned
from torch.autograd import grad, gradcheck, gradgradcheck

import matconv_fast as mcf

pytestmark = pytest.mark.usefixtures("backend")
SOLVERS = {
    "refinement": lambda: mcf.Refinement("qr"),
    "lsqr": lambda: mcf.LSQR(),
    "heavy ball": lambda: mcf.HeavyBall(),
}


def nearest(M, Y, X0):
    """The solution nearest to X0, by the pseudo-inverse."""
    return X0 + (Y - X0 @ M) @ torch.linalg.pinv(M)


@pytest.mark.long
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("start", ["from 0", "from X0"])
def test_more_unknowns_than_equations(solver, left, start):
    """The minimum-norm solution, or the one nearest to X0."""
    M, Y, X0 = rand(2, 6, 3, seed=1), rand(2, 4, 3, seed=2), rand(2, 4, 6, seed=3)
    X0 = X0 if start == "from X0" else torch.zeros_like(X0)
    given = [t.mT if left else t for t in (M, Y, X0)]
    M, Y = (t.clone().requires_grad_() for t in given[:2])
    X = mcf.solve(M, Y, given[2], solver=SOLVERS[solver](), left=left, rtol=1e-6).X
    cotangent = rand(*X.shape, seed=4)
    mine = grad(X, (M, Y), cotangent)
    rows = [t.mT if left else t for t in (M, Y, given[2])]
    truth = grad(nearest(*rows), (M, Y), cotangent.mT if left else cotangent)
    for found, expected in zip(mine, truth, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_more_unknowns_than_equations_to_second_order():
    M, Y, X0 = rand(2, 4, 2, seed=1).requires_grad_(), rand(3, 2, seed=2).requires_grad_(), rand(3, 4, seed=3)

    def solution(M, Y):
        return mcf.solve(M, Y, X0, solver=mcf.Refinement("qr")).X

    assert gradcheck(solution, (M, Y), fast_mode=True)
    assert gradgradcheck(solution, (M, Y), fast_mode=True)


def test_least_squares_to_second_order():
    M, Y = rand(2, 5, seed=1).requires_grad_(), rand(3, 5, seed=2).requires_grad_()

    def solution(M, Y):
        return mcf.solve(M, Y, solver=mcf.Refinement("qr")).X

    mine = grad(solution(M, Y), (M, Y), rand(3, 2, seed=3))
    truth = grad(torch.linalg.lstsq(M.mT, Y.mT).solution.mT, (M, Y), rand(3, 2, seed=3))
    torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-10)
    assert gradcheck(solution, (M, Y), fast_mode=True)
    assert gradgradcheck(solution, (M, Y), fast_mode=True)


@pytest.mark.long
def test_a_resumed_solve_of_more_unknowns_than_equations():
    """X0 is a constant: the X that the earlier solve ended with."""
    M, Y, X0 = rand(6, 3, seed=1).requires_grad_(), rand(4, 3, seed=2), rand(4, 6, seed=3)
    half = mcf.solve(M, Y, X0, solver=mcf.HeavyBall(), max_iters=7)
    X = mcf.solve(M, Y, half, rtol=1e-6).X
    (mine,), (truth,) = (grad(t.square().sum(), M) for t in (X, nearest(M, Y, half.X.detach())))
    torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_a_solution_that_is_not_the_nearest_has_no_known_gradient():
    M, Y = rand(6, 3, seed=1).requires_grad_(), rand(4, 3, seed=2)
    X = mcf.solve(M, Y, solver=mcf.Adam(0.05)).X
    with pytest.raises(RuntimeError, match="not the solution nearest to X0"):
        X.sum().backward()


@pytest.mark.long
@pytest.mark.parametrize("solver", [None, mcf.Auto()])
@pytest.mark.parametrize("bad", ["singular", "nan in M", "nan in Y", "infinite X0"])
@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3)])
def test_one_bad_problem_spoils_only_itself(solver, bad, shape):
    n, p = shape
    M, Y, X0 = rand(3, n, p, seed=1), rand(3, 2, p, seed=2), torch.zeros(3, 2, n, dtype=torch.float64)
    if bad == "singular":
        M[1] = 1.0
    elif bad == "infinite X0":
        X0[1] = torch.inf
    else:
        (M if bad == "nan in M" else Y)[1, 0, 0] = torch.nan
    M, Y = M.requires_grad_(), Y.requires_grad_()
    sol = mcf.solve(M, Y, X0, solver=solver, max_iters=3000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        dM, dY = grad(sol.X[[0, 2]].sum(), (M, Y))
    assert torch.equal(dM[1], torch.zeros(n, p, dtype=torch.float64))
    assert torch.equal(dY[1], torch.zeros(2, p, dtype=torch.float64))
    for b in (0, 2):
        one, right = (t[b].detach().requires_grad_() for t in (M, Y))
        truth = grad((right @ torch.linalg.pinv(one)).sum(), (one, right))
        torch.testing.assert_close((dM[b], dY[b]), truth, rtol=1e-7, atol=1e-7)


def test_a_bad_right_hand_side_beside_a_shared_M():
    M, Y = well_conditioned(4).requires_grad_(), rand(3, 2, 4, seed=2)
    Y[1, 0, 0] = torch.nan
    sol = mcf.solve(M, Y, solver=mcf.Auto())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        (mine,) = grad(sol.X[[0, 2]].sum(), M)
    (truth,) = grad(torch.linalg.solve(M, Y[[0, 2]], left=False).sum(), M)
    torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("shape", [(8, 8), (5, 20), (20, 5)])
@pytest.mark.parametrize("rtol", [None, 1e-2])
def test_float32_gradients_are_as_accurate_as_the_factor(shape, rtol):
    """X itself is only as near as its tolerance, 1e-5 or 1e-2: the backward corrects it first."""
    n, p = shape
    M = well_conditioned(n) if n == p else rand(n, p, seed=1)
    M, Y = M.float().requires_grad_(), rand(3, p, seed=2).float().requires_grad_()
    X = mcf.solve(M, Y, rtol=rtol).X
    cotangent = rand(3, n, seed=4)
    mine = grad(X, (M, Y), cotangent.float())
    wide, right = (t.detach().double().requires_grad_() for t in (M, Y))
    truth = grad(right @ torch.linalg.pinv(wide), (wide, right), cotangent)
    for found, expected in zip(mine, truth, strict=True):
        assert (found.double() - expected).norm() <= 1e-5 * expected.norm()
