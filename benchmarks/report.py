"""Results files: ratios, targets, comparison, and the tables of docs/benchmarks.md, docs/call_overhead.md and README.

A ratio says how many times faster matconv_fast is than the named contender: their time over ours, by round.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calls import ALL_MODES, CALLS
from measure import COPY, GEMM, OURS, ROOT, spread

DOCS = ROOT / "docs"
TARGETS = json.loads((ROOT / "benchmarks" / "targets.json").read_text())
ALLOWED = 1.25  # growth of a time over a GEMM's that is not yet called slower
HEADER = ("workload", "matconv_fast against", "matconv_fast", "the other", "times faster (median)", "quartiles")
Growth = tuple[str, float, bool]  # a workload, how many times as long it takes, and whether that is more than noise


# Text


def quantity(value: float, unit: str = "") -> str:
    """Seconds, bytes, or seconds per FLOP or per byte as a rate."""
    if unit == "bytes":
        return f"{value / 2**20:,.1f} MiB"
    if unit in ("FLOP", "byte"):
        return f"{1e-9 / value:,.3g} G{unit if unit == 'FLOP' else 'B'}/s"
    scale, name = next(((s, n) for s, n in ((1, "s"), (1e-3, "ms"), (1e-6, "us")) if value >= s), (1e-9, "ns"))
    return f"{value / scale:,.3g} {name}" if value / scale < 100 else f"{value / scale:,.0f} {name}"


def times(ratio: float) -> str:
    return f"{ratio:,.{0 if ratio >= 100 else 1 if ratio >= 10 else 2 if ratio >= 1 else 3}f}x"


def spread_text(values: list[float]) -> tuple[str, str]:
    low, middle, high = map(times, spread(values))
    return middle, f"{low} to {high}"


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    header = list(header)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *lines))


@dataclass(frozen=True)
class Outcome:
    """A target, and what was measured; `cells` are those of `HEADER`, and what is asked."""

    target: dict[str, Any]
    cells: tuple[str, ...]
    met: bool | None
    cause: str


def between_marks(page: str, text: str) -> str:
    before, begin, rest = re.split(r"(<!-- figures\b[^>]*-->\n)", page)
    return f"{before}{begin}{text}\n<!-- end of figures -->{rest.split('<!-- end of figures -->')[1]}"


class Results:
    """A results file."""

    def __init__(self, source: dict[str, Any] | Path) -> None:
        data = json.loads(source.read_text()) if isinstance(source, Path) else source
        self.machine, self.workloads, self.memory = data["machine"], data["workloads"], data["memory"]

    def contenders(self, workload: str) -> dict[str, Any]:
        """Those with times."""
        found = self.workloads.get(workload, {"contenders": {}})["contenders"]
        return {name: facts for name, facts in found.items() if "seconds" in facts}

    def has(self, workload: str, *names: str) -> bool:
        return set(names) <= self.contenders(workload).keys()

    def seconds(self, workload: str, name: str) -> list[float]:
        """Per unit, by round."""
        return self.workloads[workload]["contenders"][name]["seconds"]

    def median(self, workload: str, name: str) -> float:
        return statistics.median(self.seconds(workload, name))

    def amount(self, workload: str, name: str, unit: str) -> float:
        """FLOP or bytes of one of a contender's units; 1 without `unit`. A batch that stops counts what it made."""
        found = self.workloads[workload]
        return {"FLOP": found["contenders"][name].get("flop", found["flop"]), "byte": found["bytes"]}.get(unit, 1.0)

    def faster(self, workload: str, than: str, ours: str = OURS) -> list[float]:
        """How many times faster `ours` is, by round."""
        pairs = zip(self.seconds(workload, than), self.seconds(workload, ours), strict=True)
        return [theirs / mine for theirs, mine in pairs]

    def share(self, workload: str, name: str, limit: str) -> float:
        """Of a limit's rate."""
        unit = self.workloads[workload]["contenders"][limit]["unit"]
        return self.amount(workload, name, unit) * spread(self.faster(workload, limit, name))[1]

    # Targets

    def outcome(self, target: dict[str, Any]) -> Outcome | None:
        """None where something of it was not run."""
        names, against, ours = target["workloads"], target["against"], target.get("ours", OURS)
        first, cause = names[0], target.get("cause", "")
        if "at_most" in target and first in self.memory:
            found, most = self.memory[first], target["at_most"]
            extra, size = statistics.median(found["contenders"][ours]), found["residual_bytes"]
            amounts = quantity(extra, "bytes"), quantity(size, "bytes"), f"{extra / size:.3f} of its size", ""
            cells = (target["name"], against, *amounts, f"at most {most:g}")
            return Outcome(target, cells, extra / size <= most, cause)
        if not all(self.has(name, ours, against) for name in names):
            return None
        unit = self.contenders(first)[against]["unit"]  # a limit's time is per FLOP or byte: rates are compared
        mine, theirs = (  # of several workloads the mean, round by round
            [statistics.fmean(r) / amount for r in zip(*(self.seconds(name, who) for name in names), strict=True)]
            for who, amount in ((ours, self.amount(first, ours, unit)), (against, 1.0))
        )
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        middles = statistics.median(mine), statistics.median(theirs)
        asked: list[tuple[str, bool]] = []
        if least := target.get("at_least"):
            asked.append((times(least), spread(ratios)[1] >= least))
        if most := target.get("seconds"):
            asked.append((f"at most {quantity(most)}", middles[0] <= most))
        facts = {"theirs": quantity(middles[1])}
        if limit := target.get("limit"):
            amount = self.amount(first, ours, self.contenders(first)[limit]["unit"])
            facts["limit"] = times(middles[1] / (self.median(first, limit) * amount))
        if self.has(first, "add"):
            facts["add"] = quantity(self.median(first, "add"))
        label, amounts = self.contenders(first)[against]["label"], [quantity(t, unit) for t in middles]
        cells = (target["name"], label, *amounts, *spread_text(ratios), ", ".join(text for text, _ in asked))
        return Outcome(target, cells, all(met for _, met in asked) if asked else None, cause.format(**facts))

    def outcomes(self, device: str = "cpu") -> list[Outcome]:
        """In the order of targets.json; what was not run is left out."""
        return [found for target in TARGETS[device] if (found := self.outcome(target)) is not None]

    # Tables

    def targets(self, device: str = "cpu") -> str:
        met = {True: "met", False: "missed", None: ""}
        lines = [(*o.cells, met[o.met], o.cause if o.met is False else "") for o in self.outcomes(device)]
        return table((*HEADER, "asked", "", "cause"), lines)

    def everyone(self, workload: str) -> str:
        """Everyone who ran a workload."""
        lines, found = [], self.workloads[workload]
        limit = COPY if self.has(workload, COPY) else GEMM
        for name, facts in self.contenders(workload).items():
            seconds, unit, against = self.median(workload, name), facts["unit"], facts["against"]
            size, amount = max((self.amount(workload, name, key), key) for key in ("byte", "FLOP"))
            ends = [text if n == 1 else f"{n:,} {text}" for text, n in facts.get("status", {}).items()]
            lines.append((
                facts["label"], "" if unit else quantity(seconds),
                *(spread_text(self.faster(workload, name, against)) if against else ("", "")),
                quantity(seconds, unit) if unit else quantity(seconds / size, amount) if size else "",
                f"{self.share(workload, name, limit):.1%}" if size and not unit and self.has(workload, limit) else "",
                f"{facts['iterations']:,}" if "iterations" in facts else "", ", ".join(ends),
                quantity(facts["first_s"]) if "first_s" in facts else "",
            ))  # fmt: skip
        header = ("contender", f"time of one {found['unit']}", "matconv_fast is faster by")
        return table((*header, "quartiles", "rate", "of the limit", "iterations", "status", "first"), lines)

    def calls(self) -> str:
        """The table of docs/call_overhead.md: a line a function."""
        lines = []
        for kind, name in itertools.product(CALLS, (OURS, "by_hand")):
            if self.has(kind, name, "add"):
                every = [kind + mode for mode in ALL_MODES]
                cells = [quantity(self.median(work, name)) if self.has(work, name) else "" for work in every]
                over = f"{1 / spread(self.faster(kind, 'add', name))[1]:.1f}"
                lines.append((self.contenders(kind)[name]["label"], *cells, over))
        header = ("eager", "gradient recorded", "forward and backward", "compiled", "eager time over one torch.add's")
        return table(("call on 4 x 4", *header), lines)

    def peaks(self) -> str:
        lines = []
        for workload, found in self.memory.items():
            for name, extra in found["contenders"].items():
                most, size = statistics.median(extra), found["residual_bytes"]
                lines.append((workload, name, quantity(most, "bytes"), quantity(size, "bytes"), f"{most / size:.3f}"))
        header = ("workload", "contender", "peak beyond inputs and results", "size of R", "ratio of sizes")
        return table(header, lines)

    def document(self, source: str) -> str:
        """The written part of docs/benchmarks.md."""
        machine, first = self.machine, next(iter(self.workloads))
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        device = f"`{source}`: {machine['device']}; {versions}; {len(self.seconds(first, OURS))} rounds."
        parts = [device, "## Targets", self.targets()]
        parts += ["![How many times faster than each, by n](speedup.svg)", "![Rates and the limits](roofline.svg)"]
        for group, names in itertools.groupby(self.workloads, key=lambda name: self.workloads[name]["group"]):
            parts += [f"## {group}", *(text for name in names for text in (f"### {name}", self.everyone(name)))]
        parts += ["![Time against each size](scaling.svg)", "## Peak memory"]
        return "\n\n".join([*parts, "![Peak memory beside the size of R](memory.svg)", self.peaks()])

    def pages(self, source: str) -> dict[Path, str]:
        """Whole pages, by file."""
        texts = {"docs/benchmarks.md": self.document(source), "docs/call_overhead.md": self.calls()}
        texts["README.md"] = table(HEADER, [o.cells[:6] for o in self.outcomes() if o.target.get("readme")])
        return {ROOT / name: between_marks((ROOT / name).read_text(), text) for name, text in texts.items()}


