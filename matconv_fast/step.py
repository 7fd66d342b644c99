"""One heavy-ball step on ``||X @ M - Y||``: in place for training loops, functional for differentiation."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks, _ops, _reference
from .kernels.contract import LOSSES, state_dtype


def _prepare(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: float | Tensor, momentum: float | Tensor, loss: str
) -> tuple[torch.Size, Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    _checks.choice("loss", loss, LOSSES)
    for name, value in (("X", X), ("V", V)):
        _checks.matrix(name, value)
    batch, *_ = _checks.problem(X, M, Y)
    _checks.same_device(X=X, V=V)
    _checks.hyperparameter("lr", lr, minimum=0)
    _checks.hyperparameter("momentum", momentum, minimum=0)
    dtype = state_dtype(X.dtype)
    scalars = []
    for name, value in (("lr", lr), ("momentum", momentum)):
        if isinstance(value, Tensor):
            _checks.per_problem(name, value, batch, X.device)
            scalars.append(value.to(X.device, dtype))
        else:
            _checks.representable(name, value, dtype)
            scalars.append(torch.full((), value, dtype=dtype, device=X.device))
    M, Y = (None if t is None else t.to(dtype) for t in (M, Y))
    return batch, X.to(dtype), M, Y, scalars[0], scalars[1]


def heavy_ball_step(
    X: Tensor,
    V: Tensor,
    M: Tensor | None,
    Y: Tensor | None = None,
    *,
    lr: float | Tensor,
    momentum: float | Tensor,
    loss: str = "mse",
) -> tuple[Tensor, Tensor, Tensor]:
    """One heavy-ball step, functional: ``V' = momentum V + grad``, ``X' = X - lr V'`` (Polyak, 1964).

    The update of ``torch.optim.SGD(momentum=momentum, dampening=0, nesterov=False)``.

    Args:
        X: ``[*, m, n]``, floating-point; ``[*, n]`` where Y is a vector.
        V: as X, the momentum buffer; zeros before the first step.
        M: ``[*, n, p]``, or None for the identity.
        Y: ``[*, m, p]``, or None for the identity; or a vector ``[p]``, which serves every problem, with m = 1.
        lr: step size, at least 0: a number, a 0-d tensor or one value per problem.
        momentum: at least 0; likewise.
        loss: ``"mse"``, ``"sse"`` or ``"fro"``, see `residual_loss`.

    Returns:
        ``(X', V', loss before the step)``, differentiable in every tensor argument, lr and momentum included.

    Raises:
        TypeError: an argument is no dense real floating-point tensor, or their dtypes differ.
        ValueError: shapes do not fit, devices differ, lr or momentum is negative, or `loss` is unknown.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> X, V = torch.zeros(1, 1), torch.zeros(1, 1)
        >>> X, V, loss = mcf.heavy_ball_step(X, V, torch.ones(1, 1), lr=0.25, momentum=0.9)
        >>> X.item(), V.item(), loss.item()
        (0.5, -2.0, 1.0)
    """
    stepped = _ops.try_heavy_ball_step(X, V, M, Y, lr, momentum, loss)
    if stepped is not None:
        return stepped
    if _checks.is_vector(Y):
        X, V, Y = _checks.row("X", X), _checks.row("V", V), _checks.row("Y", Y)
        X2, V2, before = heavy_ball_step(X, V, M, Y, lr=lr, momentum=momentum, loss=loss)
        return X2.squeeze(-2), V2.squeeze(-2), before
    batch, state, M32, Y32, rate, decay = _prepare(X, V, M, Y, lr, momentum, loss)
    _checks.momentum_buffer(X, V, batch)
    before, gradient = _ops.loss_and_gradient(state, M32, Y32, loss)
    V2 = decay[..., None, None] * V.to(state.dtype) + gradient
    X2 = state - rate[..., None, None] * V2
    return X2.to(X.dtype), V2.to(V.dtype), before


def heavy_ball_step_(
    X: Tensor,
    V: Tensor,
    M: Tensor | None,
    Y: Tensor | None = None,
    *,
    lr: float | Tensor,
    momentum: float | Tensor,
    loss: str = "mse",
) -> Tensor:
    """`heavy_ball_step` in place: updates X and V, and returns the loss before the step.

    Like an optimizer's step it runs without recording gradients; X may be a leaf that requires grad. Keep X and V in
    float32 when M and Y are bfloat16 or float16: a low-precision X loses the small updates.

    Args:
        X: ``[*, m, n]``, floating-point, holding the whole batch; updated. ``[*, n]`` where Y is a vector.
        V: as X; updated. Zeros before the first step.
        M: ``[*, n, p]``, or None for the identity.
        Y: ``[*, m, p]``, or None for the identity; or a vector ``[p]``, which serves every problem, with m = 1.
        lr: step size, at least 0: a number, a 0-d tensor or one value per problem.
        momentum: at least 0; likewise.
        loss: ``"mse"``, ``"sse"`` or ``"fro"``, see `residual_loss`.

    Returns:
        The loss before the step, one value per problem.

    Raises:
        TypeError: an argument is no dense real floating-point tensor, or their dtypes differ.
        ValueError: shapes do not fit, devices differ, X or V cannot be written, lr or momentum is negative, or `loss`
            is unknown. Nothing is written then.
        NotImplementedError: a ``torch.func`` transform is at work.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> X, V, M = torch.zeros(2, 2), torch.zeros(2, 2), 2 * torch.eye(2)
        >>> losses = [mcf.heavy_ball_step_(X, V, M, lr=0.2, momentum=0.5).item() for _ in range(50)]
        >>> losses[0], losses[-1] < 1e-6, X.diagonal().tolist()
        (0.5, True, [0.5..., 0.5...])
    """
    before = _ops.try_heavy_ball_step_(X, V, M, Y, lr, momentum, loss)
    if before is not None:
        return before
    if _checks.is_vector(Y):
        with torch.no_grad():  # views of a leaf that requires grad
            X, V, Y = _checks.row("X", X), _checks.row("V", V), _checks.row("Y", Y)
            return heavy_ball_step_(X, V, M, Y, lr=lr, momentum=momentum, loss=loss)
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "heavy_ball_step_ updates in place, which torch.func transforms do not support: use heavy_ball_step, or "
            "pass the whole batch, [*, m, n]"
        )
    with torch.no_grad():
        batch, state, M32, Y32, rate, decay = _prepare(X, V, M, Y, lr, momentum, loss)
        _checks.writable_state(X, V, batch)
        before = _ops.heavy_ball_step_(X, V, M, Y, lr, momentum, loss)
        if before is not None:
            return before
        X2, V2, before = _reference.heavy_ball_step(state, V.to(state.dtype), M32, Y32, rate, decay, loss)
        X.copy_(X2)
        V.copy_(V2)
    return before
