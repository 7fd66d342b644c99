"""Time every contender of every workload in turns: ``make bench``, ``make bench-compare``, or one workload with ``-k``.

python benchmarks/bench.py                     all; writes benchmarks/results/<device>/bench.json and the pages
BENCH=quick python benchmarks/bench.py         some workloads; writes build/bench.json
python benchmarks/bench.py -k 'S16|D64'        workloads whose whole name matches; writes build/bench.json
python benchmarks/bench.py --compare [FILE]    the quick ones, or -k, against a results file: each by ratio to a GEMM
python benchmarks/bench.py --against FOLDER    ours and another matconv_fast, each in a process, in turns
python benchmarks/bench.py --render [FILE]     measures nothing: writes the pages again
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import report
import torch
from measure import OURS, ROOT, SAMPLE_SECONDS, Call, contest, extra_bytes, in_turns, process, spread, timed
from workloads import WORKLOADS, Workload

import matconv_fast as mcf

BUILD = ROOT / "build" / "bench.json"
BUSY = 0.7  # load average before a run
PROCESSES = {"F": 3}  # that measure a peak; of the others one, since it hardly varies
SLOWER = 1.05  # median of the time's growth in turns that is more than noise, where the quartile is above 1, too


def machine() -> dict[str, Any]:
    """What results depend on."""
    here, versions = mcf.info().devices[0], {OURS: mcf.__version__, "python": platform.python_version()}
    for name in ("torch", "jax", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    backend = getattr(here, "backend", None) or getattr(here, "path", "")  # its name in version 0.1
    return {"device": f"{here.name}; {backend}", "threads": torch.get_num_threads(), "versions": versions}


def committed() -> Path:
    """Results of this kind of processor."""
    isa = re.search(r"generic|avx2|avx512", machine()["device"])
    return ROOT / "benchmarks" / "results" / f"cpu-{isa.group() if isa else 'reference'}" / "bench.json"


def run(workloads: list[Workload], rounds: int, timer: Callable[[Call], float] = timed) -> dict[str, Any]:
    """The content of a results file, but for memory."""
    found: dict[str, Any] = {"machine": machine(), "workloads": {}, "memory": {}}
    for work in workloads:
        torch.compiler.reset()  # torch limits the compiled forms of one step
        begin = time.monotonic()
        facts = {key: getattr(work, key) for key in ("group", "unit", "flop", "bytes", "size")}
        found["workloads"][work.name] = {**facts, "contenders": contest(work.setup(), work.contenders, rounds, timer)}
        print(f"{work.name}: {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)
    return found


def peak(name: str, who: str) -> int:
    """Extra memory, in the process that this is called in."""
    work = WORKLOADS[name]
    return extra_bytes(work.contenders[who], work.make(*work.small), work.setup())


def memory(workload: Workload) -> dict[str, Any]:
    """Peaks of a workload, each measured in a process of its own."""
    found: dict[str, list[int]] = {who: [] for who in workload.memory}
    for who in workload.memory:
        for _ in range(PROCESSES.get(workload.name, 1)):
            with process() as pool:
                found[who].append(pool.submit(peak, workload.name, who).result())
    return {"residual_bytes": workload.setup().Y.nbytes, "contenders": found}


@functools.lru_cache(maxsize=1)
def prepared(name: str, who: str) -> Call:
    return WORKLOADS[name].contenders[who].start(WORKLOADS[name].setup())[0]


def sample(name: str, who: str) -> float:
    return timed(prepared(name, who))


def against(other: Path, cases: list[tuple[str, str]], rounds: int) -> Iterator[report.Growth]:
    """Times of this matconv_fast over another's, both checked, then timed in turns in processes of their own."""
    with process() as here, process(other) as there:
        for case in cases:
            turns = [lambda pool=pool, case=case: pool.submit(sample, *case).result() for pool in (here, there)]
            in_turns(turns, 1)  # checks and warms up
            low, middle, _ = spread([a / b for a, b in zip(*in_turns(turns, rounds), strict=True)])
            print(f"{case}: {middle:.3f}", file=sys.stderr, flush=True)
            yield case[0] + case[1].removeprefix(OURS), middle, middle > SLOWER and low > 1


def write(source: Path) -> int:
    """The pages and plots of a results file."""
    import plots

    results = report.Results(source)
    for page, text in results.pages(str(source.resolve().relative_to(ROOT))).items():
        page.write_text(text)
    plots.draw(results, ROOT / "docs")
    return 0


def main() -> int:
    """0 where every contender was run and, in a comparison, nothing is slower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="REGEX", help="only workloads whose whole name matches")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", type=float, default=SAMPLE_SECONDS, metavar="SECONDS")
    parser.add_argument("--compare", type=Path, nargs="?", const=committed(), metavar="FILE")
    parser.add_argument("--results", type=Path, metavar="FILE", help="with --compare: these, without measuring")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="a built checkout, or pip's --target")
    parser.add_argument("--render", type=Path, nargs="?", const=committed(), metavar="FILE")
    options = parser.parse_args()
    if options.render:
        return write(options.render)
    comparing = options.compare or options.against
    quick = not options.k and os.environ.get("BENCH", "quick" if comparing else "full") == "quick"
    names = [name for name, w in WORKLOADS.items() if re.fullmatch(options.k or ".*", name) and (w.quick or not quick)]
    if (load := os.getloadavg()[0]) > BUSY:  # torch's threads wait for each other: a shared core costs up to 100 times
        print(f"The machine is not idle (load {load:.1f}): ratios can be far off, in either direction.", flush=True)
    if options.against:
        cases = [(name, who) for name in names for who in WORKLOADS[name].contenders if who.startswith(OURS)]
        return report.verdict(list(against(options.against.resolve(), cases, options.rounds)), "time here over there")
    if options.results:
        data = json.loads(options.results.read_text())
    else:
        timer = functools.partial(timed, seconds=options.sample)
        data = run([WORKLOADS[name] for name in names], options.rounds, timer)
    results = report.Results(data)
    if options.compare:
        growth = report.compare(results, report.Results(options.compare))
        return report.verdict(growth, "time over a GEMM's, new over committed")
    if not quick:
        data["memory"] |= {name: memory(WORKLOADS[name]) for name in names if WORKLOADS[name].memory}
    failed = report.errors(data)
    target = BUILD if quick or options.k or failed else committed()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(data, indent=1) + "\n")
    print(*(f"\n{name}\n{results.everyone(name)}" for name in names), results.targets(), sep="\n")
    print(*failed, f"written: {target.relative_to(ROOT)}", sep="\n")
    return 1 if failed else write(target) if target == committed() else 0


if __name__ == "__main__":
    sys.exit(main())
