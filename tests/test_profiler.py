"""What ``torch.profiler`` shows of a solve: every phase and operator under its own name, with shapes."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import well_conditioned
from torch.profiler import ProfilerActivity, profile

import matconv_fast as mcf
from matconv_fast.kernels.cpu import launch
from matconv_fast.solve import phases
from matconv_fast.solve import run as run_module

ROOT = Path(__file__).resolve().parent.parent
PHASES = {f"matconv_fast.solve.{name}" for name in ("prepare", "advance", "reduce", "poll", "history")}


@pytest.fixture
def traced(tmp_path: Path) -> Callable[[Callable[[], object]], list[dict[str, Any]]]:
    """The events of matconv_fast in the Chrome trace of a call, read from the exported file."""

    def trace(call: Callable[[], object]) -> list[dict[str, Any]]:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            call()
        file = tmp_path / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
        return [event for event in events if event.get("name", "").startswith("matconv_fast")]

    return trace


def named(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["name"] == name]


def inside(inner: dict[str, Any], outer: dict[str, Any]) -> bool:
    return outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]


def overshooting() -> mcf.Solution:
    """16 x 70, M 70 x 70: slabs or blocks of rows in the kernels.

    All but the C++ kernels overshoot the stop, so the problem is restored and replayed.
    """
    M, Y = well_conditioned(70, dtype=torch.float32), torch.ones(16, 70)
    return mcf.solve(M, Y, solver=mcf.HeavyBall(lr=20.0, momentum=0.5), rtol=0.3)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # with one thread no parallel algorithm is chosen
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
def test_every_phase_shows_with_shapes_and_the_algorithm(backend, traced):
    expected = overshooting()
    solutions = []
    events = traced(lambda: solutions.append(overshooting()))
    assert torch.equal(solutions[0].X, expected.X)  # profiling changes no result
    assert 0 < int(expected.iterations) < 16

    assert {event["name"] for event in events} >= {"matconv_fast.solve", *PHASES}
    (whole,) = named(events, "matconv_fast.solve")
    assert whole["args"]["Input Dims"] == [[70, 70], [16, 70], []]
    algorithm = {"reference": "reference", "triton": "rows"}.get(backend)
    if algorithm is None:  # on the width of a vector depends whether rows or blocks of rows fill it
        algorithm = launch.choose(expected.problem.shape, "heavy_ball").name
        assert algorithm in ("parallel_rows", "parallel_blocks")
    for event in events:
        if event["name"] in PHASES:
            arguments = event["args"]
            assert inside(event, whole)
            assert arguments["Input Dims"] == [[1, 16, 70], [1, 70, 70], [1, 16, 70]]
            shown = {"B": 1, "m": 16, "n": 70, "p": 70, "loss": "mse", "solver": "HeavyBall"}
            if event["name"] != "matconv_fast.solve.prepare":
                shown |= {"backend": backend, "algorithm": algorithm}
            assert shown.items() <= arguments.items()
    advances, replays = (named(events, f"matconv_fast.solve.{name}") for name in ("advance", "replay"))
    chunks = [0, 1_000] if backend == "cpu" else [0, 16]  # chunks grow only where what overshoots is discarded
    replayed = [] if backend == "cpu" else [int(expected.iterations)]
    assert [event["args"]["steps"] for event in advances] == chunks + replayed
    assert [event["args"]["steps"] for event in named(events, "matconv_fast.solve.reduce")] == chunks
    assert len(replays) == len(replayed)
    found = [any(inside(event, replay) for replay in replays) for event in advances]
    assert found == [False, False, *map(bool, replayed)]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "shape",
    [(1, 4, 4, 4), (1, 12, 12, 12), (1, 5, 40, 40), (1, 40, 40, 40), (3, 40, 40, 40), (40, 6, 6, 6), (1, 33, 33, None)],
)
@pytest.mark.parametrize("solver", [mcf.HeavyBall(0.1), mcf.Adam()], ids=["heavy ball", "adam"])
@pytest.mark.parametrize("loss", ["mse", "fro"])
def test_the_algorithm_that_is_named_is_the_one_that_ran(force, traced, monkeypatch, shape, solver, loss):
    """In the profiler's details, in `info` and in ``Solution.method``, against the argument of the operator."""
    force("cpu")
    operator = importlib.import_module("matconv_fast._ops.advance")
    kernel, ran = operator._KERNEL, set()

    def recorded(*arguments: object) -> None:
        ran.add(arguments[-1])
        kernel(*arguments)

    monkeypatch.setattr(operator, "_KERNEL", recorded)
    batch, m, n, p = shape
    M = None if p is None else torch.eye(n, p).expand(batch, n, p)
    options = {"solver": solver, "loss": loss, "max_iters": 20}
    solutions = []
    events = traced(lambda: solutions.append(mcf.solve(M, torch.ones(batch, m, p or n), **options)))
    (algorithm,) = ran
    assert {event["args"]["algorithm"] for event in named(events, "matconv_fast.solve.advance")} == {algorithm}
    assert mcf.info().devices[0].last == f"{algorithm} (cpu)"
    assert f"last solve: {algorithm} (cpu)" in str(mcf.info())
    assert solutions[0].method == f"{type(solver).__name__}: {algorithm} (cpu)"


