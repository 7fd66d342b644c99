"""What a solve returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from . import diagnosis
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
