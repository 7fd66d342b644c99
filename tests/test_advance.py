"""The contract of `advance`, by each algorithm and rule: against plain loops, in chunks, with limits and stops."""

from __future__ import annotations

import pytest
import torch
from advance_calls import ALGORITHMS, HYPER, NATIVE, PLAIN, advance, case, runs
from problems import well_conditioned

from matconv_fast._ops.backend import cpu as launch
from matconv_fast.kernels.contract import LOSSES

SIZES = [0, 1, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 31, 33]


def shapes(size):
    """(m, n, p): each of them ``size``, and one of them, beside small ones."""
    return [
        (size, size, size), (size, 5, 3), (3, size, 5), (5, 3, size), (size, 2, 3), (3, size, 2), (2, 3, size)
    ]  # fmt: skip


def on(*sizes):
    """Each algorithm with each of the sizes that it can run."""
    pairs = [(name, n) for name in ALGORITHMS for n in sizes if any(runs(name, *shape) for shape in shapes(n))]
    return pytest.mark.parametrize(("algorithm", "size"), pairs)


def square(*sizes):
    """As `on`, for square problems alone."""
    pairs = [(name, n) for name in ALGORITHMS for n in sizes if runs(name, n, n, n)]
    return pytest.mark.parametrize(("algorithm", "size"), pairs)


every_rule = pytest.mark.parametrize("rule", HYPER)


def test_every_algorithm_is_tested():
    assert {algorithm.name for algorithm in launch.algorithms()} == set(NATIVE)


def assert_is_the_plain_loop(chunk, given, rule, steps, loss="mse", hyper=None):
    """``chunk`` is that of a fresh state, in float64."""
    for b in range(len(given.X)):
        M = torch.eye(given.Y.shape[2], dtype=torch.float64) if given.M is None else given.M[b]
        values = [float(v[b]) if isinstance(v, torch.Tensor) else v for v in hyper or HYPER[rule]]
        iterates, norms = PLAIN[rule](given.X[b], M, given.Y[b], *values, steps, loss)
        torch.testing.assert_close(chunk.X[b], iterates[-1], rtol=1e-12, atol=1e-12)
        expected = torch.tensor(norms, dtype=torch.float64)
        torch.testing.assert_close(chunk.sums[b].sqrt(), expected, rtol=1e-12, atol=1e-12)


@every_rule
@on(*SIZES)
def test_equals_a_plain_loop_in_float64(algorithm, rule, size, generator):
    for shape in shapes(size):
        for loss in LOSSES:
            if runs(algorithm, *shape, coupled=loss == "fro"):
                given = case(rule, (2, *shape), torch.float64, generator).fresh()
                chunk = advance(algorithm, given, 6, rule=rule, loss=loss)
                assert chunk.steps_done.tolist() == [6, 6]
                assert_is_the_plain_loop(chunk, given, rule, 6, loss)


@every_rule
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 4), (17, 33), (100, 65)])
@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if runs(name, 1, 1, 1, product=False)])
def test_without_M_it_iterates_on_the_difference(algorithm, rule, loss, shape, generator):
    if not runs(algorithm, *shape, shape[1], product=False, coupled=loss == "fro"):
        pytest.skip("fro couples the rows")
    given = case(rule, (2, *shape, shape[1]), torch.float64, generator).fresh()._replace(M=None)
    hyper = {"heavy_ball": (0.1, 0.5)}.get(rule)
    chunk = advance(algorithm, given, 6, rule=rule, loss=loss, hyper=hyper)
    assert_is_the_plain_loop(chunk, given, rule, 6, loss, hyper)


@every_rule
@square(4, 8, 13, 33)
def test_float32_is_as_near_to_the_truth_as_plain_torch(algorithm, rule, size, generator):
    hyper = {"heavy_ball": (0.05, 0.8)}.get(rule, HYPER[rule])
    M, Y = well_conditioned(size)[None], torch.eye(size, dtype=torch.float64)[None]
    X = torch.rand(1, size, size, generator=generator, dtype=torch.float64)
    truth, _ = PLAIN[rule](X[0], M[0], Y[0], *hyper, 50)
    plain, _ = PLAIN[rule](X[0].float(), M[0].float(), Y[0].float(), *hyper, 50)
    given = case(rule, (1, size, size, size), torch.float32, generator).fresh()
    ours = advance(algorithm, given._replace(X=X.float(), M=M.float(), Y=Y.float()), 50, rule=rule, hyper=hyper)
    allowance = 2 * (plain[-1] - truth[-1]).abs().max() + 4 * torch.finfo(torch.float32).eps * truth[-1].abs().max()
    assert (ours.X[0] - truth[-1]).abs().max() <= allowance


