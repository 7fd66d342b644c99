"""Everything that is checked and measured on a GPU: ``python benchmarks/gpu.py``, or ``make gpu``.

Stages, none of which stops the others; the exit status is 1 if any failed:

info         versions, device, driver, the path that serves each device
suite        tests/test_triton.py and tests/test_gpu.py on the device, the sync check included, in several processes
benchmarks   ours against eager PyTorch, its CUDA graph, cuBLAS and a copy; each row after a check of its outputs
sanitizer    compute-sanitizer (memcheck, racecheck) over three iterations of every tier; "not found" is no failure

It needs torch >= 2.10, Triton and pytest, no network, no installation and no compiler: the package is copied to
build/gpu. At most eight minutes. Results: benchmarks/results/<device>/gpu.json, logs: build/gpu/*.log.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_children import BUILD, ROOT, Children
from gpu_stages import Stage, benchmarks, info, sanitizer, suite
from measure import Figure, quantity


def slug(name: str) -> str:
    """``"NVIDIA H100 80GB HBM3"``: h100."""
    name = re.sub(r"\b(nvidia|geforce|amd)\b", "", name.lower())
    short = re.search(r"\b[a-z]+\d+[a-z]*\b", name)
    return short.group() if short else re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def _amount(value: float, unit: str) -> str:
    """A median: GB/s, TFLOP/s, MiB, or the time of an iteration or a call."""
    if unit == "byte":
        return f"{1e-9 / value:,.0f} GB/s"
    if unit == "FLOP":
        return f"{1e-12 / value:,.1f} TFLOP/s"
    return quantity(value, unit)


def markdown(data: dict[str, Any]) -> str:
    """The table of a results file: ratios first, what is asked for on an H100 beside them."""
    lines = [
        "| workload | against | ratio | quartiles | asked on an H100 | | ours | theirs | note |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in data["stages"].get("benchmarks", {}).get("rows", []):
        cells = [row["name"], row["against"]]
        if "ratio" not in row:
            cells += [
                "",
                "",
                "",
                "failed" if "failed" in row else "not run",
                "",
                "",
                row.get("failed", row.get("not_run")),
            ]
        else:
            figure = Figure(row["kind"], row["asked"])
            low, high = row["ratio_quartiles"]
            cells += [
                figure.show(row["ratio"]),
                f"{figure.show(low)} to {figure.show(high)}",
                figure.asked(row["unit"]),
            ]
            cells.append({True: "met", False: "short", None: ""}[row["met"]])
            cells += [_amount(row["ours"], row["unit"]), _amount(row["theirs"], row["unit"]), row["note"]]
        lines.append("| " + " | ".join(" ".join(str(c).replace("|", "/").split()) for c in cells) + " |")
    return "\n".join(lines)


def report(data: dict[str, Any]) -> str:
    """The stages in a line each, then the table."""
    lines = [f"{data['device'].get('name', 'no GPU')}, driver {data['driver']}, {data['versions']}"]
    if data["dry_run"]:
        lines.append("Dry run, tiny sizes in Triton's interpreter: the figures mean nothing.")
    for name, stage in data["stages"].items():
        shown = {k: v for k, v in stage.items() if k in ("passed", "skipped", "memcheck", "racecheck", "processes")}
        lines.append(f"{name}: exit {stage['exit']}, {stage['seconds']:.0f} s {shown or ''}")
        failed = stage.get("failed", [])
        lines += [f"  {text}" for text in ([failed] if isinstance(failed, str) else failed)]
    return "\n".join([*lines, "", markdown(data)])


def main() -> int:
    """Run the stages, write the JSON file after each of them, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dry-run", action="store_true", help="info and benchmarks at tiny sizes, interpreted on a CPU"
    )
    parser.add_argument("--stages", default="info,suite,benchmarks,sanitizer", help="which ones, separated by commas")
    parser.add_argument("--rows", metavar="REGEX", default="", help="only rows whose 'row / against' it is found in")
    parser.add_argument("--rounds", type=int, help="pairs a row (7, in a dry run 1); figures to be quoted need 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here instead")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="measure nothing: the table of such a file")
    arguments = parser.parse_args()
    if arguments.markdown is not None:
        print(markdown(json.loads(arguments.markdown.read_text())))
        return 0
    dry = arguments.dry_run
    children = Children(dry)
    rounds = arguments.rounds or (1 if dry else 7)
    stages: dict[str, Callable[[], Stage]] = {
        "info": lambda: info(children),
        "suite": lambda: suite(children),
        "benchmarks": lambda: benchmarks(children, rounds, arguments.rows, dry),
        "sanitizer": lambda: sanitizer(children),
    }
    wanted = [name for name in arguments.stages.split(",") if not (dry and name in ("suite", "sanitizer"))]
    if unknown := [name for name in wanted if name not in stages]:
        parser.error(f"--stages: {', '.join(unknown)}")
    data: dict[str, Any] = {
        "device": {},
        "driver": {},
        "versions": {},
        "started": time.strftime("%F %TZ", time.gmtime()),
    }
    data["dry_run"], data["stages"], target = dry, {}, arguments.json
    for name in wanted:
        print(f"{name} ...", file=sys.stderr, flush=True)
        begin = time.monotonic()
        try:
            stage = stages[name]()
        except Exception as error:  # the stages after it still run
            stage = {"exit": 1, "failed": f"{type(error).__name__}: {error}"}
        stage["seconds"] = round(time.monotonic() - begin, 1)
        data["stages"][name] = stage
        for key in ("device", "driver", "versions"):
            data[key] = stage.pop(key, data[key])
        if target is None:
            found = data["device"].get("name")
            folder = BUILD if dry or found is None else ROOT / "benchmarks" / "results" / slug(found)
            target = folder / "gpu.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(data, indent=2) + "\n")
    print(report(data))
    print(f"\nwritten: {target}")
    return int(any(stage["exit"] for stage in data["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
