"""The heavy ball as people write it in PyTorch: what the benchmarks compare with, on the workloads of `_workloads`.

A loop returns X at the end and the loss before each update. A loop of a batch with an `rtol` runs until every problem
meets it; a problem that has met it keeps its X.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._workloads import Descent, notebook_loop

Path = tuple[Tensor, Tensor]  # X at the end, and the losses by iteration
ADAM_LR = 0.01


def flop(work: Descent) -> float:
    """Two products: one iteration of the whole batch."""
    return 4.0 * work.X0.numel() * work.M.shape[-1]


def scale(work: Descent) -> float:
    """Factor of a mean's gradient, of one problem."""
    return 2 / (work.X0.shape[-2] * work.M.shape[-1])


def step_size(work: Descent) -> Any:
    """One number, or one a problem, that multiplies matrices."""
    return work.lr.view(-1, 1, 1) if isinstance(work.lr, Tensor) else work.lr


def tolerance_of(work: Descent) -> Tensor:
    """Bound on ``sum(R^2)``, per problem."""
    return (work.rtol**2 * work.Y.square().sum((-2, -1))).expand(work.X0.shape[:-2])


def equal_loop(work: Descent) -> Path:
    """The question's loop around the heavy ball: new tensors in every iteration, until ``torch.equal(X @ M, Y)``."""
    X, V, losses = work.X0, torch.zeros_like(work.X0), []
    Y = work.Y.expand(*work.X0.shape[:-1], work.M.shape[-1])
    for _ in range(work.iterations):
        P = X @ work.M
        if torch.equal(P, Y):
            break
        R = P - Y
        losses.append((R * R).mean((-2, -1)))
        V = work.momentum * V + scale(work) * (R @ work.M.mT)
        X = X - step_size(work) * V
    return X, torch.stack(losses)


def autograd_loop(work: Descent) -> Path:
    """The notebook's loop. Of a batch it takes the mean of all losses, so that lr grows by the number of problems."""
    return notebook_loop(work if work.X0.dim() == 2 else replace(work, lr=step_size(work) * len(work.X0)))


def sgd_loop(work: Descent) -> Path:
    return _optimized(work, lambda X: torch.optim.SGD([X], lr=work.lr, momentum=work.momentum, fused=True))


def adam_loop(work: Descent) -> Path:
    return _optimized(work, lambda X: torch.optim.Adam([X], lr=ADAM_LR, fused=True))


def _optimized(work: Descent, make: Callable[[Tensor], torch.optim.Optimizer]) -> Path:
    X, losses = work.X0.clone().requires_grad_(), []
    optimizer = make(X)
    for _ in range(work.iterations):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(X @ work.M, work.Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return X.detach(), torch.stack(losses)


def addmm_loop(work: Descent) -> Path:
    """In place: two products that also add, a norm, an update."""
    product, lr, Mt = torch.baddbmm if work.M.dim() == 3 else torch.addmm, step_size(work), work.M.mT.contiguous()
    X, V, Y = work.X0.clone(), torch.zeros_like(work.X0), work.Y.expand(*work.X0.shape[:-1], work.M.shape[-1])
    R, norms = torch.empty_like(Y, memory_format=torch.contiguous_format), X.new_empty(work.iterations, *X.shape[:-2])
    tolerance, running, made = tolerance_of(work).sqrt(), torch.ones_like(norms[0], dtype=torch.bool), 0
    for k in range(work.iterations):
        product(Y, X, work.M, beta=-1, out=R)
        torch.linalg.vector_norm(R, dim=(-2, -1), out=norms[k])
        product(V, R, Mt, beta=work.momentum, alpha=scale(work), out=V)
        made = k + 1
        if work.rtol:
            running.logical_and_(norms[k] > tolerance)
            X.addcmul_(V, lr * running.view(-1, 1, 1), value=-1)
            if not running.any():
                break
        else:
            X.addcmul_(V, lr, value=-1) if isinstance(lr, Tensor) else X.sub_(V, alpha=lr)
    return X, norms[:made].double().square() * (scale(work) / 2)


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False, fullgraph=True)


def _broadcast_product(X: Tensor, M: Tensor) -> Tensor:
    """``X @ M`` as a sum that inductor fuses with its neighbours: a fifth of the time of ``bmm`` on 8 x 8."""
    return (X.unsqueeze(-1) * M.unsqueeze(-3)).sum(-2)


@functools.cache
def _compiled_step(product: Callable[[Tensor, Tensor], Tensor], momentum: float, stops: bool) -> Callable[..., Any]:
    """One step in place; ``sum(R^2)`` before it. With `stops`, of the problems above their tolerance.

    The factor is no ``alpha=`` of ``add_``: inductor (torch 2.13) drops that where it makes the sum an ``addmm``.
    """

    def step(X: Tensor, V: Tensor, M: Tensor, Y: Tensor, lr: Tensor, tolerance: Tensor, running: Tensor) -> Any:
        R = product(X, M) - Y
        sums = R.square().sum((-2, -1))
        V.mul_(momentum).add_((2 / (R.shape[-2] * R.shape[-1])) * product(R, M.mT))
        if stops:
            running.logical_and_(sums > tolerance)
            lr = torch.where(running[:, None, None], lr, 0.0)
        X.sub_(lr * V)
        return sums, running.any() if stops else None

    return compiled(step)


def compiled_loop(work: Descent, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> Path:
    """The host reads one scalar an iteration where problems stop."""
    step, X, V, sums = _compiled_step(product, work.momentum, bool(work.rtol)), work.X0.clone(), 0 * work.X0, []
    fixed = work.M, work.Y, torch.as_tensor(step_size(work), dtype=work.M.dtype), tolerance_of(work)
    running = torch.ones(work.X0.shape[:-2], dtype=torch.bool, device=X.device)
    for _ in range(work.iterations):
        now, going_on = step(X, V, *fixed, running)
        sums.append(now)
        if going_on is not None and not going_on:
            break
    return X, torch.stack(sums) * (scale(work) / 2)


def compiled_fused_loop(work: Descent) -> Path:
    return compiled_loop(work, _broadcast_product)
