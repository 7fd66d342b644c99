"""Paired timing: two sides in turns inside one process, the median of their ratio and its quartiles, one table."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SAMPLE_SECONDS = 0.04  # shorter calls are repeated up to this: the clock and a scheduler's tick do not show in it
SETTLE = 0.1  # and a tenth of them go before unmeasured: the other side's threads spin on, its data are in the caches

LONG_SECONDS = 5.0  # a side that takes longer is timed in at most LONG_ROUNDS pairs
LONG_ROUNDS = 5


class NotRunError(Exception):
    """A row cannot be measured here; says why."""


@dataclass(frozen=True)
class Side:
    """A call, how many units (iterations, FLOP, calls) one of it makes, and a look at the first, unmeasured result."""

    call: Callable[[], Any]
    units: float = 1
    check: Callable[[Any], None] | None = None


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


def paired(prepare: Callable[[], tuple[Side, Side]], rounds: int) -> list[tuple[float, float]]:
    """Seconds per unit of both sides, in turns, the order changing from round to round; unmeasured calls go before."""
    sides = prepare()
    seconds = [_calibrate(side) for side in sides]
    repeats = [max(1, math.ceil(SAMPLE_SECONDS / t)) for t in seconds]
    if max(seconds) > LONG_SECONDS:
        rounds = min(rounds, LONG_ROUNDS)
    pairs = []
    for k in range(rounds):
        found = [0.0, 0.0]
        for j in (0, 1) if k % 2 == 0 else (1, 0):
            _seconds(sides[j].call, math.floor(SETTLE * repeats[j]))
            found[j] = _seconds(sides[j].call, repeats[j]) / repeats[j] / sides[j].units
        pairs.append((found[0], found[1]))
    return pairs


def _calibrate(side: Side) -> float:
    """Seconds of the second call, the first loads and makes buffers; of the first where it is long enough to tell."""
    start = time.perf_counter()
    result = side.call()
    seconds = time.perf_counter() - start
    if side.check is not None:
        side.check(result)
    return seconds if seconds > LONG_SECONDS else _seconds(side.call, 1)


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


HEADER = ("row", "against", "ours", "theirs", "ratio", "quartiles", "asked", "", "note")


def cells(row: Row, result: Result | str) -> tuple[str, ...]:
    """A line of the table, under `HEADER`; a result that is text says why the row was not run."""
    if isinstance(result, str):
        return (row.name, row.against, "", "", "", "", row.figure.asked(row.unit), "not run", result)
    low, middle, high = (row.figure.show(q) for q in result.quartiles)
    verdict = {True: "met", False: "short", None: ""}[result.met]
    ours, theirs = quantity(result.ours, row.unit), quantity(result.theirs, row.unit)
    return (
        row.name,
        row.against,
        ours,
        theirs,
        middle,
        f"{low} .. {high}",
        row.figure.asked(row.unit),
        verdict,
        row.note,
    )


def table(lines: list[tuple[str, ...]]) -> str:
    """Aligned text."""
    lines = [HEADER, *lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = (0, 1, 7, 8)
    aligned = [
        "  ".join(c.ljust(w) if k in left else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    return "\n".join([aligned[0].rstrip(), "-" * len(aligned[0]), *(line.rstrip() for line in aligned[1:])])


def markdown(rows: list[dict[str, Any]]) -> str:
    """README's table, from the rows of a JSON file."""
    lines = ["| workload | against | here | there | ratio | quartiles |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        figure = Figure(row["kind"], row["asked"])
        low, middle, high = (
            figure.show(q) for q in (row["ratio_quartiles"][0], row["ratio"], row["ratio_quartiles"][1])
        )
        ours, theirs = quantity(row["ours"], row["unit"]), quantity(row["theirs"], row["unit"])
        lines.append(f"| {row['name']} | {row['against']} | {ours} | {theirs} | {middle} | {low} to {high} |")
    return "\n".join(lines)
