"""One elimination for batches of small square problems: `direct_solve` on each backend, and the solves that use it."""

from __future__ import annotations

import math

import pytest
import torch
from problems import well_conditioned

import matconv_fast as mcf
from matconv_fast import _ops, _reference
from matconv_fast._ops import plan_direct
from matconv_fast.kernels.contract import CONVERGED, FLOOR_SHARE, FLOOR_UNITS, LOSSES, RUNNING, STAGNATED

DTYPES = [torch.float32, torch.float64]
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 16]
LARGE = [17, 24, 64, 100, 128]


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def solved(M, Y=None, *, rtol=None, atol=0.0, loss="mse"):
    """By the backend that the test forces."""
    rtol = {torch.float32: 1e-5, torch.float64: 1e-10}[M.dtype] if rtol is None else rtol
    return _ops.direct_solve(M, Y, rtol, atol, LOSSES.index(loss))


def residual(X, M, Y):
    wanted = torch.eye(M.shape[-1], dtype=torch.float64) if Y is None else Y.double()
    return X.double() @ M.double() - wanted


def norm(t):
    return torch.linalg.vector_norm(t, dim=(-2, -1), dtype=torch.float64)


def check(found, M, Y, rtol):
    """Each status, sum and loss, against X in float64; X against the solution in float64."""
    wanted = torch.eye(M.shape[-1]).expand(len(found.X), -1, -1) if Y is None else Y
    r, y, eps = norm(residual(found.X, M, Y)), norm(wanted), torch.finfo(M.dtype).eps
    bound = norm(found.X) * norm(M) + y
    answered = found.status != RUNNING
    # two sums in float64 of the same terms: they differ by their rounding
    assert bool(((found.squares.sqrt() - r).abs() <= 1e-14 * M.shape[-1] * bound)[answered].all())
    converged, stagnated = found.status == CONVERGED, found.status == STAGNATED
    assert bool((r <= rtol * y * (1 + 1e-6) + 1e-14 * M.shape[-1] * bound)[converged].all())
    assert bool((r <= 1.01 * FLOOR_UNITS * eps * M.shape[-1] ** 0.5 * bound)[stagnated].all())
    assert bool((r <= 1.01 * FLOOR_SHARE * y)[stagnated].all())
    assert int(found.running) == int((found.status == RUNNING).sum())
    elements = found.X.shape[-1] * found.X.shape[-2]
    torch.testing.assert_close(found.losses[:, 0].double(), (y * y / elements).expand(len(r)), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.losses[answered, 1], (found.squares[answered] / elements).to(M.dtype))


@pytest.fixture
def small(backend):
    """The Triton kernel ends where a lane does; its interpreter takes a second for some."""
    return [1, 3, 8, 16] if backend == "triton" else [*SIZES, *LARGE]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [None, 1, 3, 4, 11])
def test_every_size(small, rows, dtype):
    for n in small:
        batch = 3 if n > 16 else 70 if len(small) > 4 else 9
        M, Y = random(batch, n, n, dtype=dtype, seed=n), None if rows is None else random(batch, rows, n, dtype=dtype)
        found, rtol = solved(M, Y), {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
        check(found, M, Y, rtol)
        assert int((found.status == CONVERGED).sum()) >= 0.8 * batch
        exact = torch.linalg.solve(M.double(), torch.eye(n).double() if Y is None else Y.double(), left=False)
        error = norm(found.X.double() - exact) / norm(exact)
        condition = torch.linalg.cond(M.double())
        assert bool((error <= 8 * n * torch.finfo(dtype).eps * condition)[found.status == CONVERGED].all())


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 63, 64, 65, 129, 1000])
def test_every_batch(backend, batch):
    if backend == "triton" and batch > 65:
        pytest.skip("the interpreter takes minutes")
    for n in (3, 4, 8, *((20,) if batch < 10 and backend != "triton" else ())):
        M, Y = random(batch, n, n, dtype=torch.float32), random(batch, 2, n, dtype=torch.float32, seed=1)
        for given in (None, Y):
            check(solved(M, given), M, given, 1e-5)


