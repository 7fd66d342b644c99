"""The Triton kernels, algorithm by algorithm: in the interpreter with TRITON_INTERPRET=1, else on a GPU.

Tests that run on every backend (the fixture `backend`, test_advance.py) are elsewhere. Here is what is special to these
kernels: that each rule, and each block shape of the tables, gives the right numbers in every precision, and how much
memory an algorithm takes.
"""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import matconv_fast as mcf
from matconv_fast import _reference
from matconv_fast._ops import backend
from matconv_fast._ops.advance import definition
from matconv_fast.kernels.contract import LOSSES, ORDS, Shape, StopCriteria, Trace, state_dtype

ON_GPU = torch.cuda.is_available() and not backend.INTERPRETED
if not (ON_GPU or backend.INTERPRETED):
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)

from matconv_fast.kernels.gpu import (  # noqa: E402
    advance_tiles,
    gradient_tiles,
    launch,
    launch_loss,
    product_tiles,
)
from matconv_fast.kernels.gpu import residual as residual_kernels  # noqa: E402
from matconv_fast.kernels.gpu import step as step_kernels  # noqa: E402
from matconv_fast.kernels.gpu import target as gpu_target  # noqa: E402
from matconv_fast.kernels.gpu.rules import RULES  # noqa: E402
from matconv_fast.kernels.gpu.state import RuleState  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"
STEPS = 2
MADE = 3  # updates before
# Hyperparameters of each rule; the first is lr, which a test scales to its loss.
HYPER = {"adam": (1.0, 0.9, 0.99, 1e-8)}
LR_AND_MOMENTUM = 1.0, 0.8  # of the rules that are not in HYPER
SHAPES = {
    "small": [(1, 1, 1), (15, 16, 17), (16, 16, 16), (17, 15, 63), (64, 63, 33)],
    "rows": [(65, 65, 130), (17, 63, 65), (130, 128, 48), (20, 256, 40), (1, 130, 15), (16, 15, 17)],
    "tiled": [(65, 130, 17), (130, 65, 65), (1, 65, 130), (16, 64, 130)],
    "gemm": [(65, 130, 17), (130, 65, 65), (1, 65, 130)],
}
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
# Beyond twice what plain PyTorch misses by: a few roundings, since that may be 0 by luck. Rounded factors of a product
# of low precision err by half an eps each, and an update takes lr c of it.
SLACK = {"bf16": 0.25, "fp16": 0.25, "fp32": 16, "fp64": 16}
TARGETS = {
    "sm_80": gpu_target.Target("cuda", 80, 4),
    "sm_90": gpu_target.Target("cuda", 90, 4),
    "sm_100": gpu_target.Target("cuda", 100, 4),
    "gfx942": gpu_target.Target("hip", "gfx942", 4),
}


@pytest.fixture(params=TARGETS if backend.INTERPRETED else ["here"])
def target(request, monkeypatch):
    """Block shapes of one architecture; only the interpreter runs them all."""
    if request.param != "here":
        monkeypatch.setattr(gpu_target, "current", lambda: TARGETS[request.param])
    return request.param


@pytest.fixture
def tf32():
    """A function that allows tf32 for float32 products, as a user would."""
    before = torch.backends.cuda.matmul.fp32_precision

    def allow():
        torch.backends.cuda.matmul.fp32_precision = "tf32"

    yield allow
    torch.backends.cuda.matmul.fp32_precision = before


def problem(batch, m, n, p, dtype, *, shared=False, states=1):
    """X, the state matrices, M and Y. A rule divides by roots of all but the first: those are at least 1."""
    state = state_dtype(dtype)
    generator = torch.Generator().manual_seed(m * 10_000 + n * 100 + p)

    def rand(*shape, dtype=state):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)

    M = rand(1 if shared else batch, n, p, dtype=dtype) / n**0.5
    Y = rand(1 if shared else batch, m, p, dtype=dtype)
    X = rand(batch, m, n)
    matrices = [rand(batch, m, n) if k == 0 else 1 + rand(batch, m, n).square() for k in range(states)]
    return X, matrices, M.to(dtype), Y


