"""``matconv_fast::residual_loss``, and ``residual_products``: with, in the same pass, what its gradients are made of.

They stand behind two differentiable functions: the loss, and the loss with its gradient by X, which a step takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks, _reference
from . import backend

_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define("residual_loss(Tensor X, Tensor? M, Tensor? Y, int loss) -> Tensor")
_library.define(
    "residual_products(Tensor X, Tensor? M, Tensor? Y, int loss, Tensor(a!)? R_Mt, Tensor(b!)? Xt_R, Tensor(c!)? R) "
    "-> Tensor"
)


def _elsewhere(
    X: Tensor,
    M: Tensor | None,
    Y: Tensor | None,
    loss: int,
    R_Mt: Tensor | None = None,
    Xt_R: Tensor | None = None,
    R: Tensor | None = None,
) -> Tensor:
    """With ``R = X @ M - Y``: returns the loss, and fills what is given of ``R M^T``, ``X^T R`` and ``R``.

    On any device but a CPU; `kernel_residual_loss` comes here with tensors that nobody has looked at.
    """
    _checks.problem(X, M, Y)
    backend.path(X.device.type)  # says what runs
    dtype = _checks.state_dtype(X.dtype)
    X, M, Y = X.to(dtype), *(None if t is None else t.to(dtype) for t in (M, Y))
    residual = _reference.residual(X, M, Y)
    if R_Mt is not None:
        R_Mt.copy_(residual if M is None else residual @ M.mT)
    if Xt_R is not None:
        Xt_R.copy_(X.mT @ residual)
    if R is not None:
        R.copy_(residual)
    return _reference.residual_loss(X, M, Y, _reference.LOSSES[loss])


def _launch(
    X: Tensor,
    M: Tensor | None,
    Y: Tensor | None,
    loss: int,
    R_Mt: Tensor | None = None,
    Xt_R: Tensor | None = None,
    R: Tensor | None = None,
) -> Tensor | None:
    """By Triton kernels; `kernel_residual_loss` comes here as it does to `_elsewhere`."""
    _checks.problem(X, M, Y)
    batch = X.shape[:-2]
    if any(t is not None and t.shape[:-2] != batch for t in (M, Y)):
        return None  # what broadcasts is for the reference
    if X.numel() == 0 or (M is not None and M.numel() == 0):
        return _elsewhere(X, M, Y, loss, R_Mt, Xt_R, R)
    operand = X.dtype if M is None else M.dtype  # X may be float32 where the others are not
    flat = [None if t is None else t.to(operand).reshape(-1, *t.shape[-2:]).contiguous() for t in (X, M, Y)]
    outputs = (None if t is None else t.view(-1, *t.shape[-2:]) for t in (R_Mt, Xt_R, R))
    return backend.gpu_losses().launch_residual_products(*flat, loss, *outputs).view(batch)


_triton = backend.on_its_device(_launch, _elsewhere)


def _fake(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int, *outputs: Tensor | None) -> Tensor:
    _checks.same_device(X=X, M=M, Y=Y)
    residual = _reference.residual(X, M, None if Y is None else Y.to(X.dtype))
    return X.new_empty(residual.shape[:-2], dtype=_checks.state_dtype(X.dtype))


for _name in ("residual_loss", "residual_products"):
    _library.impl(_name, _elsewhere, "CompositeExplicitAutograd")
    _library.impl(_name, _triton, "CUDA")
    torch.library.register_fake(f"matconv_fast::{_name}", _fake, lib=_library)
_loss_kernel = torch.ops.matconv_fast.residual_loss.default
_products_kernel = torch.ops.matconv_fast.residual_products.default


def kernel_residual_loss(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: object) -> Tensor | None:
    """The loss by a kernel, or None where none takes the arguments. Nothing has been checked before.

    The C++ kernel takes one batch dimension or none. None records a gradient.
    """
    if (
        type(loss) is str
        and loss in _reference.LOSSES
        and X is not None
        and backend.is_plain(X, M, Y)
        and (Y is None or Y.dtype == X.dtype)
        and backend.has_kernels()
        and not backend.records_grad(X, M, Y)
        and not backend.autocasts(X)
    ):
        return backend.call(_loss_kernel, _triton, X, M, Y, _reference.LOSSES.index(loss))
    return None


def residual_loss(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: str) -> Tensor:
    """One loss per problem, differentiable by every tensor, which have been checked."""
    batch = X.shape[:-2]
    flat = _for_kernels(X, M, Y)
    if flat is None:
        return _reference.residual_loss(*_wide(X, M, Y), loss)
    X, M, Y = flat
    index = _reference.LOSSES.index(loss)
    if not backend.records_grad(X, M, Y):
        value = backend.call(_loss_kernel, _triton, X, M, Y, index)
    elif torch.compiler.is_compiling():
        value = _TracedLoss.apply(X, M, Y, index)
    else:
        value = _ResidualLoss.apply(X, M, Y, index)
    return value.view(batch) if len(batch) > 1 else value


def loss_and_gradient(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: str) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by X, both differentiable by every tensor, which have been checked."""
    batch, shape = X.shape[:-2], X.shape
    flat = _for_kernels(X, M, Y)
    if flat is None:
        X, M, Y = _wide(X, M, Y)
        R = _reference.residual(X, M, Y)
        return _reference.loss_of_residual(R, loss), _reference.loss_gradient(R, M, loss)
    function = _LossAndGradient.apply if backend.records_grad(*flat) else _loss_and_gradient
    value, gradient = function(*flat, _reference.LOSSES.index(loss))
    return (value.view(batch), gradient.view(shape)) if len(batch) > 1 else (value, gradient)


