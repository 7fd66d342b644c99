"""Every contender of every workload on pytest-benchmark's clock: ``pytest --benchmark-only -k "S16 and addmm"``.

A row is the time of one call, and the contenders of a workload make the same number of iterations. The ratios of README
come from bench.py instead, where the contenders take turns.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest
import torch
from descents import sampled
from measure import NotRunError
from workloads import WORKLOADS

CASES = [
    pytest.param(name, who, id=f"{name}-{who}", marks=pytest.mark.benchmark(group=name))
    for name, workload in WORKLOADS.items() if os.environ.get("BENCH") != "quick" or workload.quick
    for who in workload.contenders
]  # fmt: skip


@functools.lru_cache(maxsize=1)
def inputs(name: str) -> Any:
    torch.compiler.reset()
    made = WORKLOADS[name].setup()
    return sampled(made) if WORKLOADS[name].unit == "iteration" else made


@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")
@pytest.mark.parametrize(("name", "who"), CASES)
def test_speed(benchmark: Any, name: str, who: str):
    """One contender, after the check of its answer."""
    try:
        call, facts = WORKLOADS[name].contenders[who].start(inputs(name))
    except NotRunError as reason:
        pytest.skip(str(reason))
    benchmark.extra_info.update(facts, units=call.units)
    benchmark(call.run)
