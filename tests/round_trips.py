"""Solutions that are saved and loaded, pickled, or copied, and how they are compared."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch

import matconv_fast as mcf


def through_file(value: Any) -> Any:
    """Saved, and loaded with ``weights_only=True``."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def saved(sol: mcf.Solution) -> mcf.Solution:
    return mcf.Solution.from_state_dict(through_file(sol.state_dict()))


def pickled(sol: mcf.Solution) -> mcf.Solution:
    return pickle.loads(pickle.dumps(sol))


TRIPS = {"saved": saved, "pickled": pickled, "deep-copied": copy.deepcopy}
RESULTS = ("X", "loss", "residual_norm", "iterations", "status", "history")


def assert_same(a: mcf.Solution, b: mcf.Solution) -> None:
    """The same bits, NaN included, of results and checkpoints."""
    for name in RESULTS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0, equal_nan=True, msg=name)
    for before, after in ((a.state, b.state), (a.start, b.start)):
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            mine, theirs = vars(before), vars(after)
            assert mine.keys() == theirs.keys()
            assert mine["age"] == theirs["age"]
            for name in mine.keys() - {"solver", "age"}:
                torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=0, equal_nan=True, msg=name)
            assert before.solver.is_same(after.solver, by_value=True)
