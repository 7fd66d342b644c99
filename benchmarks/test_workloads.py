"""Every workload, by everyone who can run it: ``pytest --benchmark-only``, or a row: ``... -k "S64-jax_scan"``.

All who run a workload take turns (contest.py) before the first of its tests; each test then hands its own times, a
round each, to pytest-benchmark. A row is in seconds per iteration, call, FLOP or byte: ``extra_info`` has which, and
the ratio to matconv_fast by round. ``--benchmark-min-rounds`` sets the rounds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import clock
import pytest
import torch
from contest import Contest
from measure import NotRunError
from providers import LIMITS
from suite import QUICK, WORKLOADS


def cases() -> Iterator[Any]:
    """A test each, with a clock of its own."""
    quick = os.environ.get("BENCH") == "quick"
    for workload in WORKLOADS.values():
        if quick and workload.name not in QUICK:
            continue
        for provider in workload.providers:
            group = "a FLOP, a byte" if provider.name in LIMITS else workload.group
            name = f"{workload.name}-{provider.name}"
            yield clock.row(workload.name, provider.name, name=name, group=f"{group}: {workload.name}")


@pytest.fixture(scope="module")
def contests() -> dict[str, Contest]:
    """The one under way, by its workload's name."""
    return {}


@pytest.fixture
def contest(request: pytest.FixtureRequest, contests: dict[str, Contest], workload: str) -> Contest:
    """All tests of a workload that are run come one after another: the first of them runs it for all."""
    if workload not in contests:
        contests.clear()
        torch.compiler.reset()  # a step has as many compiled forms as workloads: torch limits them
        calls = (getattr(item, "callspec", None) for item in request.session.items)
        names = [c.params["provider"] for c in calls if c and c.params.get("workload") == workload]
        rounds = request.config.getoption("benchmark_min_rounds")
        contests[workload] = Contest(WORKLOADS[workload], names, rounds)
    return contests[workload]


@pytest.mark.parametrize(("workload", "provider"), list(cases()))
def test_workload(request: pytest.FixtureRequest, benchmark, contest: Contest, workload: str, provider: str):
    """One provider's times."""
    entry = contest.entries[provider]
    if isinstance(entry.error, NotRunError):
        pytest.skip(str(entry.error))
    if entry.error is not None:
        raise entry.error
    benchmark.extra_info.update(contest.info(provider))
    clock.hand_over(request, benchmark, entry.seconds)