def update(rule, X, state, G, hyper, number):
    """Rules as their papers have them; others as their solver has them, which test_conformance.py compares."""
    if rule == "heavy_ball":
        lr, momentum = hyper
        V = momentum * state[0] + G
        return X - lr * V, [V]
    if rule != "adam":
        rows = torch.tensor(hyper, dtype=torch.float64, device=X.device)[:, None]
        step = torch.full((1, 1, 1), float(number), dtype=torch.float64, device=X.device)
        X, state = definition(rule)(rows)(X, tuple(state), G, step)
        return X, list(state)
    lr, beta1, beta2, eps = hyper
    first = beta1 * state[0] + (1 - beta1) * G
    second = beta2 * state[1] + (1 - beta2) * G * G
    corrected = first / (1 - beta1**number), second / (1 - beta2**number)
    return X - lr * corrected[0] / (corrected[1].sqrt() + eps), [first, second]


def plain(rule, X, state, M, Y, hyper, loss, steps):
    """Iterates and sums of plain PyTorch, with products in M's dtype and the rest in X's."""
    sums = []
    for k in range(steps + 1):
        R = (X.to(M.dtype) @ M).to(X.dtype) - Y.to(X.dtype)
        sums.append(R.double().square().sum((1, 2)))
        if k == steps:
            break
        c = {"mse": 2 / (R.shape[1] * R.shape[2]), "sse": 2.0}.get(loss)
        c = 1 / sums[-1].sqrt()[:, None, None].to(X.dtype) if c is None else c
        G = c * (R.to(M.dtype) @ M.mT).to(X.dtype)
        X, state = update(rule, X, state, G, hyper, MADE + k + 1)
    return X, state, torch.stack(sums, 1)


def hyper_of(rule, lr):
    first, *rest = HYPER.get(rule, LR_AND_MOMENTUM)
    return lr * first, *rest


def advance(algorithm, X, state, M, Y, hyper, loss, steps, *, rule="heavy_ball", limit=None, threshold=-1.0):
    """X, the state, the sums and the updates made, by `launch_advance`."""
    batch, m = X.shape[:2]

    def full(value, dtype):
        return torch.full((batch,), value, dtype=dtype, device=DEVICE)

    X, state = X.clone(), [t.clone() for t in state]
    sums = torch.full((batch, steps + 1), torch.nan, dtype=torch.float64, device=DEVICE)
    steps_done = full(-7, torch.int64)
    rows = torch.tensor(hyper, dtype=torch.float64, device=DEVICE)[:, None].repeat(1, batch)
    scale = _reference.gradient_scale(loss, m * Y.shape[2])
    launch.launch_advance(
        rule, X, state, M, Y, rows, full(MADE, torch.int64), scale, loss == "fro",
        full(steps, torch.int64) if limit is None else limit, full(threshold, torch.float64),
        full(float("inf"), torch.float64), sums, steps_done, None, algorithm,
    )  # fmt: skip
    return X, state, sums, steps_done


def takes(algorithm, precision, loss, rule):
    """Whether `choose` ever gives this algorithm for it."""
    if algorithm == "rows":
        return precision != "fp64" and loss != "fro" and RULES[rule].accumulates
    return (algorithm, precision) != ("tiled", "fp64")


def is_in_turn(algorithm, precision, loss, rule):
    """All of them, or for algorithms that take seconds to interpret every pair of a precision, a loss and a rule."""
    places = list(PRECISIONS).index(precision), LOSSES.index(loss), list(RULES).index(rule)
    return ON_GPU or algorithm not in ("tiled", "gemm") or sum(places) % 3 == 0


CASES = [
    case
    for case in itertools.product(launch.ALGORITHMS, PRECISIONS, LOSSES, RULES)
    if takes(*case) and is_in_turn(*case)
]


