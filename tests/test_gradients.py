"""Gradients through `solve` and `inv`: those of the exact solution, without memory for the iterations."""

from __future__ import annotations

import warnings

import pytest
import torch
from problems import well_conditioned
from torch.autograd import gradcheck, gradgradcheck

import matconv_fast as mcf

pytestmark = pytest.mark.usefixtures("backend")
TIGHT = {"solver": mcf.HeavyBall(momentum="auto"), "rtol": 1e-12, "record_every": 0}


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def wide(n, p, *batch):
    """[*, n, p] of full row rank, n <= p."""
    return torch.cat((well_conditioned(n, *batch), 0.3 * rand(*batch, n, p - n, seed=1)), -1)


def solution(M, Y=None, **options):
    return mcf.solve(M, Y, **{**TIGHT, **options}).X


@pytest.mark.long
@pytest.mark.parametrize("left", [False, True])
def test_gradients_of_a_square_equation_are_those_of_linalg_solve(left):
    M, Y = (t.requires_grad_() for t in (well_conditioned(5, 2), rand(2, *((5, 3) if left else (3, 5)), seed=2)))
    grad = rand(2, *((5, 3) if left else (3, 5)), seed=3)
    mine = torch.autograd.grad(solution(M, Y, left=left), (M, Y), grad)
    truth = torch.autograd.grad(torch.linalg.solve(M, Y, left=left), (M, Y), grad)
    for found, expected in zip(mine, truth, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.long
def test_gradients_of_a_wide_equation_are_those_of_the_pseudo_inverse():
    """No X solves it: the solve stands still at the least-squares minimum."""
    M, Y = (t.requires_grad_() for t in (wide(3, 6), rand(2, 6, seed=2)))
    grad = rand(2, 3, seed=3)
    sol = mcf.solve(M, Y, solver=mcf.HeavyBall(momentum="auto"), rtol=0.0, patience=1000)
    assert mcf.Status(int(sol.status)) == mcf.Status.LEAST_SQUARES
    mine = torch.autograd.grad(sol.X, (M, Y), grad)
    truth = torch.autograd.grad(Y @ torch.linalg.pinv(M), (M, Y), grad)
    for found, expected in zip(mine, truth, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize("left", [False, True])
def test_first_and_second_derivatives(left):
    M, Y = well_conditioned(3).requires_grad_(), rand(3, 3, seed=2).requires_grad_()
    assert gradcheck(lambda M, Y: solution(M, Y, left=left), (M, Y))
    assert gradgradcheck(lambda M, Y: solution(M, Y, left=left), (M, Y))
    assert gradcheck(lambda M: mcf.inv(M, **TIGHT).X, M)
    assert gradgradcheck(lambda M: mcf.inv(M, **TIGHT).X, M)


@pytest.mark.long
def test_tensors_on_the_way_and_shared_by_a_batch():
    """M is no leaf, serves three problems, and gets the sum of their gradients."""
    leaf, Y = well_conditioned(4).requires_grad_(), rand(3, 2, 4, seed=2).requires_grad_()
    solution(2 * leaf, Y * Y).square().sum().backward()
    mine = leaf.grad.clone(), Y.grad.clone()
    leaf.grad = Y.grad = None
    torch.linalg.solve(2 * leaf, Y * Y, left=False).square().sum().backward()
    torch.testing.assert_close(mine, (leaf.grad, Y.grad), rtol=1e-9, atol=1e-9)


def test_without_M_the_gradient_passes_through():
    Y = rand(2, 3).requires_grad_()
    sol = mcf.solve(None, Y, solver=mcf.HeavyBall(momentum="auto"))
    sol.X.backward(rand(2, 3, seed=1))
    assert torch.equal(Y.grad, rand(2, 3, seed=1))


def test_what_needs_no_gradient_has_none():
    M = well_conditioned(4).requires_grad_()
    with torch.no_grad():
        assert not mcf.inv(M, max_iters=3).X.requires_grad
    sol = mcf.inv(M, max_iters=3)
    assert sol.X.requires_grad
    assert not any(t.requires_grad for t in (sol.loss, sol.residual_norm, sol.history, sol.state.X))
    assert not sol.problem.sources[0].tensor.requires_grad  # nor is the graph that made M kept alive
    assert torch.equal(mcf.inv(M.detach(), max_iters=3).X, sol.X)


@pytest.mark.long
def test_memory_does_not_depend_on_the_iterations():
    """What is saved for the backward, and what the backward makes, after 100 iterations and after 10,000."""
    M, Y = well_conditioned(8).requires_grad_(), rand(3, 8, seed=2).requires_grad_()
    saved = {}
    for count in (100, 10_000):
        sizes = saved.setdefault(count, [])

        def pack(t, sizes=sizes):
            sizes.append(t.untyped_storage().nbytes())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            X = mcf.solve(M, Y, rtol=0.0, max_iters=count, solver=mcf.HeavyBall(lr=1e-3), record_every=0).X
        (node,) = {X.grad_fn}
        assert node.next_functions[0][0].__class__.__name__ == "AccumulateGrad"  # one step from X to M
    assert saved[100] == saved[10_000]
    assert sum(saved[100]) == 8 * (8 * 8 + 2 * 3 * 8)  # M, Y and X


def test_low_precision_gradients_are_of_the_inputs_dtype():
    M, Y = well_conditioned(4).bfloat16().requires_grad_(), rand(2, 4, seed=2).bfloat16().requires_grad_()
    X = mcf.solve(M, Y, rtol=1e-2).X
    assert X.dtype == torch.float32
    X.sum().backward()
    assert M.grad.dtype == Y.grad.dtype == torch.bfloat16
    wide_M, wide_Y = M.detach().double().requires_grad_(), Y.detach().double().requires_grad_()
    torch.linalg.solve(wide_M, wide_Y, left=False).sum().backward()
    torch.testing.assert_close(Y.grad.double(), wide_Y.grad, rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(M.grad.double(), wide_M.grad, rtol=5e-2, atol=5e-2)


def test_an_unconverged_solve_says_so_in_the_backward():
    M = well_conditioned(4, 3).requires_grad_()
    X = mcf.inv(M, solver=mcf.HeavyBall(), max_iters=2).X
    with pytest.warns(RuntimeWarning, match="3 of 3 problems had not converged"):
        X.sum().backward()
    M.grad = None
    X = mcf.inv(M).X
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        X.sum().backward()


def test_a_matrix_without_full_rank_is_refused():
    singular = torch.stack((torch.eye(3), torch.ones(3, 3))).double().requires_grad_()
    X = mcf.solve(singular, rand(2, 3), solver=mcf.HeavyBall(), max_iters=2).X
    with (
        pytest.warns(RuntimeWarning, match="not converged"),
        pytest.raises(torch.linalg.LinAlgError, match=r"full row rank.*1 of 2 matrices \[3, 3\] lack it"),
    ):
        X.sum().backward()
    tall = torch.ones(5, 3).double().requires_grad_()
    X = mcf.solve(tall, torch.ones(2, 3).double(), solver=mcf.LSQR()).X
    with pytest.raises(torch.linalg.LinAlgError, match=r"full column rank.*1 of 1 matrices \[5, 3\] lack it"):
        X.sum().backward()


def test_transforms_are_refused_by_name():
    M = well_conditioned(3)
    with pytest.raises(NotImplementedError, match="for vmap give it the batch"):
        torch.func.vmap(lambda M: mcf.inv(M).X)(M.expand(2, 3, 3))
    with pytest.raises(NotImplementedError, match=r"autograd\.grad"):
        torch.func.grad(lambda M: mcf.inv(M).X.sum())(M)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode tangent"):
        mcf.inv(torch.autograd.forward_ad.make_dual(M, M))


def test_an_empty_problem_has_an_empty_gradient():
    M, Y = torch.ones(0, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    X = mcf.solve(M, Y, max_iters=1).X
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        X.sum().backward()
    assert M.grad.shape == (0, 3)
    assert torch.equal(Y.grad, torch.zeros(2, 3))