@every_rule
@square(4, 9, 20)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_of_any_length_give_the_same_bits(algorithm, rule, size, dtype, generator):
    given = case(rule, (3, size, size, size), dtype, generator)
    before = torch.tensor([0, 5, 1_000])
    whole = advance(algorithm, given, 20, rule=rule, step=before)
    part, done, sums = given, 0, []
    for steps in (1, 7, 12):
        chunk = advance(algorithm, part, steps, rule=rule, step=before + done)
        part, done = part._replace(X=chunk.X, state=chunk.state), done + steps
        sums.append(chunk.sums[:, :-1])
    sums.append(advance(algorithm, part, 0, rule=rule, step=before + done).sums)
    assert whole.equals(chunk._replace(sums=torch.cat(sums, 1), steps_done=whole.steps_done))


@every_rule
@square(4, 6)
def test_limits_are_per_problem(algorithm, rule, size, generator):
    given = case(rule, (4, size, size, size), torch.float64, generator)
    limit = torch.tensor([5, 0, -1, 2])
    chunk = advance(algorithm, given, 5, rule=rule, limit=limit)
    assert chunk.steps_done[[0, 1, 3]].tolist() == [5, 0, 2]
    assert torch.equal(chunk.sums.isnan().sum(1), torch.tensor([0, 5, 6, 3]))
    for b in (1, 2):
        for now, before in zip((chunk.X, *chunk.state), (given.X, *given.state), strict=True):
            assert torch.equal(now[b], before[b])
    single = advance(algorithm, given.one(3), 2, rule=rule)
    torch.testing.assert_close(chunk.X[3], single.X[0], rtol=1e-14, atol=1e-14)


@every_rule
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_shared_M_and_Y_serve_every_problem(algorithm, rule, generator):
    shape = (3, 2, 4) if algorithm == "tiny" else (6, 5, 7)
    given = case(rule, (3, *shape), torch.float64, generator)
    shared = given._replace(M=given.M[:1], Y=given.Y[:1])
    spread = given._replace(M=given.M[:1].expand(3, -1, -1).contiguous(), Y=given.Y[:1].expand(3, -1, -1).contiguous())
    one, other = (advance(algorithm, form, 4, rule=rule) for form in (shared, spread))
    for a, b in zip((one.X, *one.state, one.sums), (other.X, *other.state, other.sums), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@every_rule
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hyperparameters_are_per_problem(algorithm, rule, generator):
    values = {
        "heavy_ball": ((0.1, 0.01), (0.5, 0.9)),
        "adam": ((0.1, 0.01), (0.5, 0.9), (0.9, 0.99), (1e-8, 1e-2)),
    }
    hyper = tuple(torch.tensor(value, dtype=torch.float64) for value in values[rule])
    given = case(rule, (2, 4, 4, 4), torch.float64, generator).fresh()
    chunk = advance(algorithm, given, 5, rule=rule, hyper=hyper)
    assert_is_the_plain_loop(chunk, given, rule, 5, hyper=hyper)


@every_rule
@square(4, 9)
def test_an_early_stop_is_at_the_first_iterate_that_meets_the_threshold(algorithm, rule, size, generator):
    hyper = {"heavy_ball": (0.05 * size, 0.8), "adam": (0.05, 0.9, 0.99, 1e-8)}[rule]
    M, Y = well_conditioned(size)[None], torch.eye(size, dtype=torch.float64)[None]
    X = torch.rand(1, size, size, generator=generator, dtype=torch.float64)
    iterates, norms = PLAIN[rule](X[0], M[0], Y[0], *hyper, 60)
    threshold = norms[0] ** 2 / 10
    first = next(k for k, norm in enumerate(norms) if norm**2 <= threshold)
    given = case(rule, (1, size, size, size), torch.float64, generator).fresh()._replace(X=X, M=M, Y=Y)
    chunk = advance(algorithm, given, 60, rule=rule, hyper=hyper, threshold=threshold)
    assert 0 < first < 60
    assert int(chunk.steps_done) == (60 if algorithm == "reference" else first)
    torch.testing.assert_close(chunk.X[0], iterates[int(chunk.steps_done)], rtol=1e-11, atol=1e-11)
    assert chunk.sums[0, int(chunk.steps_done) + 1 :].isnan().all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_early_stop_is_at_the_first_iterate_beyond_the_bail(algorithm, generator):
    given = case("heavy_ball", (1, 4, 4, 4), torch.float64, generator).fresh()
    iterates, norms = PLAIN["heavy_ball"](given.X[0], given.M[0], given.Y[0], 40.0, 0.9, 30)
    bail = 1e6 * norms[0] ** 2
    first = next(k for k, norm in enumerate(norms) if norm**2 > bail)
    chunk = advance(algorithm, given, 30, hyper=(40.0, 0.9), bail=bail)
    assert 0 < first < 30
    assert int(chunk.steps_done) == (30 if algorithm == "reference" else first)
    torch.testing.assert_close(chunk.X[0], iterates[int(chunk.steps_done)], rtol=1e-9, atol=1e-9)


def test_an_unregistered_rule_is_refused(generator):
    given = case("heavy_ball", (1, 4, 4, 4), torch.float64, generator)
    with pytest.raises(ValueError, match=r"rule must be one of adam, heavy_ball.*got 'sgd'"):
        advance("reference", given, 1, rule="sgd", hyper=HYPER["heavy_ball"])
