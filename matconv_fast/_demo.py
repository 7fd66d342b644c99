"""``python -m matconv_fast demo``: the notebook's runs and the question's loops, as plain PyTorch and as one call."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _workloads
from ._ops.info import info
from .distance import distance
from .solve import Solution, Status, iterate, solve
from .solvers import Adam, HeavyBall

REPEATS = 10  # runs of ours in a pair: a single one is too short for the clock
DIRECT_REPEATS = 100  # of the direct solver, likewise
STOPS = 11  # heat maps of a run: one every 1,000 iterations


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Times in seconds are medians over the pairs. A ratio says how many times faster ours is: the median over the pairs,
    the least and the greatest. ``direct_seconds`` is the time of ``torch.linalg.inv(M)``, None where there is no M.
    """

    workload: str
    iterations: int
    first_loss: float
    last_loss: float
    status: str
    plain_seconds: float
    seconds: float
    ratio: float
    ratio_least: float
    ratio_greatest: float
    difference: float
    direct_seconds: float | None = None

    HEADER = (
        "workload", "iterations", "first loss", "last loss", "status", "plain loop", "matconv_fast", "times faster",
        "torch.linalg.inv",
    )  # fmt: skip

    def cells(self) -> tuple[str, ...]:
        """The row as text, under `HEADER`."""
        return (
            self.workload,
            f"{self.iterations:,}",
            f"{self.first_loss:.4f}",
            f"{self.last_loss:.2e}",
            self.status,
            f"{self.plain_seconds * 1e3:,.1f} ms",
            f"{self.seconds * 1e3:,.2f} ms",
            f"{self.ratio:,.0f}x" if self.ratio >= 10 else f"{self.ratio:.1f}x",
            "" if self.direct_seconds is None else f"{self.direct_seconds * 1e3:.3f} ms",
        )


@dataclass(frozen=True, eq=False)
class Job:
    """A workload: the plain loop, the call that replaces it, and the direct solver if there is one.

    ``plain`` and ``direct`` return the final X.
    """

    name: str
    plain: Callable[[], Tensor]
    ours: Callable[[], Solution]
    direct: Callable[[], Tensor] | None = None


def notebook_job(run: _workloads.NotebookRun) -> Job:
    """N1 to N4: all 10,000 iterations, and the loss of each."""
    return Job(
        run.name,
        lambda: _workloads.notebook_loop(run)[0],
        lambda: solve(
            run.M, None, run.X0, solver=HeavyBall(run.lr, run.momentum), rtol=0.0, max_iters=run.iterations
        ),
        lambda: torch.linalg.inv(run.M),
    )  # fmt: skip


