"""The plain PyTorch definition of everything: the oracle, the fallback and the baseline.

All of it works on any device, in float32 and float64, on batches of problems ``X [B, m, n], M [1 or B, n, p],
Y [1 or B, m, p]`` (``M=None`` is the identity: no product is made).

The contract of ``advance``, the primitive under every solver, is the same for every path:

* ``limit [B]`` int64, on the device: problem b makes at most ``limit[b]`` updates; below 0 it is left alone.
* ``sums [B, K + 1]`` float64, output, with K the largest limit: ``sums[b, j] = ||R||_F^2`` at the j-th
  iterate visited, the one it starts from and the one it ends at included, added in float64 (a kernel may add a dozen
  squares in float32 first, where none of them is lost). What lies past that is not to be read.
* ``taken [B]`` int64, output: the updates made.
* A kernel may stop a problem early, at the first iterate with ``sum <= threshold[b]`` or ``not sum <= bail[b]`` and
  nowhere else; one that does not leaves the stop to the caller, who replays the problem from a snapshot.
* ``R [B, m, p]``, optional, is a kernel's to keep: where ``sums[b, 0]`` is a number on entry, it is that of X, and R
  is as the kernel left it when it came to that X. The reference leaves it alone.
* X and the solver's buffers are updated in place. Equal inputs give equal bits, however the iterations are cut up.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LOSSES = ("mse", "sse", "fro")
ORDS = ("fro", "max", 1)

# Codes of how a problem stands; matconv_fast.Status gives them names.
RUNNING, CONVERGED, MAX_ITERATIONS, DIVERGED, STAGNATED, NONFINITE = range(-1, 5)

# ||R||^2 of a heavy ball at its optimal lr and momentum rises by up to about kappa^2 before it falls (285 times at
# kappa 400), and no kappa beyond 1e7 is solvable in float32 or 1e8 in float64: a rise beyond 1e16 is divergence.
BAIL_FACTOR = 1e16

# The smallest square that is still a normal float64: tolerances below its root cannot be tested for.
SMALLEST_SQUARE = 2.3e-308


def residual(X: Tensor, M: Tensor | None, Y: Tensor | None) -> Tensor:
    """``X @ M - Y`` by plain operators, for any batch dimensions; None is the identity."""
    product = X if M is None else X @ M
    if Y is None:
        Y = torch.eye(product.shape[-2], product.shape[-1], dtype=product.dtype, device=product.device)
    return product - Y


def loss_of_sums(sums: Tensor, loss: str, elements: int) -> Tensor:
    """The loss from ``sum(R^2)``; a matrix without elements has loss 0."""
    if loss == "mse":
        return sums / max(elements, 1)
    return sums if loss == "sse" else sums.sqrt()


def gradient_scale(loss: str, elements: int) -> float:
    """The factor c in ``gradient = c R M^T``; for ``fro`` it is ``1 / ||R||``, which only the residual tells."""
    return {"mse": 2 / max(elements, 1), "sse": 2.0, "fro": 1.0}[loss]


def residual_loss(X: Tensor, M: Tensor | None, Y: Tensor | None, loss: str) -> Tensor:
    """One loss per problem, differentiable by every tensor."""
    return loss_of_residual(residual(X, M, Y), loss)


def loss_of_residual(R: Tensor, loss: str) -> Tensor:
    """The loss from the residual."""
    if loss == "fro":
        return torch.linalg.vector_norm(R, dim=(-2, -1))  # its gradient is 0 at R = 0
    return loss_of_sums((R * R).sum((-2, -1)), loss, R.shape[-2] * R.shape[-1])


def loss_gradient(R: Tensor, M: Tensor | None, loss: str) -> Tensor:
    """The gradient of the loss by X, given the residual."""
    R = R * gradient_scale(loss, R.shape[-2] * R.shape[-1])
    if loss == "fro":
        norm = torch.linalg.vector_norm(R, dim=(-2, -1), keepdim=True)
        R = R / torch.where(norm > 0, norm, torch.inf)  # so that its derivative is 0 at R = 0, too
    return R if M is None else R @ M.mT


def distance(A: Tensor, B: Tensor, ord: str | int) -> Tensor:  # noqa: A002 - torch.linalg's own name
    """``||A - B||`` over the last two dimensions: Frobenius, largest entry, or sum of absolute entries."""
    D = A - B
    if ord == "fro":  # in float64: the square of 1e-25 is no float32
        return torch.linalg.vector_norm(D, dim=(-2, -1), dtype=torch.float64).to(D.dtype)
    if ord == 1:
        return D.abs().sum((-2, -1))
    if D.shape[-1] * D.shape[-2] == 0:
        return D.sum((-2, -1))
    return D.abs().amax((-2, -1))


def heavy_ball_step(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor | None, lr: Tensor, momentum: Tensor, loss: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``(X', V', loss before the step)``, differentiable by every tensor."""
    R = residual(X, M, Y)
    V = momentum[..., None, None] * V + loss_gradient(R, M, loss)
    return X - lr[..., None, None] * V, V, loss_of_residual(R, loss)


