"""``matconv_fast::residual_loss``, and ``residual_products``, which also returns what its gradients are made of.

Two differentiable functions call them: the loss, and the loss with its gradient by X, which a step needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks, _reference
from ..kernels.contract import LOSSES, state_dtype
from . import backend

_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define("residual_loss(Tensor X, Tensor? M, Tensor? Y, int loss) -> Tensor")
_library.define("try_residual_loss(Tensor X, Tensor? M, Tensor? Y, int loss) -> Tensor?")
_library.define(
    "residual_products(Tensor X, Tensor? M, Tensor? Y, int loss, Tensor(a!)? R_Mt, Tensor(b!)? Xt_R, Tensor(c!)? R) "
    "-> Tensor"
)


def _by_reference(
    X: Tensor,
    M: Tensor | None,
    Y: Tensor | None,
    loss: int,
    R_Mt: Tensor | None = None,
    Xt_R: Tensor | None = None,
    R: Tensor | None = None,
) -> Tensor:
    """With ``R = X @ M - Y``: returns the loss, and fills those of ``R M^T``, ``X^T R`` and ``R`` that are given."""
    backend.of(X.device.type)  # warns where kernels are missing
    X, M, Y = _wide(X, M, Y)
    residual = _reference.residual(X, M, Y)
    if R_Mt is not None:
        R_Mt.copy_(residual if M is None else residual @ M.mT)
    if Xt_R is not None:
        Xt_R.copy_(X.mT @ residual)
    if R is not None:
        R.copy_(residual)
    return _reference.loss_of_residual(residual, LOSSES[loss])


def _launch(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int, *outputs: Tensor | None) -> Tensor:
    """By Triton kernels; arguments as `_by_reference`, with one batch shape."""
    if X.numel() == 0 or (M is not None and M.numel() == 0):
        return _by_reference(X, M, Y, loss, *outputs)
    operand = X.dtype if M is None else M.dtype  # X may be float32 where the others are not
    flat = [None if t is None else t.to(operand).reshape(-1, *t.shape[-2:]).contiguous() for t in (X, M, Y)]
    flat_outputs = [None if t is None else t.view(-1, *t.shape[-2:]) for t in (*outputs, None, None, None)[:3]]
    return backend.gpu_losses().launch_residual_products(*flat, loss, *flat_outputs).view(X.shape[:-2])


_by_triton = backend.on_its_device(_launch, _by_reference)


def _fake(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int, *outputs: Tensor | None) -> Tensor:
    _checks.same_device(X=X, M=M, Y=Y)
    residual = _reference.residual(X, M, None if Y is None else Y.to(X.dtype))
    return X.new_empty(residual.shape[:-2], dtype=state_dtype(X.dtype))


for _name in ("residual_loss", "residual_products"):
    _library.impl(_name, _by_reference, "CompositeExplicitAutograd")
    _library.impl(_name, _by_triton, "CUDA")
    torch.library.register_fake(f"matconv_fast::{_name}", _fake, lib=_library)
_library.impl("try_residual_loss", backend.takes_nothing, "CompositeExplicitAutograd")
_LOSS = torch.ops.matconv_fast.residual_loss.default
_TRY_LOSS = torch.ops.matconv_fast.try_residual_loss.default
_PRODUCTS = torch.ops.matconv_fast.residual_products.default


def try_residual_loss(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: object) -> Tensor | None:
    """The fast path of small calls, see `backend`: the loss by the C++ kernel, or None."""
    if (
        type(loss) is str
        and loss in LOSSES
        and X is not None
        and backend.is_plain(X, M, Y)
        and (Y is None or Y.dtype == X.dtype)
        and backend.has_native()
        and not backend.records_grad(X, M, Y)
        and not backend.autocasts(X)
    ):
        return _TRY_LOSS(X, M, Y, LOSSES.index(loss))
    return None


def residual_loss(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: str) -> Tensor:
    """One loss per problem, differentiable in every tensor; already checked."""
    batch = X.shape[:-2]
    flat = _for_kernels(X, M, Y)
    if flat is None:
        return _reference.residual_loss(*_wide(X, M, Y), loss)
    X, M, Y = flat
    index = LOSSES.index(loss)
    if not backend.records_grad(X, M, Y):
        value = backend.call(_LOSS, _by_triton, X, M, Y, index)
    elif torch.compiler.is_compiling():
        value = _TracedLoss.apply(X, M, Y, index)
    else:
        value = _ResidualLoss.apply(X, M, Y, index)
    return value.view(batch) if len(batch) > 1 else value


def loss_and_gradient(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: str) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by X, both differentiable in every tensor; already checked."""
    batch, shape = X.shape[:-2], X.shape
    flat = _for_kernels(X, M, Y)
    if flat is None:
        X, M, Y = _wide(X, M, Y)
        R = _reference.residual(X, M, Y)
        return _reference.loss_of_residual(R, loss), _reference.loss_gradient(R, M, loss)
    function = _LossAndGradient.apply if backend.records_grad(*flat) else _loss_and_gradient
    value, gradient = function(*flat, LOSSES.index(loss))
    return (value.view(batch), gradient.view(shape)) if len(batch) > 1 else (value, gradient)


