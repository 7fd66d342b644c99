"""Before a provider is timed: its answer against float64. A mismatch raises."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import peers
import torch
from torch import Tensor

import matconv_fast as mcf
from matconv_fast._workloads import Descent, LossInputs

# float32 on well-conditioned problems, before the residual reaches its rounding level: loose, but no other iteration
# (a nesterov step, a loss taken after the update, a momentum of 0.89) comes near.
X_RTOL, LOSS_RTOL = 1e-4, 1e-3
NORM_RTOL = 1e-2  # torch.linalg.norm in float32 is 5e-3 off at 8,192, by a sum in float32


class MismatchError(Exception):
    """A provider computed something else."""


def near(what: str, found: Tensor, truth: Tensor, rtol: float) -> None:
    """Raise unless ``||found - truth|| <= rtol ||truth||``."""
    miss = torch.linalg.vector_norm(found.double() - truth) / torch.linalg.vector_norm(truth)
    if not miss <= rtol:
        raise MismatchError(f"{what} is {miss:.1e} from float64's, relatively; allowed: {rtol:.0e}")


def flop(work: Descent) -> float:
    """Of an iteration of the whole batch: two products."""
    return 4.0 * work.X0.numel() * work.M.shape[-1]


@functools.lru_cache(maxsize=2)  # the same object again: `_truth` knows it by identity
def _short(work: Descent) -> Descent:
    """`work` for the iterations that are compared."""
    cost = flop(work)
    return replace(work, iterations=min(work.iterations, 50 if cost < 1e8 else 10 if cost < 1e9 else 3))


@functools.lru_cache(maxsize=2)
def _truth(work: Descent, loop: Callable[[Descent], peers.Path]) -> peers.Path:
    return loop(work.double())


def same_descent(work: Descent, function: Callable[[Descent], peers.Path], *, adam: bool = False) -> None:
    """The last X and the last loss after a few iterations."""
    few = _short(work)
    X, losses = _truth(few, peers.adam_loop if adam else peers.autograd_loop)
    found, found_losses = function(few)
    near(f"{work.name}: X", found, X, X_RTOL)
    near(f"{work.name}: the last loss", found_losses[-1], losses[-1], LOSS_RTOL)


def same_batch(work: Descent, function: Callable[[Descent], peers.Path]) -> None:
    """The stopping iteration, X and loss of every problem.

    The residual swings around its trend, so rounding moves the first iterate under the tolerance of a few problems in
    a thousand by up to a swing. Where the iterations agree the losses must; X and the tolerance itself always.
    """
    X, losses = _truth(work, peers.addmm_loop)
    truth, tolerance = stops(losses, work), work.rtol**2 * work.Y.square().mean()
    found, found_losses = function(work)
    near(f"{work.name}: X", found, X, X_RTOL)
    agreed = stops(found_losses, work) == truth
    if agreed.double().mean() < 0.98:
        raise MismatchError(f"{work.name}: {(~agreed).sum()} problems stop at another iteration than in float64")
    last = _at(found_losses, stops(found_losses, work))
    near(f"{work.name}: the last loss", last[agreed], _at(losses, truth)[agreed], 10 * LOSS_RTOL)
    if not (last <= tolerance * (1 + LOSS_RTOL)).all():
        raise MismatchError(f"{work.name}: {(last > tolerance).sum()} problems did not meet their tolerance")


def stops(losses: Tensor, work: Descent) -> Tensor:
    """The first iterate within the tolerance: later losses of a stopped problem repeat, or are not there (NaN)."""
    return (losses > work.rtol**2 * work.Y.square().mean()).sum(0)


def _at(losses: Tensor, iterations: Tensor) -> Tensor:
    return losses.gather(0, iterations.clamp(max=len(losses) - 1).unsqueeze(0)).squeeze(0)


def same_loss(inputs: LossInputs, function: Callable[[LossInputs], peers.Gradients]) -> None:
    """Loss and gradients, against the formula."""
    for what, found, truth in zip(
        ("loss", "gradient by X", "gradient by M"), function(inputs), _loss_truth(inputs), strict=True
    ):
        near(f"F: {what}", found, truth, X_RTOL)


@functools.lru_cache(maxsize=1)
def _loss_truth(inputs: LossInputs) -> peers.Gradients:
    X, M, Y = (t.double() for t in (inputs.X, inputs.M, inputs.Y))
    R = X @ M - Y
    return R.square().mean(), 2 / R.numel() * (R @ M.T), 2 / R.numel() * (X.T @ R)


def same_distance(A: Tensor, B: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The norm of the difference."""
    truth = torch.linalg.norm(A.double() - B.double())
    near("the distance", function(A, B), truth, X_RTOL if function is mcf.distance else NORM_RTOL)
