"""Timing in turns inside one process, the median of a ratio and its quartiles, amounts as text."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent

SAMPLE_SECONDS = 0.04  # shorter calls are repeated up to this: the clock and a scheduler's tick do not show in it
LONG_SECONDS = 1.0
SETTLE = 0.1  # and a tenth of them go before unmeasured: the other side's threads spin on, its data are in the caches


class NotRunError(Exception):
    """A row cannot be measured here; says why."""


@dataclass(frozen=True)
class Side:
    """A call, and how many units (iterations, FLOP, calls) one of it makes.

    ``check`` looks at the first, unmeasured result, raises, or says what is to be reported of it. ``threads``: torch's,
    where not all.
    """

    call: Callable[[], Any]
    units: float = 1
    check: Callable[[Any], dict[str, Any] | None] | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Figure:
    """What is asked for.

    ``"speedup"``: theirs over ours at least `value`; ``"share"``: the same, shown in percent; ``"cost"``: ours over
    theirs at most `value`; ``"time"``: ours at most `value` seconds, the ratio (theirs over ours) for information.
    `value` None asks for nothing.
    """

    kind: str
    value: float | None = None

    def ratio(self, ours: float, theirs: float) -> float:
        """Of one pair."""
        return ours / theirs if self.kind == "cost" else theirs / ours

    def is_met(self, ours: float, ratio: float) -> bool | None:
        """By the medians."""
        if self.value is None:
            return None
        return {"time": ours <= self.value, "cost": ratio <= self.value}.get(self.kind, ratio >= self.value)

    def show(self, ratio: float) -> str:
        """A ratio as text."""
        if self.kind == "share":
            return f"{ratio:.1%}"
        digits = 0 if ratio >= 100 else 1 if ratio >= 10 else 2 if self.kind != "cost" else 3
        return f"{ratio:,.{digits}f}" + ("" if self.kind == "cost" else "x")

    def asked(self, unit: str) -> str:
        """The figure as text."""
        if self.value is None:
            return "-"
        if self.kind == "time":
            return f"<= {quantity(self.value, unit)}"
        return f"<= {self.value:g}" if self.kind == "cost" else f">= {self.show(self.value)}"


@dataclass(frozen=True)
class Row:
    """A line of the table; `pairs` measures (ours, theirs) per unit, each as often as it is asked."""

    name: str
    against: str
    figure: Figure
    pairs: Callable[[int], list[tuple[float, float]]]
    unit: str = "call"
    note: str = ""


@dataclass(frozen=True)
class Result:
    """A measured row: seconds per unit (bytes, where that is the unit), one pair a round."""

    row: Row
    pairs: list[tuple[float, float]]

    @property
    def ours(self) -> float:
        """Median."""
        return statistics.median(a for a, _ in self.pairs)

    @property
    def theirs(self) -> float:
        """Median."""
        return statistics.median(b for _, b in self.pairs)

    @functools.cached_property
    def quartiles(self) -> tuple[float, float, float]:
        """Of the ratio: lower, median, upper."""
        ratios = [self.row.figure.ratio(*pair) for pair in self.pairs]
        if len(ratios) == 1:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, middle, high

    @property
    def met(self) -> bool | None:
        """Whether the figure is reached; None where none is asked for."""
        return self.row.figure.is_met(self.ours, self.quartiles[1])

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured."""
        row, (low, middle, high) = self.row, self.quartiles
        return {
            "name": row.name, "against": row.against, "unit": row.unit, "note": row.note, "kind": row.figure.kind,
            "asked": row.figure.value, "ours": self.ours, "theirs": self.theirs, "ratio": middle,
            "ratio_quartiles": [low, high], "met": self.met, "pairs": self.pairs,
        }  # fmt: skip


def in_turns(sides: list[Side], rounds: int, first: list[float] | None = None) -> list[list[float]]:
    """Seconds per unit by side and round; ``first``: those of each side's first call.

    Every side has its turn in every round, in an order that changes from round to round; unmeasured calls go before.
    """
    threads = torch.get_num_threads()
    # where the first call, which may load and warm up, was long, it tells how long one is
    calls = zip(sides, first or [0.0] * len(sides), strict=True)
    once = [seconds if seconds > LONG_SECONDS else _seconds(side.call, 1) for side, seconds in calls]
    repeats = [max(1, math.ceil(SAMPLE_SECONDS / seconds)) for seconds in once]
    found: list[list[float]] = [[0.0] * rounds for _ in sides]
    for k in range(rounds):
        order = range(len(sides)) if k % 2 == 0 else reversed(range(len(sides)))
        for j in order:
            side = sides[j]
            torch.set_num_threads(side.threads or threads)
            _seconds(side.call, math.floor(SETTLE * repeats[j]))
            found[j][k] = _seconds(side.call, repeats[j]) / repeats[j] / side.units
    torch.set_num_threads(threads)
    return found


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


def quantity(value: float, unit: str) -> str:
    """Seconds, bytes or seconds per FLOP as text."""
    if unit == "bytes":
        return f"{value / 2**20:,.1f} MiB"
    if unit == "FLOP":
        return f"{1e-9 / value:,.1f} GFLOP/s"
    scale, name = next(((s, n) for s, n in ((1, "s"), (1e-3, "ms"), (1e-6, "us")) if value >= s), (1e-9, "ns"))
    return f"{value / scale:,.3g} {name}" if value / scale < 100 else f"{value / scale:,.0f} {name}"