@pytest.mark.parametrize(("algorithm", "precision", "loss", "rule"), CASES)
def test_an_algorithm_is_as_near_to_the_truth_as_plain_torch(algorithm, precision, loss, rule):
    dtype = PRECISIONS[precision]
    turn = list(PRECISIONS).index(precision) + LOSSES.index(loss)  # two shapes each, all of them in turn
    for index in (turn, turn + 1):
        m, n, p = SHAPES[algorithm][index % len(SHAPES[algorithm])]
        if algorithm == "small" and max(m, n, p) > advance_tiles.small_limit(
            gpu_target.precision(dtype), RULES[rule].states
        ):
            continue
        X, state, M, Y = problem(2, m, n, p, dtype, shared=index % 2 == 1, states=RULES[rule].states)
        hyper = hyper_of(rule, 0.05 * m * p if loss == "mse" and rule == "heavy_ball" else 0.1)
        wide = X.double(), [t.double() for t in state], M.double(), Y.double()
        truth = plain(rule, *wide, hyper, loss, STEPS)
        eager = plain(rule, X, state, M, Y, hyper, loss, STEPS)
        *ours, steps_done = advance(algorithm, X, state, M, Y, hyper, loss, STEPS, rule=rule)
        assert steps_done.tolist() == [STEPS, STEPS]
        names = ["X", *(f"state {k}" for k in range(len(state))), "sums"]
        for name, t, e, o in zip(names, *([r[0], *r[1], r[2]] for r in (truth, eager, ours)), strict=True):
            scale = t.abs().amax((-2, -1) if name != "sums" else -1)
            missed = (e.double() - t).abs().amax() / scale.max()
            off = (o.double() - t).abs().amax() / scale.max()
            assert off <= 2 * missed + SLACK[precision] * torch.finfo(dtype).eps, (name, m, n, p, off, missed)


@pytest.mark.parametrize("precision", ["bf16", "fp32", "tf32"])
def test_every_block_shape_of_the_row_algorithm(precision, target, tf32):
    kind = {"bf16": "bf16", "fp32": "ieee", "tf32": "tf32"}[precision]
    if precision == "tf32":
        tf32()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for n in (16, 32, 64, 128, 256):
        tile = advance_tiles.rows(1, 9, n, 32, kind)
        if tile is None:
            assert (kind, n) == ("tf32", 256)
            continue
        for batch, m, p in ((2, 9, 24), (1, 70, 32)):  # ragged, and whole: by descriptors where there are
            tile = advance_tiles.rows(batch, m, n, p, kind)
            if target in ("sm_90", "sm_100") and n >= 64:
                assert tile.descriptor == (batch == 1 and (kind, n) not in (("ieee", 64), ("ieee", 256), ("tf32", 128)))
            X, V, M, Y = problem(batch, m, n, p, dtype)
            hyper = hyper_of("heavy_ball", 0.05 * m * p)
            ours = advance("rows", X, V, M, Y, hyper, "mse", 1)
            eager = plain("heavy_ball", X, V, M, Y, hyper, "mse", 1)
            tolerance = 2e-2 if precision == "bf16" or ON_GPU else 2e-5
            for o, e in ((ours[0], eager[0]), (ours[1][0], eager[1][0]), (ours[2], eager[2])):
                torch.testing.assert_close(o, e, rtol=tolerance, atol=tolerance * float(e.abs().max()))


