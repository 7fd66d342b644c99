"""Where a solve spends its time: the phases and operators of three solves under ``torch.profiler``.

Prints a table, longest first, and writes a trace for ui.perfetto.dev or chrome://tracing. In the trace each phase names
the problem, the backend and the algorithm. docs/profiling.md explains both.

    python examples/profile_solve.py [--trace FILE] [--device DEVICE]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import matconv_fast as mcf


def well_conditioned(n: int, *batch: int, device: str) -> torch.Tensor:
    """``[*batch, n, n]`` with singular values between about 1 and 5."""
    A = torch.randn(*batch, n, n, generator=torch.Generator().manual_seed(0), device="cpu")
    return (A @ A.mT / n + torch.eye(n, device="cpu")).to(device)


def workloads(device: str) -> dict[str, Callable[[], object]]:
    """The solves to profile, by name."""
    small, square = well_conditioned(4, device=device), well_conditioned(256, device=device)
    batch = well_conditioned(8, 1000, device=device)
    return {
        "one problem of 4 x 4": lambda: mcf.solve(small, solver=mcf.HeavyBall(), rtol=1e-6),
        "one problem of 256 x 256": lambda: mcf.solve(square, solver=mcf.HeavyBall(), rtol=1e-3),
        "1,000 problems of 8 x 8": lambda: mcf.solve(batch, solver=mcf.HeavyBall(), rtol=1e-3),
    }


def table(profiler: profile) -> str:
    """The rows of this package, longest first, one for each name and shapes of the inputs."""
    rows = [row for row in profiler.key_averages(group_by_input_shape=True) if row.key.startswith("matconv_fast")]
    rows.sort(key=lambda row: -row.cpu_time_total)
    lines = [f"{'name':<34}{'calls':>6}{'CPU total':>14}{'per call':>14}{'GPU total':>14}   shapes of the inputs"]
    for row in rows:
        total, each, gpu = (
            f"{time / 1e3:.3f} ms" for time in (row.cpu_time_total, row.cpu_time, row.device_time_total)
        )
        shapes = ", ".join(str(shape).replace(" ", "") for shape in row.input_shapes[:3])  # X, M and Y in most rows
        lines.append(f"{row.key:<34}{row.count:>6}{total:>14}{each:>14}{gpu:>14}   {shapes}")
    return "\n".join(lines)


def main(trace: Path, device: str) -> None:
    """Warm up, profile, print the table, write the trace."""
    calls = workloads(device)
    for call in calls.values():
        call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.startswith("cuda") else [])]
    with profile(activities=activities, record_shapes=True) as profiler:
        for name, call in calls.items():
            with torch.profiler.record_function(name):
                call()
    print(table(profiler))
    profiler.export_chrome_trace(str(trace))
    print(f"trace: {trace}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Profile a few solves.")
    parser.add_argument("--trace", type=Path, help="where to write the trace (default: a temporary file)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    target = arguments.trace or Path(tempfile.mkdtemp(prefix="matconv_fast_")) / "trace.json"
    main(target, arguments.device)
