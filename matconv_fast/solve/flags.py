"""How the host learns how many problems go on, without waiting for the device."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

# Chunks in flight before the host waits for the oldest: one that runs and one that is queued.
IN_FLIGHT = 2


class Flags:
    """Two counts of every chunk, copied to the host: problems that go on, and the longest replay due (-1: none).

    On a CPU they are available at once. On a GPU they are copied to pinned memory behind the chunk, and an event marks
    their arrival. Until then the host launches the next chunk, which reads on the device what is left to do.
    """

    def __init__(self, device: torch.device) -> None:
        self.lags = device.type == "cuda"
        self._sent: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def send(self, counts: Tensor) -> None:
        """Copy ``counts [2]`` behind what has been launched."""
        if not self.lags:
            self._sent.append((counts, None))
            return
        pinned = torch.empty(2, dtype=counts.dtype, device="cpu", pin_memory=True)
        pinned.copy_(counts, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._sent.append((pinned, event))

    def latest(self, wait: bool = False) -> tuple[int, int] | None:
        """The newest counts that have arrived since the last call, or None.

        Waits if too many chunks are in flight, or for all that were sent if ``wait``.
        """
        found = None
        while self._sent and self._arrived(wait or len(self._sent) > IN_FLIGHT):
            running, longest = self._sent.popleft()[0].tolist()
            found = running, longest
        return found

    def _arrived(self, wait: bool) -> bool:
        event = self._sent[0][1]
        if event is not None and wait:
            event.synchronize()
        return event is None or wait or event.query()
