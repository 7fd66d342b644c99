"""Paired timing on a GPU, and the check before it: samples between events, outputs against float64."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measure import Side
from torch import Tensor

SAMPLE_SECONDS = 0.02  # shorter calls are repeated up to this, which is long beside the first launch and an event
MOST_REPEATS = 2_000


class MismatchError(Exception):
    """A side of a row computed something else."""


@dataclass(frozen=True)
class Difference(Side):
    """A side whose fixed cost is taken off: `call` makes `units` more iterations than `short` does."""

    short: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Setting:
    """Where the rows are measured: on a GPU by events, or at tiny sizes in Triton's interpreter by the wall clock."""

    device: torch.device

    @property
    def dry(self) -> bool:
        """Whether this only tries the rows out."""
        return self.device.type != "cuda"

    def size(self, real: int, dry: int) -> int:
        """Of a workload."""
        return dry if self.dry else real

    def seconds(self, call: Callable[[], Any], repeats: int) -> float:
        """Of `repeats` calls, from an idle device to the end of all that they launched."""
        if self.dry:
            begin = time.perf_counter()
            for _ in range(repeats):
                call()
            return time.perf_counter() - begin
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """`call` as the replay of a CUDA graph: without the host's time."""
        if self.dry:
            return call
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # compiles, loads libraries, makes what is cached
            call()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay


def paired(setting: Setting, prepare: Callable[[], tuple[Side, Side]], rounds: int) -> list[tuple[float, float]]:
    """Seconds per unit of both sides, in turns, the order changing from round to round; unmeasured calls go before."""
    sides = prepare()
    repeats = [_repeats(setting, side) for side in sides]
    pairs = []
    for k in range(rounds):
        found = [0.0, 0.0]
        for j in (0, 1) if k % 2 == 0 else (1, 0):
            found[j] = _sample(setting, sides[j], repeats[j])
        pairs.append((found[0], found[1]))
    return pairs


def _repeats(setting: Setting, side: Side) -> int:
    result = side.call()
    if side.check is not None:
        side.check(result)
    if setting.dry:
        return 1
    side.call()
    return min(MOST_REPEATS, max(1, math.ceil(SAMPLE_SECONDS / setting.seconds(side.call, 1))))


def _sample(setting: Setting, side: Side, repeats: int) -> float:
    """Seconds per unit; a call before brings the clock up, and this side's data into the caches."""
    if not setting.dry:
        setting.seconds(side.call, max(1, repeats // 10))
    spent = setting.seconds(side.call, repeats)
    if isinstance(side, Difference) and side.short is not None:
        spent -= setting.seconds(side.short, repeats)
    return spent / repeats / side.units


def agree(what: str, truth: Tensor, eager: Tensor, ours: Tensor, little: float = 1e-6) -> None:
    """Raise unless ours misses the truth by at most twice what eager PyTorch does, and a little of the truth's norm."""
    norm = torch.linalg.vector_norm(truth)
    misses = [float(torch.linalg.vector_norm(t.double() - truth) / norm) for t in (eager, ours)]
    if not misses[1] <= 2 * misses[0] + little:
        raise MismatchError(f"{what} is {misses[1]:.1e} from the truth, relatively; eager PyTorch {misses[0]:.1e}")


def extra_bytes(call: Callable[[], Any]) -> float:
    """Peak of the device memory that `call` takes beyond what it returns."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = call()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before - sum(t.nbytes for t in kept))