def _residual_into(R: Tensor, X: Tensor, M: Tensor | None, Y: Tensor) -> None:
    """As `residual`, into R. A lone problem takes the batched product too, to get what it gets in a batch."""
    if M is None:
        torch.sub(X, Y, out=R)
    else:
        torch.baddbmm(Y.expand_as(R), X, M.expand(X.shape[0], -1, -1), beta=-1, out=R)


def _advance(
    X: Tensor,
    buffers: tuple[Tensor, ...],
    update: Callable[[Tensor], None],
    M: Tensor | None,
    Y: Tensor,
    limit: Tensor,
    sums: Tensor,
    taken: Tensor,
    loss: str,
) -> None:
    """`advance` for any solver: ``update(gradient)`` changes X and the buffers in place."""
    batch, steps = sums.shape[0], sums.shape[1] - 1
    lone = batch == 1  # it makes all K updates: nothing to hold back
    R = X.new_empty(batch, X.shape[1], Y.shape[2])
    for j in range(steps + 1):
        _residual_into(R, X, M, Y)
        total = torch.linalg.vector_norm(R, dim=(-2, -1), dtype=torch.float64).square_()
        sums[:, j] = total if lone else torch.where(j <= limit, total, torch.nan)
        if j == steps:
            break
        gradient = loss_gradient(R, M, loss)
        if lone:
            update(gradient)
            continue
        active = (j < limit)[:, None, None]
        before = [state.clone() for state in (X, *buffers)]
        update(gradient)
        for state, old in zip((X, *buffers), before, strict=True):
            mask = active if state.ndim == 3 else active[:, 0, 0]
            state.copy_(torch.where(mask, state, old))
    taken.copy_(limit.clamp(min=0))


def heavy_ball_advance(
    X: Tensor,
    V: Tensor,
    M: Tensor | None,
    Y: Tensor,
    lr: Tensor,
    momentum: Tensor,
    limit: Tensor,
    threshold: Tensor,
    bail: Tensor,
    sums: Tensor,
    taken: Tensor,
    R: Tensor | None,
    loss: int,
    way: int,
) -> None:
    """Heavy ball, residual form: ``V = momentum V + G; X = X - lr V``.

    ``lr, momentum [B]``; ``loss`` indexes `LOSSES`. ``way`` is for kernels that can go about it in several ways.
    """
    rate, decay = lr[:, None, None], momentum[:, None, None]

    def update(gradient: Tensor) -> None:
        V.mul_(decay).add_(gradient)
        X.addcmul_(rate, V, value=-1)

    _advance(X, (V,), update, M, Y, limit, sums, taken, LOSSES[loss])


def adam_advance(
    X: Tensor,
    first: Tensor,
    second: Tensor,
    count: Tensor,
    M: Tensor | None,
    Y: Tensor,
    lr: Tensor,
    first_decay: float,
    second_decay: float,
    eps: float,
    limit: Tensor,
    threshold: Tensor,
    bail: Tensor,
    sums: Tensor,
    taken: Tensor,
    R: Tensor | None,
    loss: int,
    way: int,
) -> None:
    """Adam with bias correction, as ``torch.optim.Adam``. ``lr [B]``; ``count [B]`` float64 holds the updates made."""
    decay = torch.tensor((first_decay, second_decay), dtype=torch.float64, device=X.device)[:, None]

    def update(gradient: Tensor) -> None:
        first.lerp_(gradient, 1 - first_decay)
        second.mul_(second_decay).addcmul_(gradient, gradient, value=1 - second_decay)
        # lr (first / c1) / (sqrt(second / c2) + eps), with the corrections c = 1 - beta^count moved to lr and eps
        c1, c2 = (1 - decay ** count.add_(1)).unbind()
        root = c2.sqrt()
        rate = (lr * root / c1).to(X.dtype)[:, None, None]
        X.sub_(rate * first / second.sqrt().add_((eps * root).to(X.dtype)[:, None, None]))

    _advance(X, (first, second, count), update, M, Y, limit, sums, taken, LOSSES[loss])


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
    """What `finish_chunk` judges the first chunk of a run by, and writes to: fresh tensors.

    The threshold is the square of the tolerance; -1, which nothing meets, where a tolerance above 0 has no square. That
    matters in float64 alone: any float32 but 0 has a square in float64, so there a sum of 0 means equality.

    Args:
        Y: ``[1 or B, m, p]``.
        bail: ``[B]``, as an earlier run left it, NaN if there was none; likewise
        last: ``[B]``,
        best: ``[B]``, and
        status: ``[B]``, RUNNING if there was none.
        rtol: tolerance relative to ``||Y||_F``.
        atol: absolute tolerance.

    Returns:
        ``(threshold, Y_squares, bail, last, best, updates, taken, again, status, counts)``, see `finish_chunk`; the
        integers that it writes are 0.
    """
    Y_norms = norms(Y).expand(len(bail))
    tolerance = tolerances(Y_norms, rtol, atol)
    threshold = tolerance.square()
    if Y.dtype == torch.float64:
        threshold = torch.where((tolerance > 0) & (threshold < SMALLEST_SQUARE), -1.0, threshold)
    state = (threshold, Y_norms.square(), *(t.clone() for t in (bail, last, best)))
    zeros = (torch.zeros_like(status) for _ in range(3))
    return *state, *zeros, status.clone(), status.new_zeros(2)


