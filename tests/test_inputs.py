"""Layouts, dtypes, empty shapes and orientations of the inputs."""

from __future__ import annotations

import pytest
import torch
from problems import well_conditioned

import matconv_fast as mcf

RTOL = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", RTOL)
def test_every_dtype_reaches_its_default_tolerance(backend, dtype):
    M = well_conditioned(8).to(dtype)
    Y = torch.rand(5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    sol = mcf.solve(M, Y)
    assert bool(sol.converged), sol.message
    assert sol.X.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    residual = sol.X.double() @ M.double() - Y.double()
    assert residual.norm() <= RTOL[dtype] * Y.double().norm() * 1.001


def layouts(t: torch.Tensor) -> dict[str, torch.Tensor]:
    r, c = t.shape
    wide = torch.full((2 * r, 3 * c), torch.nan, dtype=t.dtype)
    wide[::2, 1::3] = t
    row = torch.full((r, c + 3), torch.nan, dtype=t.dtype)
    row[:, 3:] = t
    return {
        "transposed": t.T.contiguous().T,
        "strided": wide[::2, 1::3],
        "sliced": row[:, 3:],
        "offset": torch.cat([torch.zeros(7, dtype=t.dtype), t.reshape(-1)])[7:].view(r, c),
        "batch of one": t[None],
    }


@pytest.mark.parametrize("kind", layouts(torch.zeros(2, 2)))
@pytest.mark.parametrize("solver", [mcf.HeavyBall(0.2, 0.6), mcf.Adam(0.05)])
@pytest.mark.parametrize("n", [7, pytest.param(33, marks=pytest.mark.long)])
def test_any_layout_gives_the_same_bits(backend, kind, solver, n):
    generator = torch.Generator().manual_seed(0)
    M, (Y, X0) = well_conditioned(n), torch.rand(2, 5, n, generator=generator).double()
    options = {"solver": solver, "max_iters": 60, "rtol": 0.0}
    plain = mcf.solve(M, Y, X0, **options)
    other = mcf.solve(layouts(M)[kind], layouts(Y)[kind], layouts(X0)[kind], **options)
    assert torch.equal(plain.X, other.X.view(5, n))
    assert torch.equal(plain.history, other.history.view(-1))


@pytest.mark.long
def test_expanded_inputs(backend):
    M, Y = well_conditioned(4), torch.ones(1, 1, dtype=torch.float64).expand(3, 4)
    torch.testing.assert_close(mcf.solve(M, Y).X, mcf.solve(M, Y.contiguous()).X, rtol=0, atol=0)
    batch = mcf.solve(M.expand(3, 4, 4), Y)
    for b in range(3):
        torch.testing.assert_close(batch.X[b], mcf.solve(M, Y).X, rtol=0, atol=1e-13)


def test_left_solves_the_equation_of_torch_linalg_solve(backend):
    M, Y = well_conditioned(6), torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).double()
    X0 = torch.rand(6, 3, generator=torch.Generator().manual_seed(1)).double()
    sol = mcf.solve(M, Y, X0, left=True, rtol=1e-9)
    torch.testing.assert_close(sol.X, torch.linalg.solve(M, Y), rtol=1e-6, atol=1e-7)
    resumed = mcf.solve(M, Y, mcf.solve(M, Y, X0, left=True, max_iters=9), left=True, rtol=1e-9)
    assert torch.equal(resumed.X, sol.X)


@pytest.mark.long
@pytest.mark.parametrize("shape", [(3, 7, 5), (3, 5, 7), (1, 1, 1), (20, 3, 2)])
def test_rectangular_problems_reach_the_least_squares_solution(backend, shape):
    m, n, p = shape
    generator = torch.Generator().manual_seed(0)
    M, Y = torch.randn(n, p, generator=generator).double(), torch.randn(m, p, generator=generator).double()
    sol = mcf.solve(M, Y, solver=mcf.HeavyBall(momentum="auto"), rtol=1e-9)
    minimum = torch.linalg.lstsq(M.T, Y.T, driver="gelsd").solution.T
    torch.testing.assert_close(sol.X, minimum, rtol=1e-5, atol=1e-6)  # from 0: the one of least norm
    assert bool(sol.converged) == (n >= p)


