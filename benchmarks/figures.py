"""The figures that matconv_fast is asked to reach on a CPU, out of the results of a run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from contest import spread
from measure import Figure

GEMM = "mm1024"


@dataclass(frozen=True)
class Outcome:
    """A figure, and what was measured.

    ``limit``: the ratio of a matconv_fast that would take no longer than the bare products of the same run, which says
    what can be had on this machine at all; ``cause``: why a figure that is not met is not.
    """

    name: str
    against: str
    figure: Figure
    ours: float
    theirs: float
    ratios: list[float]
    unit: str
    row: str
    limit: float | None = None
    cause: str = ""

    @property
    def ratio(self) -> list[float]:
        """Lower quartile, median, upper quartile."""
        return spread(self.ratios)

    @property
    def met(self) -> bool | None:
        """By the medians."""
        return self.figure.is_met(self.ours, self.ratio[1])


class Results:
    """The rows of a results file, by workload and provider."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.machine = data["machine_info"]
        infos = [b["extra_info"] for b in data["benchmarks"]]
        self.rows = {(i["workload"], i["provider"]): i for i in infos if "workload" in i}
        self.memory = {(i["memory"], i["provider"]): i for i in infos if "memory" in i}

    def seconds(self, workload: str, provider: str) -> list[float]:
        """Per unit, by round."""
        return self.rows[workload, provider]["seconds"]

    def median(self, workload: str, provider: str) -> float:
        """Per unit."""
        return statistics.median(self.seconds(workload, provider))

    def workloads(self) -> list[str]:
        """In the order of the run."""
        return list(dict.fromkeys(workload for workload, _ in self.rows))

    def providers(self, workload: str) -> list[str]:
        """Of one workload, in the order of the run."""
        return [provider for name, provider in self.rows if name == workload]


def outcomes(results: Results) -> Iterator[Outcome]:
    """In the order of the issues; what was not run is left out."""
    for make in (_notebook, _squares, _jax, _rates, _large, _batches, _loss, _memory, _distances, _calls):
        yield from make(results)


def _compared(
    results: Results, workload: str, against: str, figure: Figure, *, limit: str = "", cause: str = "", name: str = ""
) -> Iterator[Outcome]:
    """Ours and another provider of one workload. `limit`: the provider, or `GEMM`, that ours cannot go below."""
    ours, theirs = (results.rows.get((workload, provider)) for provider in ("matconv_fast", against))
    if ours is None or theirs is None:
        return
    ratios = [figure.ratio(*pair) for pair in zip(ours["seconds"], theirs["seconds"], strict=True)]
    medians = [results.median(workload, provider) for provider in ("matconv_fast", against)]
    floor = None
    if limit:
        least = results.median(workload, limit) * (ours["flop"] if limit == GEMM else 1)
        floor = figure.ratio(least, medians[1])
    yield Outcome(
        name or workload, theirs["label"], figure, *medians, ratios, ours["unit"], f"{workload}-{against}", floor, cause
    )


_PRODUCTS = "the two products alone, by torch.mm, take that long"


def _notebook(results: Results) -> Iterator[Outcome]:
    names = [f"N{k}" for k in range(1, 5)]
    if not all((name, "autograd_loop") in results.rows for name in names):
        return
    figure = Figure("speedup", 2000)
    sums = [
        [statistics.fmean(round_) for round_ in zip(*(results.seconds(name, who) for name in names), strict=True)]
        for who in ("matconv_fast", "autograd_loop")
    ]
    ratios = [figure.ratio(*pair) for pair in zip(*sums, strict=True)]
    cause = "more than half of it is what a solve costs before and after the iterations, and the machine is shared"
    medians = map(statistics.median, sums)
    yield Outcome("N1 to N4", "notebook's loop", figure, *medians, ratios, "iteration", "N1-autograd_loop", cause=cause)


def _squares(results: Results) -> Iterator[Outcome]:
    for n, asked in ((16, 300), (64, 28), (256, 2.3), (1024, 1.25)):
        figure = Figure("speedup", asked)
        yield from _compared(results, f"S{n}", "autograd_loop", figure, limit="gemms", cause=_PRODUCTS)


