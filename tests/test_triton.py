"""The Triton kernels, tier by tier: in the interpreter with TRITON_INTERPRET=1, else on a GPU.

What they share with the other paths is tested with those (`path`, `advance`); here is what is special to the tiers:
that each block shape of the tables gives the right numbers, in every precision, and what memory they take.
"""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import matconv_fast as mcf
from matconv_fast import _reference
from matconv_fast._ops import backend

ON_GPU = torch.cuda.is_available() and not backend.INTERPRETED
if not (ON_GPU or backend.INTERPRETED):
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)

from matconv_fast.kernels.gpu import launch, launch_loss, tiles  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"
STEPS, MOMENTUM = 2, 0.8
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
    "sm_80": tiles.Target("cuda", 80, 4),
    "sm_90": tiles.Target("cuda", 90, 4),
    "sm_100": tiles.Target("cuda", 100, 4),
    "gfx942": tiles.Target("hip", "gfx942", 4),
}


@pytest.fixture(params=TARGETS if backend.INTERPRETED else ["here"])
def target(request, monkeypatch):
    """Block shapes of one architecture; only the interpreter takes them all."""
    if request.param != "here":
        monkeypatch.setattr(tiles, "target", lambda: TARGETS[request.param])
    return request.param


@pytest.fixture
def tf32():
    """Let float32 products be made in tf32, as a user would."""
    before = torch.backends.cuda.matmul.fp32_precision

    def allow():
        torch.backends.cuda.matmul.fp32_precision = "tf32"

    yield allow
    torch.backends.cuda.matmul.fp32_precision = before


def problem(batch, m, n, p, dtype, *, shared=False):
    state = tiles.state_dtype(dtype)
    generator = torch.Generator().manual_seed(m * 10_000 + n * 100 + p)

    def rand(*shape, dtype=state):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)

    M = rand(1 if shared else batch, n, p, dtype=dtype) / n**0.5
    return rand(batch, m, n), rand(batch, m, n), M.to(dtype), rand(1 if shared else batch, m, p, dtype=dtype)


def plain(X, V, M, Y, lr, loss, steps):
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
        V = MOMENTUM * V + G
        X = X - lr * V
    return X, V, torch.stack(sums, 1)


def advance(way, X, V, M, Y, lr, loss, steps, *, limit=None, threshold=-1.0):
    batch = X.shape[0]

    def full(value, dtype):
        return torch.full((batch,), value, dtype=dtype, device=DEVICE)

    X, V = X.clone(), V.clone()
    sums = torch.full((batch, steps + 1), torch.nan, dtype=torch.float64, device=DEVICE)
    taken = full(-7, torch.int64)
    launch.launch_heavy_ball_advance(
        X, V, M, Y, full(lr, X.dtype), full(MOMENTUM, X.dtype),
        full(steps, torch.int64) if limit is None else limit, full(threshold, torch.float64),
        full(float("inf"), torch.float64), sums, taken, None, _reference.LOSSES.index(loss), launch.WAYS.index(way),
    )  # fmt: skip
    return X, V, sums, taken


def takes(way, precision, loss):
    if way == "rows":
        return precision != "fp64" and loss != "fro"
    return (way, precision) != ("tiled", "fp64")


