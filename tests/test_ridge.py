"""``ridge=``: the least of ``||X M - Y||^2 + ridge ||X||^2``, against its normal equations in float64."""

from __future__ import annotations

import io

import pytest
import torch
from derivatives import rand
from problems import plain_heavy_ball
from test_conformance import SOLVERS as CONFORMING
from test_conformance import equation
from torch.autograd import gradcheck, gradgradcheck

import matconv_fast as mcf
from matconv_fast.solve.snapshots import snapshots

# n and p, m: more samples than unknowns, as many, fewer
SHAPES = {"tall": (3, 9, 2), "square": (5, 5, 4), "wide": (7, 3, 2)}
EXACT = {"auto": mcf.Auto, "refinement": mcf.Refinement, "lsqr": mcf.LSQR}


def problem(shape, *batch, dtype=torch.float64):
    n, p, m = SHAPES[shape]
    return rand(*batch, n, p, seed=1).to(dtype), rand(*batch, m, p, seed=2).to(dtype)


def by_normal_equations(M, Y, ridge):
    """X, by a way that shares nothing with the library."""
    M, Y = M.double(), Y.double()
    ridge = torch.as_tensor(ridge, dtype=torch.float64)[..., None, None]
    A = M @ M.mT + ridge * torch.eye(M.shape[-2], dtype=torch.float64)
    return torch.linalg.solve(A, Y @ M.mT, left=False)


