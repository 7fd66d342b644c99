"""The CPU kernels against the loops that they replace: ``python benchmarks/cpu_table.py --json FILE``.

One line per figure that the kernels are judged by. Both sides of a line run in turns inside this process, after a check
that they give the same answer, in float64 too; the ratio is the median over the pairs, with its quartiles. Times are
per iteration, or per call where the note has no iterations. About six minutes on two cores; ``--rows`` takes a part,
such as ``--rows '^D'`` or ``--rows JAX``.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from measure import NotRunError, Result, cells, markdown, table
from rows import rows

import matconv_fast as mcf

BUSY = 0.7  # load average before the run
FOOTNOTE = """\
Ours is the public call, its fixed cost and the loss of the last X included: k iterations make 2 k + 1 products.
A line whose call takes over 5 s has at most 5 pairs; the memory line, 3 processes."""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def facts(rounds: int) -> dict[str, Any]:
    """What the figures depend on."""
    versions = {name: _version(name) for name in ("matconv_fast", "torch", "jax", "numpy")}
    versions["python"] = platform.python_version()
    device = asdict(mcf.info().devices[0])
    return {"device": device, "threads": torch.get_num_threads(), "rounds": rounds, "versions": versions}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", metavar="REGEX", default="", help="only lines whose 'row / against' it is found in")
    parser.add_argument("--rounds", type=int, default=7, help="pairs a line (7); figures to be quoted need 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every pair, versions and device")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="measure nothing: README's table from such a file"
    )
    arguments = parser.parse_args()
    if arguments.markdown is not None:
        print(markdown(json.loads(arguments.markdown.read_text())["rows"]))
        return
    print(mcf.info(), end="\n\n", flush=True)
    load = os.getloadavg()[0]
    if load > BUSY:  # torch's threads wait for each other: a loop that shares a core can take 100 times its time
        print(
            f"The machine is not idle (load {load:.1f}): ratios below can be far off, in either direction.\n",
            flush=True,
        )
    lines, found, not_run = [], [], {}
    start = time.perf_counter()
    for row in rows():
        if not re.search(arguments.rows, f"{row.name} / {row.against}"):
            continue
        print(f"{time.perf_counter() - start:4.0f} s  {row.name} / {row.against}", file=sys.stderr, flush=True)
        try:
            result = Result(row, row.pairs(arguments.rounds))
        except NotRunError as reason:
            lines.append(cells(row, str(reason)))
            not_run[f"{row.name} / {row.against}"] = str(reason)
            continue
        gc.collect()
        lines.append(cells(row, result))
        found.append(result.as_json())
    print(table(lines))
    met = [row["met"] for row in found if row["met"] is not None]
    print(f"\n{sum(met)} of {len(met)} figures met; medians and quartiles of {arguments.rounds} pairs.")
    print(FOOTNOTE)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        data = {**facts(arguments.rounds), "load_before": load, "rows": found, "not_run": not_run}
        arguments.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
