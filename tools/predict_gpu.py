"""How long the workloads should take on an H100, computed from what their kernels compile to; nothing is measured.

    python tools/predict_gpu.py [--markdown FILE]

For each kernel of a workload: its least operations and bytes at the rates below, times the share of the GPU that is
idle in the last wave of programs. As many programs run at once as registers and shared memory allow. This is a lower
bound: latencies within a program are left out, and of the start of a launch all but one gap.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kernel_binary import Binary, compile_launch
from kernel_launches import Case, Recorder

# An H100 SXM: measured copy and tensor rates, CUDA-core rates at 90 % of what the data sheet says, an assumed L2 rate.
MULTIPROCESSORS, REGISTERS, SHARED, WARPS = 132, 65536, 232448, 64
RATES = {"bf16": 800e12, "tf32": 400e12, "ieee": 60e12}
MEMORY, L2 = 3.0e12, 5.5e12
GAP = 1.5e-6  # between two launches of a replayed graph

DOCUMENT = """# Predictions for an H100

**Nothing on this page was measured.** `{command}` computes it from what the
kernels compile to ([gpu_kernels.md](gpu_kernels.md)); its docstring says how. A time is a lower bound: of an iteration
for S, B, T256 and L4096, of a call for D and F. `make gpu` measures the same workloads on a device.

What it says of the figures asked for: D reaches 90 % of copy speed from 4,096 on, and L4096 the rate of two bare
products but for the gaps between launches. T256 in float32 cannot be 5 times as fast as eager PyTorch: its two products
alone take 36 us at the rate of the CUDA cores, and eager's iteration an estimated 60 to 70. With bf16 inputs it runs on
tensor cores.

"""


@dataclass(frozen=True)
class Work:
    """What one launch has to do: `units` equal programs (or tiles, of a persistent grid), operations and bytes.

    ``many``: it makes many iterations, of which this is one.
    """

    kernel: str
    units: int
    operations: float
    hbm: float
    l2: float = 0.0
    many: bool = False


@dataclass(frozen=True)
class Workload:
    """A row of the table. ``works``: of one iteration, given m, n, p and the tile's numbers."""

    name: str
    precision: str
    record: Callable[[Recorder], None]
    works: Callable[[dict[str, dict]], list[Work]]


