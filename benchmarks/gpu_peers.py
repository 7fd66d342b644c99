"""What stands against the GPU kernels: the same steps by PyTorch's operators, replayed as a graph; bfloat16 inputs."""

from __future__ import annotations

from dataclasses import replace

import torch
from gpu_measure import Setting
from peers import Eager
from torch import Tensor

from matconv_fast._workloads import Descent, LossInputs

POLL = 50  # iterations of a graph between two looks whether any problem goes on


class Graphed:
    """`Eager`, its steps replayed as one CUDA graph; with an rtol, POLL of them between two looks by the host."""

    def __init__(self, setting: Setting, work: Descent, steps: int) -> None:
        self.eager = Eager(work, min(steps, POLL) if work.rtol else steps)
        self.eager.reset()
        self.replays = -(-steps // self.eager.steps)
        self.replay = setting.captured(self._steps)

    def _steps(self) -> None:
        for k in range(self.eager.steps):
            self.eager.step(k)

    def run(self) -> Eager:
        """As `Eager.run`."""
        self.eager.reset()
        for _ in range(self.replays):
            self.replay()
            if self.eager.work.rtol and not self.eager.running.any():
                break
        return self.eager


def on(device: torch.device, work: Descent) -> Descent:
    """`work` with its tensors there."""
    lr = work.lr.to(device) if isinstance(work.lr, Tensor) else work.lr
    return replace(work, M=work.M.to(device), Y=work.Y.to(device), X0=work.X0.to(device), lr=lr)


def large(n: int, iterations: int, device: torch.device) -> Descent:
    """L: one n x n problem in bfloat16, made on the device, its lr by 30 steps of the power method."""
    generator = torch.Generator(device).manual_seed(0)
    A = torch.randn(n, n, generator=generator, device=device)
    M = A @ A.mT / n + torch.eye(n, device=device)
    v = torch.ones(n, 1, device=device)
    for _ in range(30):
        v = M @ (v / torch.linalg.vector_norm(v))
    lr = 0.9 * n * n / (2 * float(torch.linalg.vector_norm(v)) ** 2)
    X0 = torch.rand(n, n, generator=generator, device=device).bfloat16()
    return Descent(f"L{n}", M.bfloat16(), torch.eye(n, device=device).bfloat16(), X0, lr, 0.9, iterations)


def half(work: Descent) -> Descent:
    """`work` with bfloat16 inputs."""
    return replace(
        work, name=f"{work.name} bf16", M=work.M.bfloat16(), Y=work.Y.bfloat16(), X0=work.X0.bfloat16()
    )  # fmt: skip


def loss_inputs(m: int, n: int, p: int, device: torch.device) -> LossInputs:
    """F in bfloat16, made on the device."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((m, n), (n, p), (m, p))
    X, M, Y = (torch.randn(s, generator=generator, device=device).bfloat16() for s in shapes)
    return LossInputs(X, M, Y)
