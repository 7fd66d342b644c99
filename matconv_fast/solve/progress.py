"""The progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor


class _Bar:
    """Iterations on a tqdm bar, with the largest loss of the batch beside them."""

    def __init__(self, tqdm: Any = None) -> None:
        self._tqdm = tqdm

    def update(self, done: int, loss: Tensor) -> None:
        if self._tqdm is not None:
            self._tqdm.set_postfix(loss=f"{loss.max():.3e}", refresh=False)
            self._tqdm.update(done - self._tqdm.n)


@contextlib.contextmanager
def progress_bar(wanted: bool, total: int) -> Iterator[_Bar]:
    """A bar over `total` iterations, or one that does nothing.

    Raises:
        ImportError: it is wanted and tqdm is not installed.
    """
    if not wanted:
        yield _Bar()
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'matconv_fast[progress]'") from error
    with tqdm(total=total, unit="it") as bar:
        yield _Bar(bar)
