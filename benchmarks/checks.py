"""Before a row is timed: the same answer on both sides, and in float64. A mismatch raises."""

from __future__ import annotations

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


class MismatchError(Exception):
    """Two sides of a row computed different things."""


def near(what: str, found: Tensor, truth: Tensor, rtol: float) -> None:
    """Raise unless ``||found - truth|| <= rtol ||truth||``."""
    miss = torch.linalg.vector_norm(found.double() - truth) / torch.linalg.vector_norm(truth)
    if not miss <= rtol:
        raise MismatchError(f"{what} is {miss:.1e} from float64's, relatively; allowed: {rtol:.0e}")


def our_solve(work: Descent, record_every: int = 1) -> mcf.Solution:
    """The public call that replaces the loops."""
    solver = mcf.HeavyBall(lr=work.lr, momentum=work.momentum)
    return mcf.solve(
        work.M, work.Y, work.X0, solver=solver, rtol=work.rtol, max_iters=work.iterations, record_every=record_every
    )


def our_path(work: Descent) -> peers.Path:
    """As the loops return it: the loss before each update."""
    solution = our_solve(work)
    return solution.X, solution.history[..., :-1]


def same_descent(work: Descent, *others: Callable[[Descent], peers.Path]) -> None:
    """Ours and the others' last X and last loss after a few iterations, against the autograd loop in float64."""
    size = work.M.shape[-1]
    work = replace(work, iterations=50 if size <= 256 else 10 if size <= 512 else 3)
    X, losses = peers.autograd_loop(work.double())
    for function in (our_path, *others):
        name = f"{work.name}, {function.__name__}"
        found, found_losses = function(work)
        near(f"{name}: X", found, X, X_RTOL)
        near(f"{name}: the last loss", found_losses[-1], losses[-1], LOSS_RTOL)


def all_iterations(work: Descent, solution: mcf.Solution) -> None:
    """Raise unless the solve made every iteration that is counted."""
    made = int(solution.iterations)
    if made != work.iterations:
        raise MismatchError(f"{work.name}: {made} iterations, {work.iterations} counted")


def same_batch(work: Descent, loop: Callable[[Descent], peers.Path]) -> None:
    """Ours and a loop's stopping iteration, X and loss, by problem, against the loop of `baddbmm` in float64.

    The residual swings around its trend, so rounding moves the first iterate under the tolerance of a few problems in
    a thousand by up to a swing. Where the iterations agree the losses must; X and the tolerance itself always.
    """
    solution = our_solve(work)
    X, losses = peers.baddbmm_loop(work.double())
    found, found_losses = loop(work)
    truth, tolerance = _stops(losses, work), work.rtol**2 * work.Y.square().mean()
    ours = (solution.X, solution.loss, solution.iterations)
    theirs = (found, found_losses[-1], _stops(found_losses, work))
    for name, (x, loss, stops) in (("ours", ours), (loop.__name__, theirs)):
        near(f"B8, {name}: X", x, X, X_RTOL)
        agreed = stops == truth
        if agreed.double().mean() < 0.98:
            raise MismatchError(f"B8, {name}: {(~agreed).sum()} problems stop at another iteration than in float64")
        near(f"B8, {name}: the last loss", loss[agreed], losses[-1][agreed], 10 * LOSS_RTOL)
        if not (loss <= tolerance * (1 + LOSS_RTOL)).all():
            raise MismatchError(f"B8, {name}: {(loss > tolerance).sum()} problems did not meet their tolerance")


def _stops(losses: Tensor, work: Descent) -> Tensor:
    """The first iterate within the tolerance: later losses of a stopped problem repeat."""
    return (losses > work.rtol**2 * work.Y.square().mean()).sum(0)


def same_loss(inputs: LossInputs, *functions: Callable[[LossInputs], tuple[Tensor, Tensor, Tensor]]) -> None:
    """Loss and gradients, against the formula in float64."""
    X, M, Y = (t.double() for t in (inputs.X, inputs.M, inputs.Y))
    R = X @ M - Y
    truths = (R.square().mean(), 2 / R.numel() * (R @ M.T), 2 / R.numel() * (X.T @ R))
    for function in functions:
        for what, found, truth in zip(
            ("loss", "gradient by X", "gradient by M"), function(inputs), truths, strict=True
        ):
            near(f"F, {function.__name__}: {what}", found, truth, X_RTOL)


def same_distance(A: Tensor, B: Tensor, *others: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Ours and the others', which excludes ``torch.linalg.norm`` at 8,192: in float32 it is 6e-4 off."""
    truth = torch.linalg.norm(A.double() - B.double())
    for function in (mcf.distance, *others):
        near(f"D, {function.__name__}", function(A, B), truth, X_RTOL)
