"""The plots of docs/benchmarks.md, as SVG."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from measure import COPY, GEMM, OURS, spread
from report import Results

mpl.use("svg")
COLOURS = {
    OURS: "#c0392b", "equal_loop": "#7f7f7f", "autograd_loop": "#1f77b4", "sgd": "#17becf", "addmm": "#2ca02c",
    "compile": "#9467bd", "jax_scan": "#ff7f0e", "jax_while": "#e377c2", "gemms": "#000000",
}  # fmt: skip


def draw(results: Results, folder: Path) -> None:
    plots = {"speedup": _speedup, "roofline": _roofline, "scaling": _scaling, "memory": _memory}
    with plt.style.context(Path(__file__).with_name("figures.mplstyle")):
        for name, plot in plots.items():
            figure = plot(results)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)


def _log(axis: Axes, which: str = "xy") -> None:
    """Logarithmic, with ticks like 12, 0.5 and 1,000 in place of powers."""
    axis.set(xscale="log", yscale="log")
    for name, mine in (("x", axis.xaxis), ("y", axis.yaxis)):
        mine.set_minor_formatter(NullFormatter())
        if name in which:
            mine.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))


def _speedup(results: Results) -> Figure:
    figure, axis = plt.subplots(figsize=(9, 5.2))
    squares = sorted(int(name[1:]) for name in results.workloads if name[0] == "S")
    for who, colour in COLOURS.items():
        found = [n for n in squares if who != OURS and results.has(f"S{n}", who, OURS)]
        if found:
            lows, middles, highs = zip(*(spread(results.faster(f"S{n}", who)) for n in found), strict=True)
            label = results.contenders(f"S{found[0]}")[who]["label"]
            axis.plot(found, middles, "--o" if who == "gemms" else "-o", color=colour, label=label)
            axis.fill_between(found, lows, highs, color=colour, alpha=0.15, lw=0)
    axis.axhline(1, color=COLOURS[OURS], lw=2)
    _log(axis)
    axis.set(xlabel="n, of an n x n problem", xticks=squares, title="How many times faster matconv_fast is: median")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _roofline(results: Results) -> Figure:
    figure, axis = plt.subplots(figsize=(9, 5.2))
    peak, bandwidth = (
        max((1e-9 / results.median(w, limit) for w in results.workloads if results.has(w, limit)), default=math.inf)
        for limit in (GEMM, COPY)
    )
    xs = [2.0**k for k in range(-3, 11)]
    axis.plot(xs, [min(peak, bandwidth * x) for x in xs], "k", label="torch.mm at 1,024, and a copy's bandwidth")
    for who in (OURS, "addmm", "autograd_loop"):
        names = [w for w, facts in results.workloads.items() if results.has(w, who) and facts["bytes"]]
        names = [w for w in names if not results.workloads[w]["size"]]
        amounts = [[results.amount(w, who, unit) for w in names] for unit in ("FLOP", "byte")]
        points = sorted((a / b, a / results.median(w, who) * 1e-9, w) for a, b, w in zip(*amounts, names, strict=True))
        axis.plot([x for x, _, _ in points], [y for _, y, _ in points], "o", color=COLOURS[who], label=who)
        for k, (x, y, name) in enumerate(points if who == OURS else []):
            place, rise = (x, y), 6 if k % 2 else -13
            axis.annotate(name, place, (0, rise), textcoords="offset points", size=8, ha="center")
    _log(axis)
    axis.set(ylabel="GFLOP/s", title="Rates, and the limits of the same run")
    axis.set_xlabel("FLOP per byte that an iteration must at least move, if nothing stays in a cache")
    axis.legend(loc="lower right")
    return figure


def _scaling(results: Results) -> Figure:
    sizes = {name: facts["size"] for name, facts in results.workloads.items() if facts["size"]}
    along = list(dict.fromkeys(what for what, _ in sizes.values()))
    figure, axes = plt.subplots(1, len(along), figsize=(2.6 * len(along) + 1, 3.4), layout="constrained", squeeze=False)
    for axis, what in zip(axes[0], along, strict=True):
        for who, style, label in ((OURS, "o-", "all threads"), ("one_thread", "o--", "one thread")):
            mine = [(w, size) for w, (name, size) in sizes.items() if name == what and results.has(w, who)]
            units = [size if what == "iterations" else 1 for _, size in mine]
            times = [results.median(w, who) * k * 1e6 for (w, _), k in zip(mine, units, strict=True)]
            axis.plot([size for _, size in mine], times, style, color=COLOURS[OURS], label=label)
        _log(axis, "y")
        axis.set(xlabel=what)
    axes[0][0].set_ylabel("us an iteration (a call, for iterations)")
    axes[0][0].legend()
    return figure


def _memory(results: Results) -> Figure:
    every = [(w, found, who) for w, found in results.memory.items() for who in found["contenders"]]
    figure, axis = plt.subplots(figsize=(9, 0.34 * len(every) + 1.2))
    for k, (workload, found, who) in enumerate(every):
        extra, size = max(found["contenders"][who]) / 2**20, found["residual_bytes"] / 2**20
        axis.barh(f"{workload}  {who}", extra, color=COLOURS[OURS] if who == OURS else "#8fa3b5")
        axis.plot([size, size], [k - 0.45, k + 0.45], color="black", lw=2)
        axis.annotate(f" {extra:,.1f} MiB", (max(extra, 0), k), va="center", fontsize=9)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("MiB at the peak beyond inputs and results; the black mark is the size of R")
    return figure
