"""`iterate`: the user's own update, until A equals B."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _checks
from .._ops import distance
from ..kernels.contract import ORDS
from ..problem import Problem
from .history import MOST_ENTRIES
from .options import Options
from .progress import progress_bar
from .solution import Solution
from .status import Status

# Updates between two waits for a GPU. On a CPU a check costs nothing, so no update past the stop is made.
GPU_CHECK_EVERY = 32


@torch.no_grad()
def iterate(
    update: Callable[[Tensor], Tensor | None],
    A: Tensor,
    B: Tensor,
    *,
    atol: float = 0.0,
    rtol: float = 0.0,
    max_iters: int = 100,
    check_every: int | None = None,
    ord: str | int = "fro",  # noqa: A002 - torch.linalg's own name
    record_every: int | None = None,
    progress: bool = False,
    throw: bool = False,
) -> Solution:
    """Apply `update` to a copy of A until it equals B: until ``||A - B|| <= max(atol, rtol ||B||)``.

    The distance is computed on the device after every update; the host checks it every `check_every`. The result is the
    first iterate that meets the tolerance. Up to ``check_every - 1`` further updates may have been computed and
    discarded, which matters only for one that draws random numbers or has side effects.

    Args:
        update: takes the iterate and returns the next one, or modifies it in place and returns None. It runs without
            recording gradients; one that needs them uses ``torch.enable_grad``.
        A: ``[*, m, n]``, floating-point, where to start; not modified.
        B: the target, of the same dtype and device; leading dimensions broadcast.
        atol: absolute tolerance; with both tolerances 0 it tests for equality, as ``torch.equal`` does.
        rtol: tolerance relative to ``||B||``.
        max_iters: most updates made.
        check_every: updates between two checks by the host; None is 1 on a CPU and 32 elsewhere.
        ord: norm of the distance, ``"fro"``, ``"max"`` or ``1``; see `distance`.
        record_every: updates between two entries of the history; 0 records none; None as in `solve`.
        progress: show a progress bar (needs tqdm).
        throw: raise unless every problem converges.

    Returns:
        A `Solution`, whose ``loss``, ``residual_norm`` and ``history`` are distances, and whose ``state`` is None.

    Raises:
        TypeError: an argument is no dense real floating-point tensor, or the update returns none.
        ValueError: shapes do not fit, devices differ, or an option is out of range.
        ConvergenceError: with ``throw=True``, a problem did not converge.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> sol = mcf.iterate(lambda A: A / 2, torch.ones(2, 2), torch.zeros(2, 2), atol=1e-3)
        >>> sol.iterations, sol.X[0, 0]
        (tensor(11), tensor(0.0005))
    """
    options = Options(atol, rtol, max_iters, check_every, record_every, None, progress, throw)
    if not callable(update):
        raise TypeError(f"update must be callable, got {_checks.describe(update)}")
    _checks.choice("ord", ord, ORDS)
    _checks.pair(A, B)
    problem = Problem.of(None, B.detach(), A.detach(), "fro", left=False)
    shape = (*problem.batch, problem.m, problem.n)

    dtype, target = problem.dtype, B.to(problem.dtype)
    work = A.expand(shape).clone()  # the update's own iterate, which may run past the stop
    X, gap = work.clone(), distance(work.to(dtype), target, ord)
    tolerance = torch.full_like(gap, atol)
    if rtol:
        tolerance = (rtol * distance(target, torch.zeros_like(target), ord)).clamp(min=atol).expand_as(gap)
    every = check_every or (1 if A.device.type == "cpu" else GPU_CHECK_EVERY)
    masked = every > 1 or problem.size != 1  # otherwise nothing past the stop is computed, so nothing is masked

    running = (gap > tolerance) & gap.isfinite()
    iterations = torch.zeros_like(gap, dtype=torch.int64)
    history, record = [gap], 1 if record_every is None else record_every
    most = max(MOST_ENTRIES // max(problem.size, 1), 1) if record_every is None else math.inf
    done, going = 0, bool(running.any())
    with progress_bar(progress, max_iters) as bar:
        while going and done < max_iters:
            work = _updated(update, work, shape)
            now = distance(work if work.dtype == dtype else work.to(dtype), target, ord)
            if masked:
                X, gap = torch.where(running[..., None, None], work, X), torch.where(running, now, gap)
                iterations += running
                running = running & (now > tolerance)
            else:
                X, gap, running = work, now, now > tolerance
            done += 1
            if record and done % record == 0:
                history.append(gap)
                if len(history) > most:
                    history, record = history[::2], 2 * record
            if done % every == 0:
                going = bool(running.any() if masked else running)
                if progress:
                    bar.update(done, gap)
    if not masked:
        iterations.fill_(done)

    status = torch.where(gap <= tolerance, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
    status = torch.where(gap.isfinite(), status, int(Status.NONFINITE))
    entries = iterations // max(record, 1) + 1
    recorded = torch.stack(history, -1)[..., : int(entries.max()) if record and problem.size else 0]
    past = torch.arange(recorded.shape[-1], device=A.device) >= entries[..., None]
    solution = Solution(
        X=X if masked else X.clone(),  # the update may have returned a tensor that the user keeps
        loss=gap,
        residual_norm=gap.double(),
        iterations=iterations,
        status=status,
        history=recorded.masked_fill(past, torch.nan),
        record_every=record,
        method="the user's update",
        state=None,
        problem=problem,
        options=options,
    )
    if throw:
        solution.raise_for_status()
    return solution


def _updated(update: Callable[[Tensor], Tensor | None], work: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The next iterate, from an update that returns it or works in place."""
    result = update(work)
    if result is None:
        return work
    if not isinstance(result, Tensor):
        came = _checks.describe(result)
        raise TypeError(f"update must return a tensor or None (after a change in place), got {came}")
    if result.shape != shape or result.dtype != work.dtype or result.device != work.device:
        wanted, came = _checks.describe(work), _checks.describe(result)
        raise ValueError(f"update must return what it was given, a {wanted}, got a {came}")
    return result.detach() if result.requires_grad else result
