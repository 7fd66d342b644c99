"""The benchmark suite: what it has, that it runs, and that what is written about it is what was measured."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")

import compare
import plots
import report
from checks import MismatchError
from contest import Contest, spread
from figures import Results, outcomes
from measure import SAMPLE_SECONDS, Side, in_turns
from peak_memory import ROWS
from providers import LIMITS, Provider
from suite import QUICK, WORKLOADS, Workload

import matconv_fast as mcf

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "benchmarks" / "results" / "cpu-avx2" / "bench.json"
OF_A_GPU = {"L4096"}  # benchmarks/gpu.py has it
# one thread, as the other tests have the other cores; pytest-benchmark runs nothing where pytest-xdist is at work
CHILD = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {"OMP_NUM_THREADS": "1"}


@functools.cache
def committed() -> Results:
    return Results(json.loads(COMMITTED.read_text()))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=CHILD, capture_output=True, text=True, timeout=300)


def test_every_committed_row_has_times():
    found = committed()
    rows = {(name, p.name) for name, workload in WORKLOADS.items() for p in workload.providers}
    assert set(found.rows) == rows
    assert set(found.memory) == set(ROWS)
    assert all(len(info["seconds"]) >= 5 for info in found.rows.values())
    assert found.machine["versions"]["matconv_fast"] == mcf.__version__


def test_the_named_workloads_are_there():
    wanted = {f"N{k}" for k in range(1, 5)} | {f"Q{k}" for k in range(1, 4)} | {"B8", "B64", "T256", "R", "F"}
    wanted |= {f"S{2**k}" for k in range(2, 12)} | {"D64", "D1024", "D4096", "D8192"}
    assert wanted <= WORKLOADS.keys()
    assert set(QUICK) <= WORKLOADS.keys()
    for name in (f"S{2**k}" for k in range(2, 12)):
        providers = {provider.name for provider in WORKLOADS[name].providers}
        assert providers >= {
            "matconv_fast", "equal_loop", "autograd_loop", "sgd", "addmm", "compile", "jax_scan", "jax_while"
        }  # fmt: skip


def test_what_is_written_is_what_was_measured(tmp_path):
    readme = (ROOT / "README.md").read_text()
    assert f"{report.README_MARKS[0]}\n{report.readme(committed())}\n{report.README_MARKS[1]}" in readme
    written = report.document(committed(), str(COMMITTED.relative_to(ROOT)))
    assert written == (ROOT / "docs" / "benchmarks.md").read_text()
    plots.draw(committed(), tmp_path)
    for name in re.findall(r"\((\w+\.svg)\)", written):
        assert (tmp_path / name).stat().st_size > 5_000
        assert "Date" not in (ROOT / "docs" / name).read_text()


def test_a_shortfall_has_a_cause():
    for outcome in outcomes(committed()):
        assert outcome.met is not False or outcome.cause, outcome.name


def test_a_row_runs_by_the_command_beside_it(tmp_path):
    out = tmp_path / "bench.json"
    name, expression = "N2-addmm", report.command("N2-addmm").split('"')[1]
    done = run("--benchmark-only", "-k", expression, f"--benchmark-json={out}", "--benchmark-min-rounds=2")
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert "tests/" not in done.stdout
    (row,) = json.loads(out.read_text())["benchmarks"]
    info = row["extra_info"]
    assert name in row["name"]
    assert info["workload"] == "N2"
    assert info["iterations"] > 2
    assert info["flop"] == 4 * 4**3
    assert info["versions"]["matconv_fast"] == mcf.__version__
    assert info["slower"][1] > 2, "against matconv_fast, which was run beside it"
    assert row["stats"]["median"] == pytest.approx(spread(info["seconds"])[1])


def test_a_provider_that_is_not_installed_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "jax.py").write_text("raise ImportError('not here')")
    monkeypatch.setitem(CHILD, "PYTHONPATH", str(tmp_path))
    done = run("--benchmark-only", "-rs", "-k", "[D64-jax_norm] or [D64-dot]", "--benchmark-min-rounds=1")
    assert "1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "JAX is not installed: pip install jax" in done.stdout


def test_plain_pytest_runs_no_benchmark():
    done = run("--collect-only", "benchmarks", "-k", "N2")
    assert "test_workloads.py" in done.stdout, "asked for by path they are found"
    done = run("--collect-only")
    assert "test_workload[" not in done.stdout
    assert "tests/test_benchmarks.py" in done.stdout


def test_everyone_has_a_turn_in_every_round():
    turns = []

    def turn(k: int) -> None:
        turns.append(k)
        time.sleep(1.2 * SAMPLE_SECONDS)

    sides = [Side(functools.partial(turn, k)) for k in range(3)]
    seconds = in_turns(sides, 4)
    assert [len(times) for times in seconds] == [4, 4, 4]
    assert all(t > 0 for times in seconds for t in times)
    assert turns == [*range(3), *range(3), 2, 1, 0, *range(3), 2, 1, 0]  # how long a call takes, then the rounds


def test_a_wrong_answer_is_no_row():
    def wrong(_: None) -> Side:
        raise MismatchError("not the same")

    good = Provider("matconv_fast", "ours", lambda _: Side(lambda: None), "")
    contest = Contest(Workload("w", "g", lambda: None, (good, Provider("theirs", "theirs", wrong))), ["theirs"], 1)
    assert isinstance(contest.entries["theirs"].error, MismatchError)
    assert contest.entries["matconv_fast"].seconds


def test_slower_code_is_found_and_a_slower_machine_is_not():
    machine = copy.deepcopy(committed())
    for row in machine.rows.values():
        row["seconds"] = [3 * t for t in row["seconds"]]
    assert not any(slower for _, _, slower in compare.compare(machine, committed()))
    code = copy.deepcopy(committed())
    row = code.rows["S64", "matconv_fast"]
    row["seconds"] = [3 * t for t in row["seconds"]]
    assert [name for name, _, slower in compare.compare(code, committed()) if slower] == ["S64"]


def test_the_fitted_exponent_is_that_of_a_power():
    points = [plots.Point("w", size, 1e-6 * size**1.5, None, 1.0) for size in (1, 10, 100, 1000)]
    assert plots.exponent(points) == pytest.approx(1.5)


def test_limits_are_compared_with_nothing():
    for workload in WORKLOADS.values():
        names = [provider.name for provider in workload.providers]
        assert len(set(names)) == len(names)
        for provider in workload.providers:
            assert provider.against in ("", *names), (workload.name, provider.name)
            assert not (provider.name in LIMITS and provider.against)
