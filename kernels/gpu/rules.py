"""The rules: what one update does to X and to the rule's state matrices, given the gradient.

To add a rule, write its device function, call it in `update`, and enter it in `RULES`. Every kernel calls `update`, and
launchers, tables of block shapes and tools read `RULES`: nothing else names a rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl


@dataclass(frozen=True)
class Rule:
    """What launchers must know about a rule.

    Attributes:
        states: number of state matrices, each of the shape of X.
        hyperparameters: number of rows of ``hyper``.
        accumulates: whether the rule is ``S = D(S) + G; X = X + F(S)``, with one state matrix S and linear D and F. The
            row algorithm needs that: it adds up G in the registers that hold S. It gets ``D(S)`` from `update` with
            ``G = 0``, and the new X from `update` with ``S = 0`` and the new S in place of G.
    """

    states: int
    hyperparameters: int
    accumulates: bool = False


RULES = {
    "heavy_ball": Rule(states=1, hyperparameters=2, accumulates=True),
    "nesterov": Rule(states=1, hyperparameters=2),
    "adam": Rule(states=2, hyperparameters=4),
}


@triton.jit
def update(RULE: tl.constexpr, x, state, gradient, hyper, number):
    """X and the state matrices after update `number`, counted from 1.

    `x`, `gradient` and the entries of the tuple `state` are blocks; `hyper` is a tuple of float64 scalars.
    """
    if RULE == "heavy_ball":
        x, state = heavy_ball(x, state, gradient, hyper)
    elif RULE == "nesterov":
        x, state = nesterov(x, state, gradient, hyper)
    elif RULE == "adam":
        x, state = adam(x, state, gradient, hyper, number)
    else:
        tl.static_assert(False, "no such rule")
    return x, state


@triton.jit
def heavy_ball(x, state, gradient, hyper):
    """``V = momentum V + G; X = X - lr V``."""
    lr, momentum = hyper
    v = momentum.to(x.dtype) * state[0] + gradient
    return x - lr.to(x.dtype) * v, (v,)


@triton.jit
def nesterov(x, state, gradient, hyper):
    """``V = momentum V + G; X = X - lr (G + momentum V)``."""
    lr, momentum = hyper
    decay = momentum.to(x.dtype)
    v = decay * state[0] + gradient
    return x - lr.to(x.dtype) * (gradient + decay * v), (v,)


@triton.jit
def adam(x, state, gradient, hyper, number):
    """Adam with bias correction: ``X = X - rate first / (sqrt(second) + eps)``, first and second moving to G and G^2.

    The corrections ``1 - beta^number`` are moved into ``rate`` and ``eps``, in float64.
    """
    lr, beta1, beta2, eps = hyper
    first, second = state
    T: tl.constexpr = x.dtype
    made = number.to(tl.float64)
    correction = 1.0 - tl.exp(made * tl.log(beta1))
    root = tl.sqrt(1.0 - tl.exp(made * tl.log(beta2)))
    first += (1.0 - beta1).to(T) * (gradient - first)
    second = beta2.to(T) * second + (1.0 - beta2).to(T) * gradient * gradient
    x -= (lr * root / correction).to(T) * first / (tl.sqrt(second) + (eps * root).to(T))
    return x, (first, second)


@triton.constexpr_function
def _hyperparameters(rule):
    return RULES[rule].hyperparameters


@triton.jit
def load_hyper(RULE: tl.constexpr, HYPER, b, batch):
    """The hyperparameters of problem b, from HYPER ``[hyperparameters, batch]``."""
    hyper = ()
    for row in tl.static_range(_hyperparameters(RULE)):
        hyper = hyper + (tl.load(HYPER + row * batch + b),)  # noqa: RUF005 - no starred tuples in Triton
    return hyper