def objective(X, M, Y, ridge):
    return (X @ M - Y).square().sum((-2, -1)) + torch.as_tensor(ridge, dtype=torch.float64) * X.square().sum((-2, -1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solvers_find_the_minimum(backend, solver, shape, dtype):
    M, Y = problem(shape, dtype=dtype)
    sol = mcf.solve(M, Y, solver=EXACT[solver](), ridge=0.3)
    truth = by_normal_equations(M, Y, 0.3)
    assert mcf.Status(sol.status.item()) is mcf.Status.LEAST_SQUARES
    assert bool(sol.converged)
    torch.testing.assert_close(sol.X.double(), truth, rtol=0, atol=100 * torch.finfo(dtype).eps)


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("left", [False, True])
def test_a_heavy_ball_finds_it_too(backend, shape, left):
    M, Y = problem(shape)
    if left:
        X = mcf.solve(M.mT, Y.mT, left=True, ridge=0.3).X.mT
    else:
        sol = mcf.solve(M, Y, ridge=0.3)
        assert mcf.Status(sol.status.item()) is mcf.Status.LEAST_SQUARES
        X = sol.X
    torch.testing.assert_close(X, by_normal_equations(M, Y, 0.3), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", ["mse", "sse", "fro"])
def test_the_path_is_that_of_the_ridge_gradient(backend, shape, loss):
    """Each iterate of the heavy ball, and the history, against a loop over the objective's own gradient."""
    M, Y = problem(shape)
    m, n, elements = Y.shape[0], M.shape[0], Y.numel()
    lr = {"mse": 0.05, "sse": 0.005, "fro": 0.01}[loss]
    X0 = rand(m, n, seed=3)
    sol = mcf.solve(M, Y, X0, solver=mcf.HeavyBall(lr, 0.5), loss=loss, ridge=0.7, rtol=0.0, max_iters=20)
    X, V, losses = X0.clone(), torch.zeros_like(X0), []
    for k in range(21):
        value = objective(X, M, Y, 0.7)
        losses.append({"mse": value / elements, "sse": value, "fro": value.sqrt()}[loss])
        if k == 20:
            break
        G = 2 * ((X @ M - Y) @ M.T + 0.7 * X)
        V = 0.5 * V + {"mse": G / elements, "sse": G, "fro": G / (2 * value.sqrt())}[loss]
        X = X - lr * V
    torch.testing.assert_close(sol.X, X, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sol.history, torch.stack(losses), rtol=1e-10, atol=0)
    torch.testing.assert_close(sol.loss, losses[-1], rtol=1e-10, atol=0)
    torch.testing.assert_close(sol.residual_norm, objective(X, M, Y, 0.7).sqrt(), rtol=1e-10, atol=0)


def test_no_ridge_changes_nothing(backend):
    M, Y = problem("square")
    plain, zero = mcf.solve(M, Y, max_iters=50), mcf.solve(M, Y, ridge=0, max_iters=50)
    assert torch.equal(plain.X, zero.X)
    assert zero.problem.M.shape == (1, 5, 5)


def test_one_value_a_problem(backend):
    M, Y = problem("square", 3)
    ridge = torch.tensor([0.0, 0.1, 10.0], dtype=torch.float64)
    X = mcf.solve(M, Y, solver=mcf.Refinement(), ridge=ridge).X
    torch.testing.assert_close(X, by_normal_equations(M, Y, ridge), rtol=1e-9, atol=1e-9)
    alone = mcf.solve(M[2], Y[2], solver=mcf.Refinement(), ridge=10.0).X
    torch.testing.assert_close(X[2], alone, rtol=1e-12, atol=1e-12)


def test_batches_broadcast(backend):
    M, _ = problem("wide")
    Ys = rand(2, 1, 2, 3, seed=5)
    ridge = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    Ms = M.expand(2, 3, 7, 3)
    X = mcf.solve(Ms, Ys, solver=mcf.Auto(), ridge=ridge).X
    torch.testing.assert_close(X, by_normal_equations(Ms, Ys, ridge), rtol=1e-9, atol=1e-9)
    shared = mcf.solve(M, Ys, solver=mcf.Auto(), ridge=0.1)
    assert shared.problem.M.shape[0] == 1
    torch.testing.assert_close(shared.X, by_normal_equations(M, Ys, 0.1), rtol=1e-9, atol=1e-9)


def test_the_identity_in_place_of_M_or_Y(backend):
    Y = rand(2, 4)
    sol = mcf.solve(None, Y, solver=mcf.Auto(), ridge=3.0)
    torch.testing.assert_close(sol.X, Y / 4, rtol=1e-12, atol=1e-12)
    M, _ = problem("square")
    X = mcf.inv(M, solver=mcf.Refinement(), ridge=0.5).X
    torch.testing.assert_close(X, by_normal_equations(M, torch.eye(5), 0.5), rtol=1e-10, atol=1e-10)


def test_warm_start_and_resume(backend):
    M, Y = problem("square")
    options = {"solver": mcf.HeavyBall(0.1, 0.5), "rtol": 0.0, "ridge": 0.5}
    whole = mcf.solve(M, Y, max_iters=30, **options)
    half = mcf.solve(M, Y, max_iters=15, **options)
    on = mcf.solve(M, Y, half, max_iters=15, **options)
    assert torch.equal(on.X, whole.X)
    assert int(on.iterations) == 30
    stored = io.BytesIO()
    torch.save(half.state_dict(), stored)
    stored.seek(0)
    loaded = mcf.Solution.from_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(mcf.solve(M, Y, loaded, max_iters=15, **options).X, whole.X)
    # another ridge is another equation: X and the momentum are kept, the verdict is not
    done = mcf.solve(M, Y, solver=mcf.Auto(), ridge=0.5)
    other = mcf.solve(M, Y, done, ridge=0.4)
    torch.testing.assert_close(other.X, by_normal_equations(M, Y, 0.4), rtol=1e-9, atol=1e-9)
    without = mcf.solve(M, Y, done)
    torch.testing.assert_close(without.X @ M, Y, rtol=1e-8, atol=1e-8)


def test_resuming_tells_tensors_apart(backend):
    M, Y = problem("square", 2)
    ridge = torch.tensor([0.1, 1.0], dtype=torch.float64)
    options = {"solver": mcf.HeavyBall(0.1, 0.5), "rtol": 0.0}
    half = mcf.solve(M, Y, max_iters=15, ridge=ridge, **options)
    whole = mcf.solve(M, Y, max_iters=30, ridge=ridge, **options)
    assert torch.equal(mcf.solve(M, Y, half, max_iters=15, ridge=ridge, **options).X, whole.X)
    ridge += 1
    assert half.problem.changed


def test_refusals(backend):
    M, Y = problem("square", 2)
    for wrong, error in ((-1.0, ValueError), (float("nan"), ValueError), ("a", TypeError), (None, TypeError)):
        with pytest.raises(error, match="ridge"):
            mcf.solve(M, Y, ridge=wrong)
    with pytest.raises(ValueError, match=r"ridge must be 0-d or one value per problem \[2\]"):
        mcf.solve(M, Y, ridge=torch.ones(3))
    with pytest.raises(ValueError, match="ridge"):
        mcf.inv(M, solver=mcf.NewtonSchulz(), ridge=0.1)
    with pytest.raises(ValueError, match="ridge"):
        mcf.solve(M + M.mT, Y, solver=mcf.MINRES(), ridge=0.1)
    with pytest.raises(ValueError, match="ridge"):
        mcf.solve(mcf.factorize(M), Y, ridge=0.1)


def test_a_negative_value_in_a_tensor_ends_its_problem_alone(backend):
    M, Y = problem("square", 2)
    sol = mcf.solve(M, Y, ridge=torch.tensor([-1.0, 0.1]), solver=mcf.Refinement())
    assert sol.status.tolist() == [mcf.Status.NONFINITE, mcf.Status.LEAST_SQUARES]
    assert "ridge" in sol.message


def test_messages_name_the_ridge(backend):
    M, Y = problem("square")
    short = mcf.solve(M, Y, ridge=0.1, max_iters=3)
    assert "ridge ||X||_F^2" in short.message
    assert "no exact solution" not in short.message
    done = mcf.solve(M, Y, ridge=0.1, solver=mcf.Auto())
    assert done.message.startswith("least-squares minimum")
    assert done.error_bound() < 1e-10


def test_the_error_bound_counts_the_rounding_of_the_root(backend):
    """sqrt(ridge) is rounded to float32 in the matrix that is iterated on; the bound is for the ridge that came."""
    M, Y = problem("square", dtype=torch.float32)
    sol = mcf.solve(M, Y, ridge=1e6 / 3, solver=mcf.Refinement())
    error = torch.linalg.matrix_norm(sol.X.double() - by_normal_equations(M, Y, 1e6 / 3))
    assert error <= sol.error_bound() <= 100 * error


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("left", [False, True])
def test_gradients_by_M_Y_and_ridge(backend, shape, left):
    M, Y = problem(shape, 2)
    if left:
        M, Y = M.mT, Y.mT
    ridge = torch.tensor([0.3, 0.8], dtype=torch.float64)
    given = tuple(t.clone().requires_grad_() for t in (M, Y, ridge))

    def solution(M, Y, ridge):
        return mcf.solve(M, Y, solver=mcf.Refinement("qr"), left=left, ridge=ridge).X

    assert gradcheck(solution, given, fast_mode=True)
    assert gradgradcheck(solution, given, fast_mode=True)
    scalar = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(solution, (*given[:2], scalar), fast_mode=True)


def test_gradients_without_M_and_at_ridge_0(backend):
    Y, ridge = rand(2, 4).requires_grad_(), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda Y, ridge: mcf.solve(None, Y, solver=mcf.Auto(), ridge=ridge).X, (Y, ridge))
    M, Y = problem("square")
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    X = mcf.solve(M, Y, solver=mcf.Refinement("qr"), ridge=zero).X
    (mine,) = torch.autograd.grad(X.sum(), zero)
    A = torch.linalg.inv(M @ M.T)
    torch.testing.assert_close(mine, -(Y @ M.T @ A @ A).sum(), rtol=1e-6, atol=1e-8)


def test_heat_maps_show_the_residual_without_the_ridge(backend):
    M, Y = problem("wide")
    sol = mcf.solve(M, Y, ridge=0.3, max_iters=30)
    last = snapshots(sol)[-1]
    torch.testing.assert_close(last.residual, sol.X @ M - Y)
    torch.testing.assert_close(last.loss, sol.loss.item())


def test_ridge_against_a_plain_loop_on_the_augmented_matrix(backend):
    M, Y = problem("tall")
    n, _, m = SHAPES["tall"]
    wide = torch.cat([M, 0.5 * torch.eye(n)], 1)
    target = torch.cat([Y, torch.zeros(m, n)], 1)
    iterates, norms = plain_heavy_ball(torch.zeros(m, n, dtype=torch.float64), wide, target, 0.01, 0.5, 10, "sse")
    sol = mcf.solve(M, Y, ridge=0.25, solver=mcf.HeavyBall(0.01, 0.5), loss="sse", rtol=0.0, max_iters=10)
    torch.testing.assert_close(sol.X, iterates[-1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sol.residual_norm.item(), norms[-1], rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", [name for name in CONFORMING if name not in ("minres", "newton_schulz")])
def test_every_solver_solves_the_augmented_equation(backend, name):
    """Those of the conformance suite, user's own included: the bits of the equation written out."""
    M, Y, X0 = equation(CONFORMING[name](), 2)
    wide = torch.cat([M, 0.5 * torch.eye(5).expand(2, 5, 5)], -1)
    target = torch.cat([Y, torch.zeros(2, 5, 5, dtype=torch.float64)], -1)
    options = {"loss": "sse", "atol": 1e-7, "rtol": 0.0, "max_iters": 40}
    mine = mcf.solve(M, Y, X0, solver=CONFORMING[name](), ridge=0.25, **options)
    truth = mcf.solve(wide, target, X0, solver=CONFORMING[name](), **options)
    for field in ("X", "history", "status", "iterations", "residual_norm", "loss"):
        assert torch.equal(getattr(mine, field), getattr(truth, field)), field
    assert torch.equal(mine.converged, truth.converged)
