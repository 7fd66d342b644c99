"""LSQR and MINRES: right answers, true statuses, rows and problems that do not mix, and as many products as SciPy's."""

from __future__ import annotations

import pytest
import torch
from ill_conditioned import CASES, EPS, RTOL, condition, lstsq, poisson_2d, refuted, residual, right_hand_sides
from problems import well_conditioned
from solving import names, random
from torch.utils._python_dispatch import TorchDispatchMode

import matconv_fast as mcf

pytestmark = pytest.mark.usefixtures("reference")  # these solvers run the same code on every backend

SYMMETRIC = [name for name, make in CASES.items() if torch.equal(make(), make().mT)]
SOLVERS = {"lsqr": mcf.LSQR(), "minres": mcf.MINRES()}


class CountedProducts(TorchDispatchMode):
    """Matrix products with an operand of at least `size` elements."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "bmm", "baddbmm", "addmm"):
            self.count += any(isinstance(t, torch.Tensor) and t.numel() >= self.size for t in args)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_lsqr_claims_nothing_that_float64_refutes(name, dtype):
    M = CASES[name]().to(dtype)
    for Y in right_hand_sides(CASES[name]()).values():
        Y = Y.to(dtype)
        solution = mcf.solve(M, Y, solver=mcf.LSQR())
        assert refuted(solution, M, Y) == ""
        if condition(M) <= 1 / (10 * EPS[dtype]):
            best = float(residual(lstsq(M, Y), M, Y))
            assert residual(solution.X, M, Y) <= max(10 * best, RTOL[dtype] * float(Y.norm()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_minres_claims_nothing_that_float64_refutes(name, dtype):
    M = CASES[name]().to(dtype)
    for Y in right_hand_sides(CASES[name]()).values():
        Y = Y.to(dtype)
        solution = mcf.solve(M, Y, solver=mcf.MINRES())
        assert refuted(solution, M, Y) == ""
        if condition(M) <= 1e-5 / EPS[dtype]:  # a Lanczos recursion loses the smallest eigenvalues of Hilbert 9 and 10
            best = float(residual(lstsq(M, Y), M, Y))
            assert residual(solution.X, M, Y) <= max(10 * best, RTOL[dtype] * float(Y.norm()))


@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (3, 7), (7, 3), (1, 9), (9, 1)])
def test_lsqr_is_the_minimum_norm_solution(shape):
    M, Y = random(*shape), random(4, shape[1], seed=1)
    solution = mcf.solve(M, Y, solver=mcf.LSQR(), rtol=1e-12)
    assert bool(solution.converged)
    torch.testing.assert_close(solution.X, lstsq(M, Y), rtol=1e-9, atol=1e-9)


def test_lsqr_of_a_rank_deficient_matrix_is_the_minimum_norm_solution():
    for name in ("rank 5 of 8", "rank 3 of 4x30", "rank 3 of 30x4"):
        M = CASES[name]()
        for Y in right_hand_sides(M).values():
            solution = mcf.solve(M, Y, solver=mcf.LSQR(), rtol=1e-12)
            torch.testing.assert_close(solution.X, lstsq(M, Y), rtol=1e-8, atol=1e-8)


def test_more_unknowns_give_the_solution_nearest_to_X0():
    M, Y, X0 = random(7, 3), random(4, 3, seed=1), random(4, 7, seed=2)
    solution = mcf.solve(M, Y, X0, solver=mcf.LSQR(), rtol=1e-12)
    torch.testing.assert_close(solution.X, X0 + (Y - X0 @ M) @ torch.linalg.pinv(M), rtol=1e-9, atol=1e-9)


def test_minres_of_an_indefinite_matrix():
    A = random(12, 12)
    M, Y = A + A.mT, random(3, 12, seed=1)
    solution = mcf.solve(M, Y, solver=mcf.MINRES(), rtol=1e-11)
    assert bool(solution.converged)
    torch.testing.assert_close(solution.X, torch.linalg.solve(M, Y.mT).mT, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_residual_that_is_reported_is_that_of_X(name):
    M, Y = poisson_2d(6).float(), random(3, 36, dtype=torch.float32)
    for limit in (0, 1, 3, 10, 10_000):
        solution = mcf.solve(M, Y, solver=SOLVERS[name], max_iters=limit)
        torch.testing.assert_close(solution.residual_norm, residual(solution.X, M, Y), rtol=1e-12, atol=0)
        assert int(solution.iterations) <= limit
        assert solution.history.shape[0] == int(solution.iterations) + 1
        slack = 1 + 1e-5
        assert bool((solution.history[1:] <= slack * solution.history[:-1]).all())
    assert bool(solution.converged)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_result_does_not_depend_on_check_every(name):
    M, Y = poisson_2d(6), random(2, 36)
    whole = mcf.solve(M, Y, solver=SOLVERS[name])
    for every in (1, 5, 17, 40):
        other = mcf.solve(M, Y, solver=SOLVERS[name], check_every=every)
        assert torch.equal(other.X, whole.X)
        assert torch.equal(other.history, whole.history)


@pytest.mark.parametrize("name", SOLVERS)
def test_problems_and_rows_do_not_mix(name):
    M, Y = well_conditioned(9, 5, dtype=torch.float32), random(5, 4, 9, dtype=torch.float32)
    M[1] = 0
    M[2, 0, 0] = torch.nan
    Y[3] = 0
    Y[4, 1:] = 0  # three rows that are done at once
    solution = mcf.solve(M, Y, solver=SOLVERS[name])
    assert names(solution) == ["CONVERGED", "LEAST_SQUARES", "NONFINITE", "CONVERGED", "CONVERGED"]
    assert not solution.X[4, 1:].any()
    for b in (0, 1, 3, 4):
        one = mcf.solve(M[b], Y[b], solver=SOLVERS[name])
        assert one.iterations == solution.iterations[b]
        torch.testing.assert_close(one.X, solution.X[b], rtol=1e-5, atol=1e-6)


def test_rows_of_very_different_lengths_are_scaled():
    """Without the scale it takes hundreds of iterations, or stagnates."""
    M, Y = CASES["rows scaled 1e6"]().float(), random(3, 12, dtype=torch.float32)
    solution = mcf.solve(M, Y, solver=mcf.LSQR())
    assert bool(solution.converged)
    assert int(solution.iterations) < 40


def test_a_wide_equation_is_not_scaled():
    """A scale would move the minimum-norm solution."""
    M = random(9, 3) * torch.logspace(0, -4, 9, dtype=torch.float64)[:, None]
    Y = random(2, 3, seed=1)
    solution = mcf.solve(M, Y, solver=mcf.LSQR(), rtol=1e-12)
    torch.testing.assert_close(solution.X, lstsq(M, Y), rtol=1e-8, atol=1e-8)


def test_as_many_products_as_scipy():
    """To the same true residual; SciPy's need not measure it."""
    linalg = pytest.importorskip("scipy.sparse.linalg")
    M, Y = poisson_2d(16), random(1, 256)
    with CountedProducts(M.numel()) as counted:
        ours = mcf.solve(M, Y, solver=mcf.MINRES(), rtol=1e-8)
    A, theirs = M.numpy(), []
    operator = linalg.LinearOperator(A.shape, matvec=lambda x: theirs.append(0) or A @ x, dtype=A.dtype)
    for rtol in (1e-8, 1e-9, 1e-10, 1e-11, 1e-12):
        theirs.clear()
        x, _ = linalg.minres(operator, Y[0].numpy(), rtol=rtol)
        if residual(torch.tensor(x)[None], M, Y) <= 2 * ours.residual_norm:
            break
    assert counted.count <= len(theirs) + 4