def test_one_M_or_one_Y_for_all(small):
    for n in small:
        M, Y = well_conditioned(n, 5), random(5, 3, n)
        for one_M, one_Y in ((M[:1], Y), (M, Y[:1]), (M[:1], Y[:1])):
            found = solved(one_M, one_Y)
            check(found, one_M.expand(len(found.X), -1, -1), one_Y.expand(len(found.X), -1, -1), 1e-10)
            assert bool((found.status == CONVERGED).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_problem_spoils_no_other(small, dtype):
    bad = {0: 0.0, 5: math.nan, 6: math.inf, 9: 1e30}
    for n in small:
        M = well_conditioned(n, 11).to(dtype)
        before = solved(M)
        for b, value in bad.items():
            M[b] = value  # singular, or not finite
        after = solved(M)
        good = torch.tensor([b not in bad for b in range(11)])
        wrong = [b for b in bad if not (n == 1 and b == 9)]  # [1e30] has an inverse
        assert bool((after.status[wrong] == RUNNING).all())
        assert torch.equal(after.X[good], before.X[good])
        assert torch.equal(after.status[good], before.status[good])


def test_pivots(small):
    """Matrices that elimination without pivoting breaks on: permutations, with and without a small diagonal."""
    for n in small:
        orders = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(k)) for k in range(9)])
        M = torch.eye(n)[orders]
        found = solved(M)
        assert torch.equal(found.X, M.mT)
        assert bool((found.squares == 0).all())
        small_diagonal = 1e-30 * torch.eye(n) + M
        check(solved(small_diagonal), small_diagonal, None, 1e-5)
        assert bool((solved(small_diagonal).status == CONVERGED).all())


def test_ill_conditioned_float32_is_as_good_as_its_rounding(small):
    """A float32 problem that misses its tolerance is solved in float64, and X rounded: no X has half the residual."""
    for n in (size for size in small if 2 <= size <= 64):
        U, V = (torch.linalg.qr(random(9, n, n, seed=seed)).Q for seed in (n, n + 1))
        s = torch.logspace(0, -6, n).double()
        M = (U * s @ V).float()
        found, rounded = solved(M), torch.linalg.inv(M.double()).float()
        assert bool((found.status == STAGNATED).any())
        assert bool((found.squares.sqrt() <= 2 * norm(residual(rounded, M, None)))[found.status == STAGNATED].all())
        check(found, M, None, 1e-5)


