"""Calls of the operator `advance`, by each of its algorithms on a CPU and by the reference, on copies."""

from __future__ import annotations

import importlib
import math
from typing import NamedTuple

import torch
from problems import plain_adam, plain_heavy_ball
from torch import Tensor

from matconv_fast._ops import backend

# Of each rule: hyperparameters that are stable on the problems of `case`, and matrices of state.
HYPER = {"heavy_ball": (1e-3, 0.8), "adam": (0.01, 0.9, 0.99, 1e-8)}
MATRICES = {"heavy_ball": 1, "adam": 2}
PLAIN = {"heavy_ball": plain_heavy_ball, "adam": plain_adam}

PARALLEL = {"parallel_small": "small", "parallel_rows": "rows", "parallel_blocks": "blocks"}
NATIVE = ("tiny", *PARALLEL.values(), *PARALLEL, "lanes", "gemm")
ALGORITHMS = ("reference", *NATIVE)


def runs(algorithm: str, m: int, n: int, p: int, *, product: bool = True, coupled: bool = False) -> bool:
    """Whether an algorithm can run on problems of these sizes."""
    if algorithm == "reference":
        return True
    if coupled and (algorithm in PARALLEL or algorithm == "tiny"):
        return False
    kind = PARALLEL.get(algorithm, algorithm)
    if not product:
        return kind == "rows"
    if kind == "tiny":
        return max(m, n, p) <= 4
    return kind != "small" or (m <= 24 and max(n, p) <= 16)


class Case(NamedTuple):
    """A batch of problems, and where they stand."""

    X: Tensor
    state: tuple[Tensor, ...]
    M: Tensor | None
    Y: Tensor

    def fresh(self) -> Case:
        """With the state before the first update."""
        return self._replace(state=tuple(map(torch.zeros_like, self.state)))

    def one(self, index: int) -> Case:
        """A batch of one of its problems."""
        X, state, M, Y = self
        return Case(X[index : index + 1], tuple(t[index : index + 1] for t in state), M[index : index + 1],
                    Y[index : index + 1])  # fmt: skip

    def repeated(self, count: int) -> Case:
        """A batch of copies of its first problem."""
        X, state, M, Y = self.one(0)
        X, M, Y, *state = (t.expand(count, -1, -1).contiguous() for t in (X, M, Y, *state))
        return Case(X, tuple(state), M, Y)


def case(rule: str, sizes: tuple[int, int, int, int], dtype: torch.dtype, generator: torch.Generator) -> Case:
    """Random problems of ``sizes`` (batch, m, n, p), in the middle of a run."""

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    batch, m, n, p = sizes
    state = tuple(rand(batch, m, n).abs() for _ in range(MATRICES[rule]))  # a second moment is not negative
    return Case(rand(batch, m, n), state, rand(batch, n, p) / max(n, 1) ** 0.5, rand(batch, m, p))


class Chunk(NamedTuple):
    """What a call wrote. Entries of ``sums`` past the end of a problem are NaN."""

    X: Tensor
    state: tuple[Tensor, ...]
    sums: Tensor
    steps_done: Tensor

    def equals(self, other: Chunk) -> bool:
        """Whether all bits are the same."""
        mine, theirs = (torch.cat([t.double().flatten() for t in (c.X, *c.state, c.sums)]) for c in (self, other))
        return torch.equal(mine.nan_to_num(-3.0), theirs.nan_to_num(-3.0)) and torch.equal(
            self.steps_done, other.steps_done
        )


def advance(
    algorithm: str,
    case: Case,
    steps: int,
    *,
    rule: str = "heavy_ball",
    hyper: tuple[float | Tensor, ...] | None = None,
    loss: str = "mse",
    limit: Tensor | None = None,
    threshold: float | Tensor = -1.0,
    bail: float | Tensor = math.inf,
    step: int | Tensor = 0,
    R: Tensor | None = None,
    known: float = math.nan,
) -> Chunk:
    """Run a chunk of ``steps`` updates on copies. ``known`` is the sum of X that goes with an R."""
    X, state = case.X.clone(), tuple(t.clone() for t in case.state)
    batch, m, _ = X.shape

    def of(value: float | Tensor, dtype: torch.dtype) -> Tensor:
        return value.to(dtype) if isinstance(value, Tensor) else torch.full((batch,), value, dtype=dtype)

    limit = of(steps, torch.int64) if limit is None else limit
    sums = torch.full((batch, steps + 1), -1.0 if R is None else known, dtype=torch.float64)
    steps_done = of(-7, torch.int64)
    scale = {"mse": 2 / max(m * case.Y.shape[2], 1), "sse": 2.0, "fro": 1.0}[loss]
    if algorithm == "reference":
        operator = importlib.import_module("matconv_fast._ops.advance")._by_reference
    else:
        assert backend.load_native() is None  # without the extension, the operator would run the reference
        operator = torch.ops.matconv_fast.advance
    operator(
        rule, X, list(state), case.M, case.Y,
        torch.stack([of(value, torch.float64) for value in (HYPER[rule] if hyper is None else hyper)]),
        of(step, torch.int64), scale, loss == "fro", limit, of(threshold, torch.float64), of(bail, torch.float64),
        sums, steps_done, R, algorithm,
    )  # fmt: skip
    visited = (torch.arange(steps + 1) <= steps_done[:, None]) & (limit >= 0)[:, None]
    return Chunk(X, state, torch.where(visited, sums, torch.nan), steps_done)
