"""Direct solutions of larger problems, whose residual is sampled: right, and never claimed where float64 disagrees."""

from __future__ import annotations

import pytest
import torch
from ill_conditioned import lstsq, refuted, residual, with_condition
from problems import well_conditioned
from solving import names, random

import matconv_fast as mcf
from matconv_fast.problem import Problem
from matconv_fast.solvers import measure, products

pytestmark = pytest.mark.usefixtures("reference")  # these solvers run the same code on every backend

AUTO = mcf.Auto()


def measured(M: torch.Tensor, Y: torch.Tensor | None = None) -> measure.Measure:
    return measure.Measure(Problem.of(M, Y, None, "mse", False))


def refuse(*_, **__):
    raise AssertionError("a whole residual was made")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [150, 520])
@pytest.mark.parametrize("kind", ["cholesky", "lu"])
def test_an_inverse_takes_no_whole_residual(kind, n, dtype, monkeypatch):
    M = (
        well_conditioned(n, dtype=dtype)
        if kind == "cholesky"
        else random(n, n, dtype=dtype) + n * torch.eye(n).to(dtype)
    )
    monkeypatch.setattr(measure.Measure, "residual", refuse)
    solution = mcf.inv(M, solver=AUTO)
    assert kind in solution.method
    assert refuted(solution, M, torch.eye(n, dtype=dtype)) == ""
    assert (names(solution), int(solution.iterations)) == (["CONVERGED"], 1)
    exact = residual(solution.X, M, torch.eye(n, dtype=dtype))
    assert exact / 2 < solution.residual_norm < 2 * exact


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3, 1.0])
def test_a_warm_start_is_judged_by_float64(noise, monkeypatch):
    M = well_conditioned(200, dtype=torch.float32)
    X0 = torch.linalg.inv(M) + noise * random(200, 200, dtype=torch.float32)
    solution = mcf.inv(M, X0=X0, solver=AUTO)
    assert refuted(solution, M, torch.eye(200)) == ""
    assert names(solution) == ["CONVERGED"]
    meets = float(residual(X0, M, torch.eye(200))) <= 1e-5 * 200**0.5
    assert int(solution.iterations) == (0 if meets else 1)


@pytest.mark.parametrize("factor", [0.5, 0.9, 0.999, 1.001, 1.1, 2.0])
def test_near_the_tolerance_the_whole_residual_decides(factor):
    """A sample is wrong by some per cent: what it may not decide, it does not."""
    M = well_conditioned(160)
    R = random(160, 160, seed=3)
    X0 = torch.linalg.inv(M) + (factor * 1e-4 * 160**0.5 / R.norm()) * R @ torch.linalg.inv(M)
    solution = mcf.inv(M, X0=X0, solver=AUTO, rtol=1e-4)
    assert int(solution.iterations) == (0 if factor < 1 else 1)


@pytest.mark.parametrize("rank", [1, 5, 200])
def test_a_sample_is_as_large_as_the_residual(rank):
    M, Y = well_conditioned(200), random(200, rank) @ random(rank, 200, seed=1)
    sampling = measured(M, Y)
    mix = sampling.samples()
    assert mix is not None
    estimate = float(sampling.sampled_norm(torch.zeros(1, 200, 200, dtype=torch.float64), mix))
    assert float(Y.norm()) / 2 < estimate < 2 * float(Y.norm())


