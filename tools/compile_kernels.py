"""Compile every Triton kernel for every GPU target, without a GPU, and fail where a binary has a fault.

Each launch is compiled with each block shape, precision and target that it can have. It must not spill registers, must
fit in shared and tensor memory, and must use the warp-group instructions of sm_90's tensor cores.

    python tools/compile_kernels.py [--targets sm_90,gfx942] [--kernels REGEX] [--once] [--jobs 2] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import triton
from kernel_binary import Binary, compile_launch, faults
from kernel_launches import RULES, TARGETS, Launch
from kernel_shapes import missing, reachable, record, unused_entries, unused_kernels
from kernel_table import config, markdown, rows, text

DOCUMENT = """# GPU kernels: what they compile to

Written by `{command}`, with Triton {triton} and the compilers that it brings along; no GPU is needed. Each
cell has registers a thread, bytes of stack where registers are spilled, shared memory of a program, and the
instructions that multiply blocks: `wgmma`, `tcgen05`, `mma` and `mfma` are matrix instructions, `fma` is none. Where
launches of one block shape differ, in alignment or in optional arguments, it is the most of any of them. The targets
are the A100, H100, B200 and MI300X.
"""


def main() -> int:
    """The exit code: 0 without faults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--targets", default=",".join(TARGETS), help="default: %(default)s")
    parser.add_argument("--kernels", default="", metavar="REGEX", help="only those whose names have it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; default: %(default)s")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument("--thorough", action="store_true", help="every mix of sizes of the small algorithm")
    parser.add_argument("--once", action="store_true", help="one launch of each block shape, not all of its alignments")
    options = parser.parse_args()
    targets = options.targets.split(",")
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")

    print(f"triton {triton.__version__}, torch {torch.__version__}", flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TRITON_CACHE_DIR", cache)  # a new one: cached binaries take no time
        launches = [launch for target in targets for launch in record(target, thorough=options.thorough)]
        recorded = [launch for launch in launches if re.search(options.kernels, launch.kernel)]
        launches = first_of_each(recorded) if options.once else recorded
        binaries = compile_all(launches, options.jobs)
    table = rows(zip(launches, binaries, strict=True))
    print(text(table, targets))
    failures = [
        f"{launch.target} {launch.kernel} {launch.precision} {config(launch)}: {fault}\n    {launch.describe()}"
        for launch, binary in zip(launches, binaries, strict=True)
        for fault in faults(launch, binary)
    ]
    failures += uncompiled(recorded, targets, options.kernels)
    print(f"{len(launches)} binaries in {time.perf_counter() - start:.0f} s, {len(failures)} faults")
    print("\n".join(failures))
    if options.markdown:
        heading = DOCUMENT.format(command="make compile-kernels", triton=triton.__version__)
        options.markdown.write_text(heading + markdown(table, targets))
    return 1 if failures else 0


def first_of_each(launches: list[Launch]) -> list[Launch]:
    """One for each kernel, block shape, precision and target, and of each rule for each kernel and target.

    fp16 is the same code as bf16 but for the rounding, and rules with as many state matrices differ in a few operations
    on registers.
    """
    found: dict[tuple[object, ...], Launch] = {}
    for launch in launches:
        rule = launch.constants.get("RULE", "")
        shape = config(launch).replace(rule, str(RULES[rule].states)) if rule else config(launch)
        found.setdefault((launch.target, launch.kernel, launch.precision.replace("fp16", "bf16"), shape), launch)
        found.setdefault((launch.target, launch.kernel, rule), launch)
    return list({id(launch): launch for launch in found.values()}.values())


def compile_all(launches: list[Launch], jobs: int) -> list[Binary]:
    """In `jobs` processes; the progress goes to stderr."""
    binaries = []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for binary in pool.map(compile_launch, launches, chunksize=4):
            binaries.append(binary)
            if len(binaries) % 100 == 0:
                print(f"{len(binaries)} of {len(launches)}", file=sys.stderr, flush=True)
    return binaries


def uncompiled(launches: list[Launch], targets: list[str], kernels: str) -> list[str]:
    """Block shapes and kernels that no launch recorded for a target has, and block shapes that no target uses."""
    found = []
    asked = set()
    for target in targets:
        mine = [launch for launch in launches if launch.target == target]
        entries = {entry for entry in reachable(target) if re.search(kernels, entry.kernel)}
        found += [f"{target}: never compiled: {entry}" for entry in missing(mine, entries)]
        found += [f"{target}: never launched: {name}" for name in unused_kernels(mine) if re.search(kernels, name)]
        asked |= entries
    if not kernels and set(targets) == set(TARGETS):
        found += [f"no target is ever given {name}" for name in unused_entries(asked)]
    return found


if __name__ == "__main__":
    sys.exit(main())
