"""Newton-Schulz: inverses from cold and warm starts, and what rounding and singular matrices do to it."""

from __future__ import annotations

import pytest
import torch
from ill_conditioned import CASES, EPS, RTOL, condition, refuted, residual, with_condition
from problems import well_conditioned
from solving import names, random

import matconv_fast as mcf

pytestmark = pytest.mark.usefixtures("reference")  # these solvers run the same code on every backend

SQUARE = [name for name, make in CASES.items() if make().shape[0] == make().shape[1]]
SOLVER = mcf.NewtonSchulz()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SQUARE)
def test_claims_nothing_that_float64_refutes(name, dtype):
    M = CASES[name]().to(dtype)
    eye = torch.eye(len(M), dtype=dtype)
    solution = mcf.inv(M, solver=SOLVER)
    assert refuted(solution, M, eye) == ""
    assert solution.X.isfinite().all()
    rounding = 16 * EPS[torch.float64] * float(solution.X.double().norm() * M.double().norm())
    torch.testing.assert_close(solution.residual_norm, residual(solution.X, M, eye), rtol=1e-12, atol=rounding)
    if condition(M) <= 0.01 / EPS[dtype]:
        direct = float(residual(torch.linalg.inv(M), M, eye))
        assert float(solution.residual_norm) <= max(10 * direct, RTOL[dtype] * len(M) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cold_start_takes_two_iterations_a_bit_of_the_condition_number(dtype):
    for power in (1, 2, 3):
        solution = mcf.inv(with_condition(10, 10, 10.0**power).to(dtype), solver=SOLVER)
        assert names(solution) == ["CONVERGED"]
        assert int(solution.iterations) <= 2 * 3.33 * power + 12


def test_a_warm_start_squares_the_residual():
    M = well_conditioned(8)
    X0 = torch.linalg.inv(M) + 1e-2 * random(8, 8)
    solution = mcf.inv(M, X0=X0, solver=SOLVER)
    assert names(solution) == ["CONVERGED"]
    assert int(solution.iterations) <= 5
    norms = (solution.history * 64).sqrt()
    assert bool((norms[1:] <= norms[:-1] ** 2 + 1e-12).all())


def test_a_start_whose_spectral_norm_alone_is_below_1_is_warm():
    """||R||_F is 1.8 here, which proves nothing."""
    M = well_conditioned(9)
    X0 = 0.4 * torch.linalg.inv(M)
    solution = mcf.inv(M, X0=X0, solver=SOLVER)
    assert float(solution.history[0] * 81) ** 0.5 > 1.5
    assert names(solution) == ["CONVERGED"]
    assert int(solution.iterations) <= 7


@pytest.mark.parametrize("scale", [1e3, -1.0])
def test_a_useless_start_is_replaced(scale):
    M = well_conditioned(6, 3)
    solution = mcf.inv(M, X0=scale * random(3, 6, 6, seed=1), solver=SOLVER)
    assert names(solution) == ["CONVERGED"] * 3
    torch.testing.assert_close(solution.X, torch.linalg.inv(M), rtol=1e-8, atol=1e-9)


def test_problems_of_a_batch_do_not_mix():
    M = well_conditioned(5, 4, dtype=torch.float32)
    M[1] = 1
    M[2, 0, 0] = torch.nan
    solution = mcf.inv(M, solver=SOLVER)
    assert names(solution) == ["CONVERGED", "BREAKDOWN", "NONFINITE", "CONVERGED"]
    assert "M is singular" in solution.message
    for b in (0, 3):
        one = mcf.inv(M[b], solver=SOLVER)
        assert one.iterations == solution.iterations[b]
        torch.testing.assert_close(one.X, solution.X[b])


def test_scales():
    M = well_conditioned(5)
    for exponent in (-100, -30, 30, 100):
        dtype = torch.float32 if abs(exponent) < 38 else torch.float64
        assert names(mcf.inv((M * 10.0**exponent).to(dtype), solver=SOLVER)) == ["CONVERGED"]


def test_it_is_for_inverses():
    with pytest.raises(ValueError, match="NewtonSchulz finds inverses"):
        mcf.solve(random(3, 3), random(2, 3), solver=SOLVER)
    with pytest.raises(ValueError, match="NewtonSchulz finds inverses"):
        mcf.solve(None, random(3, 3), solver=SOLVER)
    assert mcf.inv(random(0, 0), solver=SOLVER).X.shape == (0, 0)
