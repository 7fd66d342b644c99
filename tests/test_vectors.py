"""A right-hand side ``Y [p]`` makes ``X [*, n]``: the same numbers as one row, ``Y [1, p]`` and ``X [*, 1, n]``."""

from __future__ import annotations

import pytest
import torch
from derivatives import rand
from problems import well_conditioned

import matconv_fast as mcf

M, Y = well_conditioned(4), rand(4, seed=2)
BATCH = well_conditioned(4, 2, 3, seed=3)


@pytest.mark.parametrize("solver", [mcf.HeavyBall, mcf.Auto, mcf.LSQR, mcf.MINRES])
def test_a_vector_is_one_row(backend, solver):
    for matrix in (M, BATCH):
        row = mcf.solve(matrix, Y[None], solver=solver(), max_iters=50)
        sol = mcf.solve(matrix, Y, solver=solver(), max_iters=50)
        assert sol.X.shape == (*matrix.shape[:-2], 4)
        assert torch.equal(sol.X, row.X[..., 0, :])
        assert torch.equal(sol.loss, row.loss)
        assert sol.history.shape == row.history.shape


def test_left_is_as_torch_linalg_solve(backend):
    A = M + rand(4, 4, seed=5) / 8
    x = mcf.solve(A, Y, left=True, solver=mcf.Auto()).X
    torch.testing.assert_close(x, torch.linalg.solve(A, Y), rtol=1e-9, atol=1e-9)
    x = mcf.solve(BATCH, Y, left=True, solver=mcf.Auto()).X
    torch.testing.assert_close(x, torch.linalg.solve(BATCH, Y[:, None])[..., 0], rtol=1e-9, atol=1e-9)
    tall = rand(9, 4, seed=6)
    x = mcf.solve(tall, rand(9, seed=7), left=True, solver=mcf.Auto()).X
    torch.testing.assert_close(x, torch.linalg.lstsq(tall, rand(9, seed=7)[:, None]).solution[:, 0])


@pytest.mark.parametrize("left", [False, True])
def test_warm_start_resume_and_factor(backend, left):
    A = BATCH + rand(2, 3, 4, 4, seed=5) / 8
    options = {"left": left, "solver": mcf.HeavyBall(0.1, 0.5), "rtol": 0.0}
    whole = mcf.solve(A, Y, max_iters=20, **options)
    half = mcf.solve(A, Y, max_iters=10, **options)
    assert torch.equal(mcf.solve(A, Y, half, max_iters=10, **options).X, whole.X)
    copy = mcf.Solution.from_state_dict(half.state_dict())
    assert torch.equal(mcf.solve(A, Y, copy, max_iters=10, **options).X, whole.X)
    exact = mcf.solve(A, Y, left=left, solver=mcf.Auto())
    assert int(mcf.solve(A, Y, exact.X, left=left).iterations.max()) == 0
    assert int(mcf.solve(A[0, 0], Y, exact.X[0, 0], left=left).iterations) == 0
    F = mcf.factorize(A, left=left)
    torch.testing.assert_close(mcf.solve(F, Y, left=left).X, exact.X, rtol=1e-9, atol=1e-9)
    assert (exact.error_bound() < 1e-10).all()
    assert "converged" in exact.message


@pytest.mark.parametrize("left", [False, True])
def test_gradients_are_those_of_the_row(backend, left):
    A = (BATCH + rand(2, 3, 4, 4, seed=5) / 8).requires_grad_()
    y = Y.clone().requires_grad_()
    grad = rand(2, 3, 4, seed=9)
    mine = torch.autograd.grad(mcf.solve(A, y, left=left, solver=mcf.Auto()).X, (A, y), grad)
    truth = torch.linalg.solve(A if left else A.mT, y[:, None])[..., 0]
    for found, expected in zip(mine, torch.autograd.grad(truth, (A, y), grad), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_ridge_and_identity(backend):
    x = mcf.solve(M, Y, ridge=0.5, solver=mcf.Auto()).X
    torch.testing.assert_close(x, torch.linalg.solve(M @ M.T + 0.5 * torch.eye(4), M @ Y))
    torch.testing.assert_close(mcf.solve(None, Y, solver=mcf.Auto()).X, Y, rtol=1e-15, atol=0)


def test_heat_maps_are_of_one_row_or_column(backend):
    pytest.importorskip("plotly")
    for left in (False, True):
        assert len(mcf.solve(M, Y, left=left, max_iters=5).plot().data) > 1


@pytest.mark.parametrize("loss", ["mse", "sse", "fro"])
def test_losses_and_steps(backend, loss):
    for matrix, x in ((M, rand(4, seed=4)), (BATCH, rand(2, 3, 4, seed=4)), (M, rand(3, 4, seed=4)), (None, Y + 1)):
        value = mcf.residual_loss(x, matrix, Y, loss=loss)
        assert torch.equal(value, mcf.residual_loss(x[..., None, :], matrix, Y[None], loss=loss))
        v = torch.ones_like(x)
        rows = mcf.heavy_ball_step(x[..., None, :], v[..., None, :], matrix, Y[None], lr=0.1, momentum=0.5, loss=loss)
        X2, V2, before = mcf.heavy_ball_step(x, v, matrix, Y, lr=0.1, momentum=0.5, loss=loss)
        assert torch.equal(X2, rows[0][..., 0, :])
        assert torch.equal(V2, rows[1][..., 0, :])
        assert torch.equal(before, rows[2])
        in_place = x.clone().requires_grad_()  # a leaf, as in training
        assert torch.equal(mcf.heavy_ball_step_(in_place, v, matrix, Y, lr=0.1, momentum=0.5, loss=loss), before)
        off = 1e-15 if backend == "triton" else 0.0  # there a kernel steps in place, and PyTorch makes new tensors
        torch.testing.assert_close(in_place.detach(), X2.detach(), rtol=off, atol=off)
        torch.testing.assert_close(v, V2, rtol=off, atol=off)


def test_the_loss_of_vectors_is_differentiable(backend):
    x, A, y = (t.clone().requires_grad_() for t in (rand(2, 3, 4, seed=4), BATCH, Y))
    assert torch.autograd.gradcheck(mcf.residual_loss, (x, A, y), fast_mode=True)
    assert mcf.ResidualLoss("sse")(x, A, y).shape == (2, 3)


def test_refusals(backend):
    with pytest.raises(ValueError, match=r"X0.*Y \[p\]|Y \[p\].*X0"):
        mcf.solve(M, torch.eye(4, dtype=torch.float64), Y)
    with pytest.raises(ValueError, match="Y must have the shape"):
        mcf.solve(M, Y[:3])
    with pytest.raises(ValueError, match="M must be a matrix"):
        mcf.solve(Y, Y)
    with pytest.raises(ValueError, match="X must be"):
        mcf.residual_loss(torch.tensor(1.0), None, Y.float())
    with pytest.raises(ValueError, match="X must be a matrix"):
        mcf.residual_loss(Y, M, torch.eye(4, dtype=torch.float64))
    with pytest.raises(TypeError, match="dense"):
        mcf.solve(M, Y.to_sparse())
    with pytest.raises(ValueError, match="Y must be"):
        mcf.solve(M, torch.tensor(1.0, dtype=torch.float64))
