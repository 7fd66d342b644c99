"""What stands against matconv_fast: the loops that people write for the same workloads, each as good as they write it.

Every loop of the heavy ball returns the last X and the loss before each update, as the notebook's does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy
import torch
from measure import NotRunError
from torch import Tensor

from matconv_fast._workloads import Descent, LossInputs, notebook_loop

Path = tuple[Tensor, Tensor]  # X at the end, and the losses by iteration

autograd_loop = notebook_loop


def _scale(work: Descent) -> float:
    """Of the gradient of a mean: ``2 / numel(Y)``, of one problem."""
    return 2 / (work.Y.shape[-2] * work.Y.shape[-1])


def _lr(work: Descent) -> Tensor:
    return torch.as_tensor(work.lr, dtype=work.M.dtype)


def _tolerance(work: Descent) -> Tensor:
    """On ``sum(R^2)``, per problem."""
    return (work.rtol**2 * work.Y.square().sum((-2, -1))).expand(len(work.M))


def baddbmm_loop(work: Descent) -> Path:
    """A batch with the products written in place, momentum inside the second; stopped problems keep their X.

    M^T is laid out once: both products then take the fast path of ``bmm``.
    """
    lr, tolerance, scale = _lr(work).view(-1, 1, 1), _tolerance(work), _scale(work)
    Y, Mt = work.Y.expand_as(work.X0), work.M.mT.contiguous()
    X, V, R = work.X0.clone(), torch.zeros_like(work.X0), torch.empty_like(work.X0)
    running = torch.ones(len(X), dtype=torch.bool)
    sums = []
    for _ in range(work.iterations):
        torch.baddbmm(Y, X, work.M, beta=-1, out=R)
        sums.append(R.square().sum((-2, -1)))
        running &= sums[-1] > tolerance
        if not running.any():
            break
        torch.baddbmm(V, R, Mt, beta=work.momentum, alpha=scale, out=V)
        X.addcmul_(V, lr * running.view(-1, 1, 1), value=-1)
    return X, torch.stack(sums) * (scale / 2)


def _step(X: Tensor, V: Tensor, M: Tensor, Y: Tensor, lr: Tensor, momentum: float) -> Tensor:
    """One step in place; the loss before it.

    The factor is no ``alpha=`` of ``add_``: inductor (torch 2.13) drops that where it makes the sum an ``addmm``.
    """
    R = X @ M - Y
    V.mul_(momentum).add_((2 / R.numel()) * (R @ M.mT))
    X.sub_(lr * V)
    return R.square().mean()


def _broadcast_product(X: Tensor, M: Tensor) -> Tensor:
    """``X @ M`` as a sum that inductor fuses with what is around it; a product is a call of ``bmm``."""
    return (X.unsqueeze(-1) * M.unsqueeze(-3)).sum(-2)


def _masked_step(
    product: Callable[[Tensor, Tensor], Tensor], X: Tensor, V: Tensor, M: Tensor, Mt: Tensor, Y: Tensor, lr: Tensor,
    momentum: float, running: Tensor, tolerance: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step in place of the problems that have not met their tolerance; ``sum(R^2)``, and whether any goes on."""
    R = product(X, M) - Y
    sums = R.square().sum((-2, -1))
    running.logical_and_(sums > tolerance)
    V.mul_(momentum).add_((2 / R[0].numel()) * product(R, Mt))
    X.sub_(torch.where(running, lr, 0.0)[:, None, None] * V)
    return sums, running.any()


@functools.cache
def _compiled(step: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(step, dynamic=False, fullgraph=True)


def compiled_loop(work: Descent) -> Path:
    """``torch.compile`` of one step."""
    step, lr = _compiled(_step), _lr(work)
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
    step, lr, tolerance, Mt = _compiled(_masked_step), _lr(work), _tolerance(work), work.M.mT.contiguous()
    X, V, running = work.X0.clone(), torch.zeros_like(work.X0), torch.ones(len(work.X0), dtype=torch.bool)
    sums = []
    for _ in range(work.iterations):
        now, going_on = step(product, X, V, work.M, Mt, work.Y, lr, work.momentum, running, tolerance)
        sums.append(now)
        if not going_on:
            break
    return X, torch.stack(sums) * (_scale(work) / 2)


@functools.cache
def _jax_scan() -> tuple[Any, Any]:
    try:
        import jax
    except ImportError as error:
        raise NotRunError("JAX is not installed") from error
    jax.config.update("jax_platforms", "cpu")

    @functools.partial(jax.jit, static_argnames="iterations")
    def scan(X: Any, M: Any, Y: Any, lr: float, momentum: float, *, iterations: int) -> Any:
        def step(state: Any, _: None) -> Any:
            X, V = state
            R = X @ M - Y
            V = momentum * V + (2 / R.size) * (R @ M.T)
            return (X - lr * V, V), (R * R).mean()

        (X, _), losses = jax.lax.scan(step, (X, 0 * X), None, length=iterations)
        return X, losses

    return jax, scan


def jax_scan(work: Descent) -> Callable[[], Any]:
    """A call of the jitted ``lax.scan`` on arrays that are JAX's already: what crosses from torch is not timed."""
    jax, scan = _jax_scan()
    X0, M, Y = (jax.numpy.asarray(t.numpy()) for t in (work.X0, work.M, work.Y))

    def call() -> Any:
        return jax.block_until_ready(scan(X0, M, Y, work.lr, work.momentum, iterations=work.iterations))

    return call


def jax_loop(work: Descent) -> Path:
    """The scan's results as tensors."""
    X, losses = jax_scan(work)()
    return torch.tensor(numpy.asarray(X)), torch.tensor(numpy.asarray(losses))


def eager_loss(inputs: LossInputs) -> tuple[Tensor, Tensor, Tensor]:
    """``mse_loss(X @ M, Y)`` and its gradients by X and M."""
    X, M = inputs.X.detach().requires_grad_(), inputs.M.detach().requires_grad_()
    loss = torch.nn.functional.mse_loss(X @ M, inputs.Y)
    by_X, by_M = torch.autograd.grad(loss, (X, M))
    return loss.detach(), by_X, by_M


def bare_gemms(n: int, iterations: int) -> Callable[[], None]:
    """The two products of an iteration alone: what the arithmetic costs."""
    X, M, R, G = torch.rand(n, n), torch.rand(n, n), torch.empty(n, n), torch.empty(n, n)

    def call() -> None:
        for _ in range(iterations):
            torch.mm(X, M, out=R)
            torch.mm(R, M.T, out=G)

    return call


def dot(A: Tensor, B: Tensor) -> Callable[[], Tensor]:
    """One read of both matrices."""
    return functools.partial(torch.dot, A.view(-1), B.view(-1))


def norm_of_difference(A: Tensor, B: Tensor) -> Tensor:
    """What people write for the distance."""
    return torch.linalg.norm(A - B)