# The tables go by the number of matrices in the state.
@pytest.mark.parametrize("rule", {rule.states: name for name, rule in RULES.items()}.values())
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_block_shape_of_the_products(precision, rule, target):
    dtype = PRECISIONS[precision]
    for m, n, p in ((72, 40, 136), (260, 32, 272)):  # ragged, and whole: large tiles, where there are enough
        X, state, M, Y = problem(1, m, n, p, dtype, states=RULES[rule].states)
        tile = product_tiles.residual(1, m, n, p, dtype)
        partials = X.new_empty((1, tile.count(m, p)), dtype=torch.float64)
        R = torch.empty_like(Y)
        residual_kernels.launch_residual(X.to(dtype), M, Y, R, partials, tile)
        truth = X.to(dtype).double() @ M.double() - Y.double()
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(R.double(), truth, rtol=2 * eps, atol=2 * eps * n**0.5)
        torch.testing.assert_close(partials.sum(), truth.square().sum(), rtol=1e-5 if eps > 1e-10 else 1e-12, atol=0.0)

        hyper = hyper_of(rule, 0.1)
        rows = torch.tensor(hyper, dtype=torch.float64, device=DEVICE)[:, None]
        made = torch.tensor([MADE], device=DEVICE)
        copy = torch.empty_like(X, dtype=dtype) if dtype != X.dtype else None
        ours = RuleState(rule, X.clone(), tuple(t.clone() for t in state), rows, made)
        iterate = step_kernels.Iterate(0, torch.ones(1, dtype=torch.int32, device=DEVICE), None)
        tile = product_tiles.step(1, m, n, p, dtype, RULES[rule].states)
        step_kernels.launch_step(R, M, ours, copy, iterate, 2.0, tile)
        G = 2 * (R.double() @ M.double().mT)
        x, expected = update(rule, X.double(), [t.double() for t in state], G, hyper, MADE + 1)
        near = {"rtol": 1e-4, "atol": 1e-4} if eps > 1e-10 else {"rtol": 1e-11, "atol": 1e-11}
        for found, true in zip((ours.X, *ours.state), (x, *expected), strict=True):
            torch.testing.assert_close(found.double(), true, **near)
        if copy is not None:
            assert torch.equal(copy, ours.X.to(dtype))