def test_what_is_left_to_others(backend):
    M = well_conditioned(4, 3)
    assert bool((solved(M, torch.zeros(3, 2, 4).double()).status == RUNNING).all())  # X = 0 is the answer
    assert bool((solved(M, atol=100.0).status == RUNNING).all())  # likewise
    assert bool((solved(M, 1e-160 * random(3, 2, 4)).status == RUNNING).all())  # the squares underflow
    assert bool((solved(M, 1e160 * random(3, 2, 4)).status == RUNNING).all())
    assert bool((solved(M, rtol=0.0).status == RUNNING).all())  # a float64 problem at its rounding
    assert bool((solved(M.float(), rtol=0.0).status == STAGNATED).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(small, loss):
    for n in (3, 4, 8, *small[-1:]):
        M, Y = well_conditioned(n, 5).float(), random(5, 3, n, dtype=torch.float32)
        for given in (None, Y):
            found = solved(M, given, loss=loss)
            wanted = torch.eye(n).expand(5, -1, -1) if given is None else given
            expected = torch.stack([norm(wanted).square(), found.squares], 1)
            elements = wanted[0].numel()
            expected = _reference.losses.loss_of_sums(expected, loss, elements)
            torch.testing.assert_close(found.losses, expected.float())


def test_threads_change_nothing(native):
    threads = torch.get_num_threads()
    for n in (4, 7, 40):
        M = random(300 if n < 16 else 7, n, n, dtype=torch.float32)
        try:
            found = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(solved(M))
        finally:
            torch.set_num_threads(threads)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_the_plan(native):
    shape = mcf.solve(well_conditioned(4), max_iters=0).problem.shape
    assert plan_direct(shape, torch.device("cpu")).algorithm == "direct_lanes"
    assert plan_direct(shape._replace(n=17, p=17), torch.device("cpu")).algorithm == "direct_rows"
    for other in ({"n": 129, "p": 129}, {"m": 129}, {"p": 5}, {"product": False}, {"m": 0}, {"batch": 0}):
        assert plan_direct(shape._replace(**other), torch.device("cpu")) is None


# Solves


@pytest.mark.parametrize("solver", [mcf.Refinement(), mcf.Auto()])
@pytest.mark.parametrize("left", [False, True])
def test_a_solve(backend, solver, left):
    for n in (4, 7, 16, 40):
        M, Y = random(2, 3, n, n), random(2, 3, n, 5, seed=1) if left else random(2, 3, 5, n, seed=1)
        solution = mcf.solve(M, Y, solver=solver, left=left)
        assert bool(solution.converged.all())
        torch.testing.assert_close(M @ solution.X if left else solution.X @ M, Y)
        assert bool((solution.iterations == 1).all())
        torch.testing.assert_close(solution.loss, solution.history[..., -1])
        torch.testing.assert_close(solution.residual_norm**2 / Y[0, 0].numel(), solution.loss)


def test_the_rest_goes_on_to_the_solver(backend):
    M = well_conditioned(4, 50).float()
    M[7], M[9, 0, 0] = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])), math.nan
    solution = mcf.inv(M, solver=mcf.Auto())
    names = [mcf.Status(code).name for code in solution.status.tolist()]
    assert (names[7], names[9], names.count("CONVERGED")) == ("LEAST_SQUARES", "NONFINITE", 48)
    assert "2 of 50 by" in solution.method
    alone = mcf.inv(M[7], solver=mcf.Auto())
    torch.testing.assert_close(solution.X[7], alone.X)
    assert int(solution.iterations[9]) == 0
    assert bool(solution.history[9].isnan().all())
    counted = (~solution.history.isnan()).sum(1)
    assert torch.equal(counted[:7], torch.full((7,), 2))


@pytest.mark.parametrize("every", [0, 1, 2])
def test_history(backend, every):
    solution = mcf.inv(well_conditioned(4, 3), solver=mcf.Refinement(), record_every=every)
    assert solution.history.shape == (3, {0: 0, 1: 2, 2: 1}[every])
    if every:
        torch.testing.assert_close(solution.history[:, 0], torch.full((3,), 0.25, dtype=torch.float64))


def test_options_that_need_the_loop(backend):
    M = well_conditioned(4, 3)
    assert bool((mcf.inv(M, solver=mcf.Auto(), max_iters=0).iterations == 0).all())
    assert "lu" in mcf.inv(M, solver=mcf.Refinement("lu")).method
    assert "cholesky" in mcf.inv(M, X0=torch.zeros_like(M), solver=mcf.Refinement()).method


def test_gradients(native):
    M, Y = random(5, 4, 4).requires_grad_(), random(5, 3, 4, seed=1).requires_grad_()

    def f(M, Y):
        return mcf.solve(M, Y, solver=mcf.Auto()).X

    assert torch.autograd.gradcheck(f, (M, Y))


def test_the_answer_is_the_users(backend):
    """What the user does to a solution changes no later solve that continues from it."""
    M = well_conditioned(4, 3)
    solution = mcf.inv(M, solver=mcf.Refinement())
    expected = solution.X.clone()
    solution.X.zero_()
    again = mcf.inv(M, X0=solution, rtol=1e-9)
    torch.testing.assert_close(again.X, expected)
    assert bool((again.iterations == 1).all())
