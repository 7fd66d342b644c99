"""Processes with the package on their path: uninstalled, without network, each with a time limit and a log."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from measure import ROOT

BUILD = ROOT / "build" / "gpu"
RUN = str(ROOT / "benchmarks" / "gpu_run.py")
LIMITS = {"info": 45, "suite": 150, "benchmarks": 170, "sanitizer": 100}  # seconds of a stage at most
TIMED_OUT = 124  # exit status of a process that was stopped


class Children:
    """Processes with the package on their path, killed with all that they started when their time is over."""

    def __init__(self, dry: bool) -> None:
        self.site, self.end = BUILD / "site", time.monotonic() + sum(LIMITS.values())
        shutil.rmtree(self.site, ignore_errors=True)
        BUILD.mkdir(parents=True, exist_ok=True)
        unwanted = shutil.ignore_patterns("__pycache__")
        for source, target in (("matconv_fast", ""), ("kernels", "kernels")):  # as package_dir in setup.py has it
            shutil.copytree(ROOT / source, self.site / "matconv_fast" / target, ignore=unwanted)
        self.environment = {
            k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "MATCONV_FAST_BACKEND")
        }
        self.environment["PYTHONPATH"] = os.pathsep.join((str(self.site), str(ROOT / "benchmarks")))
        self.environment.setdefault("TRITON_CACHE_DIR", str(BUILD / "triton"))
        if dry:
            self.environment.update(TRITON_INTERPRET="1", MATCONV_FAST_BACKEND="triton", OMP_NUM_THREADS="1")

    def deadline(self, stage: str) -> float:
        """Of a stage that starts now."""
        return min(time.monotonic() + LIMITS[stage], self.end)

    def start(self, log: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """``python command``, in the directory of the package; `log` gets what it prints."""
        return self.start_any(log, sys.executable, *command, **environment)

    def start_any(self, log: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """The same of any program."""
        with (BUILD / f"{log}.log").open("wb") as file:
            return subprocess.Popen(
                command, cwd=self.site, env={**self.environment, **environment}, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip


def kill(process: subprocess.Popen[bytes]) -> None:
    """It, and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(process: subprocess.Popen[bytes], deadline: float) -> int:
    """Its exit status; TIMED_OUT if it was stopped at the deadline."""
    try:
        return process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        kill(process)
        return TIMED_OUT


def log_of(name: str, characters: int | None = None) -> str:
    """The end of it, without the paths of this machine."""
    text = (BUILD / f"{name}.log").read_text(errors="replace")
    text = text.replace(str(ROOT), ".").replace(sys.prefix, "<python>").replace(str(Path.home()), "~")
    return text[-characters:] if characters else text
