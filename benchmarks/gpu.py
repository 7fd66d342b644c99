"""On a GPU: time the workloads of workloads.json, or run a check and record how it ended. `make gpu` has the stages.

python benchmarks/gpu.py                    ours against PyTorch, its CUDA graph, cuBLAS and a copy, timed by Triton
python benchmarks/gpu.py STAGE COMMAND...   runs the command; writes its exit status and the end of its log

Both write JSON to benchmarks/results/<device>. Needed: torch >= 2.10 and Triton.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import report
import torch
from bench import run
from descents import sampled
from measure import OURS, ROOT, Call, Contender, register
from torch import Tensor
from workloads import Workload, load

import matconv_fast as mcf
from matconv_fast._loops import addmm_loop


def _graph(work: Any) -> Call:
    part = sampled(work)
    return Call(functools.partial(addmm_loop, part), part.iterations, graph=True)


register("descent", "graph", Contender("addmm(out=) as a CUDA graph", _graph))


def moved(inputs: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A workload's inputs on the device; lr stays in float32."""
    if isinstance(inputs, tuple):
        return tuple(t.cuda() for t in inputs)
    tensors = {name: t.cuda() for name, t in vars(inputs).items() if isinstance(t, Tensor)}
    return replace(inputs, **{name: t if name == "lr" else t.to(dtype) for name, t in tensors.items()})


def rows() -> list[Workload]:
    """Those of workloads.json, with their inputs moved."""
    return [
        replace(work, make=lambda *arguments, work=work: moved(work.make(*arguments), getattr(torch, work.dtype)))
        for work in load("gpu").values()
    ]


def timed(call: Call) -> float:
    """Seconds per unit, the median; `do_bench` clears the L2 cache before each call."""
    from triton.testing import do_bench, do_bench_cudagraph

    measured: Any = (do_bench_cudagraph if call.graph else do_bench)(call.run, return_mode="median")
    return measured * 1e-3 / call.units


def peak() -> dict[str, Any]:
    """Device memory of F's forward beyond inputs and result."""
    inputs: Any = moved(load("gpu")["F_forward"].setup(), torch.bfloat16)
    call = functools.partial(mcf.residual_loss, inputs.X, inputs.M, inputs.Y)
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = call()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before - kept.nbytes
    return {"residual_bytes": inputs.Y.nbytes, "contenders": {OURS: [extra]}}


def write(name: str, found: dict[str, Any]) -> None:
    """To the folder of the device's results."""
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no-gpu"
    folder = ROOT / "benchmarks" / "results" / re.sub(r"nvidia |geforce |amd ", "", device.lower()).split()[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"device": device, **found}, indent=1) + "\n")


def measure() -> int:
    """Check and time every workload."""
    data = run(rows(), 5, timed)
    data["memory"] = {"F_forward": peak()}
    write("gpu", data)
    failed = report.errors(data)
    print(report.Results(data).targets("gpu"), *failed, sep="\n")
    return int(bool(failed))


def record(stage: str, command: list[str]) -> int:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout)
    write(f"gpu-{stage}", {"exit": done.returncode, "log": done.stdout.replace(str(ROOT), ".")[-4_000:]})
    return done.returncode


if __name__ == "__main__":
    sys.exit(record(sys.argv[1], sys.argv[2:]) if sys.argv[2:] else measure())
