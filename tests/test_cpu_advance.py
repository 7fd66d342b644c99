"""`advance` in C++: parallel algorithms and threads, kept residuals, extreme numbers, the choice, refusals."""

from __future__ import annotations

import pytest
import torch
from advance_calls import HYPER, NATIVE, PARALLEL, advance, case, runs
from matconv_fast.kernels.contract import LOSSES, Shape
from matconv_fast.kernels.cpu import launch
from problems import well_conditioned

pytestmark = pytest.mark.usefixtures("native")
KEEP_A_RESIDUAL = ["parallel_rows", "parallel_blocks", "gemm"]
every_rule = pytest.mark.parametrize("rule", HYPER)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def parallel(*shapes):
    """Each parallel algorithm with each of the (m, n, p) that it can run."""
    pairs = [(name, shape) for name in PARALLEL for shape in shapes if runs(name, *shape)]
    return pytest.mark.parametrize(("algorithm", "shape"), pairs)


@every_rule
@every_dtype
@parallel(
    (1, 1, 1), (7, 4, 4), (24, 16, 16), (20, 12, 3), (40, 9, 5), (100, 20, 30), (130, 33, 8), (60, 130, 130)
)  # fmt: skip
def test_a_parallel_algorithm_gives_the_bits_of_its_sequential_one(algorithm, shape, dtype, rule, generator):
    given, limit, step = case(rule, (2, *shape), dtype, generator), torch.tensor([9, 4]), torch.tensor([0, 3])
    together, parted = (
        advance(name, given, 9, rule=rule, limit=limit, step=step) for name in (PARALLEL[algorithm], algorithm)
    )
    assert parted.equals(together)


@every_rule
@every_dtype
@parallel((16, 16, 16), (24, 9, 40), (70, 20, 20), (5, 20, 30))
def test_a_parallel_algorithm_stops_where_its_sequential_one_does(algorithm, shape, dtype, rule, generator):
    """At every kind of place in a stretch: the start, the middle, the last iterate, a later stretch, the limit."""
    count, steps = 9, 3_000
    given, step = case(rule, (1, *shape), dtype, generator).fresh().repeated(count), torch.full((count,), 3)
    limit = torch.full((count,), steps)
    limit[-1] = 700  # and never meets its tolerance
    options = {"rule": rule, "limit": limit, "step": step, "hyper": (1e-3, *HYPER[rule][1:])}
    lowest = advance(PARALLEL[algorithm], given, steps, **options).sums[0].cummin(0).values
    places = torch.tensor([0, 1, 8, 60, 64, 65, 700, 2_999])
    threshold = torch.cat([lowest[places], torch.tensor([1e-30], dtype=torch.float64)])
    expected, found = (
        advance(name, given, steps, threshold=threshold, **options) for name in (PARALLEL[algorithm], algorithm)
    )
    assert len(set(expected.steps_done.tolist())) > 5, "the tolerances are met at different iterates"
    assert found.equals(expected)


@every_rule
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("algorithm", [name for name in NATIVE if name != "gemm"])  # which has torch's products
def test_the_number_of_threads_changes_no_bit(algorithm, threads, rule, generator):
    sizes = {"tiny": (70, 4, 4, 4), "lanes": (70, 6, 5, 7)}.get(algorithm, (3, 70, 20, 20))
    sizes = (3, 24, 16, 16) if "small" in algorithm else sizes
    given, before = case(rule, sizes, torch.float32, generator), torch.get_num_threads()
    expected = advance(algorithm, given, 5, rule=rule)
    torch.set_num_threads(threads)
    try:
        found = advance(algorithm, given, 5, rule=rule)
    finally:
        torch.set_num_threads(before)
    assert found.equals(expected)


@every_rule
@pytest.mark.parametrize("algorithm", KEEP_A_RESIDUAL)
def test_a_residual_kept_from_the_chunk_before_changes_no_bit(algorithm, rule, generator):
    shape = 40, 50, 60
    given = case(rule, (1, *shape), torch.float64, generator)
    whole = advance(algorithm, given, 7, rule=rule)
    R, known, part, done = torch.full((1, shape[0], shape[2]), torch.nan, dtype=torch.float64), torch.nan, given, 0
    for steps in (0, 3, 4):
        chunk = advance(algorithm, part, steps, rule=rule, step=done, R=R, known=known)
        part, done, known = part._replace(X=chunk.X, state=chunk.state), done + steps, chunk.sums[0, -1].item()
    assert torch.equal(part.X, whole.X)
    assert known == whole.sums[0, -1]
    if algorithm == "parallel_small":  # whose residual is never in memory
        return
    torch.testing.assert_close(R, part.X @ part.M - part.Y)
    # R is read, not computed: with a residual of 0 the gradient is 0
    still = advance(algorithm, part, 1, rule=rule, step=done, R=0 * R, known=1.0)
    exact = part._replace(Y=part.X @ part.M)
    torch.testing.assert_close(still.X, advance("reference", exact, 1, rule=rule, step=done).X, rtol=1e-8, atol=1e-8)
    assert not torch.equal(still.X, advance(algorithm, part, 1, rule=rule, step=done).X)