def test_the_operators_of_a_solve_show_inside_their_phases(force, traced):
    force("cpu")
    M = well_conditioned(4, 3, dtype=torch.float32)
    for solver, matrices, hyper in ((mcf.HeavyBall(0.1), 1, 2), (mcf.Adam(), 2, 4)):
        events = traced(lambda solver=solver: mcf.solve(M, solver=solver, max_iters=20, rtol=0.0))
        # the initial residual, and one chunk
        for operator, phase, calls in (
            ("start_run", "prepare", 1), ("advance", "advance", 2), ("finish_chunk", "reduce", 2),
        ):  # fmt: skip
            found = named(events, f"matconv_fast::{operator}")
            assert len(found) == calls
            for event in found:
                assert any(inside(event, outer) for outer in named(events, f"matconv_fast.solve.{phase}"))
        (_, advance) = named(events, "matconv_fast::advance")
        _, X, state, _, _, rates, *_ = advance["args"]["Input Dims"]
        assert (X, state, rates) == ([3, 4, 4], [[3, 4, 4]] * matrices, [hyper, 3])
        (_, judged) = named(events, "matconv_fast::finish_chunk")
        assert judged["args"]["Input Dims"][0] == [3, 21]


def test_the_other_operators_show_with_shapes(force, traced):
    force("cpu")
    X, V, M = torch.zeros(5, 4, requires_grad=True), torch.zeros(5, 4), torch.ones(4, 3)

    def call() -> None:
        mcf.residual_loss(X, M, torch.ones(5, 3)).backward()
        with torch.no_grad():
            mcf.heavy_ball_step_(X, V, M, torch.ones(5, 3), lr=0.1, momentum=0.9)
            mcf.distance(X, V)

    events = traced(call)
    for operator, shapes in (
        ("residual_products", [[5, 4], [4, 3], [5, 3]]),
        ("try_heavy_ball_step_", [[5, 4], [5, 4], [4, 3], [5, 3]]),
        ("try_distance", [[5, 4], [5, 4]]),
    ):
        (event,) = named(events, f"matconv_fast::{operator}")
        assert event["args"]["Input Dims"][: len(shapes)] == shapes


def test_the_table_tells_shapes_apart(backend):
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for n in (3, 5):
            mcf.solve(torch.eye(n), solver=mcf.HeavyBall(), max_iters=4)
    rows = {(row.key, str(row.input_shapes)) for row in profiler.key_averages(group_by_input_shape=True)}
    for n in (3, 5):
        assert ("matconv_fast.solve", f"[[{n}, {n}], [], []]") in rows
        for name in PHASES:
            assert (name, str([[1, n, n]] * 3)) in rows


class Called:
    """Stands in for a CUDA graph, which needs a GPU."""

    def __init__(self, launch: Callable[[], None]) -> None:
        self.launch = launch

    def __call__(self) -> None:
        self.launch()


def test_a_captured_chunk_shows_as_a_graph(force, traced, monkeypatch):
    force("cpu")
    plan = mcf.HeavyBall.plan
    M, options = well_conditioned(4), {"solver": mcf.HeavyBall(), "max_iters": 40, "check_every": 8, "rtol": 0.0}
    plain = mcf.solve(M, **options)
    monkeypatch.setattr(run_module, "Replayed", Called)
    monkeypatch.setattr(mcf.HeavyBall, "plan", lambda *args: plan(*args)._replace(captured=True))
    solutions = []
    events = traced(lambda: solutions.append(mcf.solve(M, **options)))
    graphs = named(events, "matconv_fast.solve.graph")
    assert [event["args"]["steps"] for event in graphs] == [8] * 5
    for name in ("advance", "reduce"):
        _, *chunks = named(events, f"matconv_fast.solve.{name}")  # the initial residual is not captured
        assert all(inside(event, graph) for event, graph in zip(chunks, graphs, strict=True))
    assert torch.equal(solutions[0].X, plain.X)


def test_without_a_profiler_nothing_is_recorded(backend, monkeypatch):

    def refuse(*arguments: object) -> None:
        raise AssertionError("recorded")

    monkeypatch.setattr(phases, "_recorded", refuse)
    mcf.solve(torch.eye(3), solver=mcf.HeavyBall(), max_iters=4)
    with pytest.raises(AssertionError, match="recorded"), profile(activities=[ProfilerActivity.CPU]):
        mcf.solve(torch.eye(3), solver=mcf.HeavyBall(), max_iters=4)


def test_a_profiler_changes_no_error():
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True):
        with pytest.raises(TypeError, match=r"M must be a torch.Tensor, got list"):
            mcf.solve([[1.0]], solver=mcf.HeavyBall())
        sol = mcf.solve(torch.eye(3), X0=mcf.solve(torch.eye(3), solver=mcf.HeavyBall(), max_iters=2))
    assert bool(sol.converged)


def test_the_example_runs(tmp_path):
    trace = tmp_path / "trace.json"
    command = [sys.executable, str(ROOT / "examples" / "profile_solve.py"), "--trace", str(trace), "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != "MATCONV_FAST_BACKEND"}
    shown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert f"trace: {trace}" in shown
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert names >= {"matconv_fast.solve", *PHASES, "one problem of 4 x 4", "1,000 problems of 8 x 8"}
    for row in ("matconv_fast.solve.advance", "matconv_fast::advance", "[1,256,256]", "[1000,8,8]"):
        assert row in shown


def test_the_documentation_runs(force):
    force("cpu")
    assert doctest.testfile(str(ROOT / "docs" / "profiling.md"), module_relative=False).failed == 0