def compare(new: Results, old: Results) -> list[Growth]:
    """By the time over a GEMM's of the same turns: a slower machine slows both."""
    found = []
    for name, who in itertools.product(new.workloads, (OURS, f"{OURS}_adam")):
        if all(results.has(name, who, GEMM) for results in (new, old)):
            now, then = (spread([1 / r for r in results.faster(name, GEMM, who)]) for results in (new, old))
            growth = now[1] / then[1]
            slower = growth > ALLOWED and now[0] > then[2]
            found.append((name if who == OURS else f"{name}, Adam", growth, slower))
    return found


def verdict(found: list[Growth], header: str) -> int:
    """Print; 1 where something is slower, or nothing could be compared."""
    slower = [name for name, _, is_slower in found if is_slower]
    lines = [(name, f"{growth:.2f}", "slower" if is_slower else "") for name, growth, is_slower in found]
    print(table(("workload", header, ""), lines))
    print(f"\n{len(slower)} of {len(found)} workloads are slower{': ' * bool(slower)}{', '.join(slower)}")
    return int(bool(slower) or not found)


def errors(data: dict[str, Any]) -> list[str]:
    found = [(name, *row) for name, facts in data["workloads"].items() for row in facts["contenders"].items()]
    return [f"{name}, {who}: {row['error']}" for name, who, row in found if "error" in row]
