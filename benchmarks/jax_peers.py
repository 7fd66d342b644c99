"""The same loops in JAX, jitted whole: nothing of Python is left in an iteration.

What crosses from torch to JAX is not timed. JAX is optional: without it, `NotRunError`.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from measure import NotRunError
from peers import Gradients, Path, scale, step_size, tolerance_of
from torch import Tensor

from matconv_fast._workloads import Descent, LossInputs


@functools.cache
def _jax() -> Any:
    try:
        import jax
    except ImportError as error:
        raise NotRunError("JAX is not installed: pip install jax") from error
    jax.config.update("jax_platforms", "cpu")
    return jax


@functools.cache
def _jitted() -> types.SimpleNamespace:
    jax = _jax()
    np, lax = jax.numpy, jax.lax

    def moved(X: Any, V: Any, R: Any, M: Any, lr: Any, momentum: float) -> Any:
        V = momentum * V + (2 / (R.shape[-2] * R.shape[-1])) * (R @ np.swapaxes(M, -2, -1))
        return X - lr * V, V

    @functools.partial(jax.jit, static_argnames="iterations")
    def scan(X: Any, M: Any, Y: Any, lr: Any, momentum: float, *, iterations: int) -> Any:
        def step(state: Any, _: None) -> Any:
            R = state[0] @ M - Y
            return moved(*state, R, M, lr, momentum), (R * R).sum((-2, -1))

        (X, _), sums = lax.scan(step, (X, 0 * X), None, length=iterations)
        return X, sums, iterations

    @functools.partial(jax.jit, static_argnames="iterations")
    def until(X: Any, M: Any, Y: Any, lr: Any, momentum: float, tolerance: Any, *, iterations: int) -> Any:
        def goes_on(state: Any) -> Any:
            k, _, _, running, _ = state
            return (k < iterations) & running.any()

        def step(state: Any) -> Any:
            k, X, V, running, sums = state
            R = X @ M - Y
            now = (R * R).sum((-2, -1))
            running &= now > tolerance
            after, V = moved(X, V, R, M, lr, momentum)
            return k + 1, np.where(running[..., None, None], after, X), V, running, sums.at[k].set(now)

        batch = X.shape[:-2]
        start = 0, X, 0 * X, np.ones(batch, bool), np.zeros((iterations, *batch), X.dtype)
        made, X, _, _, sums = lax.while_loop(goes_on, step, start)
        return X, sums, made

    @jax.jit
    def loss(X: Any, M: Any, Y: Any) -> Any:
        return jax.value_and_grad(lambda X, M: ((X @ M - Y) ** 2).mean(), (0, 1))(X, M)

    @jax.jit
    def distance(A: Any, B: Any) -> Any:
        return np.linalg.norm(A - B)

    return types.SimpleNamespace(scan=scan, until=until, loss=loss, distance=distance)


def _bound(function: Callable[..., Any], *tensors: Tensor | float, **options: Any) -> Callable[[], Any]:
    """A call on arrays that are JAX's already, to the end of all that it started."""
    jax = _jax()
    arrays = [jax.numpy.asarray(t.numpy()) if isinstance(t, Tensor) else t for t in tensors]
    return lambda: jax.block_until_ready(function(*arrays, **options))


def _inputs(work: Descent) -> tuple[Tensor | float, ...]:
    return work.X0, work.M, work.Y, step_size(work), work.momentum


def scan_call(work: Descent) -> Callable[[], Any]:
    """``lax.scan`` over the step."""
    return _bound(_jitted().scan, *_inputs(work), iterations=work.iterations)


def while_call(work: Descent) -> Callable[[], Any]:
    """``lax.while_loop``, which looks at every problem's tolerance in every iteration."""
    return _bound(_jitted().until, *_inputs(work), tolerance_of(work), iterations=work.iterations)


def path(call: Callable[[Descent], Callable[[], Any]], work: Descent) -> Path:
    """The results of such a call as the other loops give theirs."""
    X, sums, made = call(work)()
    return _tensor(X), _tensor(sums)[: int(made)] * (scale(work) / 2)


def loss_call(inputs: LossInputs) -> Callable[[], Any]:
    """F: ``value_and_grad``."""
    return _bound(_jitted().loss, inputs.X, inputs.M, inputs.Y)


def loss_gradients(inputs: LossInputs) -> Gradients:
    """Its results."""
    loss, (by_X, by_M) = loss_call(inputs)()
    return _tensor(loss), _tensor(by_X), _tensor(by_M)


def distance_call(A: Tensor, B: Tensor) -> Callable[[], Any]:
    """D: the norm of the difference, fused by XLA."""
    return _bound(_jitted().distance, A, B)


def distance(A: Tensor, B: Tensor) -> Tensor:
    """Its result."""
    return _tensor(distance_call(A, B)())


def _tensor(array: Any) -> Tensor:
    return torch.from_dlpack(array).clone()
