"""The scripts of examples/, run as a user runs them. What they print is checked, their timings never are."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the examples take their data from scikit-learn")

ROOT = Path(__file__).resolve().parent.parent

# The examples that print what they save, and how the rows of each table begin.
ROWS = {
    "sparse_autoencoder": ["time", "peak memory"],
    "learned_inverse": ["time, diag(1, 2, 3, 4)", "time, 2 I + rand(4, 4)", "peak memory"],
    "implicit_layer": ["time, ", "time, ", "time, ", "peak memory, ", "peak memory, ", "peak memory, "],
    "layerwise_reconstruction": ["time", "peak memory"],
}


@functools.cache
def printed(name: str) -> str:
    command = [sys.executable, f"examples/{name}.py", "--quick"]
    # beside other programs, threads that spin while they wait for each other make seconds into minutes
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def table(name: str, first: str) -> list[list[str]]:
    """Cells of the table whose header begins with `first`; columns are two spaces apart or more."""
    lines = printed(name).splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(first))
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[start:]]
    columns = len(rows[0]) if rows[0][0] else len(rows[0]) + 1
    end = next((k for k, row in enumerate(rows[1:], 1) if len(row) < columns), len(rows))
    return rows[1:end]


def test_the_page_shows_the_code_of_the_examples():
    sections = re.split(r"^## ", (ROOT / "docs" / "examples.md").read_text(), flags=re.M)[1:]
    assert [re.match(r"\[`(\w+)\.py`\]", section)[1] for section in sections] == [*ROWS, "profile_solve"]
    for section in sections[: len(ROWS)]:
        code = (ROOT / "examples" / re.match(r"\[`([\w.]+)`\]", section)[1]).read_text()
        (shown,) = re.findall(r"^```python\n(.*?)```", section, flags=re.M | re.S)
        assert shown in code or textwrap.indent(shown, " " * 4) in code


def numbers(name: str, pattern: str) -> list[float]:
    """The groups of the one place that matches."""
    match = re.search(pattern, printed(name))
    assert match, f"{pattern} in:\n{printed(name)}"
    return [float(text.replace(",", "")) for text in match.groups()]


def mebibytes(cell: str) -> float:
    return float(re.fullmatch(r"(?:< )?([\d.]+) MiB", cell)[1])


@pytest.mark.parametrize("name", ROWS)
def test_the_table_of_savings(name):
    rows = table(name, "medians of 5 pairs")
    assert len(rows) == len(ROWS[name])
    for (row, plain, here, ratio), begins in zip(rows, ROWS[name], strict=True):
        assert row.startswith(begins)
        if ratio == "-":  # too little to tell from nothing, or a system that keeps no count
            assert row.startswith("peak memory")
            continue
        unit = " MiB" if row.startswith("peak memory") else "s"
        assert plain.endswith(unit)
        assert here.endswith(unit)
        assert float(re.fullmatch(r"([\d.]+)x", ratio)[1]) > 0


def test_the_autoencoder_learns_sparse_codes():
    first, last = numbers("sparse_autoencoder", r"reconstruction loss: first ([\d.]+), after \d+ steps ([\d.]+)")
    assert last < 0.8 * first
    (zero,) = numbers("sparse_autoencoder", r"codes that are zero: (\d+)%")
    assert 50 < zero < 100


@pytest.mark.parametrize("M", ["diag(1, 2, 3, 4)", "2 I + rand(4, 4)"])
def test_the_loop_learns_the_inverse(M):
    pattern = re.escape(f"M = {M}: ") + r"[\d,]+ iterations, loss ([\d.]+) -> (\S+)\n.*\n.*inv\(M\)\|: (\S+),"
    first, last, off = numbers("learned_inverse", pattern)
    assert last < 1e-9 < first
    assert off < 1e-4


def test_one_call_makes_all_the_iterations():
    assert "mcf.solve makes the same 300 iterations in one call" in printed("learned_inverse")


def test_the_implicit_layer_learns():
    first, last, right = numbers("implicit_layer", r"training: loss ([\d.]+) -> ([\d.]+) in \d+ steps, ([\d.]+)%")
    assert last < 0.5 * first
    assert right > 80
    warm, cold = numbers("implicit_layer", r"iterations: (\d+) from the h of the step before, (\d+) from zeros")
    assert 0 < warm <= cold


def test_implicit_gradients_meet_the_exact_ones():
    rows = table("implicit_layer", "            iterations")
    iterations = [int(row[1]) for row in rows]
    assert iterations == sorted(set(iterations))
    assert len(rows) == 3
    for column in (3, 4):  # of the unrolled loop, and of the library
        errors = [float(row[column]) for row in rows]
        assert errors == sorted(errors, reverse=True)
    assert float(rows[-1][4]) < 1e-3


def test_the_memory_of_implicit_gradients_does_not_grow_with_the_iterations():
    rows = [row for row in table("implicit_layer", "medians of") if row[0].startswith("peak memory")]
    if rows[0][1] == "-":
        pytest.skip("the peak memory of a process is read from Linux's /proc")
    plain, here = ([mebibytes(row[k]) for row in rows] for k in (1, 2))
    assert plain[-1] > 1.5 * plain[0]
    assert here[-1] < 0.5 * plain[-1]
    assert max(here) < 2 * min(here) + 0.5


def test_the_correction_brings_a_quantised_layer_back():
    rows = table("layerwise_reconstruction", "                   bits a weight")
    names = ["float32", *(f"{bits} bits{also}" for bits in (2, 3, 4) for also in ("", ", corrected"))]
    assert [row[0] for row in rows] == names
    errors, accuracies = ([float(row[k].rstrip("%")) for row in rows] for k in (2, 3))
    assert errors[0] == 0
    for rounded, corrected in zip(errors[1::2], errors[2::2], strict=True):
        assert corrected < 0.5 * rounded
    for accuracy in (accuracies[0], *accuracies[2::2]):
        assert accuracy > 80
    first, last = numbers("layerwise_reconstruction", r"loss (\S+) -> (\S+)\n")
    assert last < 0.5 * first
