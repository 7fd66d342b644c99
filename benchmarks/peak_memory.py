"""Peak memory of workload F above its inputs and its gradients: ``python benchmarks/peak_memory.py ours|eager``.

A process of its own, so that nothing freed before can serve the measured call unseen. Linux only: writing 5 to
``/proc/self/clear_refs`` sets the peak resident set (VmHWM) back to the present one; after one forward and backward the
rise of VmHWM, less the bytes of the two gradients, is the extra memory: what the process needs at its peak beyond what
the caller holds before and after. (The gradients are 12 MiB; a buffer gone before they are written can hide behind
them.) A run at a tenth of the size in each direction goes before: it loads the code and starts the threads.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peers
import torch
from measure import NotRunError
from torch import Tensor

import matconv_fast as mcf
from matconv_fast._workloads import LossInputs, loss_inputs


def our_loss(inputs: LossInputs) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its gradients by X and M."""
    X, M = inputs.X.detach().requires_grad_(), inputs.M.detach().requires_grad_()
    loss = mcf.residual_loss(X, M, inputs.Y)
    by_X, by_M = torch.autograd.grad(loss, (X, M))
    return loss.detach(), by_X, by_M


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise NotRunError("/proc/self/status has no VmHWM")


def extra_bytes(which: str) -> int:
    """Of one forward and backward in this process."""
    function = {"ours": our_loss, "eager": peers.eager_loss}[which]
    inputs = loss_inputs()
    function(loss_inputs(410, 26, 819))
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_bytes()
    _, *gradients = function(inputs)
    return _peak_bytes() - before - sum(g.nbytes for g in gradients)


def extra_and_residual(rounds: int) -> list[tuple[float, float]]:
    """Pairs of the extra bytes and the bytes of R, a process a pair; the figure hardly varies, so three are enough."""
    if not Path("/proc/self/clear_refs").exists():
        raise NotRunError("needs Linux's /proc")
    command = [sys.executable, __file__, "ours", str(torch.get_num_threads())]
    size = loss_inputs().Y.nbytes
    found = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(min(rounds, 3))]
    return [(float(process.stdout), size) for process in found]


if __name__ == "__main__":
    if len(sys.argv) > 2:
        torch.set_num_threads(int(sys.argv[2]))
    print(extra_bytes(sys.argv[1]))
