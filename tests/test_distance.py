"""The distance against float64, in layouts that the kernels support and in some that use the reference."""

from __future__ import annotations

import math

import pytest
import torch

import matconv_fast as mcf

ORDS = ("fro", "max", 1)
# one vector and less, a tail, several blocks of 32,768, rows longer than a block
SHAPES = [(0, 0), (0, 5), (5, 0), (1, 1), (3, 7), (5, 16), (33, 33), (200, 199), (2, 40_000), (70_000, 1), (300, 300)]


def pair(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return A, B


def truth(A, B, norm):
    D = (A.double() - B.double()).abs()
    if norm == "max":
        return D.amax((-2, -1)) if D.shape[-1] * D.shape[-2] else D.sum((-2, -1))
    return D.sum((-2, -1)) if norm == 1 else (D**2).sum((-2, -1)).sqrt()


@pytest.mark.parametrize("norm", ORDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=pytest.mark.long) if math.prod(shape) > 5_000 else shape for shape in SHAPES]
)
def test_it_is_the_formula(backend, norm, dtype, shape):
    A, B = pair(*shape, dtype=dtype)
    found = mcf.distance(A, B, ord=norm)
    assert found.dtype == dtype
    # A - B is rounded once to the dtype, and the result once more; a float64 sum rounds as it goes
    units = 2 if dtype == torch.float32 else 32
    torch.testing.assert_close(found.double(), truth(A, B, norm), rtol=units * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("norm", ORDS)
def test_any_layout(backend, norm):
    A, B = pair(40, 60)
    wide = torch.randn(40, 100)
    wide[:, 20:80] = A
    strided = torch.randn(40, 120)
    strided[:, ::2] = A
    whole = mcf.distance(A, B, ord=norm)
    for same in (wide[:, 20:80], strided[:, ::2], A.T.contiguous().T):
        torch.testing.assert_close(mcf.distance(same, B, ord=norm), whole)
        torch.testing.assert_close(mcf.distance(B, same, ord=norm), whole)
    row, column = A[:1].expand(40, 60), A[:, :1].expand(40, 60)
    for expanded in (row, column):
        torch.testing.assert_close(
            mcf.distance(expanded, B, ord=norm), mcf.distance(expanded.contiguous(), B, ord=norm)
        )


@pytest.mark.parametrize("norm", ORDS)
@pytest.mark.parametrize("batches", [((3,), ()), ((), (3,)), ((3,), (3,)), ((2, 3), (3,)), ((2, 1), (3,)), ((0,), ())])
def test_batches(backend, norm, batches):
    A, B = (pair(*batch, 9, 11)[k] for k, batch in enumerate(batches))
    torch.testing.assert_close(mcf.distance(A, B, ord=norm).double(), truth(A, B, norm), rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", ORDS)
@pytest.mark.parametrize("place", [(0, 0), (16, 31), (39, 59)])
def test_nan_and_infinity_come_through(backend, norm, place):
    A, B = pair(40, 60)
    A[place] = math.inf
    assert mcf.distance(A, B, ord=norm) == math.inf
    B[place] = math.inf
    assert mcf.distance(A, B, ord=norm).isnan()
    assert not mcf.is_close(A, B, atol=1e30)


def test_large_and_small_numbers(backend):
    for size in (1e-30, 1e30):
        A = torch.full((50, 50), size)
        torch.testing.assert_close(mcf.distance(A, 0 * A).item(), 50 * size, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", ORDS)
def test_the_number_of_threads_changes_no_bit(norm):
    A, B = pair(700, 300)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(mcf.distance(A, B, ord=norm))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("norm", ORDS)
def test_function_transforms(backend, norm):
    A, B = pair(4, 5, dtype=torch.float64)
    direction = torch.ones_like(A)

    def of_A(A):
        return mcf.distance(A, B, ord=norm)

    wanted = (of_A(A + 1e-6 * direction) - of_A(A - 1e-6 * direction)) / 2e-6
    value, tangent = torch.func.jvp(of_A, (A,), (direction,))
    torch.testing.assert_close(value, of_A(A))
    torch.testing.assert_close(tangent, wanted, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close((torch.func.grad(of_A)(A) * direction).sum(), wanted, rtol=1e-6, atol=1e-8)
    with torch.autograd.forward_ad.dual_level():
        dual = of_A(torch.autograd.forward_ad.make_dual(A, direction))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)
    torch.testing.assert_close(torch.func.vmap(of_A)(torch.stack([A, B])), torch.stack([of_A(A), of_A(B)]))
