"""Command line: ``python -m matconv_fast demo`` and ``python -m matconv_fast info``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import info


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m matconv_fast", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, devices, the backend of each, and why a faster one is missing")
    demo = commands.add_parser("demo", help="the notebook's runs and the question's loops, against the plain loops")
    demo.add_argument("--pairs", type=int, default=5, help="timed pairs of a workload (default 5)")
    demo.add_argument("--report", type=Path, help="write an interactive HTML report here")
    demo.add_argument("--json", type=Path, help="write the results here")
    parsed = parser.parse_args(arguments)
    if parsed.command == "info":
        print(info())
        return
    if parsed.pairs < 1:
        parser.error(f"--pairs must be at least 1, got {parsed.pairs}")
    if parsed.report is not None and not parsed.report.parent.is_dir():
        parser.error(f"--report: no directory {parsed.report.parent}")
    from ._demo import run_demo

    run_demo(parsed.pairs, parsed.report, parsed.json)


if __name__ == "__main__":
    main()
