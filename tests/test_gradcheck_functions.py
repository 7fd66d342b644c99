"""Derivatives of distances, heavy-ball steps, compiled functions and solves; gradcheck in float64."""

from __future__ import annotations

import math

import pytest
import torch
from derivatives import CASES, LARGE, LOSSES, ORDS, PLAIN, both_orders, rand, tensors
from torch.autograd import gradcheck

import matconv_fast as mcf

BATCHES = [((3, 4), (3, 4)), ((2, 3, 2), (2, 3, 2)), ((2, 1, 2, 3), (3, 2, 3)), ((1, 5), (1, 5)), ((2, 2, 2, 2),) * 2]


@pytest.mark.parametrize("ord_", ORDS)
@pytest.mark.parametrize("shapes", BATCHES, ids=str)
@pytest.mark.parametrize(
    "names", ["AB", pytest.param("A", marks=pytest.mark.long), pytest.param("B", marks=pytest.mark.long)]
)
def test_distance(backend, ord_, shapes, names):
    """Differences apart from each other and from 0, where the largest entry and the sum of moduli have kinks."""
    A, B = (torch.randperm(math.prod(s), generator=torch.Generator().manual_seed(k)) for k, s in enumerate(shapes))
    A, B = A.double().view(shapes[0]) + 0.3, 1.37 * B.double().view(shapes[1])
    sizes = (A - B).abs().flatten(-2).sort(-1)[0]
    assert sizes.min() > 0.01
    assert (sizes[..., 1:] - sizes[..., :-1])[..., -1].min() > 0.01
    A, B = A.requires_grad_("A" in names), B.requires_grad_("B" in names)
    both_orders(lambda A, B: mcf.distance(A, B, ord=ord_), (A, B), backend)


def a_step(loss):
    def stepped(X, V, M, Y, lr, momentum):
        return mcf.heavy_ball_step(X, V, M, Y, lr=lr, momentum=momentum, loss=loss)

    return stepped


STEPS = [
    "one row",
    "broadcast",
    *(pytest.param(c, marks=pytest.mark.long) for c in ("ragged", "no M", "no Y", "batch", "shared M and Y")),
]


def of_a_step(case, names="XVMYlm", dtype=torch.float64):
    X, M, Y = tensors(CASES[case], dtype=dtype)
    V = rand(*X.shape, seed=8, dtype=dtype)
    batch = X.shape[:-2] if case != "broadcast" else ()
    # of order 1, so that the loss's curvature by X reaches X' and is not hidden by the tolerance
    lr, momentum = ((0.7 + 0.1 * torch.arange(math.prod(batch), dtype=dtype).view(batch)) * f for f in (1.0, 0.8))
    found = [X, V, M, Y, lr, momentum]
    return [None if t is None else t.detach().requires_grad_(k in names) for k, t in zip("XVMYlm", found, strict=True)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", STEPS)
def test_heavy_ball_step(backend, loss, case):
    both_orders(a_step(loss), of_a_step(case), backend)


@pytest.mark.long
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("names", ["X", "V", "M", "Y", "l", "m", "XV", "MY", "lm"])
def test_heavy_ball_step_by_some_arguments(backend, loss, names):
    both_orders(a_step(loss), of_a_step("batch", names), backend)


@pytest.mark.long
@pytest.mark.parametrize("loss", LOSSES)
def test_heavy_ball_step_beyond_the_small_kernels(backend, loss):
    X, M, Y = tensors(LARGE["square"])
    V, lr, momentum = rand(90, 80, seed=8), torch.tensor(0.7).double(), torch.tensor(0.6).double()
    inputs = [X, V.requires_grad_(), M, Y, lr.requires_grad_(), momentum.requires_grad_()]
    both_orders(a_step(loss), inputs, backend, fast_mode=True)


@pytest.mark.parametrize("loss", LOSSES)
def test_heavy_ball_step_in_float32(backend, loss):
    """Against autograd of the formulas in float64; allowance: 1e-5 of the largest entry of each gradient."""
    inputs = of_a_step("batch", dtype=torch.float32)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    weights = [rand(2, 3, 2, seed=1), rand(2, 3, 2, seed=2), rand(2, seed=3)]

    def formula(X, V, M, Y, lr, momentum):
        value = PLAIN[loss](X @ M - Y)
        (G,) = torch.autograd.grad(value.sum(), X, create_graph=True)
        V = momentum[:, None, None] * V + G
        return X - lr[:, None, None] * V, V, value

    found, truth = (
        torch.autograd.grad(sum((r * w).sum() for r, w in zip(function(*given), weights, strict=True)), given)
        for function, given in ((a_step(loss), inputs), (formula, exact))
    )
    for a, t in zip(found, truth, strict=True):
        torch.testing.assert_close(a.double(), t, rtol=0.0, atol=1e-5 * float(t.abs().max()))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled(backend):
    """All losses, distances and steps in one graph, which costs one compilation."""
    if backend != "cpu":
        pytest.skip("a compiled function holds the kernels; those of the reference are plain operators")

    def everything(X, V, M, Y):
        values = [mcf.residual_loss(X, M, Y, loss=loss) for loss in LOSSES]
        values += [mcf.distance(X, V, ord=ord_) for ord_ in ORDS]
        for loss in ("sse", "fro"):
            values += mcf.heavy_ball_step(X, V, M, Y, lr=0.7, momentum=0.6, loss=loss)
        return tuple(values)

    torch.compiler.reset()
    X, M, Y = tensors(CASES["ragged"])
    inputs = X, rand(3, 4, seed=8).requires_grad_(), M, Y
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), everything(*inputs))
    assert gradcheck(compiled, inputs)
    torch.compiler.reset()


