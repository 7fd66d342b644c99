"""How a solve ends that does not converge, and the advice in its message."""

from __future__ import annotations

import re

import pytest
import torch
from problems import well_conditioned

import matconv_fast as mcf


def status(sol: mcf.Solution) -> mcf.Status:
    return mcf.Status(sol.status.item())


def test_lr_beyond_stability_diverges_and_names_the_limit(backend):
    M = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    sol = mcf.solve(M, solver=mcf.HeavyBall(lr=2.0, momentum=0.9))
    assert status(sol) is mcf.Status.DIVERGED
    # 2 (1 + 0.9) / (2 / 16 * 4^2)
    assert re.search(r"lr 2 is above the stability limit 1.9 for this M", sol.message)
    assert sol.X.isfinite().all()  # stopped long before overflow
    below = mcf.solve(M, solver=mcf.HeavyBall(lr=1.85, momentum=0.9), rtol=1e-4)
    assert bool(below.converged)


def test_overflow_is_divergence_too(backend):
    M = well_conditioned(4, dtype=torch.float32)
    sol = mcf.solve(M, solver=mcf.HeavyBall(lr=1e25, momentum=0.0))
    assert status(sol) is mcf.Status.DIVERGED
    assert "stability limit" in sol.message


@pytest.mark.long
def test_growth_alone_is_no_divergence(backend):
    """Optimal lr and momentum on condition number 400: the loss rises by two orders before it falls."""
    generator = torch.Generator().manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=torch.float64))
    M = U @ torch.diag(torch.logspace(0, 2.602, 32, dtype=torch.float64)) @ U.T
    X0 = torch.rand(32, 32, generator=generator, dtype=torch.float64) * 1e-3
    high, low = (2 / M.numel() * s**2 for s in (10**2.602, 1.0))
    a, b = high**0.5, low**0.5
    optimal = mcf.HeavyBall(4 / (a + b) ** 2, ((a - b) / (a + b)) ** 2)
    sol = mcf.solve(M, None, X0, solver=optimal, rtol=1e-6, max_iters=20_000)
    assert bool(sol.converged), sol.message
    assert sol.history.max() > 10 * sol.history[0]