@pytest.mark.parametrize("algorithm", launch.ALGORITHMS)
def test_problems_stop_where_a_plain_loop_stops_them(algorithm):
    m, n, p = {"small": (7, 5, 6), "rows": (70, 16, 20), "tiled": (66, 10, 12), "gemm": (66, 10, 12)}[algorithm]
    X, (V,), M, Y = problem(5, m, n, p, torch.float32)
    V.zero_()
    limit = torch.tensor([6, 6, 2, -1, 0], device=DEVICE)
    hyper = hyper_of("heavy_ball", 0.2 * m * p)
    _, _, sums = plain("heavy_ball", X.double(), [V.double()], M.double(), Y.double(), hyper, "mse", 6)
    threshold = float(sums[0, 2] + sums[0, 3]) / 2
    ours = advance(algorithm, X, [V], M, Y, hyper, "mse", 6, limit=limit, threshold=threshold)
    expected = [
        next((k for k in range(max(b, 0)) if sums[i, k] <= threshold), max(b, 0)) for i, b in enumerate(limit.tolist())
    ]
    if not launch.ALGORITHMS[algorithm].exact:  # it overshoots the stop: the caller restores and replays
        expected = limit.clamp(min=0).tolist()
    assert ours[3].tolist() == expected
    assert torch.equal(ours[0][3], X[3])
    assert ours[2][3].isnan().all()
    for b in (0, 1, 2, 4):
        end = expected[b]
        torch.testing.assert_close(ours[2][b, : end + 1], sums[b, : end + 1], rtol=1e-5, atol=0.0)
        assert ours[2][b, end + 1 :].isnan().all()
        if end:
            one = [t[b : b + 1].double() for t in (X, V, M, Y)]
            Xk, (Vk,), _ = plain("heavy_ball", one[0], [one[1]], *one[2:], hyper, "mse", end)
            torch.testing.assert_close(ours[0][b].double(), Xk[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours[1][0][b].double(), Vk[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", launch.ALGORITHMS)
@pytest.mark.parametrize("exponent", [-100, -66, 40])
def test_no_square_is_lost(algorithm, exponent):
    """Squares of entries near 2^-100 are 0 in float32; a sum of 0 would pass for a solved equation."""
    m, n, p = {"small": (5, 6, 7)}.get(algorithm, (65, 6, 7))
    X, (V,), M, Y = problem(1, m, n, p, torch.float32)
    scale = 2.0**exponent
    hyper = hyper_of("heavy_ball", 1e-3)
    _, _, sums, _ = advance(algorithm, scale * X, [0 * V], M, scale * Y, hyper, "sse", 2)
    wide = [t.double() for t in (scale * X, 0 * V, M, scale * Y)]
    _, _, truth = plain("heavy_ball", wide[0], [wide[1]], *wide[2:], hyper, "sse", 2)
    torch.testing.assert_close(sums, truth, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("algorithm", launch.ALGORITHMS)
def test_updates_split_into_calls_give_the_same_bits(algorithm):
    m, n, p = {"small": (7, 5, 6)}.get(algorithm, (70, 16, 20))
    X, state, M, Y = problem(2, m, n, p, torch.float32)
    hyper = hyper_of("heavy_ball", 0.1 * m * p)
    whole = advance(algorithm, X, state, M, Y, hyper, "mse", 4)
    half = advance(algorithm, X, state, M, Y, hyper, "mse", 2)
    rest = advance(algorithm, half[0], half[1], M, Y, hyper, "mse", 2)
    assert torch.equal(whole[0], rest[0])
    assert torch.equal(whole[1][0], rest[1][0])
    assert torch.equal(whole[2][:, 2:], rest[2])


@pytest.mark.parametrize("algorithm", ["tiled", "gemm"])
def test_a_kept_residual_is_continued_from(algorithm):
    """R and the first sum of a chunk come from the chunk before; only where the sum is NaN they are computed."""
    X, (V,), M, Y = problem(3, 66, 10, 12, torch.float32)
    hyper, R = hyper_of("heavy_ball", 0.1), torch.full((3, 66, 12), torch.nan, device=DEVICE)
    rows = torch.tensor(hyper, dtype=torch.float64, device=DEVICE)[:, None].repeat(1, 3)
    stop, made = StopCriteria.steps(3, 2, torch.device(DEVICE)), torch.zeros(3, dtype=torch.int64, device=DEVICE)

    def chunk(sums):
        trace = Trace(sums, torch.empty_like(made))
        launch.launch_advance(
            "heavy_ball", x, [v], M, Y, rows, made, 1.0, False, stop.limit, stop.threshold, stop.bail,
            trace.sums, trace.steps_done, R, algorithm,
        )  # fmt: skip
        return sums

    x, v = X.clone(), V.clone()
    first = chunk(torch.full((3, 3), torch.nan, dtype=torch.float64, device=DEVICE))
    sums = torch.full((3, 3), torch.nan, dtype=torch.float64, device=DEVICE)
    sums[:2, 0] = first[:2, 2]
    R[2] = torch.nan  # this one has no sum, so it is computed
    chunk(sums)
    expected = X.double(), [V.double()]
    for _ in range(4):
        G = (expected[0] @ M.double() - Y.double()) @ M.double().mT
        expected = update("heavy_ball", *expected, G, hyper, 0)
    torch.testing.assert_close(x.double(), expected[0], rtol=1e-5, atol=1e-5)
    assert sums.isfinite().all()
    assert sums[2, 0] == first[2, 2]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("algorithm", ["small", "tiled", "gemm"])
def test_a_single_step_needs_no_stop_criteria(algorithm, loss):
    dtype = torch.bfloat16 if algorithm == "tiled" else torch.float32
    m, n, p = {"small": (7, 5, 6)}.get(algorithm, (66, 70, 12))
    X, (V,), M, Y = problem(2, m, n, p, dtype)
    if loss != "fro":  # whose gradient is 0 where the norm is not positive
        X[1, 0, 0] = torch.nan  # is updated all the same
    found = launch.choose(Shape(2, m, n, p, True, True, dtype), "heavy_ball")
    assert found is not None
    assert found.name == algorithm
    x, v = X.clone(), V.clone()
    before = launch.launch_heavy_ball_step_(x, v, M, Y, 0.1, 0.8, LOSSES.index(loss))
    truth = plain("heavy_ball", X.double(), [V.double()], M.double(), Y.double(), (0.1, 0.8), loss, 1)
    near = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(x.double(), truth[0], equal_nan=True, **near)
    torch.testing.assert_close(v.double(), truth[1][0], equal_nan=True, **near)
    expected = _reference.loss_of_sums(truth[2][:, 0], loss, m * p)
    torch.testing.assert_close(before.double(), expected, equal_nan=True, **near)


def test_nothing_is_chosen_for_what_no_kernel_takes():
    shape = Shape(1, 4, 4, 4, True, False, torch.float32)
    assert launch.choose(shape, "heavy_ball") == launch.ALGORITHMS["small"]
    assert launch.choose(shape, "no such rule") is None
    for name in ("batch", "m", "n", "p"):
        assert launch.choose(shape._replace(**{name: 0}), "heavy_ball") is None


class Allocations(TorchDispatchMode):
    """Bytes of the tensors made inside."""

    def __init__(self):
        super().__init__()
        self.bytes, self._seen = 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        caller = sys._getframe(1)
        while caller is not None:
            if caller.f_code.co_filename.endswith("interpreter.py"):  # its copies are none of the launcher's
                return out
            caller = caller.f_back
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known:
                self.bytes += t.untyped_storage().nbytes()
        return out


@pytest.mark.parametrize("algorithm", launch.ALGORITHMS)
def test_temporaries_of_an_algorithm(algorithm):
    """small: none. rows: a sum a block and iterate. tiled: R, and a sum a tile. gemm: a product beside them."""
    dtype = torch.bfloat16 if algorithm == "tiled" else torch.float32
    m, n, p = {"small": (40, 30, 20)}.get(algorithm, (130, 40, 48))
    batch, steps = 2, 3
    X, (V,), M, Y = problem(batch, m, n, p, dtype)
    hyper = torch.full((2, batch), 1e-3, dtype=torch.float64, device=DEVICE)
    stop = StopCriteria.steps(batch, steps, X.device)
    trace = Trace.empty(batch, steps, X.device)
    step = torch.zeros_like(trace.steps_done)
    with Allocations() as made:
        launch.launch_advance(
            "heavy_ball", X, [V], M, Y, hyper, step, 0.1, False, stop.limit, stop.threshold, stop.bail,
            trace.sums, trace.steps_done, None, algorithm,
        )  # fmt: skip
    R = batch * m * p * dtype.itemsize
    if algorithm == "small":
        assert made.bytes == 0
    elif algorithm == "rows":
        tile = advance_tiles.rows(batch, m, n, p, "ieee")
        assert made.bytes == batch * (steps + 1) * -(-m // tile.BM) * 8
    elif algorithm == "tiled":  # and X as it is multiplied
        tile = product_tiles.residual(batch, m, n, p, dtype)
        assert made.bytes == R + X.numel() * 2 + batch * (tile.count(m, p) * 8 + 4)
    else:
        tile = product_tiles.elementwise(p)
        assert made.bytes == R + batch * m * max(n, p) * 4 + batch * (tile.count(m, p) * 8 + 4)


@pytest.mark.parametrize("recomputes", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_with_and_without_a_held_residual(precision, recomputes, monkeypatch):
    dtype = PRECISIONS[precision]
    if precision == "fp64" and recomputes:
        pytest.skip("float64 always holds R")
    monkeypatch.setattr(gradient_tiles, "recomputes", lambda *args: recomputes)
    monkeypatch.setattr(launch_loss, "PIECE", 1)  # as many pieces as there can be
    for batch, m, n, p in ((1, 140, 17, 65), (2, 16, 64, 130), (3, 1, 15, 1)):
        X, _, M, Y = problem(batch, m, n, p, dtype)
        X = X.to(dtype)
        for y in (Y, None) if m == p else (Y,):
            truth = X.double() @ M.double() - (torch.eye(m, device=DEVICE) if y is None else y.double())
            wide = (
                X.new_empty(X.shape, dtype=state_dtype(dtype)),
                M.new_empty(M.shape, dtype=state_dtype(dtype)),
            )
            eps = torch.finfo(dtype).eps
            for wanted in ((True, True), (True, False), (False, True)):
                outputs = [t.fill_(torch.nan) if w else None for t, w in zip(wide, wanted, strict=True)]
                loss = launch_loss.launch_residual_products(X, M, y, 1, *outputs, None)
                torch.testing.assert_close(loss.double(), truth.square().sum((1, 2)), rtol=max(8 * eps, 1e-5), atol=0.0)
                products = truth @ M.double().mT, X.double().mT @ truth
                for output, product in zip(outputs, products, strict=True):
                    if output is not None:
                        allowance = 4 * eps * float(product.abs().max()) + 1e-15
                        torch.testing.assert_close(output.double(), product, rtol=0.0, atol=allowance)


def test_the_identity_is_no_matrix():
    X, _, M, _ = problem(2, 20, 30, 20, torch.float32)
    truth = X.double() @ M.double() - torch.eye(20, device=DEVICE)
    loss = launch_loss.launch_residual_products(X, M, None, 1, None, None, None)
    torch.testing.assert_close(loss.double(), truth.square().sum((1, 2)))


def test_the_rule_that_decides_whether_R_is_held():
    """One gradient never holds R; two compute it twice, which from some n on costs more than to hold it."""
    rule = gradient_tiles.recomputes
    assert rule(1, 4096, 256, 8192, 1, torch.bfloat16)
    assert rule(1, 4096, 256, 8192, 2, torch.bfloat16)
    assert rule(1, 4096, 256, 8192, 1, torch.float32)
    assert not rule(1, 4096, 256, 8192, 2, torch.float32)
    assert not rule(1, 16384, 1024, 16384, 1, torch.bfloat16)  # a row of the gradient does not fit in registers
    assert not rule(1, 64, 256, 100_000, 1, torch.bfloat16)  # one program would go through all of p


@pytest.mark.parametrize("ord_", ORDS)
@pytest.mark.parametrize("dtype", PRECISIONS.values())
def test_distance_of_any_shape_and_strides(dtype, ord_):
    for batch, m, n in ((1, 1, 1), (2, 16, 17), (3, 65, 130), (1, 3, 1100)):
        A, (B,), *_ = problem(batch, m, n, 1, dtype)
        A, B = A.to(dtype), B.to(dtype)
        wide = torch.cat((A, A), -1)[..., ::2] if n > 1 else A
        for a, b in ((A, B), (A.mT.contiguous().mT, B), (wide, B), (A[:1].expand_as(B), B)):
            found = launch_loss.launch_distance(a, b, ORDS.index(ord_))
            truth = _reference.distance(a.double(), b.double(), ord_)
            torch.testing.assert_close(found.double(), truth, rtol=1e-6 if dtype != torch.float64 else 1e-14, atol=0.0)
    B[0, 0, 0] = torch.nan
    assert launch_loss.launch_distance(B, B, ORDS.index(ord_)).isnan()[0]


def test_info_names_the_backend_that_a_solve_uses(monkeypatch):
    monkeypatch.delenv("MATCONV_FAST_BACKEND", raising=False)
    for cached in (backend.forced, backend.of):
        cached.cache_clear()
    if backend.INTERPRETED:  # on the CPU the C++ kernels run unless Triton's are asked for
        assert backend.of(DEVICE) != "triton"
    else:
        assert backend.of(DEVICE) == "triton"
        assert "triton" in str(mcf.info().devices[1])