def well_conditioned(*shape):
    """Singular values from 1 to 2."""
    U, _, Vh = torch.linalg.svd(rand(*shape, seed=4), full_matrices=False)
    return U * torch.linspace(1.0, 2.0, min(shape[-2:]), dtype=torch.float64) @ Vh


# to rounding, square or not: where the residual stands still it ends STAGNATED
EXACT = {"solver": mcf.HeavyBall(momentum="auto"), "rtol": 0.0, "patience": 30, "max_iters": 400, "record_every": 0}
EQUATIONS = {
    "square": ((3, 3), (2, 3)),
    "wide": ((2, 4), (3, 4)),
    "batch": ((2, 2, 3), (2, 2, 3)),
    "shared M": ((2, 3), (2, 1, 3)),
    "no Y": ((2, 3, 3), None),
    "wide, no Y": ((2, 3), None),
}


@pytest.mark.long
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("case", EQUATIONS)
def test_a_solve(backend, case, left):
    shapes = EQUATIONS[case]
    M, Y = well_conditioned(*shapes[0]), None if shapes[1] is None else rand(*shapes[1], seed=2)
    M, Y = (None if t is None else (t.mT if left else t).clone().requires_grad_() for t in (M, Y))

    def solved(M, Y):
        return mcf.solve(M, Y, left=left, **EXACT).X

    pinv = torch.linalg.pinv(M)
    target = torch.eye(M.shape[-2 if left else -1], dtype=torch.float64) if Y is None else Y
    torch.testing.assert_close(solved(M, Y), pinv @ target if left else target @ pinv)
    both_orders(solved, (M, Y), backend, fast_mode=backend == "reference" and (left or case != "wide"))


@pytest.mark.long
@pytest.mark.parametrize("names", ["M", "Y"])
def test_a_solve_by_one_argument(backend, names):
    M, Y = well_conditioned(2, 4).requires_grad_("M" in names), rand(3, 4, seed=2).requires_grad_("Y" in names)
    both_orders(lambda M, Y: mcf.solve(M, Y, **EXACT).X, (M, Y), backend)


@pytest.mark.long
def test_an_inverse(backend):
    both_orders(
        lambda M: mcf.inv(M, **EXACT).X,
        (well_conditioned(2, 3, 3).requires_grad_(),),
        backend,
        fast_mode=backend == "reference",
    )


def test_a_solve_and_its_gradients_in_float32(backend):
    """Against ``Y M^+`` in float64; allowance: 1e-4 of the largest entry, for a tolerance of 1e-6."""
    M, Y = (t.float().requires_grad_() for t in (well_conditioned(3, 3), rand(2, 3, seed=2)))
    X = mcf.solve(M, Y, solver=mcf.HeavyBall(momentum="auto"), rtol=1e-6).X
    wide = [t.detach().double().requires_grad_() for t in (M, Y)]
    weights = rand(2, 3, seed=3)
    found = torch.autograd.grad((X * weights).sum(), (M, Y))
    truth = torch.autograd.grad((wide[1] @ torch.linalg.inv(wide[0]) * weights).sum(), wide)
    for a, t in zip(found, truth, strict=True):
        torch.testing.assert_close(a.double(), t, rtol=0.0, atol=1e-4 * float(t.abs().max()))
