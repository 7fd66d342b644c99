"""Error bounds against solutions in exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from ill_conditioned import CASES, hilbert

import matconv_fast as mcf


@pytest.fixture(autouse=True)
def _on_the_reference(force):
    """Plain PyTorch on every backend."""
    force("reference")


def exact(M: list[list[Fraction]], Y: list[list[Fraction]]) -> list[list[Fraction]]:
    """X with ``X M = Y``, by elimination on the columns of ``M^T | Y^T``."""
    n = len(M)
    A = [[M[j][i] for j in range(n)] + [row[i] for row in Y] for i in range(n)]
    for k in range(n):
        pivot = next(i for i in range(k, n) if A[i][k] != 0)
        A[k], A[pivot] = A[pivot], A[k]
        A[k] = [a / A[k][k] for a in A[k]]
        for i in range(n):
            if i != k and A[i][k] != 0:
                factor = A[i][k]
                A[i] = [a - factor * b for a, b in zip(A[i], A[k], strict=True)]
    return [[A[i][n + r] for i in range(n)] for r in range(len(Y))]


def rational(t: torch.Tensor) -> list[list[Fraction]]:
    return [[Fraction(v) for v in row] for row in t.double().tolist()]


def transposed_product(A, B):
    return [[sum(a * b for a, b in zip(row, other, strict=True)) for other in B] for row in A]


def true_error(X: torch.Tensor, M: torch.Tensor, Y: torch.Tensor) -> float:
    """``||X - X*||_F``, X* the exact (least-squares) solution; rounded up."""
    A, B = rational(M), rational(Y)
    if M.shape[0] < M.shape[1]:
        A, B = transposed_product(A, A), transposed_product(B, A)
    best, found = exact(A, B), rational(X)
    square = sum((x - y) ** 2 for row, other in zip(found, best, strict=True) for x, y in zip(row, other, strict=True))
    return float(square) ** 0.5


def conditioned(generator: torch.Generator, n: int, p: int, power: float) -> torch.Tensor:
    U, V = (torch.linalg.qr(torch.randn(k, n, generator=generator, dtype=torch.float64))[0] for k in (n, p))
    return (U * torch.logspace(0, -power, n, dtype=torch.float64)) @ V.mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [4, 7])
def test_holds_and_is_near(generator, dtype, p):
    bounded = 0
    for power in range(13):
        for _ in range(3):
            M = conditioned(generator, 4, p, power).to(dtype)
            Y = torch.randn(2, p, generator=generator, dtype=torch.float64).to(dtype)
            solution = mcf.solve(M, Y, solver=mcf.Auto())
            bound, error = float(solution.error_bound()), true_error(solution.X, M, Y)
            assert bound >= error
            bounded += bound < float("inf")
            if power <= 6 and p == 4:
                assert bound <= 100 * error + 1e-300
    assert bounded >= (30 if p == 4 else 18)


def test_a_wrong_answer_has_a_large_bound(generator):
    M, X0 = conditioned(generator, 4, 4, 2), torch.randn(4, 4, generator=generator, dtype=torch.float64)
    start = mcf.inv(M, X0=X0, solver=mcf.Auto(), max_iters=0)
    error = (X0 - torch.linalg.inv(M)).norm()
    assert error <= start.error_bound() <= 1.01 * error


def test_batches_and_the_left_equation(generator):
    M = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    M[0, 1] = 1
    M[1, 2, 0, 0] = torch.nan
    bounds = mcf.inv(M, solver=mcf.Auto()).error_bound()
    assert bounds.shape == (2, 3)
    expected = torch.ones(2, 3, dtype=torch.bool)
    expected[0, 1] = expected[1, 2] = False
    assert torch.equal(bounds < 1e-6, expected)
    assert bool(bounds[~expected].isinf().all())
    A, Y = M[0, 0], torch.randn(4, 2, generator=generator, dtype=torch.float64)
    solution = mcf.solve(A, Y, solver=mcf.Auto(), left=True)
    assert true_error(solution.X.mT, A.mT, Y.mT) <= float(solution.error_bound()) < 1e-9


def test_no_bound():
    wide = mcf.solve(torch.ones(3, 2), torch.ones(1, 2), solver=mcf.Auto())
    assert wide.error_bound() == float("inf")
    assert mcf.inv(hilbert(14), solver=mcf.Auto()).error_bound() == float("inf")
    assert mcf.inv(CASES["zero"](), solver=mcf.Auto()).error_bound() == float("inf")


def test_changed_input_is_refused():
    M = torch.eye(3)
    solution = mcf.inv(M, solver=mcf.Auto())
    M[0, 0] = 2
    with pytest.raises(ValueError, match="modified in place"):
        solution.error_bound()