def _jax(results: Results) -> Iterator[Outcome]:
    cause = "at the rate of torch.mm at 1,024 the products alone would take that long"
    for n, asked in ((4, 10), (8, 10), (16, 10), (64, 4), (256, 1.8)):
        yield from _compared(results, f"S{n}", "jax_scan", Figure("speedup", asked), limit=GEMM, cause=cause)


def _rates(results: Results) -> Iterator[Outcome]:
    for n in (64, 128, 256, 512):
        name = f"S{n}"
        if (name, "matconv_fast") not in results.rows:
            continue
        flop = results.rows[name, "matconv_fast"]["flop"]
        ours, theirs = ([t / w for t in results.seconds(name, who)] for who, w in (("matconv_fast", flop), (GEMM, 1)))
        figure = Figure("share", 0.88)
        cause = "fixed cost of the call, and a shared machine: torch.mm's rate changes from round to round"
        ratios = [figure.ratio(*pair) for pair in zip(ours, theirs, strict=True)]
        medians = statistics.median(ours), statistics.median(theirs)
        yield Outcome(
            f"{name} rate", "torch.mm at 1,024", figure, *medians, ratios, "FLOP", f"{name}-matconv_fast", None, cause
        )


def _large(results: Results) -> Iterator[Outcome]:
    for n in (1024, 2048):
        cause = "beside the products: the loss of the last X, a product more, and copies of X, V and Y, once a call"
        yield from _compared(results, f"S{n}", "gemms", Figure("cost", 1.06), cause=cause)


def _batches(results: Results) -> Iterator[Outcome]:
    cause = "at the rate of torch.mm at 1,024 the products alone would take that long; ours are 8 x 8"
    yield from _compared(results, "B8", "baddbmm", Figure("speedup", 40), limit=GEMM, cause=cause)
    yield from _compared(results, "B8", "compile", Figure("speedup", 2), limit=GEMM, cause=cause)
    for share in (50, 10, 1):
        row = results.rows.get(("B8_shares", f"running_{share}"))
        if row is not None:
            all_running = results.seconds("B8_shares", "matconv_fast")
            ratios = [a / b for a, b in zip(row["seconds"], all_running, strict=True)]
            medians = statistics.median(row["seconds"]), statistics.median(all_running)
            yield Outcome(
                f"B8, {share}% running", "all running", Figure("cost"), *medians, ratios, "call",
                f"B8_shares-running_{share}",
            )  # fmt: skip


def _loss(results: Results) -> Iterator[Outcome]:
    cause = "the three products alone, by torch.mm, take that long"
    yield from _compared(results, "F", "mse_loss", Figure("speedup", 1.8), limit="gemms", cause=cause)


def _memory(results: Results) -> Iterator[Outcome]:
    row = results.memory.get(("F", "matconv_fast"))
    if row is not None:
        size = row["residual_bytes"]
        ratios = [extra / size for extra in row["extra_bytes"]]
        yield Outcome(
            "F memory", "R's size", Figure("cost", 0.05), statistics.median(row["extra_bytes"]), size, ratios, "bytes",
            "F-matconv_fast and memory",
        )  # fmt: skip


def _distances(results: Results) -> Iterator[Outcome]:
    for n in (1024, 4096, 8192):
        cause = "both read the two matrices once; a median of few rounds on a shared machine"
        yield from _compared(results, f"D{n}", "dot", Figure("cost", 1.1), cause=cause)
    yield from _compared(
        results, "D64", "norm", Figure("cost", 1.0), cause="the call's own cost, in Python and the dispatcher"
    )


def _calls(results: Results) -> Iterator[Outcome]:
    for workload, name, asked, against, loop in (
        ("call_step", "heavy_ball_step_ 4 x 4", 5e-6, "autograd_loop", 75e-6),
        ("call_loss", "residual_loss 4 x 4", 8e-6, "mse_loss", None),
    ):
        cause = ""
        if (workload, "add") in results.rows:
            cause = f"one torch.add takes {results.median(workload, 'add') * 1e6:.1f} us here"
            if loop and (workload, against) in results.rows:
                here = results.median(workload, against)
                cause += (
                    f", and the notebook's iteration {here * 1e6:.0f} us, 75 where the figure is from: see the ratio"
                )
        yield from _compared(results, workload, against, Figure("time", asked), cause=cause, name=name)
    yield from _compared(results, "call_step", "autograd_loop", Figure("speedup", 15), name="heavy_ball_step_ 4 x 4")
