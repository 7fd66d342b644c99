"""The benchmarks: what they have, that they run, and that the written pages show what was measured."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")

import answers
import bench
import descents
import measure
import plots
import report
import torch
import workloads
from measure import GEMM, OURS, Call, Contender, MismatchError, NotRunError
from workloads import WORKLOADS

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "benchmarks" / "results" / "cpu-avx2" / "bench.json"
# one thread, as the other tests have the other cores; pytest-benchmark runs nothing where pytest-xdist is at work
CHILD = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {"OMP_NUM_THREADS": "1"}


@functools.cache
def committed() -> report.Results:
    return report.Results(COMMITTED)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    every = {**CHILD, **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=every, capture_output=True, text=True, timeout=300, check=False
    )


def sleeper(label: str, units: float = 1.0, error: Exception | None = None, against: str = OURS) -> Contender:
    def prepare(_: None) -> Call:
        if error is not None:
            raise error
        return Call(lambda: sum(range(100)), units)

    return Contender(label, prepare, against=against)


def test_the_named_workloads_are_there():
    wanted = {f"N{k}" for k in range(1, 5)} | {f"Q{k}" for k in range(1, 4)} | {"B8", "B8_shares", "B64", "T256", "R"}
    wanted |= {f"S{2**k}" for k in range(2, 12)} | {"F", "D64", "D1024", "D4096", "D8192", "call_step", "call_loss"}
    wanted |= {"A4", "A8", "A64", "A256", "A1024", "Areg", "Awide", "Akfac", "Agptq", "Apoisson", "Asamples"}
    assert wanted <= WORKLOADS.keys()
    for name in (f"S{2**k}" for k in range(2, 12)):
        loops = {"equal_loop", "autograd_loop", "sgd", "addmm", "compile", "jax_scan", "jax_while", "gemms"}
        assert WORKLOADS[name].contenders.keys() >= {OURS, GEMM, *loops}
    for work in WORKLOADS.values():
        assert GEMM in work.contenders, "what bench-compare divides by"
        for contender in work.contenders.values():
            assert contender.against in ("", *work.contenders)


def test_every_workload_has_committed_times():
    found = committed()
    assert list(found.workloads) == list(WORKLOADS)
    assert set(found.memory) == {name for name, work in WORKLOADS.items() if work.memory}
    for name, facts in found.workloads.items():
        assert facts["contenders"].keys() <= WORKLOADS[name].contenders.keys()
        assert all(len(row["seconds"]) >= 5 for row in facts["contenders"].values())


def test_the_pages_show_the_committed_results(tmp_path):
    for page, text in committed().pages(str(COMMITTED.relative_to(ROOT))).items():
        assert page.read_text() == text, "python benchmarks/bench.py --render"
    plots.draw(committed(), tmp_path)
    for name in re.findall(r"\((\w+\.svg)\)", (ROOT / "docs" / "benchmarks.md").read_text()):
        assert (tmp_path / name).stat().st_size > 5_000
        assert "Date" not in (ROOT / "docs" / name).read_text()


def test_no_row_stands_twice():
    rows = [line for line in committed().targets().splitlines() if not line.startswith("| ---")]
    assert len({tuple(line.split("|")[1:3]) for line in rows}) == len(rows)


def test_a_missed_target_has_a_cause():
    for outcome in committed().outcomes():
        assert outcome.met is not False or outcome.cause, outcome.target["name"]


def test_every_target_names_what_is_measured():
    for target in report.TARGETS["cpu"]:
        for name in target["workloads"]:
            assert target["against"] in ("the size of R", *WORKLOADS[name].contenders)


def test_a_ratio_says_how_many_times_faster_ours_is():
    found = copy.deepcopy(committed())
    for who, seconds in ((OURS, 2.0), ("addmm", 6.0)):
        found.workloads["S64"]["contenders"][who]["seconds"] = [seconds] * 5
    assert found.faster("S64", "addmm") == [3.0] * 5
    assert "3.00x" in next(line for line in found.everyone("S64").splitlines() if "addmm" in line)
    target = {"name": "S64", "workloads": ["S64"], "against": "addmm", "at_least": 3.1}
    outcome = found.outcome(target)
    assert outcome is not None
    assert not outcome.met
    rate = found.outcome({**target, "against": GEMM})
    assert rate is not None
    assert rate.cells[2].endswith("GFLOP/s"), "limits are compared by their rates"


def test_slower_code_is_found_and_a_slower_machine_is_not():
    machine = copy.deepcopy(committed())
    for facts in machine.workloads.values():
        for row in facts["contenders"].values():
            row["seconds"] = [3 * t for t in row["seconds"]]
    found = report.compare(machine, committed())
    assert len(found) > 30
    assert not any(slower for _, _, slower in found)
    code = copy.deepcopy(committed())
    row = code.workloads["S64"]["contenders"][OURS]
    row["seconds"] = [3 * t for t in row["seconds"]]
    assert [name for name, _, slower in report.compare(code, committed()) if slower] == ["S64"]


def test_everyone_has_a_turn_in_every_round():
    turns = []
    found = measure.in_turns([lambda k=k: turns.append(k) or k for k in range(3)], 4)
    assert found == [[k] * 4 for k in range(3)]
    assert turns == [0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0]


def test_a_time_is_per_unit():
    one, ten = (measure.timed(sleeper("", units).prepare(None), 0.01) for units in (1.0, 10.0))
    assert 4 < one / ten < 25


def test_a_contender_that_fails_does_not_stop_the_others():
    def wrong(_: None) -> None:
        raise MismatchError("not the same")

    contenders = {
        OURS: sleeper("ours", against=""), "absent": sleeper("absent", error=NotRunError("not installed")),
        "wrong": Contender("wrong", sleeper("").prepare, wrong),
    }  # fmt: skip
    found = measure.contest(None, contenders, 2, functools.partial(measure.timed, seconds=0.001))
    assert len(found[OURS]["seconds"]) == 2
    assert found["absent"]["not_run"] == "not installed"
    assert found["wrong"]["error"] == "MismatchError: not the same"
    assert "seconds" not in found["wrong"], "an answer that differs is not timed"
    data = {"workloads": {"w": {"contenders": found}}}
    assert report.errors(data) == ["w, wrong: MismatchError: not the same"]


RUN = ["N2", "Q3", "D64", "call_step", "call_loss_backward", "batch_10", "A256", "Akfac512", "Agptq", "Asamples"]


@pytest.mark.parametrize("name", RUN)
def test_a_workload_runs(name):
    """Those contenders that compile nothing."""
    work = WORKLOADS[name]
    mine = {who: c for who, c in work.contenders.items() if not who.startswith(("jax", "compile", "lineax"))}
    found = measure.contest(work.setup(), mine, 1, functools.partial(measure.timed, seconds=1e-4))
    assert all(len(facts.get("seconds", [])) == 1 for facts in found.values()), found
    if name == "N2":
        assert found["addmm"]["seconds"][0] > 2 * found[OURS]["seconds"][0]
        assert found[OURS]["status"] == {"MAX_ITERATIONS": 1}


@pytest.mark.parametrize("name", ["A256", "Akfac512", "Agptq", "Asamples"])
def test_an_answer_with_too_large_a_residual_is_refused(name):
    work = WORKLOADS[name].setup()
    X = work.whole()[1] @ torch.linalg.pinv(work.whole()[0].double()).to(work.M.dtype)
    found = [torch.linalg.inv(M.double()).float() for M in work.drift] if work.drift else X
    answers.check(work, found)
    off = 1 + 20 * max(work.rtol, 1e-3 * (work.Y is not None)) ** (1 if work.Y is None else 0.5)
    with pytest.raises(MismatchError, match="times what it may be"):
        answers.check(work, [t if k else off * t for k, t in enumerate(found)] if work.drift else off * X)


def test_another_momentum_is_another_answer():
    work = WORKLOADS["N2"].setup()
    descents.check(work, descents.addmm_loop)
    with pytest.raises(MismatchError, match="differs from float64"):
        descents.check(work, lambda few: descents.addmm_loop(replace(few, momentum=0.89)))


def test_both_versions_are_timed_in_turns(tmp_path):
    """Here the other one is a link to the same package."""
    (tmp_path / "matconv_fast").symlink_to(Path(measure.mcf.__file__).parent)
    (growth,) = bench.against(tmp_path, [("call_loss", OURS)], 2)
    assert growth[0] == "call_loss"
    assert 0.1 < growth[1] < 10


def test_the_other_version_is_another_one(tmp_path):
    with measure.process(tmp_path) as pool:
        assert pool.submit(eval, "__import__('sys').path[0]").result() == str(tmp_path)
    assert str(tmp_path) not in sys.path


def test_a_row_runs_on_pytest_benchmarks_clock(tmp_path):
    out = tmp_path / "bench.json"
    options = ("--benchmark-min-rounds=2", "--benchmark-max-time=0.01", "-p", "no:cacheprovider", "-rs")
    (tmp_path / "jax.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = run(
        "-m", "pytest", "-q", "--benchmark-only", "-k", "N2-addmm or N2-jax_scan or N2-matconv_fast]",
        f"--benchmark-json={out}", *options, PYTHONPATH=path,
    )  # fmt: skip
    assert "2 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "JAX is not installed: pip install jax" in done.stdout
    rows = json.loads(out.read_text())["benchmarks"]
    assert {row["group"] for row in rows} == {"N2"}
    assert len({row["extra_info"]["iterations"] for row in rows}) == 1, "everyone makes as many"
    assert all(row["stats"]["rounds"] >= 2 for row in rows)


def test_plain_pytest_runs_no_benchmark():
    (paths,) = re.findall(r"^testpaths = .*", (ROOT / "pyproject.toml").read_text(), re.M)
    assert "benchmarks" not in paths


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_that_of_one_call():
    def prepare(megabytes: int) -> Call:
        def call() -> tuple:
            measure.torch.ones(megabytes * 2**18).sum()
            return (measure.torch.ones(2**18),)

        return Call(call)

    extra = measure.extra_bytes(Contender("", prepare), 1, 64)
    assert 60 < extra / 2**20 < 70


def test_the_gpu_benchmarks_import_and_have_their_targets():
    pytest.importorskip("triton")
    import gpu

    names = {work.name: work for work in gpu.rows()}
    for target in report.TARGETS["gpu"]:
        for name in target["workloads"]:
            assert target["against"] in ("the size of R", *names[name].contenders)
    assert {"L4096", "T256", "B64", "F"} <= names.keys()
    assert workloads.load("gpu")["L4096"].dtype == "bfloat16"


def test_the_benchmarks_are_small():
    files = list((ROOT / "benchmarks").glob("*.py"))
    assert len(files) <= 10
    assert sum(len(file.read_text().splitlines()) for file in files) <= 1500
