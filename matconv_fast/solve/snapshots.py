"""What plots and reports show of a solution: residuals over the iterations, loss curves, the direct solution."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _reference
from ..plotting import MOST_MAPS, Curve, Snapshot
from .checkpoint import Checkpoint
from .loop import run
from .options import Options

if TYPE_CHECKING:
    from .solution import Solution


def snapshots(solution: Solution, index: int = 0, stops: Sequence[int] | None = None) -> list[Snapshot]:
    """Residuals of one problem over its iterations, from running the solve again: the same iterates, bit for bit.

    Args:
        solution: of `solve` or `inv`; one of `iterate` yields its last iterate alone.
        index: of the problem in the flattened batch.
        stops: updates of this call after which to take a snapshot; None spreads `MOST_MAPS` evenly.

    Raises:
        ValueError: M or Y was modified in place since the solve.
    """
    if solution.problem.changed:
        raise ValueError("M or Y was modified in place since the solve; plot or report before that, or solve a clone")
    final = int(solution.iterations.reshape(-1)[index])
    last = _snapshot(solution, _iterate(solution, index), index, final)
    if solution.state is None:  # of iterate: the distance in its own norm
        last = dataclasses.replace(last, loss=float(solution.loss.reshape(-1)[index]))
    state = solution.start
    if state is None:
        return [last]
    first = int(state.iterations[index])
    if stops is None:
        stops = sorted({round(k * (final - first) / (MOST_MAPS - 1)) for k in range(MOST_MAPS)})
    found, done = [], 0
    silent = dataclasses.replace(
        solution.options, atol=0.0, rtol=0.0, patience=None, record_every=0, progress=False, throw=False
    )
    for stop in stops:
        if first + stop >= final:
            break
        state = _advanced(solution, state, dataclasses.replace(silent, max_iters=stop - done))
        done = stop
        found.append(_snapshot(solution, state.X[index], index, first + stop))
    return [*found, last]


@torch.no_grad()
def _advanced(solution: Solution, start: Checkpoint, options: Options) -> Checkpoint:
    return run(solution.problem, start.solver, options, start.continued()).end


def _iterate(solution: Solution, index: int) -> Tensor:
    """X ``[m, n]`` of one problem, in the orientation that was iterated in."""
    problem = solution.problem
    return problem.as_rows(solution.X).reshape(problem.size, problem.m, problem.n)[index]


def _snapshot(solution: Solution, X: Tensor, index: int, iteration: int) -> Snapshot:
    problem = solution.problem
    R = _reference.residual(X, *problem.one(index))
    loss = problem.loss_of((R * R).sum(dtype=torch.float64))
    R = R[:, : problem.columns]
    return Snapshot(iteration, (R.mT if problem.left else R).cpu(), float(loss))


def curves(solution: Solution, names: Sequence[str]) -> list[Curve]:
    """Loss curves of the first problems of a batch, one a name."""
    history = solution.history.reshape(solution.problem.size, solution.history.shape[-1])
    before = [0] * solution.problem.size if solution.start is None else solution.start.iterations.tolist()
    every = solution.record_every or 1
    return [
        Curve.of("loss" if name == "residual" else name, history[index], every, before[index])
        for index, name in enumerate(names)
    ]


def direct_comparison(solution: Solution, index: int = 0) -> list[tuple[str, str]]:
    """The iterate against ``torch.linalg.inv`` (M square, Y the identity) or ``lstsq``, as rows of (what, value)."""
    problem = solution.problem
    X, (M, Y) = _iterate(solution, index).double(), problem.one(index)
    norm = torch.linalg.matrix_norm
    if M is None:
        return [("||X - Y||_F", f"{norm(X - Y.double()):.3e}")]
    M, Y = M.double(), Y.double()
    rows = [("||X @ M - Y||_F", f"{norm(X @ M - Y):.3e}")]
    if not (M.isfinite().all() and Y.isfinite().all()) or 0 in (problem.m, problem.n, problem.p):
        return rows
    if problem.identity and problem.n == problem.p:
        determinant = torch.linalg.det(M)
        rows.append(("det(M)", f"{determinant:.6g}"))
        if determinant == 0:
            return [*rows, ("torch.linalg.inv(M)", "does not exist: M is singular")]
        name, direct = "torch.linalg.inv(M)", torch.linalg.inv(M)
    else:  # only gelsd handles rank deficiency, and it runs only on CPUs
        name, direct = "torch.linalg.lstsq", torch.linalg.lstsq(M.mT.cpu(), Y.mT.cpu(), driver="gelsd").solution.mT
        direct = direct.to(M.device)
    rows.append((f"||{name} @ M - Y||_F", f"{norm(direct @ M - Y):.3e}"))
    rows.append((f"largest |X - {name}|", f"{(X - direct).abs().max():.3e}"))
    return rows
