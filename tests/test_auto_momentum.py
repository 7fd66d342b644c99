"""``HeavyBall(momentum="auto")`` against the plain heavy ball, and the messages of both against float64."""

from __future__ import annotations

import functools
import math
import re

import pytest
import torch

import matconv_fast as mcf

CONDITIONS = (1.0, 3.0, 10.0, 50.0, 100.0, 1e3, 1e4, 1e6)
AUTO, PLAIN = mcf.HeavyBall(momentum="auto"), mcf.HeavyBall()


def problem(spread, shape, condition, dtype, seed=0):
    """M with singular values from 1 down to ``1 / condition``, and Y."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(shape)
    s = torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64)
    if spread == "one small":
        s = torch.linspace(1, 0.5, rank, dtype=torch.float64)
        s[-1] = 1 / condition
    if spread == "singular":
        s[rank // 2 :] = 0
    U, V = (torch.linalg.qr(torch.randn(k, rank, generator=generator, dtype=torch.float64))[0] for k in shape)
    Y = torch.randn(6, shape[1], generator=generator, dtype=torch.float64)
    return ((U * s) @ V.mT).to(dtype), Y.to(dtype)


def residual(M, Y, X):
    return float(torch.linalg.matrix_norm(X.double() @ M.double() - Y.double()))


def least(M, Y):
    """Residuals of solutions in float64: the smallest there is, and rounded to the dtype; of the one that leaves out
    singular values which are rounding in the dtype; and the smaller of the latter two."""
    cuts = [max(M.shape) * torch.finfo(dtype).eps for dtype in (torch.float64, M.dtype)]
    full, cut = (
        torch.linalg.lstsq(M.double().mT, Y.double().mT, rcond=rcond, driver="gelsd").solution.mT for rcond in cuts
    )
    rounded = residual(M, Y, cut.to(M.dtype))
    return residual(M, Y, full), rounded, min(rounded, residual(M, Y, full.to(M.dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (20, 8)], ids=["square", "wide", "tall"])
@pytest.mark.parametrize("spread", ["geometric", "one small", "singular"])
def test_auto_is_never_much_worse_and_never_grows(spread, shape, dtype):
    for condition in CONDITIONS:
        M, Y = problem(spread, shape, condition, dtype)
        plain, auto = (mcf.solve(M, Y, solver=solver) for solver in (PLAIN, AUTO))
        case = f"condition {condition:g}: {auto.message}"
        assert residual(M, Y, auto.X) <= 1.1 * residual(M, Y, plain.X) + 1e-5 * float(Y.norm()), case
        assert bool(auto.converged) or not bool(plain.converged), case
        if bool(plain.converged):
            assert int(auto.iterations) <= int(plain.iterations), case
        assert auto.history.max() <= 4 * auto.history[0], case
        # the rounding of X is amplified by half the condition number
        floor = condition * torch.finfo(dtype).eps
        if spread != "singular" and shape[0] >= shape[1] and condition <= 100:
            assert bool(auto.converged), case
        elif condition <= 1e3:
            assert residual(M, Y, auto.X) <= (1 + 1e-3) * least(M, Y)[1] + (1e-5 + 4 * floor) * float(Y.norm()), case


@pytest.mark.long
def test_auto_in_a_batch_of_mixed_conditions(backend):
    cases = [problem("geometric", (12, 12), condition, torch.float32) for condition in (1.0, 20.0, 1e6)]
    cases += [problem("singular", (12, 12), 10.0, torch.float32), (torch.zeros(12, 12), torch.zeros(6, 12))]
    M, Y = (torch.stack(tensors) for tensors in zip(*cases, strict=True))
    M[4, 0, 0] = torch.nan
    both = mcf.solve(M, Y, solver=AUTO, max_iters=300)
    assert [mcf.Status(code).name for code in both.status.tolist()[:3]] == ["CONVERGED", "CONVERGED", "MAX_ITERATIONS"]
    assert both.status[4] == mcf.Status.NONFINITE
    for b in (1, 2, 3):
        alone = mcf.solve(M[b], Y[b], solver=AUTO, max_iters=300)
        torch.testing.assert_close(both.residual_norm[b], alone.residual_norm, rtol=1e-2, atol=1e-4)


def test_auto_takes_the_smallest_singular_value_that_is_not_zero():
    """As many iterations for a singular M as for the M without its zeros: 10 of 12 columns are found."""
    M, Y = problem("geometric", (12, 12), 30.0, torch.float32)
    U, s, Vh = torch.linalg.svd(M.double())
    singular = (U[:, :10] * s[:10]) @ Vh[:10]
    Y = (Y.double() @ Vh[:10].mT @ Vh[:10]).float()
    sol = mcf.solve(singular.float(), Y, solver=AUTO)
    assert bool(sol.converged)
    assert int(sol.iterations) < 250  # for a condition of 20; with eps for the smallest it ended far from the answer


@functools.cache
def ended():
    """Problems that a solver leaves without an answer: what was solved, and how it ended."""
    found, krylov = [], (mcf.LSQR(), mcf.Auto(), mcf.Refinement())
    for spread in ("geometric", "one small", "singular"):
        for shape in ((12, 12), (8, 20)):
            for condition in (50.0, 1e5):
                for dtype in (torch.float32, torch.float64):
                    M, Y = problem(spread, shape, condition, dtype)
                    in_range = (torch.randn(6, shape[0], dtype=torch.float64) @ M.double()).to(dtype)
                    for target in (Y, in_range):
                        for solver in (PLAIN, AUTO, *krylov):
                            for rtol in (None, 1e-14):
                                count = 20 if solver in krylov else 2_000
                                sol = mcf.solve(M, target, solver=solver, rtol=rtol, max_iters=count)
                                if sol.status != mcf.Status.CONVERGED:
                                    found.append((M, target, solver, sol))
    return found


@pytest.mark.long
def test_no_message_claims_what_float64_refutes():
    for M, Y, solver, sol in ended():
        r, (minimum, _, rounded) = residual(M, Y, sol.X), least(M, Y)
        noise = 100 * torch.finfo(M.dtype).eps * float(Y.norm())
        if "no X has a smaller residual up to rounding" in sol.message:
            assert r <= 1.2 * rounded, (solver, sol.message, rounded)
        if "rounding allows" in sol.message:
            assert r <= 20 * rounded, (solver, sol.message, rounded)
        if found := re.search(r"least-squares minimum, ([\d.e+-]+)", sol.message):
            assert float(found[1]) == pytest.approx(minimum, rel=0.01, abs=noise), (solver, sol.message)
        if found := re.search(r"a direct solution (?:in float\d+ )?reaches ([\d.e+-]+)", sol.message):
            assert rounded / 10 - noise <= float(found[1]) <= 10 * rounded + noise, (solver, sol.message, rounded)


@pytest.mark.long
def test_what_a_message_suggests_works():
    """The solver that it names meets the tolerance, or gets twice as far."""
    tried = set()
    for M, Y, solver, sol in ended():
        named = re.search(r"solver=(\w+)\(\)|(HeavyBall\(momentum='auto'\))", sol.message)
        if named is None or (named[0], M.shape, M.dtype, type(solver)) in tried:
            continue
        tried.add((named[0], M.shape, M.dtype, type(solver)))
        suggested = AUTO if named[2] else getattr(mcf, named[1])()
        assert suggested != solver
        again = mcf.solve(M, Y, solver=suggested, rtol=sol.options.rtol)
        gained = residual(M, Y, again.X) <= 0.5 * residual(M, Y, sol.X)
        assert bool(again.converged) or gained, (solver, sol.message, again.message)
    assert len(tried) > 6


def test_advice_counts_the_iterations_of_auto():
    M, Y = problem("geometric", (12, 12), 30.0, torch.float32)
    sol = mcf.solve(M, Y, solver=PLAIN, max_iters=100)
    count = re.search(r"momentum='auto'\), which needs about (\d+) iterations at condition number 30", sol.message)
    assert count is not None, sol.message
    auto = mcf.solve(M, Y, solver=AUTO)
    assert bool(auto.converged)
    assert int(count[1]) / 1.5 <= int(auto.iterations) <= 1.1 * int(count[1])
    worse = mcf.solve(*problem("geometric", (12, 12), 1e5, torch.float32), solver=PLAIN, max_iters=100)
    assert "momentum='auto'" not in worse.message
    assert "use solver=Auto()" not in mcf.solve(M, Y, solver=PLAIN, rtol=1e-9, max_iters=100).message
