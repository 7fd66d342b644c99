"""What stands against the GPU kernels: the same steps by PyTorch's operators, written in place, eager or as a graph."""

from __future__ import annotations

from dataclasses import replace

import torch
from gpu_measure import Setting
from torch import Tensor

from matconv_fast import _workloads
from matconv_fast._workloads import Descent, LossInputs

POLL = 50  # iterations of a graph between two looks whether any problem goes on


class Eager:
    """The heavy ball in place: two products with the sums in them, a norm, an update.

    Low precision is multiplied as it is, with X and V in float32. With an `rtol` every problem stops by itself.
    """

    def __init__(self, work: Descent, steps: int) -> None:
        self.work, self.steps = work, steps
        state = torch.promote_types(work.M.dtype, torch.float32)
        self.X, self.V = (torch.empty_like(work.X0, dtype=state) for _ in range(2))
        self.Y = work.Y.expand(*work.X0.shape[:-1], work.M.shape[-1])
        self.R = torch.empty_like(self.Y, memory_format=torch.contiguous_format)
        self.low = work.M.dtype != state
        self.operand = torch.empty_like(work.X0) if self.low else self.X
        self.Mt = work.M.mT if self.low else work.M.mT.contiguous()
        self.product = torch.baddbmm if work.M.dim() == 3 else torch.addmm
        self.norms = torch.empty((steps, *work.X0.shape[:-2]), dtype=state, device=work.M.device)
        self.scale = 2 / (self.R.shape[-2] * self.R.shape[-1])
        self.lr = work.lr.view(-1, 1, 1) if isinstance(work.lr, Tensor) else work.lr
        self.tolerance = work.rtol * torch.linalg.vector_norm(self.Y, dim=(-2, -1), dtype=state)
        self.running = torch.empty(work.X0.shape[:-2], dtype=torch.bool, device=work.M.device)
        self.taken = torch.empty_like(self.running, dtype=torch.int64)

    def reset(self) -> None:
        """To X0."""
        self.X.copy_(self.work.X0)
        self.V.zero_()
        self.running.fill_(True)
        self.taken.zero_()

    def step(self, k: int) -> None:
        """One iteration; launches only."""
        if self.low:
            self.operand.copy_(self.X)
        self.product(self.Y, self.operand, self.work.M, beta=-1, out=self.R)
        torch.linalg.vector_norm(self.R, dim=(-2, -1), dtype=self.norms.dtype, out=self.norms[k])
        if self.low:
            torch.matmul(self.R, self.Mt, out=self.operand)
            self.V.mul_(self.work.momentum).add_(self.operand, alpha=self.scale)
        else:
            self.product(self.V, self.R, self.Mt, beta=self.work.momentum, alpha=self.scale, out=self.V)
        if self.work.rtol:
            self.running.logical_and_(self.norms[k] > self.tolerance)
            self.taken.add_(self.running)
            self.X.addcmul_(self.V, self.lr * self.running.view(-1, 1, 1), value=-1)
        elif isinstance(self.lr, Tensor):
            self.X.addcmul_(self.V, self.lr, value=-1)
        else:
            self.X.sub_(self.V, alpha=self.lr)

    def run(self) -> Eager:
        """`steps` iterations; with an rtol, until the host sees that no problem goes on."""
        self.reset()
        for k in range(self.steps):
            self.step(k)
            if self.work.rtol and not self.running.any():
                break
        return self

    @property
    def loss(self) -> Tensor:
        """Before the last update."""
        return self.norms[-1].double().square() * (self.scale / 2)


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


def tall(m: int, n: int, iterations: int) -> Descent:
    """T: X m x n on one n x n matrix; the lr is that of the mean over all rows."""
    generator = torch.Generator().manual_seed(0)
    M, lr = _workloads._curved((n, n), generator)
    X0, Y = torch.rand(2, m, n, generator=generator)
    return Descent(f"T{n}", M, Y, X0, lr.item() * m / n, 0.9, iterations)


def batch(problems: int, n: int, iterations: int) -> Descent:
    """B64: problems of n x n, all of them to the last iteration."""
    generator = torch.Generator().manual_seed(0)
    M, lr = _workloads._curved((problems, n, n), generator)
    X0 = torch.rand(problems, n, n, generator=generator)
    return Descent(f"B{n}", M, torch.eye(n), X0, lr, 0.9, iterations)


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
