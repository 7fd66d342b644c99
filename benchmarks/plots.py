"""The plots of docs/benchmarks.md, as SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from figures import GEMM, Results
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

mpl.use("svg")
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "matconv_fast", "font.size": 11, "font.family": "sans-serif",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
    "figure.facecolor": "white", "legend.frameon": False,
}  # fmt: skip
OURS = "#c0392b"
WHO = ("equal_loop", "autograd_loop", "sgd", "addmm", "compile", "jax_scan", "jax_while", "gemms")
COLOURS = dict(
    zip(WHO, ("#7f7f7f", "#1f77b4", "#17becf", "#2ca02c", "#9467bd", "#ff7f0e", "#e377c2", "#000000"), strict=True)
)


@dataclass(frozen=True)
class Point:
    """A workload of a series."""

    workload: str
    size: int
    seconds: float
    one_thread: float | None
    share: float


def series(results: Results) -> dict[str, list[Point]]:
    """By the size that they go along; times are per iteration, along the iterations per call."""
    found: dict[str, list[Point]] = {}
    for workload in results.workloads():
        info = results.rows.get((workload, "matconv_fast"), {})
        if "size" not in info:
            continue
        name, size = info["size"]
        calls = size if name == "iterations" else 1
        one = results.median(workload, "one_thread") if (workload, "one_thread") in results.rows else None
        seconds = results.median(workload, "matconv_fast") * calls
        found.setdefault(name, []).append(Point(workload, size, seconds, one, info["share"][GEMM][1]))
    return found


def exponent(points: list[Point]) -> float:
    """Slope of the last half of the points in the logarithms: below it fixed costs show."""
    last = points[len(points) // 2 :] if len(points) > 3 else points
    xs, ys = [math.log(p.size) for p in last], [math.log(p.seconds) for p in last]
    x0, y0 = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / sum((x - x0) ** 2 for x in xs)


def draw(results: Results, folder: Path) -> None:
    """All that the results have something for."""
    with mpl.rc_context(STYLE):
        for name, figure in _figures(results):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)


def _figures(results: Results) -> Iterator[tuple[str, plt.Figure]]:
    squares = sorted(int(w[1:]) for w in results.workloads() if w[0] == "S")
    if len(squares) > 1:
        yield "speedup", _speedup(results, squares)
        yield "roofline", _roofline(results)
    if series(results):
        yield "scaling", _scaling(results)
    if results.memory:
        yield "memory", _memory(results)


def _plain(axis: Axes, which: str = "xy") -> None:
    """12, 0.5, 1,000: no powers."""
    for name in which:
        mine = axis.xaxis if name == "x" else axis.yaxis
        mine.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
        mine.set_minor_formatter(NullFormatter())


def _speedup(results: Results, squares: list[int]) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(9, 5.2))
    for who in WHO:
        found = [(n, results.rows[f"S{n}", who]) for n in squares if (f"S{n}", who) in results.rows]
        if not found:
            continue
        xs, spreads = [n for n, _ in found], [info["slower"] for _, info in found]
        ys = [s[1] for s in spreads]
        style = "--" if who == "gemms" else "-"
        axis.plot(xs, ys, style, marker="o", ms=4, lw=1.8, color=COLOURS[who], label=found[0][1]["label"])
        axis.fill_between(xs, [s[0] for s in spreads], [s[2] for s in spreads], color=COLOURS[who], alpha=0.15, lw=0)
    axis.axhline(1, color=OURS, lw=2)
    axis.annotate("matconv_fast", (squares[0], 1), (0, -14), textcoords="offset points", color=OURS, weight="bold")
    axis.set(xscale="log", yscale="log", xlabel="n, of an n x n problem", xticks=squares)
    axis.set_title("An iteration of each over one of matconv_fast: median, quartiles shaded", loc="left", fontsize=12)
    _plain(axis)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=10)
    return figure


def _roofline(results: Results) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(9, 5.2))
    peaks = {
        limit: max(1e-9 / results.median(w, limit) for w in results.workloads() if (w, limit) in results.rows)
        for limit in (GEMM, "copy")
        if any((w, limit) in results.rows for w in results.workloads())
    }
    xs = [2.0**k for k in range(-3, 11)]
    roof = [min(peaks[GEMM], peaks.get("copy", math.inf) * x) for x in xs]
    axis.plot(xs, roof, color="black", lw=1.5, label="torch.mm at 1,024, and a copy's bandwidth")
    for who, colour, label in (("matconv_fast", OURS, "matconv_fast"), ("addmm", COLOURS["addmm"], "addmm(out=)"),
                               ("autograd_loop", COLOURS["autograd_loop"], "notebook's loop")):  # fmt: skip
        points = [
            (info["flop"] / info["bytes"], info["flop"] / results.median(w, who) * 1e-9, w)
            for (w, p), info in results.rows.items()
            if p == who and info.get("bytes") and info.get("flop") and "size" not in info and "call" not in w
        ]
        axis.plot([x for x, _, _ in points], [y for _, y, _ in points], "o", color=colour, ms=5, label=label)
        if who == "matconv_fast":
            named = sorted(point for point in points if point[2] not in ("N2", "N3", "N4", "S4"))
            for k, (x, y, w) in enumerate(named):
                name, rise = "N1 to N4, S4" if w == "N1" else w, 6 if k % 2 else -13
                axis.annotate(name, (x, y), (0, rise), textcoords="offset points", size=8, ha="center", color=colour)
    axis.set(xscale="log", yscale="log", ylabel="GFLOP/s",
             xlabel="FLOP per byte that an iteration must at least move, if nothing stays in a cache")  # fmt: skip
    axis.set_title("Rates, and the limits of the same run", loc="left", fontsize=12)
    _plain(axis)
    axis.legend(loc="lower right", fontsize=10)
    return figure


def _scaling(results: Results) -> plt.Figure:
    found = series(results)
    figure, axes = plt.subplots(1, len(found), figsize=(2.6 * len(found) + 1, 3.4), layout="constrained")
    for axis, (name, points) in zip(axes if len(found) > 1 else [axes], found.items(), strict=True):
        xs, ys = [p.size for p in points], [p.seconds * 1e6 for p in points]
        axis.plot(xs, ys, "o-", color=OURS, ms=4, label="all threads")
        if points[0].one_thread is not None:
            axis.plot(xs, [(p.one_thread or 0) * 1e6 for p in points], "o--", color="#555555", ms=3, label="one thread")
        axis.set(xscale="log", yscale="log", xlabel=name)
        axis.set_title(f"{name}$^{{{exponent(points):.2f}}}$", fontsize=12)
        axis.xaxis.set_minor_formatter(NullFormatter())
        _plain(axis, "y")
    first = axes[0] if len(found) > 1 else axes
    first.set_ylabel("us an iteration (a call, for iterations)", fontsize=9)
    first.legend(fontsize=9)
    return figure


def _memory(results: Results) -> plt.Figure:
    groups = itertools.groupby(results.memory.items(), key=lambda item: item[0][0])
    bars = [
        (w, who, max(i["extra_bytes"]) / 2**20, i["residual_bytes"] / 2**20) for w, g in groups for (_, who), i in g
    ]
    figure, axis = plt.subplots(figsize=(9, 0.34 * len(bars) + 1.2))
    names = [f"{w}  {who}" for w, who, _, _ in bars]
    colours = [OURS if who == "matconv_fast" else "#8fa3b5" for _, who, _, _ in bars]
    axis.barh(names, [extra for _, _, extra, _ in bars], color=colours)
    for k, (_, _, extra, size) in enumerate(bars):
        axis.plot([size, size], [k - 0.45, k + 0.45], color="black", lw=2)
        axis.annotate(f" {extra:,.1f} MiB", (max(extra, 0), k), va="center", fontsize=9)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("MiB at the peak beyond inputs and results; the black mark is the size of R")
    return figure
