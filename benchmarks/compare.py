"""Whether the code became slower, whatever the machine: ``python benchmarks/compare.py NEW COMMITTED``.

A workload's time is taken over that of a bare GEMM of the same turns. It is slower where the median of that ratio has
grown by more than a quarter and its quartiles lie above those of the committed run; then the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from contest import spread
from figures import GEMM, Results
from report import table

ALLOWED = 1.25


def normalised(results: Results, workload: str) -> list[float] | None:
    """Quartiles of ours over the GEMM's, per FLOP of the GEMM; None where one is missing."""
    if not {(workload, "matconv_fast"), (workload, GEMM)} <= results.rows.keys():
        return None
    pairs = zip(results.seconds(workload, "matconv_fast"), results.seconds(workload, GEMM), strict=True)
    return spread([ours / gemm for ours, gemm in pairs])


def compare(new: Results, committed: Results) -> list[tuple[str, float, bool]]:
    """By workload of both: how many times as slow it is, and whether that is more than noise."""
    found = []
    for workload in new.workloads():
        now, then = (normalised(results, workload) for results in (new, committed))
        if now is None or then is None:
            continue
        ratio = now[1] / then[1]
        found.append((workload, ratio, ratio > ALLOWED and now[0] > then[2]))
    return found


def report(*files: Path) -> int:
    """Print; 1 where something is slower, or nothing can be compared."""
    new, committed = (Results(json.loads(path.read_text())) for path in files)
    if new.machine["device"] != committed.machine["device"]:
        print(f"Measured on {new.machine['device']}, committed from {committed.machine['device']}.")
    found = compare(new, committed)
    print(table(("workload", "time over a GEMM's, new over committed", ""),
                [(name, f"{ratio:.2f}", "slower" if slower else "") for name, ratio, slower in found]))  # fmt: skip
    slower = [name for name, _, is_slower in found if is_slower]
    print(f"\n{len(slower)} of {len(found)} workloads are slower{': ' if slower else ''}{', '.join(slower)}")
    return int(bool(slower) or not found)


def main() -> int:
    """1 where something is slower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", type=Path)
    parser.add_argument("committed", type=Path)
    arguments = parser.parse_args()
    return report(arguments.new, arguments.committed)


if __name__ == "__main__":
    sys.exit(main())