def finish_chunk(
    sums: Tensor,
    taken: Tensor,
    threshold: Tensor,
    Y_squares: Tensor,
    bail: Tensor,
    last: Tensor,
    best: Tensor,
    updates: Tensor,
    status: Tensor,
    again: Tensor,
    counts: Tensor,
) -> None:
    """Judge a chunk that `advance` has run: where does each running problem stop, and how does it stand?

    A problem stops at its first iterate with ``sum <= threshold`` (CONVERGED), or not ``<= bail`` (DIVERGED; NONFINITE
    for NaN). A NaN in ``bail`` says that this chunk is the first: then ``bail`` becomes `BAIL_FACTOR` times the larger
    of ``Y_squares`` and the first sum, and that sum must be finite (else NONFINITE).

    Args:
        sums: ``[B, K + 1]`` float64, and
        taken: ``[B]`` int64: what `advance` wrote.
        threshold: ``[B]`` float64.
        Y_squares: ``[B]`` float64, ``||Y||_F^2``.
        bail: ``[B]`` float64.
        last: ``[B]`` float64, output: the sum of the iterate that the problem has come to.
        best: ``[B]`` float64, updated: the smallest sum up to there.
        updates: ``[B]`` int64, updated: grows by the updates up to there.
        status: ``[B]`` int64, updated. Only problems that are RUNNING are looked at.
        again: ``[B]`` int64, output: the updates after which the problem stops, where `advance` has gone beyond them
            and must be replayed; -1 elsewhere.
        counts: ``[2]`` int64, output: problems that go on, and the largest of ``again``.
    """
    batch, columns = sums.shape
    running = status == RUNNING
    starts = bail.isnan() & running
    first_sum = sums[:, 0]
    bail.copy_(torch.where(starts, BAIL_FACTOR * torch.maximum(first_sum, Y_squares), bail))

    stops = (sums <= threshold[:, None]) | ~(sums <= bail[:, None])
    # argmax of bytes is the first maximum; a problem without a stop gets 0, which `stopped` then tells apart
    first = stops.to(torch.uint8).argmax(1)
    stopped = stops.gather(1, first[:, None])[:, 0] & (first <= taken)
    end = torch.where(stopped, first, taken)
    sum_there = sums.gather(1, end[:, None])[:, 0]
    code = torch.where(sum_there <= bail, RUNNING, DIVERGED)
    code = torch.where(sum_there.isnan(), NONFINITE, code)
    code = torch.where(sum_there <= threshold, CONVERGED, code)
    code = torch.where(starts & ~first_sum.isfinite(), NONFINITE, code)
    visited = torch.arange(columns, device=sums.device) <= end[:, None]
    lowest = torch.where(visited & ~sums.isnan(), sums, torch.inf).amin(1)

    again.copy_(torch.where(running & (end < taken), end, -1))
    last.copy_(torch.where(running, sum_there, last))
    best.copy_(torch.where(running, torch.fmin(best, lowest), best))
    updates.add_(torch.where(running, end, 0))
    status.copy_(torch.where(running, code, status))
    counts[0] = (status == RUNNING).sum()
    counts[1] = again.amax() if batch else -1


def loss_history(
    sums: Tensor, updates: Tensor, begin: int, every: int, loss: int, elements: int, dtype: torch.dtype
) -> Tensor:
    """Losses ``[B, H]`` after ``begin``, ``begin + every``, ... updates; NaN past the end of a problem.

    Args:
        sums: ``[B, H]`` float64, of those iterates.
        updates: ``[B]`` int64, made by each problem in all.
        begin: updates before the first.
        every: updates from one to the next, at least 1.
        loss: the index of one of `LOSSES`.
        elements: of a residual.
        dtype: of the losses.
    """
    made = begin + every * torch.arange(sums.shape[1], device=sums.device)
    visited = torch.where(made <= updates[:, None], sums, torch.nan)
    return loss_of_sums(visited, LOSSES[loss], elements).to(dtype)
