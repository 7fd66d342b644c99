"""A run before, between and after its chunks: `start_run`, `finish_chunk`, `loss_history`, on each implementation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matconv_fast import _reference


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
