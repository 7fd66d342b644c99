"""Metadata, `info`, the command line, and what an installation holds with and without a compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from source_tree import ROOT, sources

import matconv_fast as mcf
from matconv_fast.__main__ import main
from matconv_fast.kernels import contract


def test_every_public_name_has_a_documented_example():
    for name in mcf.__all__:
        document = getattr(mcf, name).__doc__
        assert document, name
        if name not in ("ConvergenceError", "Solution"):
            assert ">>>" in document, name


def test_codes_are_those_of_the_contract():
    codes = {status.name: status.value for status in mcf.Status}
    assert codes | {"RUNNING": contract.RUNNING} == contract.STATUS_CODES
    assert len(set(contract.STATUS_CODES.values())) == len(contract.STATUS_CODES)
    for name, code in contract.STATUS_CODES.items():
        assert getattr(contract, name) == code


def test_what_cpp_reads_of_the_contract_is_up_to_date():
    command = [sys.executable, str(ROOT / "tools" / "write_contract.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_stale_header_is_found(tmp_path):
    for file in ("tools/write_contract.py", "kernels/contract.py", "kernels/cpu/contract.h"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    command = [sys.executable, str(tmp_path / "tools" / "write_contract.py"), "--check"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    copy = tmp_path / "kernels" / "contract.py"
    copy.write_text(copy.read_text().replace("BAIL_FACTOR = 1e10", "BAIL_FACTOR = 1e11"))
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_importing_is_light():
    code = (
        "import sys, matconv_fast; print([m for m in ('plotly', 'selenium', 'triton', 'pandas') if m in sys.modules])"
    )
    assert run_python(code).stdout.strip() == "[]"


def run_python(code: str, *, environment: dict[str, str] | None = None, cwd: Path | None = None, **options):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **(environment or {})}, cwd=cwd or ROOT, text=True,
        capture_output=True, check=True, **options,
    )  # fmt: skip


def test_info_names_the_backend_of_each_device(force):
    force("cpu")
    shown = str(mcf.info())
    assert f"matconv_fast {mcf.__version__}" in shown
    assert torch.__version__ in shown
    assert mcf.info().version == mcf.__version__
    assert mcf.info().devices[0].backend.startswith("cpu (C++ kernels, ")
    assert "cuda" in shown
    force("reference")
    assert mcf.info().devices[0].backend.startswith("reference")
    assert mcf.info().forced == "reference"


def test_info_names_the_algorithm_that_ran_last():
    code = """
import torch, matconv_fast as mcf
print(mcf.info().devices[0].last)
mcf.solve(torch.eye(4), torch.ones(2, 4), solver=mcf.HeavyBall())
print(mcf.info().devices[0].last)
mcf.solve(torch.eye(4).expand(50, 4, 4), solver=mcf.HeavyBall())
print(mcf.info())
print(mcf.info().devices[1].last)
"""
    shown = run_python(code, environment={"MATCONV_FAST_BACKEND": "cpu"}).stdout.splitlines()
    assert shown[:2] == ["None", "tiny (cpu)"]
    assert [line.split(maxsplit=2) for line in shown if "last solve" in line] == [["last", "solve:", "lanes (cpu)"]]
    assert shown[-1] == "None"


@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_every_instruction_set_that_the_processor_has_gives_the_answer(isa):
    """In a process of its own, since the choice is made once; without the instruction set, generic runs."""
    code = """
import torch, matconv_fast as mcf
for n in (3, 4, 9, 20):
    for dtype in (torch.float32, torch.float64):
        M = torch.diag(torch.linspace(1, 2, n, dtype=dtype)) + 0.01
        X = mcf.solve(M, rtol=1e-5).X
        assert torch.allclose(X @ M, torch.eye(n, dtype=dtype), atol=1e-3), (n, dtype)