@pytest.mark.parametrize("algorithm", NATIVE)
@pytest.mark.parametrize("size", [4, 8, 40])
@pytest.mark.parametrize("scale", [1e-25, 1e-21, 1e-15, 1e15, 1e19, 1e25])
def test_squares_that_do_not_fit_float32_are_added_in_float64(algorithm, size, scale, generator):
    if not runs(algorithm, size, size, size):
        pytest.skip("too large for the algorithm")
    given = case("heavy_ball", (3, size, size, size), torch.float32, generator).fresh()
    Y = torch.rand(3, size, size, generator=generator) * scale
    M = well_conditioned(size, 3, dtype=torch.float32)
    chunk = advance(algorithm, given._replace(X=torch.zeros_like(given.X), M=M, Y=Y), 1)
    torch.testing.assert_close(chunk.sums[:, 0], Y.double().square().sum((1, 2)), rtol=1e-6, atol=0)


@every_rule
@every_dtype
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("product", [True, False])
def test_the_algorithm_that_is_chosen_is_there_and_runs(product, loss, dtype, rule, generator):
    names, chosen = {info.name for info in launch.algorithms()}, set()
    for size in (1, 3, 4, 5, 13, 16, 17, 33, 70):
        for batch, m in ((1, size), (2, 3), (40, size), (1, 40)):
            shape = Shape(batch, m, size, size, product, loss == "fro", dtype)
            name = launch.choose(shape, rule).name
            chosen.add(name)
            given = case(rule, (batch, m, size, size), dtype, generator)
            given = given if product else given._replace(M=None)
            options = {"rule": rule, "loss": loss, "step": 3}
            found, expected = (advance(how, given, 3, **options) for how in (name, "reference"))
            tolerance = 1e-9 if dtype == torch.float64 else 1e-3
            torch.testing.assert_close(found.X, expected.X, rtol=tolerance, atol=tolerance)
    assert chosen <= names
    assert len(chosen) > (3 if product else 0)


def test_the_choice_depends_on_size_and_batch():
    def choice(*sizes, coupled=False, rule="heavy_ball"):
        return launch.choose(Shape(*sizes, True, coupled, torch.float32), rule).name

    assert choice(1, 4, 4, 4) == "tiny"
    assert choice(1, 4, 4, 4, coupled=True) == "small"
    assert choice(67, 3, 5, 5) == choice(67, 3, 5, 5, rule="adam") == "lanes"
    assert choice(1, 12, 12, 12) == "small"
    assert choice(1, 5, 40, 40) == "rows" or launch.load() == "generic"
    assert launch.choose(Shape(1, 4, 4, 4, True, False, torch.float32), "unknown") is None


def test_rules_and_algorithms_are_listed():
    assert set(launch.rules()) >= HYPER.keys()
    assert [info.name for info in launch.algorithms() if info.keeps_residual] == KEEP_A_RESIDUAL
    assert all(info.exact and not info.many_launches for info in launch.algorithms())
    assert {info.name for info in launch.algorithms() if info.least_steps > 1} == PARALLEL.keys()


NEEDS = {
    "tiny": (5, 4, 4),
    "small": (25, 16, 16),
    "parallel_small": (24, 17, 16),
}


@pytest.mark.parametrize("algorithm", NATIVE)
def test_an_algorithm_refuses_what_it_cannot_run(algorithm, generator):
    for shape, product, coupled in (
        ((4, 4, 4), True, True), ((4, 4, 4), False, False), (NEEDS.get(algorithm, (4, 4, 4)), True, False)
    ):  # fmt: skip
        given = case("heavy_ball", (2, *shape), torch.float64, generator)
        given = given if product else given._replace(M=None)
        if runs(algorithm, *shape, product=product, coupled=coupled):
            advance(algorithm, given, 3, loss="fro" if coupled else "mse")
            continue
        with pytest.raises(RuntimeError, match=algorithm):
            advance(algorithm, given, 3, loss="fro" if coupled else "mse")


@every_rule
def test_malformed_calls_are_refused(rule, generator):
    given = case(rule, (2, 4, 4, 4), torch.float64, generator)
    _, state, _, Y = given
    for wrong, options in (
        (given._replace(Y=Y[:, :3].contiguous()), {}),
        (given._replace(state=tuple(t[:, :2].contiguous() for t in state)), {}),
        (given._replace(state=tuple(t.float() for t in state)), {}),
        (given._replace(state=state[:-1]), {}),
        (given._replace(state=(*state, state[0])), {}),
        (given._replace(M=given.M.float()), {}),
        (given, {"hyper": HYPER[rule][:-1]}),
        (given, {"hyper": (*HYPER[rule], 0.1)}),
        (given, {"limit": torch.tensor([3])}),
        (given, {"threshold": torch.tensor([1.0])}),
        (given, {"step": torch.tensor([1, 2, 3])}),
        (given, {"R": torch.zeros(2, 4, 3, dtype=torch.float64)}),
        (given, {"rule": "unknown", "hyper": HYPER[rule]}),
    ):
        with pytest.raises(RuntimeError, match="advance"):
            advance("rows", wrong, 3, **{"rule": rule, **options})
    with pytest.raises(RuntimeError, match="wrong_name"):
        advance("wrong_name", given, 3, rule=rule)
