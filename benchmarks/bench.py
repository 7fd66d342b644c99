"""The suite and its report: ``make bench``, ``BENCH=quick make bench``, ``make bench-compare``.

A full run writes benchmarks/results/<device>/bench.json, docs/benchmarks.md with its plots, and README's table; a quick
one takes part of the workloads, and writes to build/bench. ``--compare`` makes a quick run and sets it against the
committed results of this kind of device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import compare
import facts
from measure import ROOT

BUILD = ROOT / "build" / "bench"
BUSY = 0.7  # load average before the run


def _run(script: str, *arguments: str) -> int:
    return subprocess.run([sys.executable, str(ROOT / "benchmarks" / script), *arguments], check=False).returncode


def main() -> int:
    """0 where every benchmark was run and, in a comparison, nothing is slower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true")
    arguments = parser.parse_args()
    quick = arguments.compare or os.environ.get("BENCH") == "quick"
    committed = ROOT / "benchmarks" / "results" / facts.slug() / "bench.json"
    found = BUILD / "bench.json"
    found.parent.mkdir(parents=True, exist_ok=True)
    found.unlink(missing_ok=True)
    load = os.getloadavg()[0]
    if load > BUSY:  # torch's threads wait for each other: a loop that shares a core can take 100 times its time
        print(f"The machine is not idle (load {load:.1f}): ratios can be far off, in either direction.", flush=True)
    start = time.monotonic()
    suite = [sys.executable, "-m", "pytest", "--benchmark-only", "-q", f"--benchmark-json={found}"]
    columns = ["--benchmark-columns=median,iqr,rounds", "--benchmark-sort=name", "--durations=20"]
    environment = {**os.environ, "BENCH": "quick" if quick else "full"}
    code = subprocess.run([*suite, *columns], cwd=ROOT, env=environment, check=False).returncode
    print(f"{(time.monotonic() - start) / 60:.1f} minutes, load before {load:.1f}", flush=True)
    if not found.exists():
        return code or 1
    if arguments.compare:
        return code or compare.report(found, committed)
    if quick:
        return code or _run("report.py", str(found), "--out", str(BUILD))
    if code == 0:
        committed.parent.mkdir(parents=True, exist_ok=True)
        committed.write_text(json.dumps(json.loads(found.read_text()), indent=1) + "\n")
        code = _run("report.py", str(committed))
    return code


if __name__ == "__main__":
    sys.exit(main())
