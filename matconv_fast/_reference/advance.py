"""`advance`: up to K updates of each problem of a batch, the primitive under every solver.

The contract, which every backend meets:

* Problem b makes at most ``criteria.limit[b]`` updates. A negative limit leaves it alone, ``sums[b, 0]`` included.
* ``trace.sums[b, j] = ||R||_F^2`` at the j-th iterate visited, the first and the last included, added up in float64. (A
  kernel may add a dozen squares in float32 first, where none of them is lost.) Entries past the last iterate hold
  nothing.
* ``trace.steps_done[b]`` is the number of updates made.
* A kernel may stop a problem early, at the first iterate with ``sum <= threshold`` or not ``sum <= bail``, and nowhere
  else. One that never stops early leaves the stop to its caller, who restores the problem and replays it up to there.
* ``R [B, m, p]``, optional, is scratch memory that survives from call to call: where ``sums[b, 0]`` holds a number on
  entry, that is the sum of X, and R is as the kernel left it when it reached this X. The reference ignores it.
* X and the state are updated in place. Equal inputs give equal bits, however the updates are split into calls.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels.contract import StopCriteria, Trace

# (X, state, G, step) -> (X, state): one update, given the gradient. ``step [B, 1, 1]`` float64 is its number, from 1.
Update = Callable[[Tensor, "tuple[Tensor, ...]", Tensor, Tensor], "tuple[Tensor, tuple[Tensor, ...]]"]
# The same, given the residual.
Step = Callable[[Tensor, "tuple[Tensor, ...]", Tensor, Tensor], "tuple[Tensor, tuple[Tensor, ...]]"]


def gradient_step(update: Update, M: Tensor | None, scale: float, coupled: bool) -> Step:
    """The `Step` that computes ``G = scale R M^T`` (under ``coupled``, of ``R / ||R||``) and calls ``update``."""

    def step_of(X: Tensor, state: tuple[Tensor, ...], R: Tensor, step: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return update(X, state, batched_gradient(R, M, scale, coupled), step)

    return step_of


def batched_gradient(R: Tensor, M: Tensor | None, scale: float, coupled: bool) -> Tensor:
    """The gradient of the loss by X, ``[B, m, n]``; 0 where ``R = 0``."""
    R = R * scale
    if coupled:
        norm = torch.linalg.vector_norm(R, dim=(-2, -1), keepdim=True)
        R = R / torch.where(norm > 0, norm, torch.inf)
    return R if M is None else R @ M.mT


def batched_residual(X: Tensor, M: Tensor | None, Y: Tensor) -> Tensor:
    """``X @ M - Y`` of a batch, ``[B, m, p]``.

    One problem takes the batched product as well, so that it gets the bits that it would get in a batch.
    """
    if M is None:
        return X - Y
    R = Y.expand(X.shape[0], -1, -1)
    return torch.baddbmm(R, X, M.expand(X.shape[0], -1, -1), beta=-1)


def advance(
    one_step: Step,
    residual_of: Callable[[Tensor], Tensor],
    X: Tensor,
    state: tuple[Tensor, ...],
    step: Tensor,
    criteria: StopCriteria,
    trace: Trace,
) -> None:
    """Run ``one_step`` up to ``criteria.limit`` times on each problem; it never stops one early.

    Args:
        one_step: returns the next ``(X, state)`` of all problems.
        residual_of: ``X @ M - Y`` of all problems.
        X: ``[B, m, n]``, updated.
        state: tensors ``[B, ...]``, updated.
        step: ``[B]`` int64, updates made before this call.
        criteria: threshold and bail are not used.
        trace: filled.
    """
    updates, limit = trace.sums.shape[1] - 1, criteria.limit
    # On a CPU it costs nothing to see that no problem has to be held back.
    together = limit.device.type == "cpu" and bool((limit == updates).all())
    number = step.double()[:, None, None]
    for j in range(updates + 1):
        R = residual_of(X)
        total = torch.linalg.vector_norm(R, dim=(-2, -1), dtype=torch.float64).square_()
        if together:
            trace.sums[:, j] = total
        else:  # the first sum of a problem that is left alone is its caller's
            past = trace.sums[:, 0] if j == 0 else torch.full_like(total, torch.nan)
            trace.sums[:, j] = torch.where(j <= limit, total, past)
        if j == updates:
            break
        number = number + 1
        after, state_after = one_step(X, state, R, number)
        for old, new in zip((X, *state), (after, *state_after), strict=True):
            if together:
                old.copy_(new)
            else:
                goes_on = (j < limit).view(-1, *[1] * (old.ndim - 1))
                old.copy_(torch.where(goes_on, new.to(old.dtype), old))
    trace.steps_done.copy_(limit.clamp(min=0))
