"""What Python, C++ and Triton must agree on: names, codes, constants, and the structures that `advance` takes.

This module is the one source. ``tools/write_contract.py`` writes its constants to ``cpu/contract.h`` for C++.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# A loss or a norm crosses the operators as its index in these tuples.
LOSSES = ("mse", "sse", "fro")
ORDS = ("fro", "max", 1)

# Codes of how a problem stands; `matconv_fast.Status` gives all but RUNNING a name.
RUNNING, CONVERGED, MAX_ITERATIONS, DIVERGED, STAGNATED, NONFINITE, LEAST_SQUARES, BREAKDOWN, STOPPED = range(-1, 8)
STATUS_CODES = {
    "RUNNING": RUNNING,
    "CONVERGED": CONVERGED,
    "MAX_ITERATIONS": MAX_ITERATIONS,
    "DIVERGED": DIVERGED,
    "STAGNATED": STAGNATED,
    "NONFINITE": NONFINITE,
    "LEAST_SQUARES": LEAST_SQUARES,
    "BREAKDOWN": BREAKDOWN,
    "STOPPED": STOPPED,
}

# A problem whose ||R||^2 rises beyond this factor has diverged. At its optimal lr and momentum a heavy ball's ||R||^2
# rises by up to (kappa / 2e)^2 before it falls (285-fold in a test at kappa 400). A larger rise than 1e10 asks for a
# kappa above 5e5, and would need millions of iterations to fall again.
BAIL_FACTOR = 1e10

# ||R|| below this many eps sqrt(n) of ||X|| ||M|| + ||Y|| is rounding ...
FLOOR_UNITS = 16
# ... unless that is as large as Y itself: then X has grown along what M hardly sees.
FLOOR_SHARE = 0.1

# The smallest square that is still a normal float64: a tolerance below its root cannot be tested for.
SMALLEST_SQUARE = 2.3e-308


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of X, of a rule's state and of losses: float32 for bfloat16 and float16 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Shape(NamedTuple):
    """What the choice of an algorithm may depend on.

    Attributes:
        batch: number of problems.
        m: rows of X and Y.
        n: columns of X, rows of M.
        p: columns of M and Y.
        product: False where M is the identity.
        coupled: whether the loss couples the rows of X, as ``fro`` does.
        dtype: of M and Y.
    """

    batch: int
    m: int
    n: int
    p: int
    product: bool
    coupled: bool
    dtype: torch.dtype


class Algorithm(NamedTuple):
    """An algorithm of `advance`, and what its caller must know.

    Attributes:
        name: as `info`, the profiler and errors show it.
        exact: it stops each problem at the right iterate; otherwise the caller restores and replays.
        keeps_residual: it can continue from the residual that the last chunk ended with.
        many_launches: it launches several kernels an iteration, worth capturing as a CUDA graph.
        least_steps: updates that repay the fixed cost of a call.
    """

    name: str
    exact: bool = True
    keeps_residual: bool = False
    many_launches: bool = False
    least_steps: int = 1


class StopCriteria(NamedTuple):
    """When each problem of a chunk stops; every tensor is ``[B]``.

    Attributes:
        limit: int64, most updates; a negative limit leaves the problem alone.
        threshold: float64, stop at the first iterate with ``||R||^2 <= threshold``,
        bail: float64, or with ``||R||^2`` not at most this, NaN included.
    """

    limit: Tensor
    threshold: Tensor
    bail: Tensor

    @classmethod
    def steps(cls, batch: int, count: int, device: torch.device) -> StopCriteria:
        """Exactly `count` updates of each problem, whatever the iterates are."""
        threshold = torch.full((batch,), -1.0, dtype=torch.float64, device=device)
        limit = torch.full((batch,), count, dtype=torch.int64, device=device)
        return cls(limit, threshold, torch.full_like(threshold, math.inf))


class Trace(NamedTuple):
    """What a chunk records.

    Attributes:
        sums: ``[B, K + 1]`` float64, ``||R||_F^2`` at the j-th iterate of the chunk, the first and the last included.
            Entries past the end of a problem hold nothing.
        steps_done: ``[B]`` int64, updates made.
    """

    sums: Tensor
    steps_done: Tensor

    @classmethod
    def empty(cls, batch: int, steps: int, device: torch.device) -> Trace:
        """Uninitialized, for up to `steps` updates."""
        sums = torch.empty((batch, steps + 1), dtype=torch.float64, device=device)
        return cls(sums, torch.empty(batch, dtype=torch.int64, device=device))
