"""``patience=k`` ends a solve that fell by less than 1 % in ||R||_F over k iterations, and only then.

On 1 x 1 problems gradient descent multiplies R by ``1 - 2 lr s^2`` an iteration, so the fall over a window is known.
"""

from __future__ import annotations

import math

import pytest
import torch

import matconv_fast as mcf

ONE = torch.ones(1, 1, dtype=torch.float64)
ENDLESS = {"rtol": 0.0, "atol": 0.0}


def descent(factor):
    """Multiplies R of the 1 x 1 problem with M = 1, whose mse is R^2, by `factor`."""
    return mcf.HeavyBall(lr=(1 - factor) / 2, momentum=0.0)


def stop_of(norms, patience):
    """Where the rule, applied to ||R||_F of each iterate, ends the run; None: nowhere."""
    mark = norms[0]
    for k in range(patience, len(norms), patience):
        best = min(norms[: k + 1])
        if best > 0.99 * mark:
            return k
        mark = best
    return None


def assert_ends(sol, expected, most):
    wanted = (mcf.Status.MAX_ITERATIONS, most) if expected is None else (mcf.Status.STAGNATED, expected)
    assert (mcf.Status(sol.status.item()), int(sol.iterations)) == wanted


@pytest.mark.parametrize("patience", [5, *(pytest.param(k, marks=pytest.mark.long) for k in (1, 2, 16))])
@pytest.mark.parametrize(
    ("percent", "stagnates"),
    [(0.45, True), (0.9, True), (0.999, True), (1.001, False), (1.1, False), (1.9, False), (2.1, False)],
)
def test_the_threshold_is_1_per_cent_of_the_norm(backend, percent, stagnates, patience):
    solver = descent((1 - percent / 100) ** (1 / patience))
    most = 3 * patience + 1
    sol = mcf.solve(ONE, solver=solver, patience=patience, max_iters=most, **ENDLESS)
    assert_ends(sol, patience if stagnates else None, most)
    if stagnates:
        assert float(sol.residual_norm) == pytest.approx(1 - percent / 100, rel=1e-12)


@pytest.mark.parametrize("loss", ["mse", "sse", "fro"])
def test_it_is_the_norm_whatever_the_loss(backend, loss):
    """Of the gradient of ||R||, which is a sign, the steps are all of one length."""
    for fall in (0.009, 0.011):
        lr = {"mse": (1 - (1 - fall) ** 0.1) / 2, "sse": (1 - (1 - fall) ** 0.1) / 2, "fro": fall / 10}[loss]
        solver = mcf.HeavyBall(lr, 0.0)
        sol = mcf.solve(ONE, solver=solver, loss=loss, patience=10, max_iters=10, **ENDLESS)
        assert_ends(sol, 10 if fall < 0.01 else None, 10)


@pytest.mark.parametrize("check_every", [3, *(pytest.param(k, marks=pytest.mark.long) for k in (None, 1, 64))])
def test_each_window_begins_where_the_last_one_ended(backend, check_every):
    """One entry of R falls by a third an iteration, the other by a thousandth: the fall over a window shrinks."""
    M = torch.diag(torch.tensor([1.0, 0.05], dtype=torch.float64))
    Y = torch.tensor([[1.0, 0.3]], dtype=torch.float64)
    solver = mcf.HeavyBall(lr=0.4, momentum=0.0)  # mse of [1, 2]: c is 1
    norms = [math.hypot(0.6**k, 0.3 * (1 - 0.4 * 0.0025) ** k) for k in range(60)]
    for patience in (3, 4, 5, 7):
        expected = stop_of(norms, patience)
        assert expected >= 2 * patience  # not the first window, nor any that begins at the start
        sol = mcf.solve(M, Y, solver=solver, patience=patience, max_iters=59, check_every=check_every, **ENDLESS)
        assert_ends(sol, expected, 59)
        assert float(sol.residual_norm) == pytest.approx(norms[expected], rel=1e-12)


@pytest.mark.parametrize("patience", [4, *(pytest.param(k, marks=pytest.mark.long) for k in (3, 6, 9, 13))])
def test_it_is_the_smallest_norm_that_must_fall(backend, patience):
    """Momentum makes R swing: it ends a window above the smallest, or above where it began."""
    lr, momentum, r, v = 0.05, 0.98, 1.0, 0.0
    norms = [1.0]
    for _ in range(80):
        v = momentum * v + 2 * r
        r = r - lr * v
        norms.append(abs(r))
    expected = stop_of(norms, patience)
    assert expected is not None
    assert min(norms[: expected + 1]) < norms[expected]  # else this is no case of it
    sol = mcf.solve(ONE, solver=mcf.HeavyBall(lr, momentum), patience=patience, max_iters=80, **ENDLESS)
    assert_ends(sol, expected, 80)


@pytest.mark.parametrize("first", [6, *(pytest.param(k, marks=pytest.mark.long) for k in (1, 4, 5, 10, 14))])
def test_a_window_goes_on_in_a_resumed_run(backend, first):
    M = torch.diag(torch.tensor([1.0, 0.05], dtype=torch.float64))
    Y = torch.tensor([[1.0, 0.3]], dtype=torch.float64)
    options = {"solver": mcf.HeavyBall(lr=0.4, momentum=0.0), "patience": 5, **ENDLESS}
    whole = mcf.solve(M, Y, max_iters=59, **options)
    assert_ends(whole, 15, 59)
    begun = mcf.solve(M, Y, max_iters=first, **options)
    assert_ends(begun, None, first)
    rest = mcf.solve(M, Y, begun, max_iters=59 - first, **options)
    assert_ends(rest, 15, 59)
    assert torch.equal(rest.X, whole.X)


def test_the_problems_of_a_batch_end_one_by_one(backend):
    falls = torch.tensor([0.5, 0.9, 1.1, 1.9, 2.1, 60.0], dtype=torch.float64) / 100
    solver = mcf.HeavyBall(lr=(1 - (1 - falls) ** (1 / 8)) / 2, momentum=0.0)
    M = ONE.expand(6, 1, 1)
    sol = mcf.solve(M, solver=solver, patience=8, max_iters=24, rtol=0.0, atol=0.1)
    names = [mcf.Status(code).name for code in sol.status.tolist()]
    assert names == ["STAGNATED"] * 2 + ["MAX_ITERATIONS"] * 3 + ["CONVERGED"]
    # 0.4^(k / 8) is at most 0.1 from k = 20.1 on
    assert sol.iterations.tolist() == [8, 8, 24, 24, 24, 21]


def test_a_tolerance_that_is_met_at_the_end_of_a_window_comes_first(backend):
    factor = 0.995 ** (1 / 5)
    sol = mcf.solve(ONE, solver=descent(factor), patience=5, atol=0.99501, rtol=0.0, max_iters=20)
    assert (mcf.Status(sol.status.item()), int(sol.iterations)) == (mcf.Status.CONVERGED, 5)
    later = mcf.solve(ONE, solver=descent(factor), patience=5, atol=0.99499, rtol=0.0, max_iters=20)
    assert (mcf.Status(later.status.item()), int(later.iterations)) == (mcf.Status.STAGNATED, 5)


def test_a_window_that_max_iters_cuts_short_ends_nothing(backend):
    sol = mcf.solve(ONE, solver=descent(0.99999), patience=10, max_iters=9, **ENDLESS)
    assert_ends(sol, None, 9)