def test_M_none_is_the_identity(backend):
    Y = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).double()
    sol = mcf.solve(None, Y, solver=mcf.HeavyBall(lr=1.0, momentum=0.5))
    torch.testing.assert_close(sol.X, Y, rtol=1e-8, atol=1e-8)


@pytest.mark.long
def test_inv_is_solve_with_the_identity(backend):
    M = well_conditioned(5)
    assert torch.equal(mcf.inv(M).X, mcf.solve(M).X)
    warm = mcf.inv(M * 1.001, X0=mcf.inv(M).X, rtol=1e-2)
    assert int(warm.iterations) < int(mcf.inv(M * 1.001, rtol=1e-2).iterations)


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 0), (0, 0, 0), (3, 3, 0)])
def test_a_residual_without_elements_is_met_at_once(backend, shape):
    m, n, p = shape
    sol = mcf.solve(torch.ones(n, p), torch.ones(m, p))
    assert sol.X.shape == (m, n)
    assert bool(sol.converged)
    assert (int(sol.iterations), float(sol.loss)) == (0, 0.0)


def test_no_unknowns(backend):
    sol = mcf.solve(torch.ones(0, 3), torch.ones(2, 3), max_iters=5)
    assert sol.X.shape == (2, 0)
    assert float(sol.loss) == 1.0
    assert not bool(sol.converged)


def test_an_empty_batch(backend):
    sol = mcf.solve(torch.ones(0, 3, 3), max_iters=5)
    assert sol.X.shape == (0, 3, 3)
    assert sol.status.shape == (0,)
    assert sol.message == "an empty batch"
    assert "empty batch" in repr(sol)
    sol.raise_for_status()


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-10, 1e10, 1e20, 1e30])
def test_the_size_of_Y_does_not_matter(backend, scale):
    """The squares of very small and very large float32 do not fit float32: a sum of 0 must not pass as a solution."""
    M = well_conditioned(5, dtype=torch.float32)
    sol = mcf.solve(M, scale * torch.eye(5))
    assert bool(sol.converged)
    residual = sol.X.double() @ M.double() - scale * torch.eye(5, dtype=torch.float64)
    assert 0 < residual.norm() <= 1.01e-5 * scale * 5**0.5


def test_a_tolerance_whose_square_underflows_is_never_met(backend):
    sol = mcf.solve(torch.eye(3).double(), 1e-170 * torch.eye(3).double(), max_iters=100)
    assert not bool(sol.converged)
    assert "underflows float64, so it cannot be tested for: scale Y up" in sol.message


def test_an_M_too_small_for_a_step_size_says_so(backend):
    sol = mcf.solve(1e-25 * torch.eye(3), max_iters=100)
    assert "the step size for this M, whose largest singular value is 1e-25, is out of range for float32" in sol.message


def test_momentum_auto_is_faster_than_the_default(backend):
    M = torch.diag(torch.tensor([1.0, 3.0, 10.0, 30.0]).double())
    auto = mcf.solve(M, solver=mcf.HeavyBall(momentum="auto"), rtol=1e-6)
    default = mcf.solve(M, rtol=1e-6)
    assert bool(auto.converged)
    assert int(auto.iterations) < int(default.iterations)


@pytest.mark.long
def test_the_estimated_lr_is_half_of_the_stability_limit(backend):
    for M in (well_conditioned(6), well_conditioned(600, dtype=torch.float32)):  # eigenvalues, and Lanczos
        n = M.shape[0]
        solver = mcf.HeavyBall(momentum=0.8)
        problem = mcf.solve(M, max_iters=0).problem
        limit = 2 * 1.8 / (2 / n**2 * torch.linalg.matrix_norm(M.double(), 2) ** 2)
        lr = solver.hyperparameters(problem)[0].double()[0]
        assert limit / 2 / 1.1 <= lr <= limit / 2 * (1 + 1e-6)
