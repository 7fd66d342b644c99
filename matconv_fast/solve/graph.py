"""A chunk of many small launches, captured once as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch

# The first chunk runs uncaptured, which compiles the kernels and fills caches. A capture takes the host about as long
# as a chunk, so it pays from the third chunk on.
WARM_UP = 1


class Replayed:
    """Calls a function that only launches work on fixed tensors; from the second call on, it replays a CUDA graph.

    The function must read and write the same tensors in every call.
    """

    def __init__(self, launch: Callable[[], None]) -> None:
        self._launch = launch
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Run it once, on the current stream."""
        self._calls += 1
        if self._calls <= WARM_UP:
            self._launch()
            return
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            # thread_local: other threads may allocate and launch meanwhile
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._launch()
            finally:
                graph.capture_end()
        current.wait_stream(aside)
        return graph
