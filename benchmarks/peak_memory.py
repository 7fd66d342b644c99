"""Peak memory of a call above its inputs and its results: ``python benchmarks/peak_memory.py F matconv_fast``.

A process of its own, so that nothing freed before can serve the measured call unseen. Linux only: writing 5 to
``/proc/self/clear_refs`` sets the peak resident set (VmHWM) back to the present one; after the call the rise of VmHWM,
less the bytes of its results, is the extra memory: what the process needs at its peak beyond what the caller holds
before and after. (A buffer gone before the results are written can hide behind them, 12 MiB in F.) A small run goes
before: it loads the code and starts the threads.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peers
import providers
import torch
from measure import NotRunError
from torch import Tensor

from matconv_fast import _workloads

ITERATIONS = 5  # of a descent: the memory does not depend on them


def _x_of(path: Callable[..., Any]) -> Callable[..., tuple[Tensor]]:
    return lambda work: (path(work)[0],)


def _our_x(work: _workloads.Descent) -> tuple[Tensor]:
    return (providers.heavy_ball(work).X,)


_DESCENTS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "matconv_fast": _our_x,
    "equal_loop": _x_of(peers.equal_loop),
    "autograd_loop": _x_of(peers.autograd_loop),
    "sgd": _x_of(peers.sgd_loop),
    "addmm": _x_of(peers.addmm_loop),
}
_LOSSES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "matconv_fast": providers.our_loss,
    "mse_loss": peers.eager_loss,
}


def _descent(make: Callable[..., _workloads.Descent]) -> Callable[..., _workloads.Descent]:
    return lambda *sizes: replace(make(*sizes), iterations=ITERATIONS)


# By workload: how its inputs are made, the sizes of a small run, and who runs it.
CASES = {
    "F": (_workloads.loss_inputs, (410, 26, 819), _LOSSES),
    "T256": (_descent(_workloads.tall), (819, 256), _DESCENTS),
    "R": (_descent(_workloads.wide), (64, 256, 1000), _DESCENTS),
}
ROWS = [(workload, name) for workload, (_, _, who) in CASES.items() for name in who]


def residual_bytes(workload: str) -> int:
    """Of R, which is as large as Y."""
    return CASES[workload][0]().Y.nbytes


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise NotRunError("/proc/self/status has no VmHWM")


def extra_bytes(workload: str, name: str) -> int:
    """Of one call in this process."""
    make, small, who = CASES[workload]
    function = who[name]
    inputs = make()
    function(make(*small))
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_bytes()
    results = function(inputs)
    return _peak_bytes() - before - sum(t.nbytes for t in results)


def in_a_process(workload: str, name: str) -> float:
    """The same in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        raise NotRunError("needs Linux's /proc")
    command = [sys.executable, __file__, workload, name, str(torch.get_num_threads())]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        torch.set_num_threads(int(sys.argv[3]))
    print(extra_bytes(sys.argv[1], sys.argv[2]))
