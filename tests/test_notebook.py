"""N1 to N4: the printed figures of the notebook, and torch.optim.SGD's trajectory."""

from __future__ import annotations

import pytest
import torch

import matconv_fast as mcf
from matconv_fast import _workloads

RUNS = {run.name: run for run in _workloads.notebook_runs()}


def solve(run: _workloads.NotebookRun, **options) -> mcf.Solution:
    solver = mcf.HeavyBall(run.lr, run.momentum)
    return mcf.solve(run.M, None, run.X0, solver=solver, rtol=0.0, **{"max_iters": run.iterations, **options})


def sgd_losses(run: _workloads.NotebookRun, iterations: int, dtype: torch.dtype) -> torch.Tensor:
    X = run.X0.to(dtype).requires_grad_()
    optimizer = torch.optim.SGD([X], lr=run.lr, momentum=run.momentum, dampening=0, nesterov=False)
    losses = []
    for _ in range(iterations):
        optimizer.zero_grad()
        loss = ((X @ run.M.to(dtype) - torch.eye(4, dtype=dtype)) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).double()


def test_X0_and_its_product_are_the_notebooks():
    run = RUNS["N1"]
    product = (run.X0 @ run.M)[0]
    assert [f"{value:.4f}" for value in product.tolist()] == ["0.7196", "1.2590", "2.0002", "1.3540"]


def test_first_loss_and_gradient_are_the_notebooks(backend):
    run = RUNS["N1"]
    assert f"{solve(run, max_iters=1).history[0].item():.4f}" == "1.6650"
    X = run.X0.requires_grad_()
    mcf.residual_loss(X, run.M).backward()
    printed = ["-3.5046e-02", "3.1475e-01", "7.5007e-01", "6.7699e-01"]
    assert [f"{value:.4e}" for value in X.grad[0].tolist()] == printed
    # the solver's own gradient: one step with lr 1 from V = 0 is X0 minus the gradient
    step = mcf.solve(run.M, None, run.X0, solver=mcf.HeavyBall(1.0, 0.0), rtol=0.0, max_iters=1)
    assert torch.allclose(run.X0 - step.X, X.grad, atol=2e-7)


@pytest.mark.parametrize("name", RUNS)
def test_history_is_sgds_trajectory(backend, name):
    run = RUNS[name]
    ours = solve(run, max_iters=200).history[:200].double()
    truth, sgd = sgd_losses(run, 200, torch.float64), sgd_losses(run, 200, torch.float32)
    # the allowance: what SGD itself misses the float64 trajectory by, twice, and float32's eps on the terms of R
    allowance = 2 * (sgd - truth).abs() + 20 * torch.finfo(torch.float32).eps * truth.sqrt()
    assert ((ours - truth).abs() <= allowance).all()


@pytest.mark.long
def test_final_losses_are_as_the_table_says(backend):
    history = {name: solve(run).history for name, run in RUNS.items()}
    assert all(h.shape == (10_001,) for h in history.values())
    assert history["N1"][2_000:].max() < 1e-14
    assert history["N2"][2_000:].max() < 1e-10
    assert history["N3"][-1] < 1e-12
    assert history["N4"][-1] < history["N4"][9_000] < history["N4"][8_000]  # still falling
    assert (history["N4"][1_000:] > history["N2"][1_000:]).all()


def test_random_M_is_under_the_condition_number():
    assert torch.linalg.cond(RUNS["N2"].M) < 30


@pytest.mark.parametrize("name", ["N1", "N2"])
def test_the_notebooks_loop_and_ours_end_at_the_same_X(backend, name):
    run = RUNS[name]
    X, losses = _workloads.notebook_loop(_workloads.NotebookRun(name, run.M, run.lr, run.momentum, 500))
    ours = solve(run, max_iters=500)
    assert torch.allclose(ours.X, X, atol=1e-5)
    assert torch.allclose(ours.history[:500].sqrt(), losses.sqrt(), atol=1e-5)
