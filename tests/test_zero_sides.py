"""Right-hand sides of 0: no iterate can meet a tolerance relative to 0 but X = 0, so that is the answer at once.

Gradient rules follow the plain loop there, too.
"""

from __future__ import annotations

import pytest
import torch
from derivatives import rand
from problems import well_conditioned

import matconv_fast as mcf

SOLVERS = {
    "heavy ball": lambda: mcf.HeavyBall(),
    "adam": lambda: mcf.Adam(0.05),
    "refinement": lambda: mcf.Refinement(),
    "minres": lambda: mcf.MINRES(),
    "lsqr": lambda: mcf.LSQR(),
    "auto": lambda: mcf.Auto(),
}


def equation(*batch):
    return well_conditioned(4, *batch), rand(*batch, 2, 4, seed=2), rand(*batch, 2, 4, seed=3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_padding_ends_at_once_and_leaves_the_others_alone(backend, solver, ridge):
    if ridge and solver == "minres":
        pytest.skip("takes no ridge")
    M, Y, X0 = equation(3)
    Y[1] = 0
    options = {"solver": SOLVERS[solver](), "max_iters": 50, "ridge": ridge}
    sol = mcf.solve(M, Y, X0, **options)
    if isinstance(options["solver"], mcf.GradientRule):
        assert int(sol.iterations[1]) == 50
        assert sol.history[1, 0] > sol.history[1, -1] > 0
    else:
        assert int(sol.iterations[1]) == 0
        assert mcf.Status(int(sol.status[1])) is mcf.Status.CONVERGED
        assert torch.equal(sol.X[1], torch.zeros(2, 4, dtype=torch.float64))
        assert float(sol.loss[1]) == float(sol.history[1, 0]) == 0
    for b in (0, 2):
        alone = mcf.solve(M[b], Y[b], X0[b], **options)
        torch.testing.assert_close(sol.X[b], alone.X, rtol=1e-12, atol=1e-12)
        assert int(alone.iterations) > 0


@pytest.mark.parametrize("left", [False, True])
def test_a_solution_of_another_equation_as_X0(backend, left):
    M, Y, X0 = equation()
    Y, X0 = (t.mT if left else t for t in (Y, X0))
    first = mcf.solve(M, Y, X0, left=left, max_iters=30)
    sol = mcf.solve(M, torch.zeros_like(Y), first, left=left)
    assert (int(sol.iterations), int(sol.status)) == (int(first.iterations), mcf.Status.CONVERGED)
    assert not sol.X.any()
    assert first.X.any()


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": 1e-3}])
def test_a_tolerance_that_does_not_depend_on_Y_leaves_the_path_as_it_is(backend, options):
    M, _, X0 = equation()
    sol = mcf.solve(M, torch.zeros_like(X0), X0, solver=mcf.HeavyBall(0.2, 0.5), max_iters=3, **options)
    assert int(sol.iterations) == 3
    assert sol.X.any()
    torch.testing.assert_close(sol.history[0], (X0 @ M).square().mean())


def test_what_is_not_zero_is_not_taken_for_it(backend):
    M, _, X0 = equation()
    Y = torch.zeros_like(X0)
    Y[0, 0] = 1e-300
    assert int(mcf.solve(M, Y, X0, solver=mcf.HeavyBall(0.2, 0.5), max_iters=3).iterations) == 3
    Y[0, 0] = torch.nan
    assert mcf.Status(int(mcf.solve(M, Y, X0).status)) is mcf.Status.NONFINITE
    M[0, 0] = torch.nan
    assert mcf.Status(int(mcf.solve(M, torch.zeros_like(X0), X0).status)) is mcf.Status.NONFINITE


def test_its_gradient(backend):
    M, X0 = rand(6, 3, seed=1).requires_grad_(), rand(2, 6, seed=3)
    Y = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    X = mcf.solve(M, Y, X0).X
    mine = torch.autograd.grad(X.sum(), (M, Y))
    truth = torch.autograd.grad((Y @ torch.linalg.pinv(M)).sum(), (M, Y))
    torch.testing.assert_close(mine, truth)
