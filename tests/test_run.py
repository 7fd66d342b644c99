"""A run before, between and after its chunks: `start_run`, `finish_chunk`, `loss_history`, `end_run`, on each backend.

The fields of a `Standing` and of a `Trace` cross the operators one by one; a test checks their order.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matconv_fast import _ops, _reference
from matconv_fast._reference import Standing
from matconv_fast.kernels.contract import (
    CONVERGED,
    DIVERGED,
    LOSSES,
    NONFINITE,
    RUNNING,
    SMALLEST_SQUARE,
    StopCriteria,
    Trace,
)

OPS = torch.ops.matconv_fast
NAMES = list(Standing._fields)
IMPLEMENTATIONS = ["reference", "cpu"]
NAN, INF = math.nan, math.inf


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    """The reference, and the operators in C++."""
    if request.param == "cpu":
        request.getfixturevalue("native")
    return request.param


def finish(implementation, trace, standing):
    """Judge a chunk; updates ``standing``."""
    if implementation == "reference":
        _reference.finish_chunk(trace, standing)
        return
    named = {**trace._asdict(), **standing._asdict()}
    # by name, so that the order of the schema is what counts
    OPS.finish_chunk(**{argument.name: named[argument.name] for argument in OPS.finish_chunk.default._schema.arguments})


def finished(implementation, sums, steps_done, threshold, bail, *, Y_squares=1.0, best=NAN, status=None):
    """The standing after a chunk, of problems that had made 100 updates."""
    batch = sums.shape[0]

    def of(value, dtype=torch.float64):
        return torch.full((batch,), value, dtype=dtype)

    standing = Standing(
        threshold=of(threshold), Y_squares=of(Y_squares), bail=of(bail), last=of(NAN), best=of(best),
        updates=of(100, torch.int64), steps_done=steps_done, replay_to=of(99, torch.int64),
        status=of(RUNNING, torch.int64) if status is None else status.clone(),
        counts=torch.zeros(2, dtype=torch.int64),
    )  # fmt: skip
    finish(implementation, Trace(sums, steps_done), standing)
    return standing


@pytest.mark.parametrize(
    ("sums", "steps_done", "code", "end", "replay_to"),
    [
        ([4.0, 3.0, 2.0], 2, RUNNING, 2, -1),
        ([4.0, 0.5, 2.0], 2, CONVERGED, 1, 1),  # the first that meets it, though it rises afterwards
        ([4.0, 2.0, 0.5], 2, CONVERGED, 2, -1),
        ([1.0, 2.0, 0.5], 2, CONVERGED, 0, 0),  # equality meets it
        ([4.0, 0.5, NAN], 1, CONVERGED, 1, -1),
        ([4.0, 101.0, NAN], 2, DIVERGED, 1, 1),
        ([4.0, INF, NAN], 2, DIVERGED, 1, 1),
        ([4.0, NAN, 3.0], 2, NONFINITE, 1, 1),
        ([4.0, 3.0, NAN], 1, RUNNING, 1, -1),
    ],
)
def test_finish_chunk_finds_the_first_stop(implementation, sums, steps_done, code, end, replay_to):
    found = finished(implementation, torch.tensor([sums]).double(), torch.tensor([steps_done]), 1.0, 100.0)
    assert (found.status.item(), found.updates.item(), found.replay_to.item()) == (code, 100 + end, replay_to)
    assert found.counts.tolist() == [int(code == RUNNING), replay_to]
    last = torch.tensor([sums[end]]).double()
    assert torch.equal(found.last, last) or (math.isnan(sums[end]) and found.last.isnan())
    assert found.best.item() == min(s for s in sums[: end + 1] if not math.isnan(s))


@pytest.mark.parametrize(("first", "code"), [(NAN, NONFINITE), (INF, NONFINITE), (5.0, RUNNING), (0.5, CONVERGED)])
def test_finish_chunk_judges_the_start(implementation, first, code):
    found = finished(implementation, torch.tensor([[first]]).double(), torch.tensor([0]), 1.0, NAN)
    assert found.status.item() == code
    if math.isfinite(first):
        assert found.bail.item() == 1e10 * max(first, 1.0)


def test_finish_chunk_leaves_problems_that_have_stopped(implementation):
    status = torch.tensor([CONVERGED, RUNNING])
    found = finished(
        implementation, torch.tensor([[4.0, 0.5]] * 2).double(), torch.tensor([1, 1]), 1.0, 9.0, status=status
    )
    assert found.status.tolist() == [CONVERGED, CONVERGED]
    assert found.updates.tolist() == [100, 101]
    assert found.replay_to.tolist() == [-1, -1]
    assert found.last.isnan().tolist() == [True, False]
    assert found.counts.tolist() == [0, -1]


numbers = st.one_of(st.floats(0, 10), st.sampled_from([0.0, 1.0, 100.0, 1e300, INF, NAN]))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_finish_chunk_is_one_function(data):
    assert _ops.backend.load_native() is None
    batch, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    sums = torch.tensor(data.draw(st.lists(numbers, min_size=batch * columns, max_size=batch * columns)))
    sums = sums.double().view(batch, columns)
    steps_done = torch.tensor(data.draw(st.lists(st.integers(0, columns - 1), min_size=batch, max_size=batch)))
    status = torch.tensor(data.draw(st.lists(st.sampled_from([-1, 0, 2]), min_size=batch, max_size=batch)))
    bail, best = data.draw(st.sampled_from([NAN, 50.0, 1e10])), data.draw(st.sampled_from([NAN, 0.5]))
    reference, native = (
        finished(name, sums, steps_done, 1.0, bail, best=best, status=status) for name in IMPLEMENTATIONS
    )
    for name in NAMES:
        assert torch.equal(getattr(native, name).nan_to_num(-3.0), getattr(reference, name).nan_to_num(-3.0)), name


def started(implementation, Y, batch=1, rtol=1e-3, atol=0.0):
    """The standing of a fresh run after an earlier one."""
    before = [torch.full((batch,), v, dtype=torch.float64) for v in (4.0, 5.0, NAN)]
    status = torch.arange(batch) - 1
    function = _reference.start_run if implementation == "reference" else OPS.start_run
    found = Standing(*function(Y, *before, status, rtol, atol))
    for old, new in zip((*before, status), (found.bail, found.last, found.best, found.status), strict=True):
        assert new.data_ptr() != old.data_ptr()  # the earlier run's tensors stay as they are
    return found


def test_the_operators_agree_with_the_structures_on_names_and_order(native):
    arguments = [argument.name for argument in OPS.finish_chunk.default._schema.arguments]
    assert set(arguments) == {"sums", *NAMES}
    assert arguments[:2] == list(Trace._fields)
    assert len(OPS.start_run.default._schema.returns) == len(NAMES)
    standing = _ops.start_run(
        torch.eye(2)[None], *(torch.full((1,), v).double() for v in (NAN, NAN, NAN)), torch.tensor([RUNNING]), 0.5, 0.0
    )
    criteria = standing.criteria(torch.tensor([7]))
    assert isinstance(criteria, StopCriteria)
    assert (criteria.limit.item(), criteria.threshold.item()) == (7, pytest.approx(0.5))
    _ops.finish_chunk(Trace(torch.tensor([[4.0, 0.25]]).double(), torch.tensor([1])), standing)
    assert (standing.status.item(), standing.updates.item(), standing.best.item()) == (CONVERGED, 1, 0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_start_run_begins_where_the_earlier_run_ended(implementation, dtype):
    Y = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=dtype).expand(2, 2, 2)
    run = started(implementation, Y, 2, rtol=0.1, atol=0.25)
    assert {name: getattr(run, name).dtype for name in NAMES} == dict.fromkeys(
        NAMES[:5], torch.float64
    ) | dict.fromkeys(NAMES[5:], torch.int64)
    torch.testing.assert_close(run.threshold, torch.tensor([0.25, 0.25]).double())
    torch.testing.assert_close(run.Y_squares, torch.tensor([25.0, 25.0]).double())
    assert [t.tolist() for t in (run.bail, run.last, run.status)] == [[4.0] * 2, [5.0] * 2, [-1, 0]]
    assert run.best.isnan().all()
    assert [t.tolist() for t in (run.updates, run.steps_done, run.replay_to, run.counts)] == [[0, 0]] * 4
    assert started(implementation, Y, 2, rtol=0.1, atol=0.6).threshold.tolist() == [0.36] * 2


def test_start_run_gives_a_tolerance_whose_square_is_lost_a_threshold_that_nothing_meets(implementation):
    Y = torch.eye(2, dtype=torch.float64)[None]
    smallest = SMALLEST_SQUARE**0.5
    for atol, met in ((0.99 * smallest, False), (1.01 * smallest, True), (0.0, True)):
        threshold = started(implementation, Y, rtol=0.0, atol=atol).threshold
        assert threshold.item() == pytest.approx(atol**2 if met else -1.0, abs=0)


@pytest.mark.parametrize("size", [(1, 3, 5), (4, 3, 5), (4, 0, 5), (1, 200, 401), (3, 150, 300)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-170, 1e200, INF, NAN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_start_run_is_one_function(native, size, scale, dtype, generator):
    Y = (scale * torch.rand(size, generator=generator, dtype=torch.float64)).to(dtype)
    batch = 4 if size[0] == 1 else size[0]
    for strided in (Y, Y.mT.contiguous().mT):
        for rtol, atol in ((1e-3, 0.0), (0.0, 0.0), (1e-3, 1e-160)):
            reference, found = (started(name, strided, batch, rtol, atol) for name in IMPLEMENTATIONS)
            for name in NAMES:
                torch.testing.assert_close(
                    getattr(found, name), getattr(reference, name), rtol=1e-13, atol=0, equal_nan=True
                )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("begin", "every", "updates"), [(0, 1, [7]), (0, 1, [3, 0, 7, 6]), (6, 3, [15, 8, 2, 12]), (0, 1, [5] * 20_000)]
)
def test_loss_history_is_one_function(native, begin, every, updates, loss, dtype, generator):
    entries = (max(updates) - begin) // every + 1
    sums = torch.rand(len(updates), entries, generator=generator, dtype=torch.float64)
    arguments = torch.tensor(updates), begin, every, LOSSES.index(loss), 12, dtype
    expected = _reference.loss_history(sums, *arguments)
    for same in (sums, sums.mT.contiguous().mT, sums.repeat_interleave(3, 1)[:, ::3]):
        found = OPS.loss_history(same, *arguments)
        assert found.is_contiguous()
        torch.testing.assert_close(found, expected, rtol=1e-15, atol=0, equal_nan=True)
    visited = [max((count - begin) // every + 1, 0) for count in updates]
    assert (~expected.isnan()).sum(1).tolist() == visited


def test_the_norm_of_Y_does_not_depend_on_the_threads(native, generator):
    Y = torch.rand(1, 300, 500, generator=generator)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(started("cpu", Y).Y_squares)
    torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (0,), (3, 0), (1, 1, 1)])
def test_end_run_is_one_function_and_shares_no_memory(native, shape, loss, dtype):
    batch = math.prod(shape)
    last = torch.tensor([4.0, 0.0, NAN, INF, 1e-300, 2.0], dtype=torch.float64)[:batch]
    iterations, status = torch.arange(10, 10 + batch), torch.arange(batch) % 4
    X = torch.empty(batch, 2, 3, dtype=dtype)
    arguments = last, iterations, status, X, list(shape), LOSSES.index(loss), 6
    reference, found = _reference.end_run(*arguments), OPS.end_run(*arguments)
    for a, b in zip(found, reference, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) == (torch.Size(shape), b.dtype)
        torch.testing.assert_close(a, b, rtol=1e-15, atol=0, equal_nan=True)
        assert a.is_contiguous()
    inputs = {t.data_ptr() for t in (last, iterations, status) if batch}
    assert not inputs & {t.data_ptr() for t in (*found, *reference)}
    assert found[0].dtype == dtype
