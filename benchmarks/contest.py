"""Everyone who runs a workload, one after another in every round: a round's times have the machine's mood in common."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from measure import Side, in_turns
from providers import LIMITS, Provider
from suite import Workload


@dataclass
class Entry:
    """What became of a provider: ``seconds`` per unit by round, or ``error``.

    ``prepared``: seconds of the check against float64 and of the first call, compilation and warm-up included.
    """

    provider: Provider
    unit: str
    seconds: list[float] = field(default_factory=list)
    prepared: float = 0.0
    reported: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None


class Contest:
    """The entries of a workload; it is run when it is made."""

    def __init__(self, workload: Workload, names: Iterable[str], rounds: int) -> None:
        self.workload = workload
        wanted = set(names)
        inputs = workload.make()
        self.entries: dict[str, Entry] = {}
        sides: list[tuple[Entry, Side]] = []
        first: list[float] = []
        for provider in workload.providers:
            # ours are what others are compared with, and a limit what ours are
            if provider.name not in wanted and provider.against:
                continue
            entry = Entry(provider, LIMITS.get(provider.name, workload.unit))
            self.entries[provider.name] = entry
            start = time.perf_counter()
            try:
                side = provider.side(inputs)
                called = time.perf_counter()
                result = side.call()
                seconds = time.perf_counter() - called
                entry.reported = (side.check(result) if side.check else None) or {}
            except Exception as error:  # one that fails must not take the others with it
                entry.error = error
                continue
            entry.prepared = time.perf_counter() - start
            sides.append((entry, side))
            first.append(seconds)
        times = in_turns([side for _, side in sides], rounds, first)
        for (entry, _), mine in zip(sides, times, strict=True):
            entry.seconds = mine

    def slower(self, name: str, against: str) -> list[float]:
        """How often ``against`` fits into the time of ``name``, by round; nothing where one of them has no times."""
        times = (self.entries[key].seconds for key in (name, against))
        return [a / b for a, b in zip(*times, strict=False)]

    def info(self, name: str) -> dict[str, Any]:
        """What goes beside a provider's times."""
        entry, workload = self.entries[name], self.workload
        found: dict[str, Any] = {
            "workload": workload.name, "provider": name, "label": entry.provider.label, "unit": entry.unit,
            "prepared_s": entry.prepared, "seconds": entry.seconds, **entry.reported,
        }  # fmt: skip
        if name in LIMITS:
            return found
        found.setdefault("flop", workload.flop)
        found["bytes"] = workload.bytes
        if workload.size:
            found["size"] = list(workload.size)
        if entry.provider.against in self.entries:
            found["against"] = entry.provider.against
            found["slower"] = spread(self.slower(name, entry.provider.against))
        found["share"] = {
            limit: spread([found[per] / ratio for ratio in self.slower(name, limit)])
            for limit, per in (("mm1024", "flop"), ("copy", "bytes"))
            if limit in self.entries and found[per]
        }
        return found


def spread(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return 3 * values
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, middle, high]
