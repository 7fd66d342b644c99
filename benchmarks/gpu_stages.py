"""The stages of `gpu.py`: each gives what goes into the JSON file, ``exit`` 0 where nothing failed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from gpu_children import BUILD, ROOT, RUN, TIMED_OUT, Children, finish, kill, log_of

ROW_LIMIT = 60  # seconds of one row: a kernel that hangs costs no more
CRASHED = 3  # exit status of gpu_run.py after a row that left the device unusable

Stage = dict[str, Any]


def info(children: Children) -> Stage:
    """Versions and device, from a process of its own, and ``python -m matconv_fast info``."""
    deadline = children.deadline("info")
    processes = {
        "info": children.start("info", "-m", "matconv_fast", "info"),
        "facts": children.start("facts", RUN, "facts"),
    }
    codes = {name: finish(process, deadline) for name, process in processes.items()}
    stage: Stage = {"exit": max(codes.values()), "text": log_of("info", 2_000)}
    if codes["facts"] == 0:
        stage |= json.loads(log_of("facts").strip().splitlines()[-1])
    else:
        stage["failed"] = log_of("facts", 2_000)
    query = "driver_version,power.limit,clocks.max.sm,clocks.max.mem"
    try:
        smi = subprocess.run(
            ("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"), capture_output=True, text=True, timeout=20
        )  # fmt: skip
        lines = smi.stdout.strip().splitlines() if smi.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        lines = []
    if lines:
        stage["driver"] = dict(zip(query.split(","), lines[0].split(", "), strict=False))
    return stage


def suite(children: Children) -> Stage:
    """The tests, in several processes since most of their time is compiling; and the run that `sanitizer` repeats."""
    deadline, count = children.deadline("suite"), max(1, min(8, (os.cpu_count() or 2) // 2))
    arguments = ["-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "--noconftest"]
    # a plugin of the image may warn of its own; that no warning hides a missing kernel, test_gpu.py asserts
    arguments += ["-p", "no:cacheprovider", "-p", "gpu_shard", "-W", "default"]
    arguments += [str(ROOT / "tests" / "test_triton.py"), str(ROOT / "tests" / "test_gpu.py")]
    short = children.start("short", RUN, "short")
    processes = []
    for k in range(count):
        report = BUILD / f"suite-{k}.xml"
        report.unlink(missing_ok=True)
        shard = {"MATCONV_FAST_SHARD": f"{k}/{count}", "OMP_NUM_THREADS": "2"}
        processes.append(children.start(f"suite-{k}", *arguments, f"--junitxml={report}", **shard))
    codes = [finish(process, deadline) for process in processes]
    codes = [0 if code == 5 else code for code in codes]  # 5: a shard without tests
    stage: Stage = {"exit": max(codes), "processes": count, "passed": 0, "failed": [], "skipped": 0}
    stage["short"] = finish(short, deadline)
    if stage["short"]:
        stage["failed"].append(f"gpu_run.py short, exit {stage['short']}: {log_of('short', 1_000)}")
    for k, code in enumerate(codes):
        report = BUILD / f"suite-{k}.xml"
        if not report.exists():
            stage["failed"].append(f"process {k}, exit {code}: {log_of(f'suite-{k}', 1_000)}")
            continue
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}"
            wrong = next((e for e in case if e.tag in ("failure", "error")), None)
            if wrong is not None:
                stage["failed"].append(f"{name}: {(wrong.get('message') or '')[:300]}")
            elif case.find("skipped") is not None:
                stage["skipped"] += 1
            else:
                stage["passed"] += 1
    stage["exit"] = stage["exit"] or int(bool(stage["failed"]) or not stage["passed"])
    return stage


def benchmarks(children: Children, rounds: int, wanted: str, dry: bool) -> Stage:
    """The rows, in one process as long as it lives: it is started again behind a row that hung or broke the device."""
    out, deadline = BUILD / "rows.jsonl", children.deadline("benchmarks")
    out.write_text("")
    found: list[dict[str, Any]] = []
    first, codes, goes_on = 0, [], True
    while goes_on and time.monotonic() < deadline:
        options = ["--first", str(first), "--rounds", str(rounds), "--rows", wanted, *(["--dry-run"] if dry else [])]
        log = f"rows-{len(codes)}"
        codes.append(_rows(children.start(log, RUN, "rows", "--out", str(out), *options), out, deadline))
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        starts = [line for line in lines if "start" in line]
        found = [line for line in lines if "start" not in line]
        if len(starts) > len(found):  # the last one took the process with it
            reason = "the time was over" if codes[-1] == TIMED_OUT else f"exit {codes[-1]}: {log_of(log, 300)}"
            found.append({"name": starts[-1]["name"], "against": starts[-1]["against"], "failed": reason})
            with out.open("a") as file:
                file.write(json.dumps(found[-1]) + "\n")
        elif codes[-1] not in (0, 1, CRASHED):
            found.append({"name": "benchmarks", "against": "", "failed": f"exit {codes[-1]}: {log_of(log, 1_000)}"})
        goes_on = codes[-1] not in (0, 1) and bool(starts) and starts[-1]["start"] >= first
        first = starts[-1]["start"] + 1 if starts else 0
    failed = any("failed" in row for row in found) or goes_on
    return {"exit": int(failed), "finished": not goes_on, "processes": codes, "rounds": rounds, "rows": found}


def _rows(process: subprocess.Popen[bytes], out: Path, deadline: float) -> int:
    """Its exit status; it is stopped when a row takes too long."""
    moved, size = time.monotonic(), out.stat().st_size
    while process.poll() is None:
        now = time.monotonic()
        if out.stat().st_size != size:
            moved, size = now, out.stat().st_size
        if now > min(deadline, moved + ROW_LIMIT):
            kill(process)
            return TIMED_OUT
        time.sleep(0.2)
    return process.returncode


def sanitizer(children: Children) -> Stage:
    """Memcheck over all kernels with every tensor in memory of its own; racecheck over ours alone."""
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{place}/bin" for place in places if place)])
    binary = shutil.which("compute-sanitizer", path=path)
    if binary is None:
        return {"exit": 0, "memcheck": "not found", "racecheck": "not found"}
    deadline = children.deadline("sanitizer")
    stage: Stage = {"exit": 0}
    sources = "".join(file.read_text() for file in sorted(ROOT.glob("kernels/gpu/*.py")))
    kernels = re.findall(r"^def (_\w+_kernel)\(", sources, re.M)
    common = [binary, "--error-exitcode", "9", "--target-processes", "all", "--print-limit", "20"]
    memcheck = [*common, "--tool", "memcheck", "--report-api-errors", "no"]
    racecheck = [*common, "--tool", "racecheck", *(f for name in kernels for f in ("--kernel-name", f"kne={name}"))]
    subject = sys.executable, RUN, "short"
    processes = {
        "memcheck": children.start_any("memcheck", *memcheck, *subject, PYTORCH_NO_CUDA_MEMORY_CACHING="1"),
        "racecheck": children.start_any("racecheck", *racecheck, *subject),
    }
    for name, process in processes.items():
        code, text = finish(process, deadline), log_of(name)
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
        if "Device not supported" in text:
            stage[name] = "not supported on this machine"
            continue
        clean = code == 0 and summary and all(re.search(r"SUMMARY: 0 (errors|hazards)", line) for line in summary)
        stage[name] = summary[-1] if summary else f"no summary, exit {code}"
        if not clean:
            stage["exit"] = stage["exit"] or code or 1
            stage[f"{name}_log"] = text[:3_000]
    return stage