print(mcf.info().devices[0].backend)
"""
    shown = run_python(code, environment={"MATCONV_FAST_ISA": isa, "MATCONV_FAST_BACKEND": "cpu"}).stdout
    assert shown.startswith("cpu (C++ kernels, ")
    if isa == "generic":
        assert "generic" in shown


def test_an_unknown_instruction_set_is_refused_with_the_list():
    shown = run_python("import matconv_fast as mcf; print(mcf.info())", environment={"MATCONV_FAST_ISA": "mmx"}).stdout
    assert "MATCONV_FAST_ISA must be one of generic, avx2, avx512, got 'mmx'" in shown


def test_command_line_info(capsys):
    main(["info"])
    assert "backend: cpu (C++ kernels" in capsys.readouterr().out


def test_command_line_errors(capsys, tmp_path):
    for arguments, message in (
        (["demo", "--pairs", "0"], "--pairs must be at least 1, got 0"),
        (["demo", "--report", str(tmp_path / "no" / "r.html")], "--report: no directory"),
        ([], "required"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_the_demo_prints_its_table_and_writes_its_results(capsys, tmp_path, monkeypatch):
    from matconv_fast import _demo, _workloads

    short = [_workloads.NotebookRun(r.name, r.M, r.lr, r.momentum, 50) for r in _workloads.notebook_runs()]
    monkeypatch.setattr(_workloads, "notebook_runs", lambda device: short)
    monkeypatch.setattr(_demo, "REPEATS", 1)
    main(["demo", "--pairs", "1", "--report", str(tmp_path / "r.html"), "--json", str(tmp_path / "deep" / "r.json")])
    shown = capsys.readouterr().out
    for name in ("N1", "N2", "N3", "N4", "Q1", "Q2", "Q3", "plain loop", "ratio", "MAX_ITERATIONS"):
        assert name in shown
    results = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert [row["workload"] for row in results["rows"]] == ["N1", "N2", "N3", "N4", "Q1", "Q2", "Q3"]
    assert results["rows"][0]["first_loss"] == pytest.approx(1.6650, abs=5e-5)
    assert max(row["difference"] for row in results["rows"]) < 1e-5
    assert results["versions"]["torch"] == torch.__version__
    assert (tmp_path / "r.html").stat().st_size > 1_000_000  # plotly is inside


def test_the_demos_page_shows_the_committed_result():
    from matconv_fast import _demo

    results = json.loads((ROOT / "benchmarks" / "results" / "cpu-avx2" / "demo.json").read_text())
    assert _demo.markdown_table(results["rows"]) in (ROOT / "docs" / "demo.md").read_text()
    assert results["versions"]["matconv_fast"] == mcf.__version__


needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="builds from what git tracks")


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory) -> Path:
    """An installation from a copy of the sources, on a machine whose compiler fails."""
    target = tmp_path_factory.mktemp("site")
    copy = copied_sources(tmp_path_factory.mktemp("source"))
    environment = {**os.environ, "CC": "false", "CXX": "false"}
    command = ["install", "--quiet", "--no-build-isolation", "--no-deps", "--target", str(target), str(copy)]
    subprocess.run([sys.executable, "-m", "pip", *command], env=environment, check=True, capture_output=True)
    return target


def copied_sources(target: Path) -> Path:
    """The files that git tracks: no build products, no extension."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    return target


@needs_git
def test_without_a_compiler_it_solves_on_the_reference_and_says_so(without_compiler, tmp_path):
    code = """
import warnings, torch, matconv_fast as mcf
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    sol = mcf.solve(torch.diag(torch.tensor([1.0, 2.0])), throw=True)
    mcf.solve(torch.eye(2))
assert torch.allclose(sol.X, torch.diag(torch.tensor([1.0, 0.5])), atol=1e-4)
assert [str(w.message) for w in caught if w.category is RuntimeWarning][0].startswith(
    "matconv_fast: on the CPU the PyTorch reference runs: the C++ extension is not built"), caught
assert len(caught) == 1
print(mcf.__file__)
print(mcf.info())
"""
    # -P and an empty directory: neither this checkout nor its editable installation may be found first
    shown = run_python(code, environment={"PYTHONPATH": str(without_compiler)}, cwd=tmp_path).stdout
    assert str(without_compiler) in shown
    assert "backend: reference" in shown
    assert "found no C++ compiler, or no PyTorch to build against" in shown
    assert not list(without_compiler.rglob("*.so"))


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[list[str], list[str]]:
    """Names of the files in a wheel and in an sdist, built without the extension."""
    copy, out = copied_sources(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("dist")
    environment = {**os.environ, "CC": "false", "CXX": "false"}
    code = (
        f"import sys; from setuptools import build_meta as b; b.build_wheel({str(out)!r}); b.build_sdist({str(out)!r})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=copy, env=environment, check=True, capture_output=True)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as z, tarfile.open(sdist) as t:
        return z.namelist(), [name.partition("/")[2] for name in t.getnames()]


@needs_git
def test_the_wheel_holds_every_subpackage_and_the_sources(distributions):
    names = distributions[0]
    for file in sources():
        relative = str(file.relative_to(ROOT))
        assert (f"matconv_fast/{relative}" if relative.startswith("kernels") else relative) in names
    for file in ROOT.glob("kernels/cpu/*.[ch]*"):
        assert f"matconv_fast/kernels/cpu/{file.name}" in names
    assert "matconv_fast/py.typed" in names
    assert not any(name.startswith(("kernels/", "tests/")) for name in names)


@needs_git
def test_the_sdist_builds_and_tests(distributions):
    names = distributions[1]
    for wanted in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt"):
        assert wanted in names
    for pattern in (
        "kernels/**/*.py",
        "kernels/cpu/*.[ch]*",
        "matconv_fast/**/*.py",
        "tests/*.py",
        "benchmarks/**/*.json",
    ):
        for file in ROOT.glob(pattern):
            assert str(file.relative_to(ROOT)) in names
