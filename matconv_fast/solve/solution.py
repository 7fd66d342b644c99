"""What a solve returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _saved, plotting
from ..problem import Problem
from . import bound, chain, diagnosis
from .checkpoint import Checkpoint
from .options import Options
from .snapshots import curves, direct_comparison, snapshots
from .status import Status

if TYPE_CHECKING:
    import plotly.graph_objects as go


class ConvergenceError(RuntimeError):
    """Raised for a solve that did not converge, by ``throw=True`` and `Solution.raise_for_status`.

    Attributes:
        solution: the `Solution`.
    """

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution

    def __reduce__(self) -> tuple[Any, ...]:
        return ConvergenceError, (str(self), self.solution)  # picklable, to leave another process


_SAVED = ("X", "loss", "residual_norm", "iterations", "status", "history", "record_every", "method")


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """Result of `solve`, `inv` or `iterate`: tensors on the problem's device, one entry per problem of the batch.

    Attributes:
        X: the iterate at which each problem stopped, ``[*, m, n]`` (``[*, n]`` for a vector Y), in float32 for
            bfloat16 and float16 inputs.
        loss: its loss, the ridge included.
        residual_norm: its ``||X @ M - Y||_F``, float64; with a ridge ``sqrt(||X @ M - Y||_F^2 + ridge ||X||_F^2)``,
            which the loss is made of; for `iterate`, the distance in the norm asked for. An estimate, usually within
            20 %, where `method` says so: then loss and history end on one, too.
        iterations: updates made, int64; with ``X0=solution`` those of the earlier solve included.
        status: `Status` codes, int64.
        history: ``[*, H]``, the loss after 0, record_every, 2 record_every, ... updates of this call; NaN after a
            problem has stopped.
        record_every: iterations between two entries of the history.
        method: what ran: solver, algorithm and backend.
        state: what ``solve(..., X0=solution)`` continues from; None for `iterate`.
        restored: whether it was loaded or copied. Then ``solve(..., X0=solution)`` compares M and Y by value, for which
            it waits for the device, and not by identity.

    It can be saved (`state_dict`), pickled and deep-copied; X of a copy carries no gradient.
    """

    X: Tensor
    loss: Tensor
    residual_norm: Tensor
    iterations: Tensor
    status: Tensor
    history: Tensor
    record_every: int
    method: str
    state: Checkpoint | None
    problem: Problem = field(repr=False)
    options: Options = field(repr=False)
    start: Checkpoint | None = field(default=None, repr=False)
    restored: bool = field(default=False, repr=False)

    def checkpoint(self) -> Checkpoint | None:
        """`state`, with X as the solve left it: solved again where the user has written to an `X` that shares memory.

        Raises:
            ValueError: M or Y was modified in place, too.
        """
        state = self.state
        if state is None or self.start is None or not state.modified:
            return state
        if self.problem.changed:
            raise ValueError("X and also M or Y were modified in place since the solve: pass X0=solution.X")
        with torch.no_grad():
            return chain.run(self.problem, state.solver, self.options, self.start, from_zero=True).end

    @property
    def converged(self) -> Tensor:
        """Whether each problem has its answer, bool.

        CONVERGED; and LEAST_SQUARES where M has more columns than rows, or there is a ridge.
        """
        answered = self.status == Status.CONVERGED
        if self.problem.n < self.problem.p:  # most Y have no exact solution, so the minimum is what was asked for
            answered = answered | (self.status == Status.LEAST_SQUARES)
        return answered

    @property
    def message(self) -> str:
        """The outcome and a suggested fix, in words; in a batch, of the first problem that did not converge.

        Reads the device, and may take a singular value decomposition of M.
        """
        codes = self.status.reshape(-1).tolist()
        failed = [index for index, answered in enumerate(self.converged.reshape(-1).tolist()) if not answered]
        if not codes:
            return "an empty batch"
        if not failed and len(codes) > 1:
            return f"all {len(codes)} problems converged"
        index = failed[0] if failed else 0
        text = self._explain(index)
        if len(codes) == 1:
            return text
        return f"{len(failed)} of {len(codes)} problems did not converge; problem {index} {text}"

    def _explain(self, index: int) -> str:
        end = self.checkpoint()
        if end is not None:
            return diagnosis.explain(self.problem, end, self.options, index)
        status = Status(int(self.status.reshape(-1)[index]))
        gap, count = float(self.residual_norm.reshape(-1)[index]), int(self.iterations.reshape(-1)[index])
        advice = {
            Status.CONVERGED: "",
            Status.MAX_ITERATIONS: "; raise max_iters or the tolerance, or check that the update moves A towards B",
        }.get(status, "; check the update and the input")
        return f"{status.name}: distance {gap:.3g} after {count} iterations{advice}"

    def raise_for_status(self) -> None:
        """Raise `ConvergenceError` unless every problem converged.

        Raises:
            ConvergenceError: with `message` as its text and this solution as its ``solution``.
        """
        if not bool(self.converged.all()):
            raise ConvergenceError(self.message, self)

    def error_bound(self) -> Tensor:
        """A proven bound on ``||X - X*||_F``, float64, one per problem: it holds in spite of all rounding.

        X* is the exact solution for the numbers in M and Y, or the least-squares solution where M has more columns than
        rows, or there is a ridge. Infinity means "no bound": M is too close to singular, or has more rows than columns,
        so that X* is not unique. Takes an inverse in float64 and four products (Rump, 2010).

        Raises:
            ValueError: M or Y was modified in place since the solve.

        Example:
            >>> import torch, matconv_fast as mcf
            >>> sol = mcf.inv(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), solver=mcf.Refinement())
            >>> bool(sol.error_bound() < 1e-6)
            True
        """
        if self.problem.changed:
            raise ValueError("M or Y was modified in place since the solve: call error_bound() before that")
        X = self.problem.as_rows(self.X.detach())
        X = X.reshape(self.problem.size, self.problem.m, self.problem.n)
        return bound.error_bound(self.problem, X).view(self.problem.batch)

    def state_dict(self) -> dict[str, Any]:
        """Everything in a dict that ``torch.save`` and ``torch.load(weights_only=True)`` take.

        It holds the result, the options, the solver with its hyperparameters, the state before (for `plot`) and after
        the solve, and M and Y. M and Y are copied; the other tensors are the solution's own, detached.

        Returns:
            A dict of tensors, numbers, strings, None and containers of them, for `from_state_dict`.

        Example:
            >>> import io, torch, matconv_fast as mcf
            >>> M, file = torch.diag(torch.tensor([1.0, 2.0])), io.BytesIO()
            >>> torch.save(mcf.solve(M, max_iters=30).state_dict(), file)
            >>> position = file.seek(0)
            >>> sol = mcf.Solution.from_state_dict(torch.load(file, weights_only=True))
            >>> torch.equal(mcf.solve(M, X0=sol).X, mcf.solve(M).X)
            True
        """
        values = {name: _saved.plain(getattr(self, name)) for name in _SAVED}
        for name, state in (("state", self.checkpoint()), ("start", self.start)):
            values[name] = None if state is None else state.state_dict()
        values["problem"] = self.problem.state_dict()
        values["options"] = _saved.sealed("Options", {k: _saved.plain(v) for k, v in vars(self.options).items()})
        return _saved.sealed("Solution", values)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> Solution:
        """The solution that `state_dict` was called on.

        ``solve(M, Y, X0=solution)`` continues from it exactly if M and Y hold the same numbers as then, on the same
        device. It compares them, for which it waits for the device.

        Args:
            state_dict: what `state_dict` returned, saved and loaded or not. Its tensors are not copied.

        Returns:
            A `Solution`.

        Raises:
            TypeError: it is no dict.
            ValueError: it is the state dict of something else, or in a format that this version does not read.
        """
        values = _saved.opened(state_dict, "Solution", (*_SAVED, "state", "start", "problem", "options"))
        options = _saved.opened(values["options"], "Options", [field.name for field in fields(Options)])
        with torch.no_grad():
            values["problem"] = Problem.from_state_dict(values["problem"], values["X"])
        for name in ("state", "start"):
            values[name] = None if values[name] is None else Checkpoint.from_state_dict(values[name])
        return cls(**{**values, "options": Options(**options), "restored": True})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_state_dict, (self.state_dict(),)

    def __copy__(self) -> Solution:
        return replace(self)

    def plot(self) -> go.Figure:
        """Loss curve on a log axis, and the residual ``X @ M - Y`` as a heat map with a slider over the iterations.

        The heat maps come from running the solve again up to each of them, which gives the same iterates bit for bit.

        Returns:
            A ``plotly.graph_objects.Figure``; in a batch, of its first problems.

        Raises:
            ImportError: plotly is not installed.
        """
        names = plotting.problem_names(self.problem.size)
        maps = {name: snapshots(self, index) for index, name in enumerate(names)}
        return plotting.solution_figure(maps, curves(self, names))

    def report(self, path: str | Path) -> Path:
        """Write a self-contained interactive HTML report: the outcome, `plot`, and a comparison with a direct solve.

        Args:
            path: where to; the directory must exist.

        Returns:
            The path written.

        Raises:
            ImportError: plotly is not installed.
        """
        problem = self.problem
        equation = "M @ X = Y" if problem.left else "X @ M = Y"
        facts = [
            ("equation", f"{equation}: X [{problem.m}, {problem.n}], {problem.size} problems, loss {problem.loss}"),
            ("method", self.method),
            ("result", repr(self)),
            ("message", self.message),
        ]
        sections: list[tuple[str, Any]] = [("Result", plotting.html_table(facts))]
        if problem.size and problem.m * problem.p:
            sections.append(("Loss, and residual by iteration", self.plot()))
            sections.append(("Compared with the direct solution", plotting.html_table(direct_comparison(self))))
        return plotting.write_page(Path(path), f"matconv_fast: {equation}", sections)

    def __repr__(self) -> str:
        dtype = str(self.X.dtype).removeprefix("torch.")
        shape = f"X {list(self.X.shape)} {dtype} on {self.X.device}"
        codes = self.status.reshape(-1)
        if codes.numel() == 1:
            status = Status(int(codes[0])).name
            return f"Solution({status} after {int(self.iterations)} iterations, loss {float(self.loss):.3e}, {shape})"
        counts = ", ".join(f"{int(n)} {status.name}" for status in Status if (n := (codes == status).sum()))
        return f"Solution({counts or 'empty batch'}, {shape})"
