"""The update rules: what a solver does to a block of X and of its buffers, given the gradient. Device functions."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def heavy_ball(x, v, gradient, lr, momentum):
    """``V = momentum V + G; X = X - lr V``."""
    v = momentum * v + gradient
    return x - lr * v, v


@triton.jit
def adam_rates(lr, CONSTANTS, count):
    """Step size and eps of update number ``count``, with the bias corrections ``1 - beta^count`` moved into both.

    CONSTANTS is `AdamConstants`, seven float64.
    """
    first = 1.0 - tl.exp(count * tl.load(CONSTANTS + 5))
    root = tl.sqrt(1.0 - tl.exp(count * tl.load(CONSTANTS + 6)))
    return lr.to(tl.float64) * root / first, tl.load(CONSTANTS + 4) * root


@triton.jit
def adam(x, first, second, gradient, rate, eps, CONSTANTS):
    """``first, second`` towards ``G`` and ``G^2``; ``X -= rate first / (sqrt(second) + eps)``."""
    T = x.dtype
    first += tl.load(CONSTANTS + 1).to(T) * (gradient - first)
    second = tl.load(CONSTANTS + 2).to(T) * second + tl.load(CONSTANTS + 3).to(T) * gradient * gradient
    return x - rate.to(T) * first / (tl.sqrt(second) + eps.to(T)), first, second
