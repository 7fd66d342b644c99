"""``HeavyBall()`` and ``HeavyBall(momentum="auto")`` take the documented lr and momentum.

Polyak (1964): on ``c/2 ||X M - Y||^2`` with L and mu the largest and the smallest c s^2, the fastest heavy ball has
``lr = 4 / (sqrt(L) + sqrt(mu))^2``, and for any lr up to that ``momentum = (1 - sqrt(lr mu))^2`` is the fastest. "auto"
takes 3/4 of that lr, and all of it where L = mu. Its mu leaves out zeros and is at least L / 1000^2. Neither number is
public, so the iterates are compared with those of a `HeavyBall` that is given the formula's numbers.
"""

from __future__ import annotations

import math

import pytest
import torch

import matconv_fast as mcf
from matconv_fast.solvers import spectrum

# singular values, and the shape [n, p] of M
SPECTRA = {
    "square": ((3.0, 2.0, 0.5), (3, 3)),
    "wide": ((3.0, 0.25), (2, 4)),
    "tall": ((2.0, 0.25), (4, 2)),
    "equal": ((2.0, 2.0), (2, 2)),
    "one value": ((0.7,), (1, 1)),
    "ill-conditioned": ((5.0, 1.0, 1e-3), (3, 3)),
    "very ill-conditioned": ((4.0, 1e-7), (2, 2)),
    "singular": ((2.0, 1.0, 0.0), (3, 3)),
}
NAMES = ["square", "wide", *(pytest.param(name, marks=pytest.mark.long) for name in list(SPECTRA)[2:])]
ROWS = 5  # of X and Y: unlike all of n and p


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def diagonal(values, shape):
    M = torch.zeros(shape, dtype=torch.float64)
    M.diagonal().copy_(torch.tensor(values, dtype=torch.float64))
    return M


def rotated(values, shape):
    U, V = (torch.linalg.qr(rand(size, size, seed=size))[0] for size in shape)
    return U @ diagonal(values, shape) @ V


def curvatures(values, loss, rows, p):
    """mu and L."""
    c = {"mse": 2 / (rows * p), "sse": 2.0}[loss]
    return c * max(min(filter(None, values)), max(values) / 1000) ** 2, c * max(values) ** 2


def optimum(values, loss, rows, p):
    """``(lr, momentum)`` of "auto"."""
    mu, high = curvatures(values, loss, rows, p)
    lr = (0.75 + 0.25 * mu / high) * 4 / (math.sqrt(high) + math.sqrt(mu)) ** 2
    return lr, max((1 - math.sqrt(lr * mu)) ** 2, (1 - math.sqrt(lr * high)) ** 2)


def iterates(solver, M, Y, loss="mse", count=5, **options):
    """After 1 to `count` updates: lr alone decides the first, lr and momentum those that follow."""
    X0 = rand(*Y.shape[:-1], M.shape[-2], seed=7)
    return [
        mcf.solve(M, Y, X0, solver=solver, loss=loss, rtol=0.0, max_iters=k, record_every=0, **options).X
        for k in (1, 2, count)
    ]