@pytest.mark.parametrize("condition", [1e3, 1e5, 1e7, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_ill_conditioned_inverse_claims_nothing_false(condition, dtype):
    M = with_condition(140, 140, condition).to(dtype)
    for A in (M, M @ M.mT):
        solution = mcf.inv(A, solver=AUTO, max_iters=500)  # LSQR, the last resort, would take all 10,000
        assert refuted(solution, A, torch.eye(140, dtype=dtype)) == ""


def test_a_matrix_that_is_almost_symmetric_is_inverted_as_it_is():
    """The factor is chosen by some rows and columns; Cholesky's method would ignore this element."""
    for n in (200, 600):
        M = well_conditioned(n, dtype=torch.float32)
        M[1, n - 2] += 0.5
        solution = mcf.inv(M, solver=AUTO)
        assert names(solution) == ["CONVERGED"]
        torch.testing.assert_close(solution.X, torch.linalg.inv(M), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("m", [1, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_regression_is_the_least_squares_minimum(m, dtype):
    M, Y = random(20, 4_000, dtype=dtype), random(m, 4_000, dtype=dtype, seed=1)
    solution = mcf.solve(M, Y, solver=AUTO)
    assert refuted(solution, M, Y) == ""
    assert (names(solution), int(solution.iterations)) == (["LEAST_SQUARES"], 1)
    best = residual(lstsq(M.double(), Y.double()), M, Y)
    assert residual(solution.X, M, Y) <= (1 + 1e-10) * best
    torch.testing.assert_close(solution.residual_norm, residual(solution.X, M, Y), rtol=1e-6, atol=0)


@pytest.mark.parametrize("m", [1, 40])
@pytest.mark.parametrize("condition", [1.0, 30.0, 1e4, 1e7])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regressions_are_as_good_as_lstsq(m, condition, noise, dtype):
    M = with_condition(20, 1_000, condition)
    Y = (random(m, 20) @ M + noise * random(m, 1_000, seed=1)).to(dtype)
    M = M.to(dtype)
    solution = mcf.solve(M, Y, solver=AUTO)
    assert refuted(solution, M, Y) == ""
    if condition <= 0.1 / torch.finfo(dtype).eps:
        assert bool(solution.converged)
        assert residual(solution.X, M, Y) <= 10 * residual(lstsq(M, Y), M, Y)


def test_non_finite_and_badly_scaled_regressions():
    M, Y = random(20, 2_000, dtype=torch.float32), random(3, 2_000, dtype=torch.float32, seed=1)
    for scale in (1e-30, 1e-15, 1e15, 1e30):
        solution = mcf.solve(scale * M, scale * Y, solver=AUTO)
        assert bool(solution.converged)
        torch.testing.assert_close(solution.X, lstsq(M, Y), rtol=1e-4, atol=1e-5)
    M[3, 7] = torch.nan
    assert names(mcf.solve(M, Y, solver=AUTO)) == ["NONFINITE"]


@pytest.mark.parametrize("n", [3, 130, 260])
def test_inverse_by_blocks(n):
    M = well_conditioned(n, 2)
    X = products.inverse_by_blocks(M)
    assert X is not None
    # one by one: torch 2.13 with MKL fails on a batch after torch.set_num_threads, which other tests call
    torch.testing.assert_close(X, torch.stack([torch.linalg.inv(A) for A in M]))
    M[1, n - 1, n - 1] = -1
    assert products.inverse_by_blocks(M) is None


@pytest.mark.parametrize("shape", [(3, 10), (129, 1_000), (130, 70_000)])
def test_sums_of_products(shape):
    M = random(2, *shape, dtype=torch.float32)
    A = random(1, 3, shape[1], dtype=torch.float32, seed=1)
    scale = shape[1]
    for left in (M, A):
        exact = left.double() @ M.double().mT
        torch.testing.assert_close(products.sum_of_products(left, M), exact, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_norms_by_pieces(scale):
    t = scale * random(2, 600, 601, dtype=torch.float32)
    exact = torch.linalg.vector_norm(t.double(), dim=(-2, -1))
    torch.testing.assert_close(measure.norm(t), exact, rtol=1e-6, atol=0)


def test_an_estimate_is_called_one():
    M = torch.eye(200) + 0.1 * torch.randn(200, 200, generator=torch.Generator().manual_seed(0)) / 200**0.5
    sol = mcf.inv(M)
    assert "estimated from a sample" in sol.method
    assert "||R||_F is about " in sol.message
    assert mcf.Solution.from_state_dict(sol.state_dict()).message == sol.message
    measured = mcf.inv(M, rtol=1e-7)
    assert "estimated" not in measured.method
    assert "||R||_F = " in measured.message
