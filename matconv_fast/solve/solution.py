"""What a solve returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import diagnosis, saved
from .loop import State
from .options import Options
from .problem import Problem
from .status import Status

if TYPE_CHECKING:
    import plotly.graph_objects as go


class ConvergenceError(RuntimeError):
    """Raised for a solve that did not converge, by ``throw=True`` and `Solution.raise_for_status`.

    Attributes:
        solution: the `Solution`, so that nothing is lost.
    """

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution

    def __reduce__(self) -> tuple[Any, ...]:
        return ConvergenceError, (str(self), self.solution)  # to come out of another process


_TENSORS = ("X", "loss", "residual_norm", "iterations", "status", "history")


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """Result of `solve`, `inv` or `iterate`: tensors on the problem's device, one entry per problem of the batch.

    Attributes:
        X: the iterate at which each problem stopped, ``[*, m, n]``, in float32 for bfloat16 and float16 inputs.
        loss: its loss.
        residual_norm: its ``||X @ M - Y||_F`` (for `iterate`, the distance in the norm asked for), float64.
        iterations: updates made, int64; with ``X0=solution`` those before are counted in.
        status: `Status` codes, int64.
        history: ``[*, H]``, the loss after 0, record_every, 2 record_every, ... updates of this call; NaN after a
            problem has stopped.
        state: what ``solve(..., X0=solution)`` goes on from; None for `iterate`.
        restored: whether it comes from a state dict or a copy; then ``solve(..., X0=solution)`` knows M and Y again by
            their values, which it waits for the device to compare, and not by their memory.

    It can be saved (`state_dict`), pickled and deep-copied; X of a copy carries no gradient.
    """

    X: Tensor
    loss: Tensor
    residual_norm: Tensor
    iterations: Tensor
    status: Tensor
    history: Tensor
    state: State | None
    problem: Problem = field(repr=False)
    options: Options = field(repr=False)
    start: State | None = field(default=None, repr=False)
    restored: bool = field(default=False, repr=False)

    @property
    def converged(self) -> Tensor:
        """Whether each problem met its tolerance, bool."""
        return self.status == Status.CONVERGED

    @property
    def message(self) -> str:
        """How it went and what to do about it, in words; in a batch, of the first problem that did not converge.

        Reads the device, and may take a singular value decomposition of M.
        """
        codes = self.status.reshape(-1).tolist()
        failed = [index for index, code in enumerate(codes) if code != Status.CONVERGED]
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
        if self.state is not None:
            return diagnosis.explain(self.problem, self.state, self.options, index)
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

    def state_dict(self) -> dict[str, Any]:
        """Everything in a dict that ``torch.save`` and ``torch.load(weights_only=True)`` take.

        That is the result, the options, the solver with its hyperparameters, the state in which the solve began (which
        `plot` needs) and ended, and M and Y. M and Y are copied, the other tensors are the solution's own, detached.

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
        values = {name: saved.plain(getattr(self, name)) for name in _TENSORS}
        for name, state in (("state", self.state), ("start", self.start)):
            values[name] = None if state is None else state.state_dict()
        values["problem"] = self.problem.state_dict()
        values["options"] = saved.sealed("Options", {k: saved.plain(v) for k, v in vars(self.options).items()})
        return saved.sealed("Solution", values)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> Solution:
        """The solution that `state_dict` was called on.

        ``solve(M, Y, X0=solution)`` goes on from it exactly, where M and Y hold the same numbers as then, on the same
        device; that call compares them, and so waits for the device.

        Args:
            state_dict: what `state_dict` returned, saved and loaded or not. Its tensors are not copied.

        Returns:
            A `Solution`.

        Raises:
            TypeError: it is no dict.
            ValueError: it is the state dict of something else, or in a format that this version does not read.
        """
        values = saved.opened(state_dict, "Solution", (*_TENSORS, "state", "start", "problem", "options"))
        options = saved.opened(values["options"], "Options", [field.name for field in fields(Options)])
        with torch.no_grad():
            values["problem"] = Problem.from_state_dict(values["problem"], values["X"])
        for name in ("state", "start"):
            values[name] = None if values[name] is None else State.from_state_dict(values[name])
        return cls(**{**values, "options": Options(**options), "restored": True})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_state_dict, (self.state_dict(),)

    def __copy__(self) -> Solution:
        return replace(self)

    def plot(self) -> go.Figure:
        """Loss curve on a log axis, and the residual ``X @ M - Y`` as a heat map with a slider over the iterations.

        The heat maps come from running the solve again with stops, which gives the same iterates bit for bit.

        Returns:
            A ``plotly.graph_objects.Figure``; in a batch, of its first problems.

        Raises:
            ImportError: plotly is not installed.
        """
        from .. import plotting

        return plotting.solution_figure(self)

    def report(self, path: str | Path) -> Path:
        """Write a self-contained interactive HTML report: `plot`, the figures, and the comparison with a direct solve.

        Args:
            path: where to; the directory must exist.

        Returns:
            The path written.

        Raises:
            ImportError: plotly is not installed.
        """
        from .. import plotting

        return plotting.write_solution_report(self, Path(path))

    def __repr__(self) -> str:
        dtype = str(self.X.dtype).removeprefix("torch.")
        shape = f"X {list(self.X.shape)} {dtype} on {self.X.device}"
        codes = self.status.reshape(-1)
        if codes.numel() == 1:
            status = Status(int(codes[0])).name
            return f"Solution({status} after {int(self.iterations)} iterations, loss {float(self.loss):.3e}, {shape})"
        counts = ", ".join(f"{int(n)} {status.name}" for status in Status if (n := (codes == status).sum()))
        return f"Solution({counts or 'empty batch'}, {shape})"
