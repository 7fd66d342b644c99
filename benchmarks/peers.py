"""What stands against matconv_fast: the loops that people write for the same workloads, each as good as they write it.

Every loop of the heavy ball returns the last X and the loss before each update, as the notebook's does. Those of a
batch go on until every problem has met its `rtol`, and a problem that has keeps its X.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from matconv_fast._workloads import Descent, LossInputs, notebook_loop

Path = tuple[Tensor, Tensor]  # X at the end, and the losses by iteration


def scale(work: Descent) -> float:
    """Of the gradient of a mean: ``2 / numel(Y)``, of one problem."""
    return 2 / (work.X0.shape[-2] * work.M.shape[-1])


def step_size(work: Descent) -> float | Tensor:
    """One number, or one a problem, to be multiplied with matrices."""
    return work.lr.view(-1, 1, 1) if isinstance(work.lr, Tensor) else work.lr


def tolerance_of(work: Descent) -> Tensor:
    """On ``sum(R^2)``, per problem."""
    return (work.rtol**2 * work.Y.square().sum((-2, -1))).expand(work.X0.shape[:-2])


def equal_loop(work: Descent) -> Path:
    """The question's loop around the heavy ball: new tensors in every iteration, until ``torch.equal(X @ M, Y)``."""
    lr, factor = step_size(work), scale(work)
    X, V = work.X0, torch.zeros_like(work.X0)
    Y = work.Y.expand(*work.X0.shape[:-1], work.M.shape[-1])
    losses = []
    for _ in range(work.iterations):
        P = X @ work.M
        if torch.equal(P, Y):
            break
        R = P - Y
        losses.append((R * R).mean((-2, -1)))
        V = work.momentum * V + factor * (R @ work.M.mT)
        X = X - lr * V
    return X, torch.stack(losses)


def autograd_loop(work: Descent) -> Path:
    """The notebook's loop; for a batch the sum of its losses goes backward."""
    if work.X0.dim() == 2:
        return notebook_loop(work)
    lr = step_size(work)
    X = work.X0.clone().requires_grad_()
    velocity = X.grad = torch.zeros_like(X)
    losses = []
    for _ in range(work.iterations):
        loss = ((X @ work.M - work.Y) ** 2).mean((-2, -1))
        loss.sum().backward()
        losses.append(loss.detach())
        with torch.no_grad():
            X -= lr * velocity
            velocity *= work.momentum
    return X.detach(), torch.stack(losses)


def sgd_loop(work: Descent) -> Path:
    """``torch.optim.SGD(fused=True)``."""
    X = work.X0.clone().requires_grad_()
    optimizer = torch.optim.SGD([X], lr=work.lr, momentum=work.momentum, fused=True)
    return _optimized(work, X, optimizer)


def adam_loop(work: Descent) -> Path:
    """``torch.optim.Adam(fused=True)``."""
    X = work.X0.clone().requires_grad_()
    return _optimized(work, X, torch.optim.Adam([X], lr=work.lr, fused=True))


