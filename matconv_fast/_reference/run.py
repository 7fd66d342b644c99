"""A run before, between and after its chunks: `start_run`, `finish_chunk`, `loss_history`, `end_run`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.contract import (
    BAIL_FACTOR,
    CONVERGED,
    DIVERGED,
    LOSSES,
    NONFINITE,
    RUNNING,
    SMALLEST_SQUARE,
    StopCriteria,
    Trace,
)
from .losses import loss_of_sums


class Standing(NamedTuple):
    """How each problem of a run stands. `start_run` makes it, `finish_chunk` updates it in place.

    Attributes:
        threshold: ``[B]`` float64, ``||R||^2`` at which a problem has converged; -1, which nothing meets, where a
            tolerance above 0 has no normal square.
        Y_squares: ``[B]`` float64, ``||Y||_F^2``.
        bail: ``[B]`` float64, ``||R||^2`` above which a problem has diverged; NaN before the first chunk.
        last: ``[B]`` float64, ``||R||^2`` of the current iterate.
        best: ``[B]`` float64, the smallest ``||R||^2`` so far.
        updates: ``[B]`` int64, updates of this run.
        steps_done: ``[B]`` int64, updates of the last chunk, of which `advance` may have made too many.
        replay_to: ``[B]`` int64, updates of the last chunk after which the problem stops, where `advance` went beyond
            them: the problem must be restored and replayed up to there. -1 elsewhere.
        status: ``[B]`` int64, status codes; RUNNING while the problem goes on.
        counts: ``[2]`` int64, the number of problems that go on, and the largest ``replay_to``.
    """

    threshold: Tensor
    Y_squares: Tensor
    bail: Tensor
    last: Tensor
    best: Tensor
    updates: Tensor
    steps_done: Tensor
    replay_to: Tensor
    status: Tensor
    counts: Tensor

    def criteria(self, limit: Tensor) -> StopCriteria:
        """Those of a chunk of at most ``limit [B]`` updates."""
        return StopCriteria(limit, self.threshold, self.bail)


def norms(Y: Tensor) -> Tensor:
    """``||Y||_F`` of each matrix in float64; scaled where the squares of a float64 could under- or overflow."""
    if Y.dtype != torch.float64 or 0 in Y.shape:
        return torch.linalg.vector_norm(Y, dim=(-2, -1), dtype=torch.float64)
    largest = Y.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(Y.dtype).tiny)
    return (largest * torch.linalg.vector_norm(Y / largest, dim=(-2, -1), keepdim=True))[..., 0, 0]


def tolerances(Y_norms: Tensor, rtol: float, atol: float) -> Tensor:
    """``max(atol, rtol ||Y||_F)`` of each problem."""
    return (rtol * Y_norms).clamp_(min=atol)


def start_run(
    Y: Tensor, bail: Tensor, last: Tensor, best: Tensor, status: Tensor, rtol: float, atol: float
) -> tuple[Tensor, ...]:
    """The fields of a fresh `Standing`, in their order.

    A square can be lost in float64 alone: any float32 but 0 has one in float64.

    Args:
        Y: ``[1 or B, m, p]``.
        bail: ``[B]``, as an earlier run left it, or NaN; likewise ``last`` and ``best``.
        last: see ``bail``.
        best: see ``bail``.
        status: ``[B]``, RUNNING where the problem is to run.
        rtol: tolerance relative to ``||Y||_F``.
        atol: absolute tolerance.
    """
    Y_norms = norms(Y).expand(len(bail))
    tolerance = tolerances(Y_norms, rtol, atol)
    threshold = tolerance.square()
    if Y.dtype == torch.float64:
        threshold = torch.where((tolerance > 0) & (threshold < SMALLEST_SQUARE), -1.0, threshold)
    earlier = (t.clone() for t in (bail, last, best))
    updates, steps_done, replay_to = (torch.zeros_like(status) for _ in range(3))
    return threshold, Y_norms.square(), *earlier, updates, steps_done, replay_to, status.clone(), status.new_zeros(2)


def finish_chunk(trace: Trace, standing: Standing) -> None:
    """Judge the chunk that `advance` recorded: where does each running problem stop, and how does it stand?

    A problem stops at its first iterate with ``sum <= threshold`` (CONVERGED) or not ``sum <= bail`` (DIVERGED, or
    NONFINITE for NaN). A NaN in ``bail`` marks the first chunk: then ``bail`` becomes `BAIL_FACTOR` times the larger of
    ``Y_squares`` and the first sum, which must be finite (otherwise NONFINITE). Problems that are not RUNNING keep
    their standing; their ``replay_to`` becomes -1.
    """
    sums, steps_done = trace.sums, trace.steps_done
    threshold, bail, status = standing.threshold, standing.bail, standing.status
    running = status == RUNNING
    starts = bail.isnan() & running
    first_sum = sums[:, 0]
    bail.copy_(torch.where(starts, BAIL_FACTOR * torch.maximum(first_sum, standing.Y_squares), bail))

    stops = (sums <= threshold[:, None]) | ~(sums <= bail[:, None])
    # argmax of bytes is the first maximum. A problem without a stop gets 0, which `stopped` tells apart.
    first = stops.to(torch.uint8).argmax(1)
    stopped = stops.gather(1, first[:, None])[:, 0] & (first <= steps_done)
    end = torch.where(stopped, first, steps_done)
    last = sums.gather(1, end[:, None])[:, 0]
    code = torch.where(last <= bail, RUNNING, DIVERGED)
    code = torch.where(last.isnan(), NONFINITE, code)
    code = torch.where(last <= threshold, CONVERGED, code)
    code = torch.where(starts & ~first_sum.isfinite(), NONFINITE, code)
    visited = torch.arange(sums.shape[1], device=sums.device) <= end[:, None]
    lowest = torch.where(visited & ~sums.isnan(), sums, torch.inf).amin(1)

    standing.replay_to.copy_(torch.where(running & (end < steps_done), end, -1))
    standing.last.copy_(torch.where(running, last, standing.last))
    standing.best.copy_(torch.where(running, torch.fmin(standing.best, lowest), standing.best))
    standing.updates.add_(torch.where(running, end, 0))
    status.copy_(torch.where(running, code, status))
    standing.counts[0] = (status == RUNNING).sum()
    standing.counts[1] = standing.replay_to.amax() if len(status) else -1


def loss_history(
    sums: Tensor, updates: Tensor, begin: int, every: int, loss: int, elements: int, dtype: torch.dtype
) -> Tensor:
    """Losses ``[B, H]`` after ``begin``, ``begin + every``, ... updates; NaN past the end of a problem.

    Args:
        sums: ``[B, H]`` float64, ``||R||^2`` of those iterates.
        updates: ``[B]`` int64, updates of each problem in this run.
        begin: updates before the first entry.
        every: updates from one entry to the next, at least 1.
        loss: index into `LOSSES`.
        elements: of a residual.
        dtype: of the losses.
    """
    made = begin + every * torch.arange(sums.shape[1], device=sums.device)
    visited = torch.where(made <= updates[:, None], sums, torch.nan)
    return loss_of_sums(visited, LOSSES[loss], elements).to(dtype)


def end_run(
    last: Tensor, iterations: Tensor, status: Tensor, X: Tensor, shape: torch.Size, loss: int, elements: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a user is told: losses, residual norms, iterations and status codes, none of which shares memory with a run.

    Args:
        last: ``[B]`` float64, ``||R||^2`` of the last iterate.
        iterations: ``[B]`` int64.
        status: ``[B]`` int64.
        X: of the dtype that losses have.
        shape: the user's batch shape, of B elements.
        loss: index into `LOSSES`.
        elements: of a residual.
    """
    losses = loss_of_sums(last, LOSSES[loss], elements).to(X.dtype, copy=True)
    return losses.view(shape), last.sqrt().view(shape), iterations.clone().view(shape), status.clone().view(shape)
