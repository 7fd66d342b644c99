"""Bad input: the error says what was passed and what was wanted, and nothing is written."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import matconv_fast as mcf
from matconv_fast._ops import backend as backend_module

M = torch.eye(3)
V = torch.zeros(3, 3)
STEP = {"lr": 0.1, "momentum": 0.9}


def double(A):
    return A * 2


CASES = {
    "no tensor": (lambda: mcf.solve(np.eye(3)), TypeError, "M must be a torch.Tensor, got ndarray.*torch.as_tensor"),
    "list": (lambda: mcf.residual_loss([[1.0]], M), TypeError, "X must be a torch.Tensor, got list"),
    "integer": (lambda: mcf.solve(M.int()), TypeError, r"M must be of dtype float64.*int32 tensor of shape \[3, 3\].*M.float\(\)"),
    "complex": (lambda: mcf.distance(M + 0j, M), TypeError, "A must be of dtype .*complex64 tensor"),
    "bool": (lambda: mcf.is_close(M > 0, M > 0), TypeError, "A must be of dtype .*bool tensor"),
    "sparse": (lambda: mcf.solve(M.to_sparse()), TypeError, r"M must be dense, got layout torch.sparse_coo; M.to_dense\(\)"),
    "vector": (lambda: mcf.solve(torch.ones(3), M), ValueError, r"M must be a matrix.*shape \[3\]"),
    "mixed dtypes": (lambda: mcf.solve(M, M.double()), TypeError, "one dtype.*M: float32.*Y: float64"),
    "low-precision X": (lambda: mcf.residual_loss(M.half(), M), TypeError, "one dtype.*X: float16.*M: float32"),
    "mixed devices": (lambda: mcf.solve(M, M.to("meta")), ValueError, "one device.*on cpu.*on meta"),
    "no product": (lambda: mcf.residual_loss(torch.ones(2, 4), M), ValueError, r"does not multiply: wanted X \[\*, m, n\].*\[2, 4\].*\[3, 3\]"),
    "Y's shape": (lambda: mcf.solve(M, torch.ones(3, 4)), ValueError, r"Y must have the shape of X @ M, \[3, 3\].*\[3, 4\]"),
    "identity": (lambda: mcf.residual_loss(torch.ones(2, 3), M), ValueError, r"Y=None is the identity.*\[2, 3\]"),
    "batches": (lambda: mcf.solve(torch.ones(2, 3, 3), torch.ones(4, 3, 3)), ValueError, r"do not broadcast.*\[2, 3, 3\].*\[4, 3, 3\]"),
    "nothing": (lambda: mcf.solve(None), ValueError, "M and Y are both None"),
    "distance": (lambda: mcf.distance(M, torch.ones(3, 4)), ValueError, r"same rows and columns.*\[3, 3\].*\[3, 4\]"),
    "distance batches": (lambda: mcf.distance(torch.ones(2, 3, 3), torch.ones(4, 3, 3)), ValueError, "do not broadcast"),
    "loss": (lambda: mcf.solve(M, loss="l2"), ValueError, "loss must be one of 'mse', 'sse', 'fro', got 'l2'"),
    "module loss": (lambda: mcf.ResidualLoss("l2"), ValueError, "loss must be one of"),
    "ord": (lambda: mcf.distance(M, M, ord=2), ValueError, "ord must be one of 'fro', 'max', 1, got 2"),
    "ord True": (lambda: mcf.distance(M, M, ord=True), ValueError, "ord must be one of"),
    "negative atol": (lambda: mcf.solve(M, atol=-1.0), ValueError, "atol must be finite and at least 0, got -1.0"),
    "nan rtol": (lambda: mcf.is_close(M, M, rtol=float("nan")), ValueError, "rtol must be finite and at least 0, got nan"),
    "rtol text": (lambda: mcf.solve(M, rtol="1e-3"), TypeError, "rtol must be a number, got str '1e-3'"),
    "max_iters": (lambda: mcf.solve(M, max_iters=-1), ValueError, "max_iters must be at least 0, got -1"),
    "max_iters float": (lambda: mcf.solve(M, max_iters=1e3), TypeError, "max_iters must be an int or None, got float 1000.0"),
    "check_every": (lambda: mcf.solve(M, check_every=0), ValueError, "check_every must be at least 1, got 0"),
    "record_every": (lambda: mcf.solve(M, record_every=-1), ValueError, "record_every must be at least 0, got -1"),
    "patience": (lambda: mcf.solve(M, patience=0), ValueError, "patience must be at least 1, got 0"),
    "lr 0": (lambda: mcf.HeavyBall(lr=0.0), ValueError, "lr must be finite and above 0, got 0.0"),
    "lr int tensor": (lambda: mcf.HeavyBall(lr=torch.tensor(1)), TypeError, "lr must be a number or a floating-point tensor, got a int64"),
    "momentum 1": (lambda: mcf.HeavyBall(momentum=1.0), ValueError, "momentum must be finite and at least 0 and below 1, got 1.0"),
    "momentum text": (lambda: mcf.HeavyBall(momentum="best"), ValueError, "momentum must be one of 'auto', got 'best'"),
    "form": (lambda: mcf.HeavyBall(form="dual"), ValueError, "form must be one of 'auto', 'residual', got 'dual'"),
    "betas": (lambda: mcf.Adam(betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be finite and at least 0 and below 1, got 1.0"),
    "three betas": (lambda: mcf.Adam(betas=(0.9, 0.9, 0.9)), ValueError, "betas must be two numbers"),
    "eps": (lambda: mcf.Adam(eps=-1e-8), ValueError, "eps must be finite and at least 0"),
    "lr per problem": (lambda: mcf.solve(M, solver=mcf.HeavyBall(torch.ones(2))), ValueError, r"lr must be 0-d or one value per problem \[\], got a float32 tensor of shape \[2\]"),
    "lr device": (lambda: mcf.solve(torch.ones(2, 3, 3), solver=mcf.HeavyBall(torch.ones(2, device="meta"))), ValueError, "lr must be on cpu.*on meta"),
    "fro without lr": (lambda: mcf.solve(M, solver=mcf.HeavyBall(), loss="fro"), ValueError, "lr=None and momentum='auto' need loss='mse' or 'sse'"),
    "solver class": (lambda: mcf.solve(M, solver=mcf.Adam), TypeError, "solver must be a solver object such as HeavyBall"),
    "inv of nothing": (lambda: mcf.inv(None), TypeError, "M must be a torch.Tensor, got NoneType"),
    "resume shape": (lambda: mcf.solve(torch.eye(4), X0=mcf.solve(M)), ValueError, "another kind of problem: its m is 3, this one's 4"),
    "resume loss": (lambda: mcf.solve(M, X0=mcf.solve(M), loss="sse"), ValueError, "its loss is mse, this one's sse"),
    "resume solver": (lambda: mcf.solve(M, X0=mcf.solve(M), solver=mcf.Adam()), ValueError, "Solution of Auto, whose state Adam cannot"),
    "resume iterate": (lambda: mcf.solve(M, X0=mcf.iterate(double, M, M)), ValueError, "no state to continue from"),
    "step V": (lambda: mcf.heavy_ball_step_(torch.eye(3), torch.zeros(3, 4), M, **STEP), ValueError, r"V must match X.*\[3, 3\].*\[3, 4\]"),
    "functional V": (lambda: mcf.heavy_ball_step(torch.eye(3), torch.zeros(3, 4), M, **STEP), ValueError, "V must match X"),
    "step batch": (lambda: mcf.heavy_ball_step_(torch.eye(3), V.clone(), torch.ones(2, 3, 3), **STEP), ValueError, r"whole batch \[2\]"),
    "step expanded": (lambda: mcf.heavy_ball_step_(torch.ones(1, 1).expand(3, 3), V.clone(), M, **STEP), ValueError, r"X share memory.*X.clone\(\)"),
    "step lr": (lambda: mcf.heavy_ball_step_(torch.eye(3), V.clone(), M, lr=-0.1, momentum=0.9), ValueError, "lr must be finite and at least 0, got -0.1"),
    "step X": (lambda: mcf.heavy_ball_step(None, V, M, **STEP), TypeError, "X must be a torch.Tensor, got NoneType"),
    "loss X": (lambda: mcf.residual_loss(None, M), TypeError, "X must be a torch.Tensor, got NoneType"),
    "step X is V": (lambda: mcf.heavy_ball_step_(V, V, M, **STEP), ValueError, "X and V must not share memory"),
    "step V batch": (lambda: mcf.heavy_ball_step(torch.ones(2, 3, 3), torch.ones(4, 3, 3), M, **STEP), ValueError, r"do not broadcast: V.*\[4, 3, 3\].*\[2\]"),
    "lr range": (lambda: mcf.solve(M, solver=mcf.HeavyBall(1e39)), ValueError, "lr must be representable in float32, got 1e\\+39"),
    "step lr range": (lambda: mcf.heavy_ball_step(M, V, M, lr=1e39, momentum=0.0), ValueError, "lr must be representable"),
    "one beta": (lambda: mcf.Adam(betas=0.9), ValueError, "betas must be two numbers, got 0.9"),
    "update": (lambda: mcf.iterate(3, M, M), TypeError, "update must be callable, got int 3"),
    "update's type": (lambda: mcf.iterate(lambda A: 3, 2 * M, M), TypeError, "update must return a tensor or None .*got int 3"),
    "update's shape": (lambda: mcf.iterate(lambda A: A[:2], 2 * M, M), ValueError, r"update must return what it was given.*\[3, 3\].*\[2, 3\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_raises_with_what_was_passed_and_what_was_wanted(case):
    call, error, pattern = CASES[case]
    with pytest.raises(error, match=re.compile(pattern, re.DOTALL)):
        call()


def test_a_tangent_is_not_dropped():
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.eye(3), torch.ones(3, 3))
        with pytest.raises(NotImplementedError, match=r"Y carries a forward-mode tangent.*Y.detach\(\)"):
            mcf.solve(M, dual)


def test_a_refused_step_writes_nothing():
    X, V = torch.eye(3), torch.zeros(3, 3)
    with pytest.raises(ValueError, match="Y must have the shape"):
        mcf.heavy_ball_step_(X, V, M, torch.ones(3, 4), **STEP)
    assert torch.equal(X, torch.eye(3))
    assert torch.equal(V, torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        ("gpu", "must be one of reference, cpu, triton, got 'gpu'"),
        ("triton", "there is no GPU; set TRITON_INTERPRET=1"),
    ],
)
@pytest.mark.skipif(backend_module.INTERPRETED or torch.cuda.is_available(), reason="Triton kernels can run here")
def test_an_unknown_or_missing_backend_is_refused(force, value, pattern):
    force(value)
    with pytest.raises((ValueError, RuntimeError), match=pattern):
        mcf.solve(M)
    assert value in str(mcf.info())