_Problem = tuple[Tensor, "Tensor | None", "Tensor | None"]


def _wide(X: Tensor, M: Tensor | None, Y: Tensor | None) -> _Problem:
    dtype = state_dtype(X.dtype)
    return X.to(dtype), None if M is None else M.to(dtype), None if Y is None else Y.to(dtype)


def _for_kernels(X: Tensor, M: Tensor | None, Y: Tensor | None) -> _Problem | None:
    """The tensors as a kernel takes them, with at most one batch dimension; None where the reference must run.

    Broadcast batches and transforms use the reference. On a GPU, low precision is multiplied as it is. Elsewhere it is
    converted to float32, except for a Y that needs no gradient: it is as large as the residual that is never
    materialized, so the kernel converts it piece by piece.
    """
    batch = X.shape[:-2]
    if torch.compiler.is_compiling():
        takes, low = backend.emits_operator(), X.is_cuda
    else:
        name = backend.of(X.device.type)
        takes, low = name != "reference" and backend.is_plain(X, M, Y), name == "triton"
    if not takes or backend.autocasts(X) or any(t is not None and t.shape[:-2] != batch for t in (M, Y)):
        return None
    if not low:
        as_given, (X, M, Y) = Y, _wide(X, M, Y)
        if as_given is not None and not as_given.requires_grad:
            Y = as_given
    if len(batch) > 1:
        X = X.reshape(-1, *X.shape[-2:])
        M, Y = (None if t is None else t.reshape(-1, *t.shape[-2:]) for t in (M, Y))
    return X, M, Y


def _products(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int, *outputs: Tensor | None) -> Tensor:
    return backend.call(_PRODUCTS, _by_triton, X, M, Y, loss, *outputs)


def _outputs(X: Tensor, M: Tensor | None, needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Uninitialized ``R M^T``, ``X^T R`` and ``R``, where the gradient of X, M or Y is needed."""
    p = X.shape[-1] if M is None else M.shape[-1]
    dtype = state_dtype(X.dtype)
    operand = X.dtype if M is None else M.dtype  # the dtype in which R is multiplied and held
    return (
        X.new_empty(X.shape, dtype=dtype) if needed[0] else None,
        X.new_empty(M.shape, dtype=dtype) if M is not None and needed[1] else None,
        X.new_empty((*X.shape[:-1], p), dtype=operand) if needed[2] else None,
    )


def _scales(X: Tensor, M: Tensor | None, value: Tensor, grad: Tensor, loss: str) -> tuple[Tensor, Tensor, Tensor]:
    """The factors that turn `_outputs` into the gradients of X, M and Y."""
    elements = X.shape[-2] * (X.shape[-1] if M is None else M.shape[-1])
    scale = grad * _reference.gradient_scale(loss, elements)
    if loss == "fro":
        scale = scale / torch.where(value > 0, value, 1)
    scale = scale[..., None, None]
    return scale, scale, -scale


class _ResidualLoss(torch.autograd.Function):
    """The loss. The forward also computes the gradients up to a scale factor, while the blocks of R are in the cache.

    The first backward scales them in place and returns them. A later one (``retain_graph``) computes them again, with
    the same kernel and the same bits. Saved tensors are never written to. With ``create_graph`` the gradients are those
    of the reference, which are differentiable themselves.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int) -> Tensor:
        ctx.loss, ctx.needed = loss, ctx.needs_input_grad[:3]
        ctx.products = _outputs(X, M, ctx.needed)
        value = _products(X, M, Y, loss, *ctx.products)
        ctx.save_for_backward(X, M, Y, value)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        X, M, Y, value = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            return *_differentiable_gradients(X, M, Y, ctx.loss, ctx.needed, grad), None
        products, ctx.products = ctx.products, None
        if products is None:
            products = _outputs(X, M, ctx.needed)
            _products(X, M, Y, ctx.loss, *products)
        scales = _scales(X, M, value, grad, LOSSES[ctx.loss])
        if not backend.is_plain(grad) or backend.is_batched(grad):
            return *(None if t is None else t * s for t, s in zip(products, scales, strict=True)), None
        return *(None if t is None else t.mul_(s) for t, s in zip(products, scales, strict=True)), None