def question_jobs(device: torch.device) -> list[Job]:
    """Q1 to Q3. Both sides of a random walk start from the same seed, so they make the same steps."""
    A, B = _workloads.question(device)

    def seeded(function: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            torch.manual_seed(0)
            return function()

        return call

    return [
        Job(
            "Q1",
            seeded(lambda: _workloads.loop_until(_workloads.equal, A, B)[0]),
            seeded(lambda: iterate(_workloads.random_step, A, B)),
        ),
        Job(
            "Q2",
            seeded(lambda: _workloads.loop_until(_workloads.near, A, B)[0]),
            seeded(lambda: iterate(_workloads.random_step, A, B, atol=1e-6)),
        ),
        Job(
            "Q3",
            lambda: _workloads.adam_loop(A, B)[0],
            lambda: solve(None, B, A, solver=Adam(lr=0.01), loss="fro", atol=1e-6, rtol=0.0, max_iters=100),
        ),
    ]


def _seconds(function: Callable[[], Any], repeats: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def compare(job: Job, pairs: int, device: torch.device) -> tuple[Row, Solution]:
    """Time the plain loop, ours and the direct solver in turns, after one call of each that is not timed."""
    X, solution = job.plain(), job.ours()
    if job.direct is not None:
        job.direct()
    plain, ours, direct = [], [], []
    for _ in range(pairs):
        plain.append(_seconds(job.plain, 1, device))
        ours.append(_seconds(job.ours, REPEATS, device))
        if job.direct is not None:
            direct.append(_seconds(job.direct, DIRECT_REPEATS, device))
    ratios = [a / b for a, b in zip(plain, ours, strict=True)]
    row = Row(
        workload=job.name,
        iterations=int(solution.iterations),
        first_loss=float(solution.history[0]),
        last_loss=float(solution.loss),
        status=Status(int(solution.status)).name,
        plain_seconds=statistics.median(plain),
        seconds=statistics.median(ours),
        ratio=statistics.median(ratios),
        ratio_least=min(ratios),
        ratio_greatest=max(ratios),
        difference=float(distance(solution.X, X, ord="max")),
        direct_seconds=statistics.median(direct) if direct else None,
    )
    return row, solution


def text_table(rows: list[Row]) -> str:
    """The table as aligned text."""
    lines = [Row.HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(Row.HEADER))]
    aligned = [
        "  ".join(
            cell.ljust(w) if k in (0, 4) else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([aligned[0], "-" * len(aligned[0]), *aligned[1:]])


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/demo.md, from the rows of a results file."""
    lines = [Row.HEADER, ("---",) * len(Row.HEADER), *(Row(**row).cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_report(path: Path, rows: list[Row], runs: list[_workloads.NotebookRun], solutions: list[Solution]) -> None:
    """The four loss curves, the heat maps with their slider, and the comparison with the direct inverse."""
    from . import plotting
    from .solve.snapshots import direct_comparison, snapshots

    curves = [plotting.Curve.of(_title(run), sol.history) for run, sol in zip(runs, solutions, strict=True)]
    stops = [k * runs[0].iterations // (STOPS - 1) for k in range(STOPS)]
    maps = {run.name: snapshots(sol, stops=stops) for run, sol in zip(runs, solutions, strict=True)}
    table = [row.cells() for row in rows]
    sections: list[tuple[str, Any]] = [
        ("Plain loops, and matconv_fast", plotting.html_table(table, Row.HEADER)),
        ("Loss of the four runs", plotting.loss_figure(curves)),
        ("X @ M - I by iteration", plotting.maps_figure(maps)),
    ]
    for run, sol in zip(runs[:2], solutions[:2], strict=True):
        title = f"{run.name}: the direct inverse, for comparison"
        sections.append((title, plotting.html_table(direct_comparison(sol))))
    plotting.write_page(path, "matconv_fast demo", sections)


def _title(run: _workloads.NotebookRun) -> str:
    kind = "diagonal M" if run.name in ("N1", "N3") else "random M"
    return f"{run.name}: {kind}, momentum {run.momentum}"


def run_demo(pairs: int, report: Path | None, results: Path | None) -> list[Row]:
    """Run everything and print the table; write the report and the results if their paths are given."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(info(), end="\n\n")
    runs = _workloads.notebook_runs(device)
    jobs = [*(notebook_job(run) for run in runs), *question_jobs(device)]
    compared = []
    for job in jobs:
        print(f"running {job.name}: {pairs} pairs ...", flush=True)
        compared.append(compare(job, pairs, device))
    rows = [row for row, _ in compared]
    print(f"\n{text_table(rows)}\n")
    print(
        f"Times and ratios are medians of {pairs} pairs. Largest difference of the final X between both sides: "
        f"{max(r.difference for r in rows[:4]):.1e} in N1 to N4, {max(r.difference for r in rows[4:]):.1e} in Q1 to Q3."
    )
    print("Losses: mse in N, ||A - B||_F in Q.")
    for row, solution in compared:
        if not bool(solution.converged) and row.workload == "Q3":
            print(f"Q3: {solution.message}")
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        facts = {"device": f"{device.type} ({name})", "threads": torch.get_num_threads(), "pairs": pairs}
        versions = {"matconv_fast": info().version, "torch": torch.__version__, "python": platform.python_version()}
        backend = info().devices[1 if device.type == "cuda" else 0].backend
        data = {**facts, "backend": backend, "versions": versions, "rows": [asdict(row) for row in rows]}
        results.write_text(json.dumps(data, indent=2) + "\n")
        print(f"results: {results}")
    if report is not None:
        write_report(report, rows, runs, [solution for _, solution in compared[:4]])
        print(f"report: {report}")
    return rows
