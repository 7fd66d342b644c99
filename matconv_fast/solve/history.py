"""The losses of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._ops import loss_history
from ..problem import Problem


@dataclass(eq=False)
class History:
    """Losses of every ``every``-th iterate, kept on the device, one piece a chunk.

    Attributes:
        problem: whose.
        every: updates from one entry to the next; 0 records none.
        lags: whether reading how far a chunk went would make the host wait.
        pieces: ``[B, H_k]`` each.
    """

    problem: Problem
    every: int
    lags: bool
    pieces: list[Tensor] = field(default_factory=list)

    def add(self, sums: Tensor, done: int, updates: Tensor) -> None:
        """Record a chunk: ``sums[:, j]`` is that of the iterate after ``done + j`` updates.

        Entry 0 repeats the last iterate of the chunk before.
        """
        if not self.every or not self.problem.size:
            return
        first = self.every - done % self.every if done else 0
        end = sums.shape[1] if self.lags else int(updates if self.problem.size == 1 else updates.max()) - done + 1
        if first > 0 or end < sums.shape[1] or self.every > 1:
            sums = sums[:, first : max(end, first) : self.every]
        if sums.shape[1]:
            problem, code = self.problem, self.problem.loss_code
            piece = loss_history(sums, updates, done + first, self.every, code, problem.elements, problem.dtype)
            self.pieces.append(piece)

    def finish(self, updates: Tensor, last: Tensor) -> Tensor:
        """Losses ``[B, H]``, as long as the longest run, NaN past the end of the others.

        Args:
            updates: ``[B]``, of this run.
            last: ``[B]``, sums of the final iterates: those of the start if no chunk ran.
        """
        if not self.every or not self.problem.size:
            return last.new_empty((self.problem.size, 0), dtype=self.problem.dtype)
        if not self.pieces:
            return self.problem.loss_of(last[:, None])
        losses = self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces, 1)
        if self.lags:
            losses = losses[:, : int(updates.max()) // self.every + 1].contiguous()
        return losses