_Problem = tuple[Tensor, "Tensor | None", "Tensor | None"]


def _wide(X: Tensor, M: Tensor | None, Y: Tensor | None) -> _Problem:
    dtype = _checks.state_dtype(X.dtype)
    return X.to(dtype), None if M is None else M.to(dtype), None if Y is None else Y.to(dtype)


def _for_kernels(X: Tensor, M: Tensor | None, Y: Tensor | None) -> _Problem | None:
    """With one batch dimension or none, in dtypes that a kernel takes; None where the reference is to run.

    The kernels take tensors of one batch shape; what broadcasts, and what a transform looks at, goes to the reference.
    Low precision is multiplied as it comes on a GPU; elsewhere in float32, but for a Y that needs no gradient: as large
    as the residual that is never held, it is converted piece by piece.
    """
    batch = X.shape[:-2]
    if torch.compiler.is_compiling():
        takes, low = backend.is_opaque(), X.is_cuda
    else:
        path = backend.path(X.device.type)
        takes, low = path != "reference" and backend.is_plain(X, M, Y), path == "triton"
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
    value = backend.call(_products_kernel, _triton, X, M, Y, loss, *outputs)
    assert value is not None  # whoever called has checked
    return value


def _outputs(X: Tensor, M: Tensor | None, needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Room for ``R M^T``, ``X^T R`` and ``R``, where the gradient of X, M or Y is needed."""
    p = X.shape[-1] if M is None else M.shape[-1]
    dtype = _checks.state_dtype(X.dtype)
    operand = X.dtype if M is None else M.dtype  # what R is multiplied in, and held in
    return (
        X.new_empty(X.shape, dtype=dtype) if needed[0] else None,
        X.new_empty(M.shape, dtype=dtype) if M is not None and needed[1] else None,
        X.new_empty((*X.shape[:-1], p), dtype=operand) if needed[2] else None,
    )


def _scales(X: Tensor, M: Tensor | None, value: Tensor, grad: Tensor, loss: str) -> tuple[Tensor, Tensor, Tensor]:
    """What turns `_outputs` into gradients of X, M and Y."""
    elements = X.shape[-2] * (X.shape[-1] if M is None else M.shape[-1])
    scale = grad * _reference.gradient_scale(loss, elements)
    if loss == "fro":
        scale = scale / torch.where(value > 0, value, 1)
    scale = scale[..., None, None]
    return scale, scale, -scale


class _ResidualLoss(torch.autograd.Function):
    """The loss, with its gradients but for their scale computed on the way, while the blocks of R are at hand.

    So the first backward scales what is there in place and hands it over; one that comes later (``retain_graph``)
    computes it again, by the same kernel to the same bits. Nothing that was saved is written to. With
    ``create_graph`` the gradient is that of the reference, which is differentiable in turn.
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
        scales = _scales(X, M, value, grad, _reference.LOSSES[ctx.loss])
        if not backend.is_plain(grad) or backend.is_batched(grad):
            return *(None if t is None else t * s for t, s in zip(products, scales, strict=True)), None
        return *(None if t is None else t.mul_(s) for t, s in zip(products, scales, strict=True)), None


class _TracedLoss(torch.autograd.Function):
    """As `_ResidualLoss`, for a compiler: it owns the memory, and decides itself what is written in place."""

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
        scales = _scales(X, M, value, grad, _reference.LOSSES[ctx.loss])
        return *(None if t is None else t * s for t, s in zip(products, scales, strict=True)), None


def _differentiable_gradients(
    X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int, needed: tuple[bool, bool, bool], grad: Tensor
) -> list[Tensor | None]:
    # views, so that the gradient by each stays at it where one of them was made from another, or is another
    X, M, Y = X.view_as(X), None if M is None else M.view_as(M), None if Y is None else Y.view_as(Y)
    value = _reference.residual_loss(*_wide(X, M, Y), _reference.LOSSES[loss])
    inputs = [t for t, wanted in zip((X, M, Y), needed, strict=True) if wanted and t is not None]
    gradients = iter(torch.autograd.grad(value, inputs, grad, create_graph=True))
    return [next(gradients) if wanted else None for wanted in needed]


def _loss_and_gradient(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int) -> tuple[Tensor, Tensor]:
    outputs = _outputs(X, M, (True, False, False))
    value = _products(X, M, Y, loss, *outputs)
    scale, _, _ = _scales(X, M, value, torch.ones_like(value), _reference.LOSSES[loss])
    assert outputs[0] is not None
    return value, outputs[0] * scale


class _LossAndGradient(torch.autograd.Function):
    """The loss L and ``G = c R M^T`` in one pass.

    With cotangents g of L and U of G, and ``W = U M``:

        mse, sse:  Z = c (W + g R),                    dM = X^T Z + c U^T R
        fro:       Z = (W - N <N, W>) / ||R|| + g N,   dM = X^T Z + U^T N,    N = R / ||R||, all 0 where R = 0
        dX = Z M^T,  dY = -Z

    The backward makes R again, by differentiable operators, so that second derivatives are right.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, M: Tensor | None, Y: Tensor | None, loss: int) -> tuple[Tensor, Tensor]:
        ctx.loss = _reference.LOSSES[loss]
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
