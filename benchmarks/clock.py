"""How times that were taken in turns reach pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest


class Recorded:
    """A clock that goes on by the next of some recorded durations at every second look."""

    def __init__(self) -> None:
        self.now, self.durations, self.looks = 0.0, iter(()), 0

    def __call__(self) -> float:
        self.looks += 1
        if self.looks % 2 == 0:
            self.now += next(self.durations)
        return self.now


def row(*values: Any, name: str, group: str) -> Any:
    """A test's parameters, with a clock of its own."""
    return pytest.param(*values, id=name, marks=pytest.mark.benchmark(group=group, timer=Recorded()))


def hand_over(request: pytest.FixtureRequest, benchmark: Any, seconds: list[float]) -> None:
    """A round each."""
    request.node.get_closest_marker("benchmark").kwargs["timer"].durations = iter(seconds)
    benchmark.pedantic(lambda: None, rounds=len(seconds))
