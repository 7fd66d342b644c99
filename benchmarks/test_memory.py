"""Peak memory above inputs and results, in ``extra_info``; the time of the row is that of the same call."""

from __future__ import annotations

import os

import peak_memory
import pytest
from measure import NotRunError

PROCESSES = {"F": 3}  # of the others one: the peak hardly varies


def _rows() -> list[tuple[str, str]]:
    return [] if os.environ.get("BENCH") == "quick" else peak_memory.ROWS


@pytest.mark.parametrize(
    ("workload", "provider"),
    [pytest.param(*row, id="-".join(row), marks=pytest.mark.benchmark(group=f"memory: {row[0]}")) for row in _rows()],
)
def test_memory(benchmark, workload: str, provider: str):
    """One call's, in processes of its own."""
    try:
        found = [peak_memory.in_a_process(workload, provider) for _ in range(PROCESSES.get(workload, 1))]
    except NotRunError as reason:
        pytest.skip(str(reason))
    make, _, who = peak_memory.CASES[workload]
    benchmark.extra_info.update(
        memory=workload, provider=provider, extra_bytes=found, residual_bytes=peak_memory.residual_bytes(workload)
    )
    benchmark.pedantic(who[provider], (make(),), rounds=1, warmup_rounds=1)
