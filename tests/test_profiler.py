"""What ``torch.profiler`` shows of a solve: every phase and operator under its own name, with shapes."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import well_conditioned
from torch.profiler import ProfilerActivity, profile

import matconv_fast as mcf
from matconv_fast.solve import loop, phases

ROOT = Path(__file__).resolve().parent.parent
PHASES = {f"matconv_fast.solve.{name}" for name in ("prepare", "advance", "reduce", "poll", "history")}


@pytest.fixture
def traced(tmp_path: Path) -> Callable[[Callable[[], object]], list[dict[str, Any]]]:
    """Events of ours in the Chrome trace of a call, as a user reads them: from the exported file."""

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
    """16 x 70, M 70 x 70: blocks of rows on either kernel path. All but the C++ kernels go beyond the stop, and leave
    it to the caller to run the problem again."""
    M, Y = well_conditioned(70, dtype=torch.float32), torch.ones(16, 70)
    return mcf.solve(M, Y, solver=mcf.HeavyBall(lr=20.0, momentum=0.5), rtol=0.3)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # one thread alone takes slab by slab, and stops where it should
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
def test_every_phase_shows_with_shapes_and_the_way_that_ran(path, traced):
    expected = overshooting()
    solutions = []
    events = traced(lambda: solutions.append(overshooting()))
    assert torch.equal(solutions[0].X, expected.X)  # watching changes nothing
    assert 0 < int(expected.iterations) < 16

    assert {event["name"] for event in events} >= {"matconv_fast.solve", *PHASES}
    (whole,) = named(events, "matconv_fast.solve")
    assert whole["args"]["Input Dims"] == [[70, 70], [16, 70], []]
    way = {"reference": "plain", "cpu": "alone", "triton": "rows"}[path]
    for event in events:
        if event["name"] in PHASES:
            arguments = event["args"]
            assert inside(event, whole)
            assert arguments["Input Dims"] == [[1, 16, 70], [1, 70, 70], [1, 16, 70]]
            said = {"B": 1, "m": 16, "n": 70, "p": 70, "loss": "mse", "solver": "HeavyBall", "path": path, "way": way}
            if event["name"] == "matconv_fast.solve.prepare":
                del said["path"], said["way"]
            assert said.items() <= arguments.items()
    advances, replays = (named(events, f"matconv_fast.solve.{name}") for name in ("advance", "replay"))
    chunks = [0, 1_000] if path == "cpu" else [0, 16]  # which grow only where what is past a stop is run in vain
    again = [] if path == "cpu" else [int(expected.iterations)]
    assert [event["args"]["steps"] for event in advances] == chunks + again
    assert [event["args"]["steps"] for event in named(events, "matconv_fast.solve.reduce")] == chunks
    assert len(replays) == len(again)
    assert [any(inside(event, replay) for replay in replays) for event in advances] == [False, False, *map(bool, again)]


def test_the_operators_of_a_solve_show_inside_their_phases(force, traced):
    force("cpu")
    M = well_conditioned(4, 3, dtype=torch.float32)
    for solver, state in ((mcf.HeavyBall(0.1), 2), (mcf.Adam(), 3)):
        events = traced(lambda solver=solver: mcf.solve(M, solver=solver, max_iters=20, rtol=0.0))
        name = "heavy_ball" if state == 2 else "adam"
        # the first look, and one chunk
        for operator, phase, calls in (
            ("start_run", "prepare", 1), (f"{name}_advance", "advance", 2), ("finish_chunk", "reduce", 2),
        ):  # fmt: skip
            found = named(events, f"matconv_fast::{operator}")
            assert len(found) == calls
            for event in found:
                assert any(inside(event, outer) for outer in named(events, f"matconv_fast.solve.{phase}"))
        (_, advance) = named(events, f"matconv_fast::{name}_advance")
        assert advance["args"]["Input Dims"][:state] == [[3, 4, 4]] * state
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
        ("heavy_ball_step_", [[5, 4], [5, 4], [4, 3], [5, 3]]),
        ("distance", [[5, 4], [5, 4]]),
    ):
        (event,) = named(events, f"matconv_fast::{operator}")
        assert event["args"]["Input Dims"][: len(shapes)] == shapes


def test_the_table_tells_shapes_apart(path):
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for n in (3, 5):
            mcf.solve(torch.eye(n), max_iters=4)
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
    prepare = mcf.HeavyBall.prepare
    M, options = well_conditioned(4), {"max_iters": 40, "check_every": 8, "rtol": 0.0}
    plain = mcf.solve(M, **options)
    monkeypatch.setattr(loop, "Replayed", Called)
    monkeypatch.setattr(
        mcf.HeavyBall, "prepare", lambda *args: replace(prepare(*args), way=replace(prepare(*args).way, captures=True))
    )
    solutions = []
    events = traced(lambda: solutions.append(mcf.solve(M, **options)))
    graphs = named(events, "matconv_fast.solve.graph")
    assert [event["args"]["steps"] for event in graphs] == [8] * 5
    for name in ("advance", "reduce"):
        _, *chunks = named(events, f"matconv_fast.solve.{name}")  # the first look is no graph
        assert all(inside(event, graph) for event, graph in zip(chunks, graphs, strict=True))
    assert torch.equal(solutions[0].X, plain.X)


def test_without_a_profiler_nothing_is_recorded(path, monkeypatch):
    """A range costs then what it costs to see that."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("recorded")

    monkeypatch.setattr(phases, "_recorded", refuse)
    mcf.solve(torch.eye(3), max_iters=4)
    with pytest.raises(AssertionError, match="recorded"), profile(activities=[ProfilerActivity.CPU]):
        mcf.solve(torch.eye(3), max_iters=4)


def test_a_profiler_leaves_errors_as_they_are():
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True):
        with pytest.raises(TypeError, match=r"M must be a torch.Tensor, got list"):
            mcf.solve([[1.0]])
        sol = mcf.solve(torch.eye(3), X0=mcf.solve(torch.eye(3), max_iters=2))
    assert bool(sol.converged)


def test_the_example_runs(tmp_path):
    trace = tmp_path / "trace.json"
    command = [sys.executable, str(ROOT / "examples" / "profile_solve.py"), "--trace", str(trace), "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != "MATCONV_FAST_BACKEND"}
    shown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert f"trace: {trace}" in shown
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert names >= {"matconv_fast.solve", *PHASES, "one problem of 4 x 4", "1,000 problems of 8 x 8"}
    for row in ("matconv_fast.solve.advance", "matconv_fast::heavy_ball_advance", "[1,256,256]", "[1000,8,8]"):
        assert row in shown


def test_the_documentation_is_true(force):
    force("cpu")
    assert doctest.testfile(str(ROOT / "docs" / "profiling.md"), module_relative=False).failed == 0
