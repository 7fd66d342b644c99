"""The workloads, by name, each with one set of inputs for everyone who runs it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import providers
from providers import GEMM_LIMIT, ONE_THREAD, OURS, Provider

import matconv_fast as mcf
from matconv_fast import _workloads
from matconv_fast._workloads import Descent

ELEMENT = 4  # bytes, of float32
SERIES_FLOP = 2e9  # of a call in a series: the fixed cost is small beside it
QUICK = ("N2", "Q1", "S16", "S64", "S256", "B8", "D1024", "call_step", "call_loss")


@dataclass(frozen=True)
class Workload:
    """``make`` gives what every provider's side is made of.

    ``flop`` and ``bytes`` are of one unit: the products, and what has to be read and written at least once. ``size``:
    the one that a series of workloads goes through.
    """

    name: str
    group: str
    make: Callable[[], Any]
    providers: tuple[Provider, ...]
    unit: str = "iteration"
    flop: float = 0.0
    bytes: float = 0.0
    size: tuple[str, int] | None = None


Shape = tuple[int, int, int, int]  # batch, m, n, p


def _descent(name: str, group: str, make: Callable[[], Descent], who: Iterable[Provider], shape: Shape) -> Workload:
    """Two products an iteration; X and V go there and back, M and Y are read."""
    batch, m, n, p = shape
    moved = batch * (4 * m * n + n * p + m * p) * ELEMENT
    return Workload(name, group, make, tuple(who), "iteration", 4.0 * batch * m * n * p, moved)


def _single(name: str, make: Callable[[], Any], who: Iterable[Provider], flop: float, moved: float) -> Workload:
    """One call is one unit."""
    return Workload(name, "calls", make, tuple(who), "call", flop, moved)


def _notebook(index: int) -> Descent:
    return _workloads.notebook_runs()[index].descent()


def _questions() -> Iterator[Workload]:
    A, B = _workloads.question()
    step, adam = _workloads.random_step, mcf.Adam(lr=0.01)
    cases = {
        "Q1": (
            lambda: mcf.iterate(step, A, B), lambda: _workloads.loop_until(_workloads.equal, A, B), "torch.equal loop",
        ),
        "Q2": (
            lambda: mcf.iterate(step, A, B, atol=1e-6), lambda: _workloads.loop_until(_workloads.near, A, B),
            "norm loop",
        ),
        "Q3": (
            lambda: mcf.solve(None, B, A, solver=adam, loss="fro", atol=1e-6, rtol=0, max_iters=100),
            lambda: _workloads.adam_loop(A, B), "torch.optim.Adam loop",
        ),
    }  # fmt: skip
    for name, case in cases.items():
        yield Workload(name, "question", lambda: None, providers.question(*case), "call")


def _series(name: str, shapes: Iterable[Shape]) -> Iterator[Workload]:
    """Along one size; on one thread, too."""
    for shape in shapes:
        batch, m, n, p = shape
        size = {"batch": batch, "m": m, "n": n, "p": p}[name]
        iterations = int(max(10, min(10_000, SERIES_FLOP / (4 * batch * m * n * p))))
        make = functools.partial(_rectangles, shape, iterations)
        found = _descent(f"{name}_{size}", f"time against {name}", make, (OURS, ONE_THREAD, GEMM_LIMIT), shape)
        yield replace(found, size=(name, size))


def _rectangles(shape: Shape, iterations: int) -> Descent:
    batch, m, n, p = shape
    if (m, n, p) == (8, 8, 8):
        return _workloads.batch(batch, n, iterations, rtol=0.0)
    return replace(_workloads.wide(m, n, p, iterations), name=f"{m} x {n} x {p}")


def _iterations() -> Iterator[Workload]:
    for count in (10, 100, 1_000, 10_000, 100_000):
        make = functools.partial(_workloads.square, 16, count)
        found = _descent(f"iterations_{count}", "time against iterations", make, (OURS, GEMM_LIMIT), (1, 16, 16, 16))
        yield replace(found, size=("iterations", count))


def _all() -> Iterator[Workload]:
    for index in range(4):
        yield _descent(
            f"N{index + 1}", "notebook", functools.partial(_notebook, index), providers.DESCENT, (1, 4, 4, 4)
        )
    yield from _questions()
    for n in _workloads.SQUARE_ITERATIONS:
        who = providers.SQUARE if n <= 1024 else providers.DESCENT
        yield _descent(f"S{n}", "squares", functools.partial(_workloads.square, n), who, (1, n, n, n))
    yield Workload("B8", "batches", _workloads.batch, providers.STOPPING, "call")
    yield Workload(
        "B8_shares", "batches", lambda: replace(_workloads.batch(), iterations=500), providers.SHARES, "call"
    )
    make = functools.partial(_workloads.batch, 512, 64, 500, rtol=0.0)
    yield _descent("B64", "batches", make, providers.BATCH, (512, 64, 64, 64))
    yield _descent("T256", "rectangles", _workloads.tall, providers.DESCENT, (1, 8192, 256, 256))
    yield _descent("R", "rectangles", _workloads.wide, providers.DESCENT, (1, 64, 256, 100_000))
    m, n, p = 4096, 256, 8192
    moved = (2 * m * n + 2 * n * p + m * p) * ELEMENT
    yield _single("F", _workloads.loss_inputs, providers.LOSS, 6.0 * m * n * p, moved)
    for n in (64, 1024, 4096, 8192):
        yield _single(
            f"D{n}", functools.partial(_workloads.pair, n), providers.DISTANCE, 3.0 * n * n, 2.0 * n * n * ELEMENT
        )
    yield _single("call_step", functools.partial(_notebook, 1), providers.STEP, 4.0 * 4**3, 7 * 4**2 * ELEMENT)
    yield _single("call_loss", functools.partial(_notebook, 1), providers.LOSS_CALL, 2.0 * 4**3, 3 * 4**2 * ELEMENT)
    yield from _series("n", ((1, 256, n, 256) for n in (16, 64, 256, 1024)))
    yield from _series("m", ((1, m, 64, 64) for m in (16, 128, 1024, 8192, 65536)))
    yield from _series("p", ((1, 64, 64, p) for p in (64, 512, 4096, 32768)))
    yield from _series("batch", ((batch, 8, 8, 8) for batch in (1, 10, 100, 1_000, 10_000, 100_000)))
    yield from _iterations()


WORKLOADS = {workload.name: workload for workload in _all()}