class _TracedLoss(torch.autograd.Function):
    """`_ResidualLoss` for a compiler, which plans memory and in-place writes by itself."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int) -> Tensor:
        needed = ctx.needs_input_grad[:3]
        products = _outputs(X, M, needed)
        value = _products(X, M, Y, loss, *products)
        ctx.loss = loss
        ctx.save_for_backward(X, M, value, *products)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        X, M, value, *products = ctx.saved_tensors
        scales = _scales(X, M, value, grad, LOSSES[ctx.loss])
        return *(None if t is None else t * s for t, s in zip(products, scales, strict=True)), None


def _differentiable_gradients(
    X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int, needed: tuple[bool, bool, bool], grad: Tensor
) -> list[Tensor | None]:
    # Views keep the gradients apart where two of the tensors are one, or one was computed from another.
    X, M, Y = X.view_as(X), None if M is None else M.view_as(M), None if Y is None else Y.view_as(Y)
    value = _reference.residual_loss(*_wide(X, M, Y), LOSSES[loss])
    inputs = [t for t, wanted in zip((X, M, Y), needed, strict=True) if wanted and t is not None]
    gradients = iter(torch.autograd.grad(value, inputs, grad, create_graph=True))
    return [next(gradients) if wanted else None for wanted in needed]


def _loss_and_gradient(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int) -> tuple[Tensor, Tensor]:
    outputs = _outputs(X, M, (True, False, False))
    value = _products(X, M, Y, loss, *outputs)
    scale, _, _ = _scales(X, M, value, torch.ones_like(value), LOSSES[loss])
    assert outputs[0] is not None
    return value, outputs[0] * scale


class _LossAndGradient(torch.autograd.Function):
    """The loss L and ``G = c R M^T`` in one pass.

    With cotangents g of L and U of G, and ``W = U M``:

        mse, sse:  Z = c (W + g R),                    dM = X^T Z + c U^T R
        fro:       Z = (W - N <N, W>) / ||R|| + g N,   dM = X^T Z + U^T N,    N = R / ||R||, all 0 where R = 0
        dX = Z M^T,  dY = -Z

    The backward computes R again, with differentiable operators, so second derivatives work.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int) -> tuple[Tensor, Tensor]:
        ctx.loss = LOSSES[loss]
        ctx.save_for_backward(X, M, Y)
        return _loss_and_gradient(X, M, Y, loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, U: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        X, M, Y = _wide(*ctx.saved_tensors)
        needs_X, needs_M, needs_Y = ctx.needs_input_grad[:3]
        R = _reference.residual(X, M, Y)
        W = U if M is None else U @ M
        grad = grad[..., None, None]
        if ctx.loss == "fro":
            norm = torch.linalg.vector_norm(R, dim=(-2, -1), keepdim=True)
            scale = torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1), 0)
            N = R * scale
            Z = (W - N * (N * W).sum((-2, -1), keepdim=True)) * scale + grad * N
        else:
            c = _reference.gradient_scale(ctx.loss, R.shape[-2] * R.shape[-1])
            N = c * R
            Z = c * W + grad * N
        dX = None if not needs_X else Z if M is None else Z @ M.mT
        dM = X.mT @ Z + U.mT @ N if M is not None and needs_M else None
        return dX, dM, -Z if needs_Y else None, None
