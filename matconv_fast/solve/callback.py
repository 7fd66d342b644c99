"""What the user's callback sees of a run, and how it stops one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..kernels.contract import RUNNING
from ..problem import Problem
from .checkpoint import Checkpoint
from .run import Run


class RunView:
    """The state of a solve after a chunk, for its ``callback``.

    The tensors are copies on the problem's device, made when they are asked for. On a GPU the host waits for none of
    them before it reads one.

    Attributes:
        done: iterations of this call that are over; a problem that has ended may have made fewer, see `iterations`.
        limit: `max_iters`.
        elapsed: seconds since the solve began.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> def callback(view: mcf.RunView) -> bool:
        ...     return view.done >= 20
        >>> M, solver = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), mcf.HeavyBall()
        >>> sol = mcf.solve(M, solver=solver, rtol=1e-6, callback=callback, check_every=10)
        >>> int(sol.iterations), mcf.Status(sol.status.item()).name
        (20, 'STOPPED')
    """

    def __init__(self, watched: Watched, run: Run, done: int, elapsed: float) -> None:
        self.done, self.limit, self.elapsed = done, watched.limit, elapsed
        self._watched, self._run = watched, run

    @property
    def X(self) -> Tensor:
        """The iterate of each problem, ``[*, m, n]``: that of the solver that runs now."""
        return self._watched.problem.of_user(self._whole("X", self._run.iterate.X))

    @property
    def iterations(self) -> Tensor:
        """Updates made, ``[*]`` int64; with ``X0=solution`` those of the earlier solve included."""
        return self._of_batch("iterations", self._run.start.iterations + self._run.standing.updates)

    @property
    def residual_norm(self) -> Tensor:
        """As ``Solution.residual_norm``, ``[*]`` float64."""
        return self._of_batch("last", self._run.standing.last).sqrt()

    @property
    def loss(self) -> Tensor:
        """As ``Solution.loss``, ``[*]``."""
        return self._watched.problem.loss_of(self._of_batch("last", self._run.standing.last))

    @property
    def active(self) -> Tensor:
        """Which problems go on, ``[*]`` bool."""
        return self._of_batch("status", self._run.standing.status) == RUNNING

    def _of_batch(self, name: str, part: Tensor) -> Tensor:
        return self._whole(name, part).view(self._watched.problem.batch)

    def _whole(self, name: str, part: Tensor) -> Tensor:
        """A copy for the whole batch, of which the run may have a part only."""
        before, rest = self._watched.before, self._watched.rest
        return part.clone() if before is None or rest is None else getattr(before, name).index_copy(0, rest, part)


@dataclass(frozen=True, eq=False)
class Watched:
    """Calls the user's callback after each chunk of a run.

    Attributes:
        callback: the user's.
        problem: the whole batch.
        limit: most updates.
        before: where the runs before left the batch, if this one is of the problems ``rest`` alone.
        rest: see above.
        spent: updates that the runs before made of these.
        began: when the solve began.
    """

    callback: Callable[[RunView], Any]
    problem: Problem
    limit: int
    before: Checkpoint | None = None
    rest: Tensor | None = None
    spent: int = 0
    began: float = field(default_factory=time.perf_counter)

    def of_part(self, before: Checkpoint, rest: Tensor, spent: int) -> Watched:
        """The same for a further run, of the problems ``rest``."""
        return replace(self, before=before, rest=rest, spent=spent)

    def __call__(self, run: Run, done: int) -> bool:
        """See `loop.Watch`."""
        view = RunView(self, run, self.spent + done, time.perf_counter() - self.began)
        return bool(self.callback(view))