def _optimized(work: Descent, X: Tensor, optimizer: torch.optim.Optimizer) -> Path:
    losses = []
    for _ in range(work.iterations):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(X @ work.M, work.Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return X.detach(), torch.stack(losses)


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
        self.made = 0
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
        self.made = k + 1
        return self

    @property
    def losses(self) -> Tensor:
        """Before each update."""
        return self.norms[: self.made].double().square() * (self.scale / 2)


def addmm_loop(work: Descent) -> Path:
    """`Eager` from its buffers on."""
    made = Eager(work, work.iterations).run()
    return made.X, made.losses


def _step(X: Tensor, V: Tensor, M: Tensor, Y: Tensor, lr: float | Tensor, momentum: float) -> Tensor:
    """One step in place; the loss before it.

    The factor is no ``alpha=`` of ``add_``: inductor (torch 2.13) drops that where it makes the sum an ``addmm``.
    """
    R = X @ M - Y
    V.mul_(momentum).add_((2 / (R.shape[-2] * R.shape[-1])) * (R @ M.mT))
    X.sub_(lr * V)
    return R.square().mean((-2, -1))


def _broadcast_product(X: Tensor, M: Tensor) -> Tensor:
    """``X @ M`` as a sum that inductor fuses with what is around it; a product is a call of ``bmm``."""
    return (X.unsqueeze(-1) * M.unsqueeze(-3)).sum(-2)


def _masked_step(
    product: Callable[[Tensor, Tensor], Tensor], X: Tensor, V: Tensor, M: Tensor, Mt: Tensor, Y: Tensor,
    lr: float | Tensor, momentum: float, running: Tensor, tolerance: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step in place of the problems that have not met their tolerance; ``sum(R^2)``, and whether any goes on."""
    R = product(X, M) - Y
    sums = R.square().sum((-2, -1))
    running.logical_and_(sums > tolerance)
    V.mul_(momentum).add_((2 / R[0].numel()) * product(R, Mt))
    X.sub_(torch.where(running[:, None, None], lr, 0.0) * V)
    return sums, running.any()


@functools.cache
def _compiled(step: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(step, dynamic=False, fullgraph=True)


def compiled_loop(work: Descent) -> Path:
    """``torch.compile`` of one step."""
    step, lr = _compiled(_step), torch.as_tensor(step_size(work), dtype=work.M.dtype)
    X, V = work.X0.clone(), torch.zeros_like(work.X0)
    losses = [step(X, V, work.M, work.Y, lr, work.momentum) for _ in range(work.iterations)]
    return X, torch.stack(losses)


def compiled_batch_loop(work: Descent) -> Path:
    """``torch.compile`` of one step of a batch, products fused: a fifth of the time of ``X @ M`` on 8 x 8."""
    return _compiled_batch(work, _broadcast_product)


def compiled_matmul_batch_loop(work: Descent) -> Path:
    """``torch.compile`` of one step of a batch, products by ``X @ M``."""
    return _compiled_batch(work, torch.matmul)


def _compiled_batch(work: Descent, product: Callable[[Tensor, Tensor], Tensor]) -> Path:
    """The mask is inside the step; the host reads one scalar an iteration."""
    step, lr, tolerance, Mt = _compiled(_masked_step), step_size(work), tolerance_of(work), work.M.mT.contiguous()
    X, V, running = work.X0.clone(), torch.zeros_like(work.X0), torch.ones(len(work.X0), dtype=torch.bool)
    sums = []
    for _ in range(work.iterations):
        now, going_on = step(product, X, V, work.M, Mt, work.Y, lr, work.momentum, running, tolerance)
        sums.append(now)
        if not going_on:
            break
    return X, torch.stack(sums) * (scale(work) / 2)


def bare_gemms(work: Descent, iterations: int) -> Callable[[], None]:
    """The two products of an iteration alone, in place: what the arithmetic costs."""
    X, product = work.X0, torch.bmm if work.X0.dim() == 3 else torch.mm
    R, G, Mt = X @ work.M, torch.empty_like(X), work.M.mT

    def call() -> None:
        for _ in range(iterations):
            product(X, work.M, out=R)
            product(R, Mt, out=G)

    return call


Gradients = tuple[Tensor, Tensor, Tensor]  # a loss, and its gradients by X and M


def eager_loss(inputs: LossInputs) -> Gradients:
    """``mse_loss(X @ M, Y)``, forward and backward."""
    return with_gradients(plain_loss, inputs)


def compiled_loss(inputs: LossInputs) -> Gradients:
    """``torch.compile`` of it."""
    return with_gradients(compiled_plain_loss, inputs)


def plain_loss(X: Tensor, M: Tensor, Y: Tensor) -> Tensor:
    """The loss as it is written."""
    return torch.nn.functional.mse_loss(X @ M, Y)


def compiled_plain_loss(X: Tensor, M: Tensor, Y: Tensor) -> Tensor:
    """``torch.compile`` of it."""
    return _compiled(plain_loss)(X, M, Y)


def with_gradients(function: Callable[..., Tensor], inputs: LossInputs) -> Gradients:
    """A loss and its gradients by X and M."""
    X, M = inputs.X.detach().requires_grad_(), inputs.M.detach().requires_grad_()
    loss = function(X, M, inputs.Y)
    by_X, by_M = torch.autograd.grad(loss, (X, M))
    return loss.detach(), by_X, by_M


def loss_gemms(inputs: LossInputs) -> Callable[[], None]:
    """The three products of the loss and its two gradients, in place."""
    R, by_X, by_M = inputs.X @ inputs.M, torch.empty_like(inputs.X), torch.empty_like(inputs.M)

    def call() -> None:
        torch.mm(inputs.X, inputs.M, out=R)
        torch.mm(R, inputs.M.mT, out=by_X)
        torch.mm(inputs.X.mT, R, out=by_M)

    return call


def dot(A: Tensor, B: Tensor) -> Tensor:
    """One read of both matrices."""
    return torch.dot(A.view(-1), B.view(-1))


def norm_of_difference(A: Tensor, B: Tensor) -> Tensor:
    """What people write for the distance."""
    return torch.linalg.norm(A - B)


def compiled_norm(A: Tensor, B: Tensor) -> Tensor:
    """``torch.compile`` of the formula; inductor has no kernel of its own for `torch.linalg.norm` of a difference."""
    return _compiled(_root_of_squares)(A, B)


def _root_of_squares(A: Tensor, B: Tensor) -> Tensor:
    return (A - B).square().sum().sqrt()
