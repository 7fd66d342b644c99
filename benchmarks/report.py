"""docs/benchmarks.md with its plots, and README's table, from a results file: ``python benchmarks/report.py FILE``.

``--readme`` prints README's table instead, ``--write-readme`` puts it there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gpu_rows
import plots
import torch
from contest import spread
from figures import Outcome, Results, outcomes
from gpu_measure import Setting
from measure import ROOT, Figure, quantity

DOCS = ROOT / "docs"
README_MARKS = "<!-- figures: python benchmarks/report.py -->", "<!-- end of figures -->"
MULTIPLE = Figure("speedup")

INTRODUCTION = """# Benchmarks

Written by `make bench`: `pytest --benchmark-only`, rendered from `{source}` by `benchmarks/report.py`.
Measured on a shared machine ({device}): quote the ratios, not the times. {versions}.

All who run a workload take turns in one process, {rounds} rounds of it, in an order that changes, after every one's
answer was compared with float64. A ratio is taken round by round; shown is its median, with its quartiles. A time is
per unit (an iteration or a call) of the public call, fixed cost included. *First* is the first call with the check
before it: compilation, warm-up, loading. A share is that of what `torch.mm` at 1,024 reaches in FLOP/s, or a copy in
bytes/s, in the same turns. A row's last cell runs that row again, with matconv_fast and the limits beside it; loops in
Python and jitted loops of long iterations are timed over fewer iterations than ours, since theirs cost the same each.
"""

GPU = """The figures for an H100 are rows of `make gpu`, which has not run on a device yet:
[gpu_predictions.md](gpu_predictions.md) has what to expect. L4096 is among them alone."""


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    header = list(header)
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _spread(figure: Figure, values: list[float]) -> tuple[str, str]:
    low, middle, high = values
    return figure.show(middle), f"{figure.show(low)} to {figure.show(high)}"


def command(row: str) -> str:
    """What runs one row."""
    name, _, memory = row.partition(" and ")
    return f'`pytest --benchmark-only -k "[{name}]{f" and {memory}" if memory else ""}"`'


def _verdict(outcome: Outcome) -> str:
    return {True: "met", False: "short", None: ""}[outcome.met]


def figures(results: Results) -> str:
    """What was asked for."""
    lines = []
    for o in outcomes(results):
        ratio, quartiles = _spread(o.figure, o.ratio)
        limit = "" if o.limit is None else o.figure.show(o.limit)
        cause = o.cause if o.met is False else ""
        if cause and o.limit is not None:
            cause = f"limit here {limit}: {cause}"
        lines.append((
            o.name, o.against, quantity(o.ours, o.unit), quantity(o.theirs, o.unit), ratio, quartiles,
            o.figure.asked(o.unit), _verdict(o), cause, command(o.row),
        ))  # fmt: skip
    header = ("figure", "against", "here", "there", "ratio", "quartiles", "asked", "", "cause", "run it")
    return table(header, lines)


def gpu_figures() -> str:
    """What is asked for on an H100, of the rows that `gpu.py` measures there."""
    lines = []
    for row in gpu_rows.rows(Setting(torch.device("cpu"))):
        if row.figure.value is not None:
            lines.append((row.name, row.against, row.figure.asked(row.unit), "not run: no GPU", "`make gpu`"))
    return table(("figure on an H100", "against", "asked", "", "run it"), lines)


def readme(results: Results) -> str:
    """The figures in short."""
    lines = []
    for o in outcomes(results):
        ratio, quartiles = _spread(o.figure, o.ratio)
        lines.append((o.name, o.against, quantity(o.ours, o.unit), quantity(o.theirs, o.unit), ratio, quartiles))
    return table(("workload", "against", "here", "there", "ratio", "quartiles"), lines)


def _rate(info: dict[str, Any], seconds: float) -> str:
    """In GFLOP/s where there are products, else in GB/s."""
    amounts = {"FLOP": info.get("flop", 0), "B": info.get("bytes", 0)}
    if info["unit"] in ("FLOP", "byte"):  # a limit: the time is of one
        amounts = {"FLOP": float(info["unit"] == "FLOP"), "B": float(info["unit"] == "byte")}
    unit = max(amounts, key=lambda key: amounts[key])
    return f"{amounts[unit] / seconds * 1e-9:,.3g} G{unit}/s" if amounts[unit] else ""


def _status(info: dict[str, Any]) -> str:
    ends = info.get("status", {})
    return ", ".join(name if count == 1 else f"{count:,} {name}" for name, count in ends.items())


def providers(results: Results, workload: str) -> str:
    """Everyone who ran a workload."""
    lines = []
    for name in results.providers(workload):
        info = results.rows[workload, name]
        seconds = results.median(workload, name)
        limit = info["unit"] in ("FLOP", "byte")
        shares = {key: f"{value[1]:.1%}" for key, value in info.get("share", {}).items()}
        ratio = _spread(MULTIPLE, info["slower"]) if "slower" in info else ("", "")
        lines.append((
            info["label"],
            "" if limit else quantity(seconds, info["unit"]),
            *ratio,
            _rate(info, seconds),
            shares.get("copy", shares.get("mm1024", "")),
            f"{info['iterations']:,}" if "iterations" in info else "",
            _status(info),
            quantity(info["prepared_s"], ""),
            command(f"{workload}-{name}"),
        ))  # fmt: skip
    unit = "an iteration" if results.rows[workload, "matconv_fast"]["unit"] == "iteration" else "a call"
    header = (
        "who", unit, "slower than ours", "quartiles", "rate", "of the limit", "iterations", "status", "first",
        "run it",
    )  # fmt: skip
    return table(header, lines)


def series(results: Results) -> str:
    """Time against one size, with the exponent of the last step."""
    lines = []
    for name, points in plots.series(results).items():
        exponent = plots.exponent(points)
        for point in points:
            one = "" if point.one_thread is None else f"{point.one_thread / point.seconds:.2f}x"
            lines.append((
                name, f"{point.size:,}", quantity(point.seconds, ""), one, f"{point.share:.1%}",
                f"{exponent:.2f}" if point is points[-1] else "", command(f"{point.workload}-matconv_fast"),
            ))  # fmt: skip
    header = ("size", "value", "time", "2 threads over 1", "of torch.mm", "fitted exponent", "run it")
    return table(header, lines)


def memory(results: Results) -> str:
    """Peaks."""
    lines = []
    for (workload, name), info in results.memory.items():
        extra = spread(info["extra_bytes"])[1]
        size = info["residual_bytes"]
        lines.append((
            workload, name, quantity(extra, "bytes"), quantity(size, "bytes"), f"{extra / size:.3f}",
            command(f"{workload}-{name} and memory"),
        ))  # fmt: skip
    return table(("workload", "who", "extra at the peak", "R", "extra over R", "run it"), lines)


TITLES = {
    "N": "The notebook's runs, 4 x 4",
    "Q": "The question's loops, 5 x 5",
    "S": "Squares",
    "B": "Batches",
    "T": "Many rows on one M",
    "R": "A regression: p far above n",
    "F": "The loss and its gradients",
    "D": "The distance of two matrices",
    "call": "One call on 4 x 4",
}


def document(results: Results, source: str) -> str:
    """docs/benchmarks.md."""
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    rounds = len(next(iter(results.rows.values()))["seconds"])
    parts = [
        INTRODUCTION.format(
            source=source, device=machine["device"], versions=versions, rounds=rounds
        ),
        "## The figures asked for", figures(results),
        GPU, gpu_figures(),
        "![How many times faster than each, by n](speedup.svg)",
        "![Rates against the roofline](roofline.svg)",
    ]  # fmt: skip
    for key, title in TITLES.items():
        mine = [w for w in results.workloads() if re.match(rf"{key}(\d|_|$)", w)]
        if mine:
            parts.append(f"## {title}")
        for workload in mine:
            parts += [f"### {workload}", providers(results, workload)]
    if plots.series(results):
        parts += ["## Scaling", "![Time against each size](scaling.svg)", series(results)]
    if results.memory:
        parts += ["## Memory", "![Peak memory beside R's size](memory.svg)", memory(results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> None:
    """Render."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="what pytest --benchmark-only --benchmark-json wrote")
    parser.add_argument("--readme", action="store_true", help="print README's table, write nothing")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of benchmarks.md and the plots; default: docs")
    arguments = parser.parse_args()
    results = Results(json.loads(arguments.file.read_text()))
    if arguments.readme:
        print(readme(results))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    source = arguments.file.resolve()
    shown = source.relative_to(ROOT) if source.is_relative_to(ROOT) else source.name
    (arguments.out / "benchmarks.md").write_text(document(results, str(shown)))
    plots.draw(results, arguments.out)
    if arguments.out == DOCS:
        page = (ROOT / "README.md").read_text()
        begin, end = README_MARKS
        before, rest = page.split(begin)
        (ROOT / "README.md").write_text(f"{before}{begin}\n{readme(results)}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()
