"""How a run learns, without waiting for the device, how many problems go on."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

# Chunks that a GPU may be given before the host waits for the oldest: one that runs and one that is next.
UNDER_WAY = 2


class Flags:
    """Two counts of every chunk, on their way to the host: problems that go on, and the longest replay due (-1: none).

    On a CPU they are there at once. On a GPU they follow the chunk into pinned memory, and an event says when they have
    come; until then the host launches the next chunk, which finds on the device what there is to do, if anything.
    """

    def __init__(self, device: torch.device) -> None:
        self.lags = device.type == "cuda"
        self._sent: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def send(self, counts: Tensor) -> None:
        """Start ``counts [2]`` on their way, behind what has been launched."""
        if not self.lags:
            self._sent.append((counts, None))
            return
        pinned = torch.empty(2, dtype=counts.dtype, device="cpu", pin_memory=True)
        pinned.copy_(counts, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._sent.append((pinned, event))

    def latest(self) -> tuple[int, int] | None:
        """The newest counts that have come, if any have since the last look; waits where too many are under way."""
        found = None
        while self._sent and self._come(len(self._sent) > UNDER_WAY):
            running, longest = self._sent.popleft()[0].tolist()
            found = running, longest
        return found

    def _come(self, wait: bool) -> bool:
        event = self._sent[0][1]
        if event is not None and wait:
            event.synchronize()
        return event is None or wait or event.query()