@pytest.mark.parametrize("name", SOLVERS)
def test_a_single_row_is_that_of_a_batch(name):
    """Its scalars are Python numbers, those of a batch tensors."""
    M, Y = poisson_2d(8), random(3, 64)
    together = mcf.solve(M.expand(3, 64, 64), Y[:, None], solver=SOLVERS[name])
    for b in range(3):
        alone = mcf.solve(M, Y[b : b + 1], solver=SOLVERS[name])
        assert abs(int(alone.iterations) - int(together.iterations[b])) <= 1  # they round differently
        torch.testing.assert_close(alone.X, together.X[b], rtol=1e-8, atol=1e-9)


def test_what_minres_is_not_for():
    with pytest.raises(ValueError, match=r"MINRES needs a symmetric M, got \[3, 4\]"):
        mcf.solve(random(3, 4), random(1, 4), solver=mcf.MINRES())
    with pytest.raises(ValueError, match="needs a matrix M"):
        mcf.solve(None, random(3, 4), solver=mcf.LSQR())
    solution = mcf.solve(random(4, 4), solver=mcf.MINRES())
    assert names(solution) == ["BREAKDOWN"]
    assert "M is not symmetric" in solution.message
    assert int(solution.iterations) == 0


@pytest.mark.parametrize("name", SOLVERS)
def test_empty_and_low_precision_input(name):
    for M, Y in ((random(0, 0), random(2, 0)), (random(3, 3), random(0, 3))):
        M = M + M.mT
        assert mcf.solve(M, Y, solver=SOLVERS[name]).X.shape == (Y.shape[0], M.shape[0])
    M = well_conditioned(6).bfloat16()
    solution = mcf.solve((M + M.mT) / 2, random(2, 6).bfloat16(), solver=SOLVERS[name])
    assert bool(solution.converged)
    assert solution.X.dtype == torch.float32
