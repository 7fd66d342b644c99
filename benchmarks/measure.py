"""Contenders, timing in turns, and peak memory."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

import matconv_fast as mcf

ROOT = Path(__file__).resolve().parent.parent
OURS, GEMM, COPY = "matconv_fast", "mm1024", "copy"
SAMPLE_SECONDS = 0.04  # shorter calls are repeated until they fill this: a scheduler's tick does not show in it

# Compile in every run: otherwise `first_s` would be the time of a disk cache.
_compiled = tempfile.TemporaryDirectory(prefix="benchmarks-inductor-", ignore_cleanup_errors=True)
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", _compiled.name)


class MismatchError(Exception): ...  # a contender computed something else


class NotRunError(Exception): ...  # it cannot run here; the message says why


@dataclass(frozen=True)
class Call:
    """What is timed. ``report``: facts for the results file, of the first, unmeasured run's result; or it raises."""

    run: Callable[[], Any]
    units: float = 1  # iterations, FLOP, ... of one run
    report: Callable[[Any], dict[str, Any]] = lambda _: {}
    threads: int | None = None  # of torch; None: all
    graph: bool = False  # captured, on a GPU


@dataclass(frozen=True)
class Contender:
    """``check`` compares the answer for some inputs with float64, and raises; None: there is nothing to compare."""

    label: str
    prepare: Callable[[Any], Call]
    check: Callable[[Any], None] | None = None
    against: str = OURS  # "" for ours, and for limits of the machine
    unit: str = ""  # of a limit's times: FLOP or byte

    def start(self, inputs: Any) -> tuple[Call, dict[str, Any]]:
        """Check, prepare and run once: ``first_s`` has compilation and warm-up in it."""
        start = time.perf_counter()
        if self.check is not None:
            self.check(inputs)
        call = self.prepare(inputs)
        result = call.run()
        seconds = time.perf_counter() - start
        return call, {"first_s": seconds, **call.report(result)}


CONTENDERS: dict[str, dict[str, Contender]] = {}  # by kind of workload, then by name


def register(kinds: str, name: str, contender: Contender) -> None:
    for kind in kinds.split():
        CONTENDERS.setdefault(kind, {})[name] = contender


def near(what: str, found: Tensor, truth: Tensor, rtol: float) -> None:
    """Raise unless ``||found - truth|| <= rtol ||truth||``."""
    miss = torch.linalg.vector_norm(found.double() - truth) / torch.linalg.vector_norm(truth)
    if not miss <= rtol:
        raise MismatchError(f"{what} differs from float64 by {miss:.1e}, relatively; allowed: {rtol:.0e}")


def timed(call: Call, seconds: float = SAMPLE_SECONDS) -> float:
    """Seconds per unit: the median over the blocks of one `torch.utils.benchmark.Timer` measurement."""
    timer = Timer("run()", globals={"run": call.run}, num_threads=call.threads or torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds).median / call.units


def in_turns(calls: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """What each call returns, by round: all have a turn in every round, in an order that reverses each time."""
    found: list[list[float]] = [[] for _ in calls]
    for k in range(rounds):
        for j in range(len(calls)) if k % 2 == 0 else reversed(range(len(calls))):
            found[j].append(calls[j]())
    return found


def spread(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = statistics.quantiles(values * (1 if len(values) > 1 else 2), n=4, method="inclusive")
    return low, middle, high


def contest(inputs: Any, contenders: dict[str, Contender], rounds: int, timer: Any = timed) -> dict[str, Any]:
    """Check every contender, then time them in turns: facts by name, with ``seconds`` per unit and round.

    A contender that fails has ``error`` or ``not_run`` instead, and does not stop the others.
    """
    found: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    for name, contender in contenders.items():
        found[name] = {"label": contender.label, "against": contender.against, "unit": contender.unit}
        try:
            calls[name], facts = contender.start(inputs)
            found[name] |= facts
        except NotRunError as reason:
            found[name]["not_run"] = str(reason)
        except Exception as error:  # the others still run
            found[name]["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    times = in_turns([lambda call=call: timer(call) for call in calls.values()], rounds)
    for name, mine in zip(calls, times, strict=True):
        found[name]["seconds"] = mine
    return found


def extra_bytes(contender: Contender, small: Any, inputs: Any) -> int:
    """Peak memory of one call in this process, beyond its inputs and results. A small call before loads the code."""
    peak_bytes = runpy.run_path(str(ROOT / "examples" / "_measure.py"))["peak_bytes"]  # one for examples and benchmarks
    contender.prepare(small).run()
    run, results = contender.prepare(inputs).run, []
    peak = peak_bytes(lambda: results.append(run()))
    if peak is None:
        raise NotRunError("peak memory needs Linux's /proc")
    held = (results[0].X,) if isinstance(results[0], mcf.Solution) else results[0]
    return peak - sum(t.nbytes for t in held)


def process(library: Path | None = None) -> ProcessPoolExecutor:
    """A process of its own, with another matconv_fast where `library` is a folder that has one."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    sys.path[:0] = [str(library)] if library else []
    pool.submit(int).result()  # it starts here, and takes over this sys.path
    del sys.path[: int(library is not None)]
    return pool