def resident(binary: Binary, warps: int) -> int:
    """Programs that a multiprocessor holds at a time."""
    registers = math.ceil(binary.registers / 8) * 8 * 32 * warps
    return max(1, min(REGISTERS // registers, SHARED // max(binary.shared, 1), WARPS // warps))


def seconds(work: Work, binary: Binary, warps: int, rate: float) -> float:
    """Of one launch, with the gap before the next."""
    at_once = MULTIPROCESSORS * resident(binary, warps)
    if work.units < at_once:
        idle = max(1.0, MULTIPROCESSORS / work.units)  # multiprocessors that have none
    else:
        idle = math.ceil(work.units / at_once) * at_once / work.units
    return max(work.operations * idle / rate, work.hbm / MEMORY, work.l2 / L2) + (0.0 if work.many else GAP)


def advance(precision: str, batch: int, m: int, n: int, p: int) -> Workload:
    """Heavy ball under mse, two products an iteration."""
    size = 2 if precision == "bf16" else 4

    def works(tile: dict[str, dict]) -> list[Work]:
        if "_advance_small_kernel" in tile:
            t = tile["_advance_small_kernel"]
            return [Work("_advance_small_kernel", batch, 4.0 * batch * t["BM"] * t["BN"] * t["BP"], 0.0, many=True)]
        if "_advance_rows_kernel" in tile:
            t = tile["_advance_rows_kernel"]
            blocks = batch * math.ceil(m / t["BM"])
            streamed = blocks * (n + t["BM"]) * p * size  # M and Y, for every block
            return [
                Work("_advance_rows_kernel", blocks, 4.0 * blocks * t["BM"] * t["BN"] * p, 0.0, streamed, many=True)
            ]
        residual, step = tile["_residual_kernel"], tile["_step_kernel"]
        return [
            Work("_residual_kernel", batch * math.ceil(m / residual["BM"]) * math.ceil(p / residual["BN"]),
                 2.0 * batch * m * n * p, batch * (m * n + n * p + 2 * m * p) * size),
            Work("_finish_iterate_kernel", batch, 0.0, 0.0),
            Work("_step_kernel", batch * math.ceil(m / step["BM"]) * math.ceil(n / step["BN"]),
                 2.0 * batch * m * n * p, batch * ((m * p + n * p) * size + m * n * (16 + size))),
        ]  # fmt: skip

    def record(recorder: Recorder) -> None:
        recorder.advance("heavy_ball", Case("mse", precision, batch, m, n, p, shared=batch == 1))

    return Workload("", precision, record, works)


def distance(n: int) -> Workload:
    """One read of both."""

    def works(tile: dict[str, dict]) -> list[Work]:
        t = tile["_distance_kernel"]
        units = math.ceil(n / t["BM"]) * math.ceil(n / t["SPAN"])
        return [Work("_distance_kernel", units, 0.0, 8.0 * n * n), Work("_finish_norm_kernel", 1, 0.0, 0.0)]

    return Workload("", "ieee", lambda recorder: recorder.distance(0, "ieee", 1, n, n), works)


def forward(m: int, n: int, p: int) -> Workload:
    """The loss alone."""

    def works(tile: dict[str, dict]) -> list[Work]:
        t = tile["_residual_kernel"]
        units = math.ceil(m / t["BM"]) * math.ceil(p / t["BN"])
        return [
            Work("_residual_kernel", units, 2.0 * m * n * p, 2.0 * (m * n + n * p + m * p)),
            Work("_finish_norm_kernel", 1, 0.0, 0.0),
        ]

    return Workload("", "bf16", lambda recorder: recorder.products(Case("mse", "bf16", 1, m, n, p)), works)


WORKLOADS = {
    **{f"S{n}": advance("ieee", 1, n, n, n) for n in (4, 16, 64, 128, 256)},
    "B8": advance("ieee", 10_000, 8, 8, 8),
    "B64": advance("ieee", 512, 64, 64, 64),
    "T256": advance("ieee", 1, 8192, 256, 256),
    "8,192 x 128, M 128 x 128": advance("tf32", 1, 8192, 128, 128),
    "T256 with bf16 inputs": advance("bf16", 1, 8192, 256, 256),
    "L4096": advance("bf16", 1, 4096, 4096, 4096),
    "F forward": forward(16384, 1024, 16384),
    **{f"D{n}": distance(n) for n in (1024, 4096, 8192)},
}


def row(name: str, workload: Workload) -> str:
    """A line of the table."""
    recorder = Recorder("sm_90")
    with recorder.recording():
        workload.record(recorder)
    launches = {made.kernel: made for made in recorder.launches.values()}
    works = workload.works({kernel: made.constants for kernel, made in launches.items()})
    total, parts = 0.0, []
    for work in works:
        made = launches[work.kernel]
        binary = compile_launch(made)
        warps = made.options["num_warps"]
        took = seconds(work, binary, warps, RATES[workload.precision])
        total += took
        if work.operations or work.hbm:
            kernel = work.kernel.strip("_").removesuffix("_kernel")
            parts.append(
                f"{kernel}: {work.units} units, {resident(binary, warps)} a multiprocessor, {took * 1e6:.3g} us"
            )
    operations, moved = sum(w.operations for w in works), sum(w.hbm for w in works)
    rate = f"{operations / total / 1e12:.3g} TFLOP/s" if operations else f"{moved / total / 1e9:,.0f} GB/s"
    return f"| {name} | {workload.precision} | {total * 1e6:,.3g} us | {rate} | {'; '.join(parts)} |"


def main() -> None:
    """Print or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write it there")
    options = parser.parse_args()
    lines = ["| workload | precision | at least | that is | where it goes |", "| --- | --- | --- | --- | --- |"]
    lines += [row(name, workload) for name, workload in WORKLOADS.items()]
    text = "\n".join(lines) + "\n"
    if options.markdown is None:
        print(text)
    else:
        command = f"python tools/predict_gpu.py --markdown {options.markdown.as_posix()}"
        options.markdown.write_text(DOCUMENT.format(command=command) + text)


if __name__ == "__main__":
    main()
