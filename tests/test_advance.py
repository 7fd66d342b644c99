"""The contract under every solver, on each implementation: `heavy_ball_advance`, and what goes around it."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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


def finished(implementation, sums, taken, threshold, bail, Y_squares=1.0, best=math.nan, status=None):
    batch = sums.shape[0]
    doubles = [torch.full((batch,), v, dtype=torch.float64) for v in (threshold, Y_squares, bail, math.nan, best)]
    updates, again = torch.full((batch,), 100), torch.full((batch,), 99)
    status = torch.full((batch,), _reference.RUNNING) if status is None else status.clone()
    counts = torch.zeros(2, dtype=torch.int64)
    implementation(sums, taken, *doubles, updates, status, again, counts)
    return doubles[2], doubles[3], doubles[4], updates, status, again, counts


FINISH = {"reference": _reference.finish_chunk, "cpu": torch.ops.matconv_fast.finish_chunk}
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("implementation", FINISH)
@pytest.mark.parametrize(
    ("sums", "taken", "code", "end", "again"),
    [
        ([4.0, 3.0, 2.0], 2, _reference.RUNNING, 2, -1),
        ([4.0, 0.5, 2.0], 2, _reference.CONVERGED, 1, 1),  # the first that meets it, though it rises again
        ([4.0, 2.0, 0.5], 2, _reference.CONVERGED, 2, -1),
        ([1.0, 2.0, 0.5], 2, _reference.CONVERGED, 0, 0),  # equality meets it
        ([4.0, 0.5, NAN], 1, _reference.CONVERGED, 1, -1),
        ([4.0, 101.0, NAN], 2, _reference.DIVERGED, 1, 1),
        ([4.0, INF, NAN], 2, _reference.DIVERGED, 1, 1),
        ([4.0, NAN, 3.0], 2, _reference.NONFINITE, 1, 1),
        ([4.0, 3.0, NAN], 1, _reference.RUNNING, 1, -1),
    ],
)
def test_finish_chunk_finds_the_first_stop(implementation, sums, taken, code, end, again):
    result = finished(FINISH[implementation], torch.tensor([sums]).double(), torch.tensor([taken]), 1.0, 100.0)
    _, last, best, updates, status, replay, counts = result
    assert (status.item(), updates.item(), replay.item()) == (code, 100 + end, again)
    assert counts.tolist() == [int(code == _reference.RUNNING), again]
    assert torch.equal(last, torch.tensor([sums[end]]).double()) or (math.isnan(sums[end]) and last.isnan())
    assert best.item() == min(s for s in sums[: end + 1] if not math.isnan(s))


@pytest.mark.parametrize("implementation", FINISH)
@pytest.mark.parametrize(("first", "code"), [(NAN, 4), (INF, 4), (5.0, -1), (0.5, 0)])
def test_finish_chunk_judges_the_start(implementation, first, code):
    bail, _, _, _, status, *_ = finished(
        FINISH[implementation], torch.tensor([[first]]).double(), torch.tensor([0]), 1.0, NAN
    )
    assert status.item() == code
    if math.isfinite(first):
        assert bail.item() == 1e16 * max(first, 1.0)


numbers = st.one_of(st.floats(0, 10), st.sampled_from([0.0, 1.0, 100.0, 1e300, INF, NAN]))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_finish_chunk_is_one_function(data):
    batch, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    sums = torch.tensor(data.draw(st.lists(numbers, min_size=batch * columns, max_size=batch * columns)))
    sums = sums.double().view(batch, columns)
    taken = torch.tensor(data.draw(st.lists(st.integers(0, columns - 1), min_size=batch, max_size=batch)))
    status = torch.tensor(data.draw(st.lists(st.sampled_from([-1, 0, 2]), min_size=batch, max_size=batch)))
    bail = data.draw(st.sampled_from([NAN, 50.0, 1e16]))
    arguments = (sums, taken, 1.0, bail, 1.0, data.draw(st.sampled_from([NAN, 0.5])), status)
    reference, native = (finished(implementation, *arguments) for implementation in FINISH.values())
    names = ("bail", "last", "best", "updates", "status", "again", "counts")
    for name, a, b in zip(names, reference, native, strict=True):
        assert torch.equal(a.nan_to_num(-3.0), b.nan_to_num(-3.0)), name


START = {"reference": _reference.start_run, "cpu": torch.ops.matconv_fast.start_run}
START_NAMES = (
    "threshold", "Y_squares", "bail", "last", "best", "updates", "taken", "again", "status", "counts",
)  # fmt: skip


def started(implementation, Y, batch=1, rtol=1e-3, atol=0.0):
    before = [torch.full((batch,), v, dtype=torch.float64) for v in (4.0, 5.0, NAN)]
    status = torch.arange(batch) - 1
    found = implementation(Y, *before, status, rtol, atol)
    for old, new in zip((*before, status), (*found[2:5], found[8]), strict=True):
        assert new.data_ptr() != old.data_ptr()  # what an earlier run left stays as it is
    return dict(zip(START_NAMES, found, strict=True))


@pytest.mark.parametrize("implementation", START)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_start_run_begins_where_the_state_was(implementation, dtype):
    Y = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=dtype).expand(2, 2, 2)
    run = started(START[implementation], Y, 2, rtol=0.1, atol=0.25)
    assert {name: t.dtype for name, t in run.items()} == dict.fromkeys(START_NAMES[:5], torch.float64) | dict.fromkeys(
        START_NAMES[5:], torch.int64
    )
    torch.testing.assert_close(run["threshold"], torch.tensor([0.25, 0.25]).double())
    torch.testing.assert_close(run["Y_squares"], torch.tensor([25.0, 25.0]).double())
    assert [run[name].tolist() for name in ("bail", "last", "status")] == [[4.0] * 2, [5.0] * 2, [-1, 0]]
    assert run["best"].isnan().all()
    assert [run[name].tolist() for name in ("updates", "taken", "again", "counts")] == [[0, 0]] * 4
    assert started(START[implementation], Y, 2, rtol=0.1, atol=0.6)["threshold"].tolist() == [0.36] * 2


@pytest.mark.parametrize("size", [(1, 3, 5), (4, 3, 5), (4, 0, 5), (1, 200, 401), (3, 150, 300)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-170, 1e200, INF, NAN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_start_run_is_one_function(size, scale, dtype, generator):
    Y = (scale * torch.rand(size, generator=generator, dtype=torch.float64)).to(dtype)
    for strided in (Y, Y.mT.contiguous().mT):
        for rtol, atol in ((1e-3, 0.0), (0.0, 0.0), (1e-3, 1e-160)):
            reference, native = (
                started(f, strided, 4 if size[0] == 1 else size[0], rtol, atol) for f in START.values()
            )
            for name in START_NAMES:
                torch.testing.assert_close(native[name], reference[name], rtol=1e-13, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", _reference.LOSSES)
@pytest.mark.parametrize(
    ("begin", "every", "updates"), [(0, 1, [7]), (0, 1, [3, 0, 7, 6]), (6, 3, [15, 8, 2, 12]), (0, 1, [5] * 20_000)]
)
def test_loss_history_is_one_function(begin, every, updates, loss, dtype, generator):
    entries = (max(updates) - begin) // every + 1
    sums = torch.rand(len(updates), entries, generator=generator, dtype=torch.float64)
    arguments = torch.tensor(updates), begin, every, _reference.LOSSES.index(loss), 12, dtype
    expected = _reference.loss_history(sums, *arguments)
    for same in (sums, sums.mT.contiguous().mT, sums.repeat_interleave(3, 1)[:, ::3]):
        found = torch.ops.matconv_fast.loss_history(same, *arguments)
        assert found.is_contiguous()
        torch.testing.assert_close(found, expected, rtol=1e-15, atol=0, equal_nan=True)
    visited = [max((count - begin) // every + 1, 0) for count in updates]
    assert (~expected.isnan()).sum(1).tolist() == visited


def test_the_norm_of_Y_does_not_depend_on_the_threads(generator):
    Y = torch.rand(1, 300, 500, generator=generator)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(started(START["cpu"], Y)["Y_squares"])
    torch.set_num_threads(threads)
    assert torch.equal(*found)
