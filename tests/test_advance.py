"""The contract under every solver, on each implementation: `heavy_ball_advance`."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from problems import plain_heavy_ball, well_conditioned

from matconv_fast import _reference
from matconv_fast._ops.backend import cpu as launch

SIZES = [0, 1, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 31, 33]
LR, MOMENTUM = 0.05, 0.8


def call(implementation, X, V, M, Y, limit, steps, loss="mse", threshold=-1.0, bail=math.inf, lr=LR, momentum=MOMENTUM):
    """Run one chunk on copies; everything that it wrote."""
    batch = X.shape[0]
    X, V = X.clone(), V.clone()
    sums = torch.full((batch, steps + 1), -1.0, dtype=torch.float64)
    taken = torch.full((batch,), -7, dtype=torch.int64)

    def per_problem(value, dtype):
        return value if isinstance(value, torch.Tensor) else torch.full((batch,), value, dtype=dtype)

    implementation(
        X, V, M, Y, per_problem(lr, X.dtype), per_problem(momentum, X.dtype), per_problem(limit, torch.int64),
        per_problem(threshold, torch.float64), per_problem(bail, torch.float64), sums, taken, None,
        _reference.LOSSES.index(loss),
    )  # fmt: skip
    visited = torch.arange(steps + 1) <= taken[:, None]
    left_alone = (limit < 0)[:, None] if isinstance(limit, torch.Tensor) else False
    return X, V, torch.where(visited & ~torch.as_tensor(left_alone), sums, torch.nan), taken


IMPLEMENTATIONS = {
    "reference": partial(_reference.heavy_ball_advance, way=0),
    **{
        f"cpu, {name}": partial(torch.ops.matconv_fast.heavy_ball_advance, way=way)
        for way, name in enumerate(launch.WAYS)
    },
}
COUPLED = [name for name in IMPLEMENTATIONS if name != "cpu, alone"]  # whose rows may depend on each other


@pytest.fixture(params=IMPLEMENTATIONS)
def advance(request):
    return IMPLEMENTATIONS[request.param]


def problem(batch, m, n, p, dtype, generator):
    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return rand(batch, m, n), rand(batch, m, n), rand(batch, n, p) / max(n, 1) ** 0.5, rand(batch, m, p)


@pytest.mark.parametrize("loss", ["mse", "sse"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_a_plain_loop_in_float64(advance, loss, size, generator):
    for m, n, p in ((size, size, size), (size, 5, 3), (3, size, 5), (5, 3, size)):
        X, V, M, Y = problem(2, m, n, p, torch.float64, generator)
        Xk, _, sums, taken = call(advance, X, torch.zeros_like(V), M, Y, 6, 6, loss, lr=1e-3)
        assert taken.tolist() == [6, 6]
        for b in range(2):
            scale = 1 if m * p else 0  # the plain loop's mse divides by zero where there is nothing
            iterates, norms = (
                plain_heavy_ball(X[b], M[b], Y[b], 1e-3, MOMENTUM, 6, loss) if scale else ([X[b]] * 7, [0.0] * 7)
            )
            torch.testing.assert_close(Xk[b], iterates[-1], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(sums[b].sqrt(), torch.tensor(norms, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [4, 8, 13, 33])
def test_float32_is_as_near_to_the_truth_as_plain_torch(advance, size, generator):
    M = well_conditioned(size)[None]
    Y = torch.eye(size, dtype=torch.float64)[None]
    X = torch.rand(1, size, size, generator=generator, dtype=torch.float64)
    truth, _ = plain_heavy_ball(X[0], M[0], Y[0], LR, MOMENTUM, 50)
    plain, _ = plain_heavy_ball(X[0].float(), M[0].float(), Y[0].float(), LR, MOMENTUM, 50)
    ours, *_ = call(advance, X.float(), torch.zeros(1, size, size), M.float(), Y.float(), 50, 50)
    allowance = 2 * (plain[-1] - truth[-1]).abs().max() + 4 * torch.finfo(torch.float32).eps * truth[-1].abs().max()
    assert (ours[0] - truth[-1]).abs().max() <= allowance


@pytest.mark.parametrize("size", [4, 9, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_of_any_length_give_the_same_bits(advance, size, dtype, generator):
    X, V, M, Y = problem(3, size, size, size, dtype, generator)
    whole = call(advance, X, V, M, Y, 20, 20)
    Xk, Vk, pieces = X, V, []
    for steps in (1, 7, 12):
        Xk, Vk, sums, _ = call(advance, Xk, Vk, M, Y, steps, steps)
        pieces.append(sums[:, :-1])
    assert torch.equal(Xk, whole[0])
    assert torch.equal(Vk, whole[1])
    assert torch.equal(torch.cat(pieces, 1), whole[2][:, :-1])
    assert torch.equal(call(advance, Xk, Vk, M, Y, 0, 0)[2][:, 0], whole[2][:, -1])


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 4, 4), (40, 9, 5), (100, 20, 30), (130, 33, 8), (60, 130, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slabs_alone_give_the_bits_of_lockstep(shape, dtype, generator):
    X, V, M, Y = problem(2, *shape, dtype, generator)
    limit = torch.tensor([9, 4])
    together, alone = (
        call(IMPLEMENTATIONS[name], X, V, M, Y, limit, 9, lr=1e-3) for name in ("cpu, lockstep", "cpu, alone")
    )
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.nan_to_num(-3.0), b.nan_to_num(-3.0))


@pytest.mark.parametrize("shape", [(16, 16, 16), (24, 9, 40), (70, 20, 20), (5, 20, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slabs_alone_stop_where_lockstep_does(shape, dtype, generator):
    """At every kind of place in a stretch: the start, the middle, the last iterate, a later stretch, the limit."""
    count, steps = 9, 3_000
    X, V, M, Y = problem(count, *shape, dtype, generator)
    X, V, M, Y = (t[:1].expand(count, -1, -1).contiguous() for t in (X, V, M, Y))
    limit = torch.full((count,), steps)
    limit[-1] = 700  # and never meets its tolerance
    lockstep, alone = (IMPLEMENTATIONS[f"cpu, {way}"] for way in ("lockstep", "alone"))
    sums = call(lockstep, X, V, M, Y, limit, steps, lr=1e-3)[2][0]
    lowest = sums.cummin(0).values
    places = torch.tensor([0, 1, 8, 60, 64, 65, 700, 2_999])
    threshold = torch.cat([lowest[places], torch.tensor([1e-30], dtype=torch.float64)])
    expected = call(lockstep, X, V, M, Y, limit, steps, lr=1e-3, threshold=threshold)
    found = call(alone, X, V, M, Y, limit, steps, lr=1e-3, threshold=threshold)
    assert len(set(expected[3].tolist())) > 5, "the tolerances are met at different iterates"
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a.nan_to_num(-3.0), b.nan_to_num(-3.0))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads, generator):
    X, V, M, Y = problem(3, 70, 20, 20, torch.float32, generator)
    before, advance = torch.get_num_threads(), IMPLEMENTATIONS["cpu, alone"]
    expected = call(advance, X, V, M, Y, 5, 5, lr=1e-3)
    torch.set_num_threads(threads)
    try:
        found = call(advance, X, V, M, Y, 5, 5, lr=1e-3)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [3, 4, 9, 40])
def test_fro_equals_a_plain_loop(size, generator):
    X, _, M, Y = problem(2, size, size, size, torch.float64, generator)
    for name in COUPLED:
        Xk, _, sums, _ = call(IMPLEMENTATIONS[name], X, torch.zeros_like(X), M, Y, 6, 6, "fro", lr=1e-3)
        for b in range(2):
            iterates, norms = plain_heavy_ball(X[b], M[b], Y[b], 1e-3, MOMENTUM, 6, "fro")
            torch.testing.assert_close(Xk[b], iterates[-1], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(sums[b].sqrt(), torch.tensor(norms, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_the_cpu_kernel_refuses_what_it_cannot_do(generator):
    X, V, M, Y = problem(2, 4, 4, 4, torch.float64, generator)
    advance = IMPLEMENTATIONS["cpu, alone"]
    for arguments, message in (
        ((X, V, M, Y, 3, 3, "fro"), "cannot run alone"),
        ((X, V, M, Y[:, :3].contiguous(), 3, 3), "shapes of X, V, M, Y, sums and R do not fit"),
        ((X, V[:, :2].contiguous(), M, Y, 3, 3), "shapes of X, V, M, Y, sums and R do not fit"),
        ((X, V.float(), M, Y, 3, 3), "wrong dtype or batch"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(advance, *arguments)


def test_limits_are_per_problem(advance, generator):
    X, V, M, Y = problem(4, 6, 6, 6, torch.float64, generator)
    limit = torch.tensor([5, 0, -1, 2])
    Xk, Vk, sums, taken = call(advance, X, V, M, Y, limit, 5)
    assert taken[[0, 1, 3]].tolist() == [5, 0, 2]
    assert torch.equal(sums.isnan().sum(1), torch.tensor([0, 5, 6, 3]))
    for b in (1, 2):
        assert torch.equal(Xk[b], X[b])
        assert torch.equal(Vk[b], V[b])
    alone = call(advance, X[3:], V[3:], M[3:], Y[3:], 2, 2)
    torch.testing.assert_close(Xk[3], alone[0][0], rtol=1e-14, atol=1e-14)


def test_a_shared_M_and_Y_serve_every_problem(advance, generator):
    X, V, M, Y = problem(3, 6, 5, 7, torch.float64, generator)
    shared = call(advance, X, V, M[:1], Y[:1], 4, 4)
    spread = call(advance, X, V, M[:1].expand(3, -1, -1).contiguous(), Y[:1].expand(3, -1, -1).contiguous(), 4, 4)
    for a, b in zip(shared, spread, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_lr_and_momentum_are_per_problem(advance, generator):
    X, V, M, Y = problem(2, 4, 4, 4, torch.float64, generator)
    lr, momentum = torch.tensor([0.1, 0.01]).double(), torch.tensor([0.5, 0.9]).double()
    Xk, *_ = call(advance, X, torch.zeros_like(V), M, Y, 5, 5, lr=lr, momentum=momentum)
    for b in range(2):
        iterates, _ = plain_heavy_ball(X[b], M[b], Y[b], lr[b].item(), momentum[b].item(), 5)
        torch.testing.assert_close(Xk[b], iterates[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [4, 9])
def test_a_kernel_that_stops_early_does_so_at_the_first_iterate_that_meets_it(advance, size, generator):
    M, Y = well_conditioned(size)[None], torch.eye(size, dtype=torch.float64)[None]
    X = torch.rand(1, size, size, generator=generator, dtype=torch.float64)
    iterates, norms = plain_heavy_ball(X[0], M[0], Y[0], LR * size, MOMENTUM, 60)
    threshold = norms[0] ** 2 / 10
    first = next(k for k, norm in enumerate(norms) if norm**2 <= threshold)
    Xk, _, sums, taken = call(advance, X, torch.zeros_like(X), M, Y, 60, 60, threshold=threshold, lr=LR * size)
    assert 0 < first < 60
    assert int(taken) in (first, 60)
    torch.testing.assert_close(Xk[0], iterates[int(taken)], rtol=1e-11, atol=1e-11)
    assert sums[0, int(taken) + 1 :].isnan().all()
