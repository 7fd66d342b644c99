"""The CPU kernels against what torch offers, in pairs inside one run: ``python benchmarks/cpu_kernels.py --json FILE``.

Heavy ball on S-type problems (float32, M = A A^T / n + I, Y = I): microseconds an iteration in lockstep, with slabs
alone, on the reference, and of the two bare GEMMs; the arithmetic rate as a share of ``torch.mm`` at 1,024. Distance of
two n x n matrices: against ``torch.dot`` over both, one read, and ``torch.linalg.norm(A - B)``. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import matconv_fast as mcf
from matconv_fast import _reference

SIZES = {4: 10_000, 8: 10_000, 16: 5_000, 32: 2_000, 64: 800, 128: 150, 256: 30, 512: 6, 1024: 2}
DISTANCES = (64, 1024, 4096, 8192)


def heavy_ball(implementation: Callable[..., None], n: int, iterations: int, lockstep: bool) -> Callable[[], None]:
    """One call that runs all iterations on copies of the same start."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(n, n, generator=generator)
    M, Y, X0 = (A @ A.T / n + torch.eye(n))[None], torch.eye(n)[None], torch.rand(1, n, n, generator=generator)
    lr = 0.9 * n * n / (2 * torch.linalg.matrix_norm(M[0], 2) ** 2)
    limit, taken = torch.tensor([iterations]), torch.zeros(1, dtype=torch.int64)
    sums = torch.empty(1, iterations + 1, dtype=torch.float64)
    never, bail = torch.tensor([-1.0]).double(), torch.tensor([torch.inf]).double()

    def call() -> None:
        X, V = X0.clone(), torch.zeros_like(X0)
        implementation(
            X, V, M, Y, lr.view(1), torch.tensor([0.9]), limit, never, bail, sums, taken, 0, lockstep=lockstep
        )  # fmt: skip

    return call


def two_gemms(n: int, iterations: int) -> Callable[[], None]:
    """The products alone: what the arithmetic costs."""
    X, M, R = torch.rand(n, n), torch.rand(n, n), torch.empty(n, n)

    def call() -> None:
        for _ in range(iterations):
            torch.mm(X, M, out=R)
            torch.mm(X, M.T, out=R)

    return call


def medians(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns, after one unmeasured call."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def heavy_ball_row(n: int, iterations: int, rounds: int) -> dict[str, float]:
    """Microseconds an iteration, and the rate beside torch.mm's at 1,024."""
    kernel, few = torch.ops.matconv_fast.heavy_ball_advance, max(2, min(iterations, 200))
    A, B, C = torch.rand(1024, 1024), torch.rand(1024, 1024), torch.empty(1024, 1024)
    seconds = medians(
        {
            "lockstep": heavy_ball(kernel, n, iterations, True),
            "alone": heavy_ball(kernel, n, iterations, False),
            "reference": heavy_ball(_reference.heavy_ball_advance, n, few, True),
            "two_gemms": two_gemms(n, few),
            "mm_1024": lambda: torch.mm(A, B, out=C),
        },
        rounds,
    )
    row = {"n": n, "iterations": iterations}
    for name in ("lockstep", "alone"):
        row[f"{name}_us"] = seconds[name] / iterations * 1e6
    for name in ("reference", "two_gemms"):
        row[f"{name}_us"] = seconds[name] / few * 1e6
    best = min(row["lockstep_us"], row["alone_us"])
    row["reference_over_best"] = row["reference_us"] / best
    row["share_of_mm_1024"] = (4 * n**3 / best * 1e6) / (2 * 1024**3 / seconds["mm_1024"])
    return row


def distance_row(n: int, rounds: int) -> dict[str, float]:
    """Microseconds, and the ratios."""
    A, B = torch.randn(2, n, n)
    seconds = medians(
        {
            "here": functools.partial(mcf.distance, A, B),
            "dot": functools.partial(torch.dot, A.view(-1), B.view(-1)),
            "norm": lambda: torch.linalg.norm(A - B),
        },
        rounds,
    )
    row = {"n": n, **{f"{name}_us": value * 1e6 for name, value in seconds.items()}}
    return {**row, "here_over_dot": row["here_us"] / row["dot_us"], "norm_over_here": row["norm_us"] / row["here_us"]}


def show(rows: list[dict[str, float]]) -> None:
    """Print the rows as a table."""
    print("  ".join(f"{name:>19}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:19,.2f}" if isinstance(value, float) else f"{value:19,}" for value in row.values()))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    heavy = [heavy_ball_row(n, iterations, arguments.rounds) for n, iterations in SIZES.items()]
    show(heavy)
    distances = [distance_row(n, arguments.rounds) for n in DISTANCES]
    show(distances)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        versions = {"matconv_fast": mcf.__version__, "torch": torch.__version__, "python": platform.python_version()}
        facts = {"path": mcf.info().devices[0].path, "threads": torch.get_num_threads(), "rounds": arguments.rounds}
        data = {**facts, "versions": versions, "heavy_ball": heavy, "distance": distances}
        arguments.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