def assert_the_same(found, expected, tolerance=1e-11):
    for X, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(X, wanted, rtol=0.0, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.parametrize("loss", ["mse", "sse"])
@pytest.mark.parametrize("make", [pytest.param(diagonal, marks=pytest.mark.long), rotated])
@pytest.mark.parametrize("name", NAMES)
def test_auto_momentum_is_the_formulas(backend, name, make, loss):
    values, (n, p) = SPECTRA[name]
    M, Y = make(values, (n, p)), rand(ROWS, p, seed=1)
    lr, momentum = optimum(values, loss, ROWS, p)
    found = iterates(mcf.HeavyBall(momentum="auto"), M, Y, loss)
    # a small eigenvalue of the Gram matrix is off by eps L: it enters lr and momentum
    smallest = 1e-11 if make is diagonal or min(values) > 1e-2 * max(values) else 1e-8
    assert_the_same(found, iterates(mcf.HeavyBall(lr, momentum), M, Y, loss), smallest)


@pytest.mark.parametrize("loss", ["mse", "sse"])
@pytest.mark.parametrize("momentum", [0.5, *(pytest.param(value, marks=pytest.mark.long) for value in (0.0, 0.9))])
@pytest.mark.parametrize("name", NAMES)
def test_no_lr_is_half_of_the_stability_limit(backend, name, momentum, loss):
    values, (n, p) = SPECTRA[name]
    M, Y = rotated(values, (n, p)), rand(ROWS, p, seed=1)
    _, high = curvatures(values, loss, ROWS, p)
    found = iterates(mcf.HeavyBall(momentum=momentum), M, Y, loss)
    assert_the_same(found, iterates(mcf.HeavyBall((1 + momentum) / high, momentum), M, Y, loss))


@pytest.mark.long
@pytest.mark.parametrize("loss", ["mse", "sse"])
@pytest.mark.parametrize("part", [0.1, 0.5, 1.0])
def test_auto_momentum_for_a_given_lr(backend, part, loss):
    """``(1 - sqrt(lr mu))^2``, up to the optimal lr."""
    values, (n, p) = SPECTRA["square"]
    M, Y = rotated(values, (n, p)), rand(ROWS, p, seed=1)
    mu, high = curvatures(values, loss, ROWS, p)
    lr = part * 4 / (math.sqrt(mu) + math.sqrt(high)) ** 2
    found = iterates(mcf.HeavyBall(lr, "auto"), M, Y, loss)
    assert_the_same(found, iterates(mcf.HeavyBall(lr, (1 - math.sqrt(lr * mu)) ** 2), M, Y, loss))


@pytest.mark.long
def test_auto_momentum_for_an_lr_beyond_the_optimum(backend):
    M, Y = diagonal((1.0, 0.1), (2, 2)), rand(1, 2, seed=1)
    lr = 3.6  # for mse of [1, 2], where c is 1: the optimum is 3.31, and any momentum below 1 is stable up to 4
    assert_the_same(
        iterates(mcf.HeavyBall(lr, "auto"), M, Y), iterates(mcf.HeavyBall(lr, (1 - math.sqrt(lr)) ** 2), M, Y)
    )
    assert bool(mcf.solve(M, Y, solver=mcf.HeavyBall(lr, "auto")).converged)


@pytest.mark.parametrize("left", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize("loss", ["mse", "sse"])
def test_each_problem_of_a_batch_gets_its_own(backend, loss, left):
    spectra = [(3.0, 1.0, 0.5), (1.0, 0.9, 0.1), (7.0, 7.0, 7.0)]
    M, Y = torch.stack([rotated(s, (3, 4)) for s in spectra]), rand(3, ROWS, 4, seed=1)
    pairs = [optimum(s, loss, ROWS, 4) for s in spectra]
    momentum = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
    rates = [(1 + float(b)) / curvatures(s, loss, ROWS, 4)[1] for s, b in zip(spectra, momentum, strict=True)]
    for solver, expected in (
        (mcf.HeavyBall(momentum="auto"), pairs),
        (mcf.HeavyBall(momentum=momentum), list(zip(rates, momentum.tolist(), strict=True))),
    ):
        options = {"solver": solver, "loss": loss, "rtol": 0.0, "max_iters": 5}
        X = mcf.solve(M.mT, Y.mT, left=True, **options).X.mT if left else mcf.solve(M, Y, **options).X
        for b, (lr, beta) in enumerate(expected):
            alone = mcf.solve(M[b], Y[b], **{**options, "solver": mcf.HeavyBall(lr, beta)}).X
            torch.testing.assert_close(X[b], alone, rtol=1e-10, atol=1e-10)


def test_a_shared_M(backend):
    values, Y = (3.0, 1.0), rand(3, ROWS, 2, seed=1)
    M = rotated(values, (2, 2))
    lr, momentum = optimum(values, "mse", ROWS, 2)
    assert_the_same(iterates(mcf.HeavyBall(momentum="auto"), M, Y), iterates(mcf.HeavyBall(lr, momentum), M, Y))


@pytest.mark.parametrize("loss", ["mse", "sse"])
def test_without_M_one_update_arrives(backend, loss):
    """All singular values are 1, so momentum is 0 and lr is 1 / c."""
    Y = rand(2, 3, seed=1)
    sol = mcf.solve(None, Y, solver=mcf.HeavyBall(momentum="auto"), loss=loss, rtol=1e-14)
    assert int(sol.iterations) == 1
    half = mcf.solve(None, Y, solver=mcf.HeavyBall(momentum=0.5), loss=loss, rtol=0.0, max_iters=1).X
    torch.testing.assert_close(half, 1.5 * Y, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("momentum", [0.9, "auto"])
def test_an_M_of_zeros_has_an_lr_too(backend, momentum):
    sol = mcf.solve(torch.zeros(2, 3), torch.ones(2, 3), solver=mcf.HeavyBall(momentum=momentum), max_iters=3)
    assert torch.equal(sol.X, torch.zeros(2, 2))
    assert int(sol.iterations) == 3


@pytest.mark.parametrize("loss", ["mse", "sse"])
def test_float32_gets_the_same_numbers(backend, loss):
    """Allowance: 1e-5 of the largest entry, after 5 updates."""
    values, (n, p) = SPECTRA["wide"]
    M, Y = rotated(values, (n, p)), rand(ROWS, p, seed=1)
    lr, momentum = optimum(values, loss, ROWS, p)
    options = {"loss": loss, "rtol": 0.0, "max_iters": 5}
    found = mcf.solve(M.float(), Y.float(), solver=mcf.HeavyBall(momentum="auto"), **options).X
    wanted = mcf.solve(M, Y, solver=mcf.HeavyBall(lr, momentum), **options).X
    torch.testing.assert_close(found.double(), wanted, rtol=0.0, atol=1e-5 * float(wanted.abs().max()))


SPREADS = {  # of the singular values of a larger M
    "equal": lambda t: 1 + 0 * t,
    "even": lambda t: 1 - t,
    "dense at the top": lambda t: 1 - t**2,
    "geometric": lambda t: 1e-6**t,
    "one above": lambda t: torch.where(t == 0, 1.01, 1 - 0.5 * t),
    "rank 1": lambda t: (t == 0).double(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(70, 70), (66, 150), (150, 66)])
@pytest.mark.parametrize("spread", SPREADS)
def test_the_bound_of_a_larger_M_is_never_low(spread, shape, dtype):
    """Beyond 64 rows and columns, the largest singular value is bounded by Lanczos steps: lr is the limit's half."""
    values = SPREADS[spread](torch.linspace(0, 1, min(shape), dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    U, V = (
        torch.linalg.qr(torch.randn(8, size, len(values), generator=generator, dtype=torch.float64))[0]
        for size in shape
    )
    M, Y = (7e-3 * U * values @ V.mT).to(dtype), torch.randn(3, shape[1], generator=generator, dtype=torch.float64)
    sol = mcf.solve(M, Y.to(dtype), solver=mcf.HeavyBall(momentum=0.5), loss="sse", rtol=0.0, max_iters=1)
    lr = (sol.X.double() / (2 * Y.to(dtype).double() @ M.double().mT)).median(-1).values.median(-1).values
    largest = torch.linalg.svdvals(M.double())[:, 0]
    half = 1.5 / (2 * largest**2)
    assert (lr <= half * (1 + 1e-5)).all()
    assert (lr >= half / 1.12).all()


@pytest.mark.parametrize("unit", [1e-30, 1e30])
@pytest.mark.parametrize("n", [3, 70])
def test_a_very_small_or_large_M_has_a_step_size(n, unit):
    """Its squares are beyond float32; at the fourth power, the float64 problem can do with them."""
    wide = torch.diag(torch.linspace(1, 2, n, dtype=torch.float64))
    for M in ((unit * wide).float(), unit**4 * wide):
        for momentum in (0.5, "auto"):
            Y = M[:2] if unit < 1 else torch.ones(2, n, dtype=M.dtype)
            sol = mcf.solve(M, Y, solver=mcf.HeavyBall(momentum=momentum))
            assert bool(sol.converged) or "out of range" in sol.message, sol.message


class Counted:
    """How often the singular values of M were asked for."""

    def __init__(self, monkeypatch):
        self.calls = 0
        for name in ("largest", "extremes"):
            monkeypatch.setattr(spectrum, name, self.of(getattr(spectrum, name)))

    def of(self, function):
        def counted(*arguments):
            self.calls += 1
            return function(*arguments)

        return counted


@pytest.mark.parametrize("solver", [mcf.HeavyBall(), mcf.HeavyBall(momentum="auto"), mcf.HeavyBall(0.1, "auto")])
def test_nothing_is_estimated_before_X0_has_been_tested(backend, monkeypatch, solver):
    counted = Counted(monkeypatch)
    M, Y = rotated(*SPECTRA["square"]), rand(2, 3)
    assert int(mcf.solve(M, Y, solver=solver, max_iters=0).iterations) == 0
    assert bool(mcf.solve(M, Y, Y @ torch.linalg.inv(M), solver=solver).converged)
    assert counted.calls == 0
    assert bool(mcf.solve(M, Y, solver=solver, rtol=1e-6).converged)
    assert counted.calls == 1


@pytest.mark.parametrize("options", [{"loss": "fro"}, {}])
def test_wrong_hyperparameters_are_refused_before_X0_is_tested(options):
    solver = mcf.HeavyBall(None if options else torch.ones(7), "auto")
    with pytest.raises(ValueError, match="lr"):
        mcf.solve(torch.eye(3), solver=solver, max_iters=0, **options)
