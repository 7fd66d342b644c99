"""The losses of a run, and how they are thinned."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._ops import loss_history
from ..problem import Problem

# Entries of the whole batch that a history keeps where the user names no stride: 64 MB in float32.
MOST_ENTRIES = 1 << 24


def least_stride(problems: int, *lengths: int) -> int:
    """The smallest power of 2 that thins histories of these lengths, together, to `MOST_ENTRIES`."""
    every = 1
    while problems * sum(-(-length // every) for length in lengths) > MOST_ENTRIES and every < max(lengths):
        every *= 2
    return every


@dataclass(eq=False)
class History:
    """Losses of every ``every``-th iterate, kept on the device, one piece a chunk.

    Attributes:
        problem: whose.
        every: updates from one entry to the next; 0 records none.
        bounded: whether ``every`` doubles, and every second entry goes, as soon as there are more than `MOST_ENTRIES`.
        lags: whether reading how far a chunk went would make the host wait.
        pieces: ``[B, H_k]`` each.
        length: H, of all pieces.
    """

    problem: Problem
    every: int
    bounded: bool
    lags: bool
    pieces: list[Tensor] = field(default_factory=list)
    length: int = 0

    @classmethod
    def recorded(cls, problem: Problem, every: int | None, lags: bool) -> History:
        """With the user's ``record_every``."""
        return cls(problem, 1 if every is None else every, every is None, lags)

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
            self.length += piece.shape[1]
            if self.bounded and self.length * problem.size > MOST_ENTRIES:
                self._thin()

    def _thin(self) -> None:
        factor = least_stride(self.problem.size, self.length)
        kept, begin = [], 0
        for piece in self.pieces:
            kept.append(piece[:, -begin % factor :: factor])
            begin += piece.shape[1]
        whole = torch.cat(kept, 1)
        self.pieces, self.every, self.length = [whole], self.every * factor, whole.shape[1]

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
