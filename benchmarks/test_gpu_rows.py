"""The rows of `gpu.py` for pytest-benchmark, where there is a GPU: ours, with the ratio in ``extra_info``.

Timed by events or graph replays, matrices of a distance rotated past the L2 cache (gpu_measure.py).
``TRITON_INTERPRET=1 MATCONV_FAST_BACKEND=triton`` tries them out at tiny sizes without one.
"""

from __future__ import annotations

import clock
import pytest
import torch
from gpu_measure import Setting
from gpu_rows import rows
from measure import NotRunError, Result, Row

from matconv_fast._ops import backend

_DRY = backend.INTERPRETED and not torch.cuda.is_available()
_ROWS = list(rows(Setting(torch.device("cpu" if _DRY else "cuda")))) if _DRY or torch.cuda.is_available() else []


@pytest.mark.parametrize(
    "row", [clock.row(r, name=f"gpu-{r.name}-{r.against}", group=f"GPU: {r.name}, a {r.unit}") for r in _ROWS]
)
def test_row(request: pytest.FixtureRequest, benchmark, row: Row):
    """Ours against one other."""
    try:
        result = Result(row, row.pairs(1 if _DRY else request.config.getoption("benchmark_min_rounds")))
    except NotRunError as reason:
        pytest.skip(str(reason))
    benchmark.extra_info.update(result.as_json())
    clock.hand_over(request, benchmark, [ours for ours, _ in result.pairs])