@pytest.mark.parametrize("name", ["M", "Y", "X0"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_input(backend, name, bad):
    tensors = {"M": torch.eye(3), "Y": torch.eye(3), "X0": torch.eye(3)}
    tensors[name][1, 1] = bad
    sol = mcf.solve(**tensors, solver=mcf.HeavyBall(0.1))
    assert status(sol) is mcf.Status.NONFINITE
    assert int(sol.iterations) == 0
    assert f"{name} holds NaN or infinity" in sol.message


def test_non_finite_hyperparameter(backend):
    sol = mcf.solve(torch.eye(3), solver=mcf.HeavyBall(torch.tensor(float("nan")), 0.5))
    assert status(sol) is mcf.Status.NONFINITE
    assert "lr is nan and momentum 0.5: both must be finite" in sol.message


@pytest.mark.long
def test_singular_M_ends_at_its_minimum_and_says_why(backend):
    M = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    assert status(mcf.solve(M)) is mcf.Status.LEAST_SQUARES
    sol = mcf.solve(M, solver=mcf.HeavyBall())
    assert status(sol) is mcf.Status.LEAST_SQUARES
    assert not bool(sol.converged)
    assert int(sol.iterations) <= 3_000
    assert "M is singular (rank 2 of 3 columns)" in sol.message
    short = mcf.solve(M, solver=mcf.HeavyBall(), max_iters=100)
    assert status(short) is mcf.Status.MAX_ITERATIONS
    assert "M is singular" in short.message


@pytest.mark.long
def test_an_overdetermined_equation_names_its_shape(backend):
    M = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    sol = mcf.solve(M, torch.ones(3, 5))
    assert "M is 2 x 5 (rank 2 of 5 columns)" in sol.message
    assert status(sol) is mcf.Status.LEAST_SQUARES
    assert bool(sol.converged)


@pytest.mark.long
def test_a_minimum_in_a_batch_is_told_from_a_stagnated_problem(backend):
    """One at its minimum, one at the rounding floor of a tolerance that float32 cannot meet, one that converges."""
    M = torch.stack([torch.diag(torch.tensor([1.0, 2.0, 0.0])), well_conditioned(3, dtype=torch.float32), torch.eye(3)])
    Y = torch.stack([torch.eye(3), torch.eye(3), torch.zeros(3, 3)])
    sol = mcf.solve(M, Y, rtol=1e-12)
    assert sol.status.tolist() == [mcf.Status.LEAST_SQUARES, mcf.Status.STAGNATED, mcf.Status.CONVERGED]


@pytest.mark.long
def test_a_tolerance_under_the_dtypes_floor_stagnates(backend):
    M = well_conditioned(6, dtype=torch.float32)
    sol = mcf.solve(M, rtol=1e-12)
    assert status(sol) is mcf.Status.STAGNATED
    assert int(sol.iterations) < 10_000
    assert "what float32 rounding allows" in sol.message
    assert bool(mcf.solve(M.double(), rtol=1e-12).converged)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_slow_fall_is_not_stagnation(backend, dtype):
    """Less than 1 % in 1,000 iterations: only an explicit patience stops it."""
    M = torch.diag(torch.tensor([1.0, 1e-4], dtype=dtype))
    options = {"solver": mcf.HeavyBall(lr=0.5, momentum=0.0), "max_iters": 5_000, "rtol": 1e-6}
    slow = mcf.solve(M, **options)
    assert status(slow) is mcf.Status.MAX_ITERATIONS
    assert "raise max_iters" in slow.message
    stopped = mcf.solve(M, patience=1_000, **options)
    assert status(stopped) is mcf.Status.STAGNATED
    assert int(stopped.iterations) < 5_000
    assert "patience" in stopped.message


@pytest.mark.long
def test_a_slow_fall_near_rounding_is_not_stagnation_either(backend):
    M = torch.diag(torch.tensor([1.0, 1 / 500]))
    X0 = torch.diag(torch.tensor([1.0, 0.95]))  # a residual of 1e-4 already
    sol = mcf.solve(M, M, X0, solver=mcf.HeavyBall(lr=1.9, momentum=0.0), rtol=1e-6, max_iters=20_000)
    assert status(sol) is mcf.Status.MAX_ITERATIONS
    assert sol.history[-1] < 0.95 * sol.history[0]


@pytest.mark.long
def test_the_message_is_about_the_right_problem_and_orientation(backend):
    both = mcf.solve(
        torch.eye(3),
        torch.stack([torch.eye(3), torch.full((3, 3), torch.nan)]),
        torch.full((2, 3, 3), torch.inf),
        solver=mcf.HeavyBall(0.1),
    )
    assert both.message.startswith("2 of 2 problems did not converge; problem 0 X0 holds NaN or infinity")
    tall = mcf.solve(torch.ones(5, 2), torch.arange(5.0)[:, None], left=True)
    assert "M is 5 x 2 (rank 1 of 5 rows), so M @ X = Y has no exact solution" in tall.message
    fro = mcf.solve(torch.eye(3), solver=mcf.HeavyBall(0.01), loss="fro", max_iters=9)
    assert "auto" not in fro.message
    M = torch.eye(3)
    changed = mcf.solve(M, solver=mcf.HeavyBall(99.0))
    M.zero_()
    assert "modified in place since" in changed.message


@pytest.mark.long
def test_no_tolerance_runs_every_iteration(backend):
    M = well_conditioned(4, dtype=torch.float32)
    assert int(mcf.solve(M, solver=mcf.HeavyBall(), rtol=0.0, max_iters=4_321).iterations) == 4_321


def test_max_iters_0_evaluates_X0(backend):
    sol = mcf.solve(torch.eye(3), torch.zeros(3, 3), torch.eye(3), max_iters=0)
    assert (status(sol), int(sol.iterations)) == (mcf.Status.MAX_ITERATIONS, 0)
    assert torch.equal(sol.X, torch.eye(3))
    assert float(sol.residual_norm) == pytest.approx(3**0.5)
    assert "max_iters is 0" in sol.message
    assert bool(mcf.solve(torch.eye(3), X0=torch.eye(3), max_iters=0).converged)


def test_throw_raises_with_the_solution(backend):
    with pytest.raises(mcf.ConvergenceError, match="max_iters reached") as caught:
        mcf.solve(torch.eye(3), solver=mcf.HeavyBall(), max_iters=2, throw=True)
    assert int(caught.value.solution.iterations) == 2
    mcf.solve(torch.eye(3), throw=True).raise_for_status()


@pytest.mark.long
def test_every_status_has_a_message_and_a_repr(backend):
    sol = mcf.solve(torch.eye(3))
    assert sol.message.startswith("converged: ||R||_F = ")
    assert repr(sol).startswith("Solution(CONVERGED after ")
    singular = torch.stack([torch.eye(3), torch.zeros(3, 3)])
    batch = mcf.solve(singular, solver=mcf.HeavyBall(), max_iters=500)
    assert repr(batch).startswith("Solution(1 CONVERGED, 1 MAX_ITERATIONS, X [2, 3, 3] float32 on cpu)")
    assert batch.message.startswith("1 of 2 problems did not converge; problem 1 max_iters reached")
    assert mcf.solve(torch.eye(3).expand(2, 3, 3)).message == "all 2 problems converged"