@pytest.mark.parametrize("loss", _reference.LOSSES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("way", launch.WAYS)
def test_a_tier_is_as_near_to_the_truth_as_plain_torch(way, precision, loss):
    if not takes(way, precision, loss):
        pytest.skip("the dispatcher never takes this tier for it")
    dtype = PRECISIONS[precision]
    turn = list(PRECISIONS).index(precision) + _reference.LOSSES.index(loss)  # two shapes each, all of them in turn
    for index in (turn, turn + 1):
        m, n, p = SHAPES[way][index % len(SHAPES[way])]
        if precision == "fp64" and way == "small" and max(m, n, p) > 16:
            continue
        X, V, M, Y = problem(2, m, n, p, dtype, shared=index % 2 == 1)
        lr = 0.1 if loss != "mse" else 0.05 * m * p
        truth = plain(*(t.double() for t in (X, V, M, Y)), lr, loss, STEPS)
        eager = plain(X, V, M, Y, lr, loss, STEPS)
        *ours, taken = advance(way, X, V, M, Y, lr, loss, STEPS)
        assert taken.tolist() == [STEPS, STEPS]
        for name, t, e, o in zip(["X", "V", "sums"], truth, eager, ours, strict=True):
            scale = t.abs().amax((-2, -1) if name != "sums" else -1)
            missed = (e.double() - t).abs().amax() / scale.max()
            off = (o.double() - t).abs().amax() / scale.max()
            assert off <= 2 * missed + SLACK[precision] * torch.finfo(dtype).eps, (name, m, n, p, off, missed)


@pytest.mark.parametrize("precision", ["bf16", "fp32", "tf32"])
def test_every_block_shape_of_the_row_tier(precision, target, tf32):
    kind = {"bf16": "bf16", "fp32": "ieee", "tf32": "tf32"}[precision]
    if precision == "tf32":
        tf32()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for n in (16, 32, 64, 128, 256):
        tile = tiles.rows(1, 9, n, 32, kind)
        if tile is None:
            assert (kind, n) == ("tf32", 256)
            continue
        for batch, m, p in ((2, 9, 24), (1, 70, 32)):  # ragged, and whole: by descriptors where there are
            tile = tiles.rows(batch, m, n, p, kind)
            if target in ("sm_90", "sm_100") and n >= 64:
                assert tile.descriptor == (batch == 1 and (kind, n) not in (("ieee", 64), ("ieee", 256), ("tf32", 128)))
            X, V, M, Y = problem(batch, m, n, p, dtype)
            ours = advance("rows", X, V, M, Y, 0.05 * m * p, "mse", 1)
            eager = plain(X, V, M, Y, 0.05 * m * p, "mse", 1)
            tolerance = 2e-2 if precision == "bf16" or ON_GPU else 2e-5
            for o, e in zip(ours[:3], eager, strict=True):
                torch.testing.assert_close(o, e, rtol=tolerance, atol=tolerance * float(e.abs().max()))


@pytest.mark.parametrize("rule", ["heavy_ball", "adam"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_block_shape_of_the_products(precision, rule, target):
    dtype = PRECISIONS[precision]
    for m, n, p in ((72, 40, 136), (260, 32, 272)):  # ragged, and whole: large tiles, where there are enough
        X, V, M, Y = problem(1, m, n, p, dtype)
        tile = tiles.residual(1, m, n, p, dtype)
        partials = X.new_empty((1, tile.count(m, p)), dtype=torch.float64)
        R = torch.empty_like(Y)
        launch.launch_residual(X.to(dtype), M, Y, R, partials, tile)
        truth = X.to(dtype).double() @ M.double() - Y.double()
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(R.double(), truth, rtol=2 * eps, atol=2 * eps * n**0.5)
        torch.testing.assert_close(partials.sum(), truth.square().sum(), rtol=1e-5 if eps > 1e-10 else 1e-12, atol=0.0)

        active = torch.ones(1, dtype=torch.int32, device=DEVICE)
        second = torch.rand_like(X)
        count = torch.ones(1, dtype=torch.float64, device=DEVICE)
        hyper = launch._adam_constants(0.9, 0.999, 1e-8, X.device) if rule == "adam" else X.new_full((1,), MOMENTUM)
        x, v, s, copy = X.clone(), V.clone(), second.clone(), torch.empty_like(X, dtype=dtype)
        solver = launch.Solver(rule, x, v, s, count, X.new_full((1,), 0.1), hyper)
        step = tiles.step(1, m, n, p, dtype, rule)
        launch.launch_step(R, M, solver, copy if dtype != x.dtype else None, active, partials[:, 0], 1, step, fro=False)
        G = 2 * (R.double() @ M.double().mT)
        if rule == "heavy_ball":
            v2 = MOMENTUM * V.double() + G
            x2 = X.double() - 0.1 * v2
        else:
            v2 = V.double() + 0.1 * (G - V.double())
            s2 = 0.999 * second.double() + 0.001 * G * G
            torch.testing.assert_close(s.double(), s2, rtol=1e-4, atol=1e-4)
            x2 = X.double() - 0.1 * (v2 / 0.1) / ((s2 / 0.001).sqrt() + 1e-8)
        near = {"rtol": 1e-4, "atol": 1e-4} if eps > 1e-10 else {"rtol": 1e-11, "atol": 1e-11}
        torch.testing.assert_close(v.double(), v2, **near)
        torch.testing.assert_close(x.double(), x2, **near)
        if dtype != x.dtype:
            assert torch.equal(copy, x.to(dtype))


@pytest.mark.parametrize("way", launch.WAYS)
def test_problems_stop_where_the_cpu_path_stops_them(way):
    m, n, p = {"small": (7, 5, 6), "rows": (70, 16, 20), "tiled": (66, 10, 12), "gemm": (66, 10, 12)}[way]
    X, V, M, Y = problem(5, m, n, p, torch.float32)
    V.zero_()
    limit = torch.tensor([6, 6, 2, -1, 0], device=DEVICE)
    lr = 0.2 * m * p
    _, _, sums = plain(X.double(), V.double(), M.double(), Y.double(), lr, "mse", 6)
    threshold = float(sums[0, 2] + sums[0, 3]) / 2
    ours = advance(way, X, V, M, Y, lr, "mse", 6, limit=limit, threshold=threshold)
    expected = [
        next((k for k in range(max(b, 0)) if sums[i, k] <= threshold), max(b, 0)) for i, b in enumerate(limit.tolist())
    ]
    if way == "rows":  # goes on past the stop: the caller replays it
        expected = limit.clamp(min=0).tolist()
    assert ours[3].tolist() == expected
    assert torch.equal(ours[0][3], X[3])
    assert ours[2][3].isnan().all()
    for b in (0, 1, 2, 4):
        end = expected[b]
        torch.testing.assert_close(ours[2][b, : end + 1], sums[b, : end + 1], rtol=1e-5, atol=0.0)
        assert ours[2][b, end + 1 :].isnan().all()
        if end:
            Xk, Vk, _ = plain(*(t[b : b + 1].double() for t in (X, V, M, Y)), lr, "mse", end)
            torch.testing.assert_close(ours[0][b].double(), Xk[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours[1][b].double(), Vk[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", launch.WAYS)
@pytest.mark.parametrize("exponent", [-100, -66, 40])
def test_no_square_is_lost(way, exponent):
    """Squares of entries near 2^-100 are 0 in float32; a sum of 0 would pass for a solved equation."""
    m, n, p = {"small": (5, 6, 7)}.get(way, (65, 6, 7))
    X, V, M, Y = problem(1, m, n, p, torch.float32)
    scale = 2.0**exponent
    _, _, sums, _ = advance(way, scale * X, 0 * V, M, scale * Y, 1e-3, "sse", 2)
    _, _, truth = plain(*(t.double() for t in (scale * X, 0 * V, M, scale * Y)), 1e-3, "sse", 2)
    torch.testing.assert_close(sums, truth, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("way", launch.WAYS)
def test_cut_up_iterations_give_the_same_bits(way):
    m, n, p = {"small": (7, 5, 6)}.get(way, (70, 16, 20))
    X, V, M, Y = problem(2, m, n, p, torch.float32)
    whole = advance(way, X, V, M, Y, 0.1 * m * p, "mse", 4)
    half = advance(way, X, V, M, Y, 0.1 * m * p, "mse", 2)
    again = advance(way, half[0], half[1], M, Y, 0.1 * m * p, "mse", 2)
    assert torch.equal(whole[0], again[0])
    assert torch.equal(whole[1], again[1])
    assert torch.equal(whole[2][:, 2:], again[2])


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


@pytest.mark.parametrize("way", launch.WAYS)
def test_temporaries_of_a_tier(way):
    """small: none. rows: a sum a block and iterate. tiled: R, and a sum a tile. gemm: a product beside them."""
    dtype = torch.bfloat16 if way == "tiled" else torch.float32
    m, n, p = {"small": (40, 30, 20)}.get(way, (130, 40, 48))
    batch, steps = 2, 3
    X, V, M, Y = problem(batch, m, n, p, dtype)
    tensors = X.clone(), V.clone(), M, Y, X.new_full((batch,), 1e-3), X.new_full((batch,), 0.5)
    limit = torch.full((batch,), steps, device=DEVICE)
    doubles = torch.full((2, batch), -1.0, dtype=torch.float64, device=DEVICE)
    sums, taken = torch.empty(batch, steps + 1, dtype=torch.float64, device=DEVICE), torch.empty_like(limit)
    with Allocations() as made:
        launch.launch_heavy_ball_advance(*tensors, limit, *doubles, sums, taken, None, 0, launch.WAYS.index(way))
    R = batch * m * p * dtype.itemsize
    if way == "small":
        assert made.bytes == 0
    elif way == "rows":
        tile = tiles.rows(batch, m, n, p, "ieee")
        assert made.bytes == batch * (steps + 1) * -(-m // tile.BM) * 8
    elif way == "tiled":  # and X as it is multiplied
        tile = tiles.residual(batch, m, n, p, dtype)
        assert made.bytes == R + X.numel() * 2 + batch * (tile.count(m, p) * 8 + 4)
    else:
        tile = tiles.elementwise(p)
        assert made.bytes == R + batch * m * max(n, p) * 4 + batch * (tile.count(m, p) * 8 + 4)


@pytest.mark.parametrize("recomputes", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_with_and_without_a_held_residual(precision, recomputes, monkeypatch):
    dtype = PRECISIONS[precision]
    if precision == "fp64" and recomputes:
        pytest.skip("float64 always holds R")
    monkeypatch.setattr(tiles, "recomputes", lambda *args: recomputes)
    monkeypatch.setattr(launch_loss, "PIECE", 1)  # as many pieces as there can be
    for batch, m, n, p in ((1, 140, 17, 65), (2, 16, 64, 130), (3, 1, 15, 1)):
        X, _, M, Y = problem(batch, m, n, p, dtype)
        X = X.to(dtype)
        for y in (Y, None) if m == p else (Y,):
            truth = X.double() @ M.double() - (torch.eye(m, device=DEVICE) if y is None else y.double())
            wide = (
                X.new_empty(X.shape, dtype=tiles.state_dtype(dtype)),
                M.new_empty(M.shape, dtype=tiles.state_dtype(dtype)),
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
    """One gradient never holds R; two make it twice, which costs more than holding it from some n on."""
    rule = tiles.recomputes
    assert rule(1, 4096, 256, 8192, 1, torch.bfloat16)
    assert rule(1, 4096, 256, 8192, 2, torch.bfloat16)
    assert rule(1, 4096, 256, 8192, 1, torch.float32)
    assert not rule(1, 4096, 256, 8192, 2, torch.float32)
    assert not rule(1, 16384, 1024, 16384, 1, torch.bfloat16)  # a row of the gradient does not fit in registers
    assert not rule(1, 64, 256, 100_000, 1, torch.bfloat16)  # one program would go through all of p


@pytest.mark.parametrize("ord_", _reference.ORDS)
@pytest.mark.parametrize("dtype", PRECISIONS.values())
def test_distance_of_any_shape_and_strides(dtype, ord_):
    for batch, m, n in ((1, 1, 1), (2, 16, 17), (3, 65, 130), (1, 3, 1100)):
        A, B, *_ = problem(batch, m, n, 1, dtype)
        A, B = A.to(dtype), B.to(dtype)
        wide = torch.cat((A, A), -1)[..., ::2] if n > 1 else A
        for a, b in ((A, B), (A.mT.contiguous().mT, B), (wide, B), (A[:1].expand_as(B), B)):
            found = launch_loss.launch_distance(a, b, _reference.ORDS.index(ord_))
            truth = _reference.distance(a.double(), b.double(), ord_)
            torch.testing.assert_close(found.double(), truth, rtol=1e-6 if dtype != torch.float64 else 1e-14, atol=0.0)
    B[0, 0, 0] = torch.nan
    assert launch_loss.launch_distance(B, B, _reference.ORDS.index(ord_)).isnan()[0]


def test_a_solve_takes_the_tier_that_info_names():
    way = backend.advance_way(
        torch.device(DEVICE), torch.float32, 1, 4, 4, 4, product=True, coupled=False, heavy_ball=True
    )
    if backend.INTERPRETED:
        assert way is None or way.path == "cpu"  # the C++ kernels serve the CPU unless Triton's are asked for
    else:
        assert way.path == "triton"
        assert mcf.info().devices[1].path.startswith("triton")
