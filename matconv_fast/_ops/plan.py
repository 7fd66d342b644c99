"""How a run is carried out: the backend, the algorithm, and how many updates a call makes."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.contract import Algorithm, Shape
from . import backend

# Updates a chunk where checking the result costs little beside an update.
REFERENCE_CHUNK = 64

# The C++ kernels run at 10 to 150 GFLOP/s, so a chunk of so many operations ends within a second, and Ctrl-C is
# answered as soon. A GPU does 10 to 500 TFLOP/s once it is full, and a chunk should outlast the 50 us of its launches.
CHUNK_OPERATIONS = {"cpu": 10_000_000_000, "triton": 100_000_000_000}

# Updates of a chunk that is captured as a CUDA graph: a chunk takes some fifteen small launches and a copy of X
# besides, and the first one runs uncaptured.
LEAST_CAPTURED, MOST_CAPTURED = 16, 64


class Plan(NamedTuple):
    """How a solver will run on a problem.

    Attributes:
        backend: "cpu", "triton" or "reference".
        algorithm: what runs, by the name that `info`, the profiler and ``Solution.method`` show.
        exact: it stops each problem at the right iterate; otherwise the loop restores and replays.
        keeps_residual: it can continue from the residual that the last chunk ended with.
        captured: its launches are captured as a CUDA graph.
        least_steps: updates that repay the fixed cost of a call.
        chunk: updates a call, few enough that Ctrl-C is answered within a second up to 1,024 square.
        hyper: ``[H, B]`` float64, the hyperparameters of a rule that kernels know.
        estimates: the first update needs an estimate, not made where X0 meets the tolerance: the host waits to know.
        verdicts: `Solver.verdict` ends problems; the loop checks for stagnation only if `patience` is given.
        work: what the solver keeps from chunk to chunk and can make anew from the problem, such as a factor of M.
    """

    backend: str = "reference"
    algorithm: str = "reference"
    exact: bool = False
    keeps_residual: bool = False
    captured: bool = False
    least_steps: int = 1
    chunk: int = REFERENCE_CHUNK
    hyper: Tensor | None = None
    estimates: bool = False
    verdicts: bool = False
    work: Any = None


def plan_rule(rule: str, shape: Shape, device: torch.device) -> Plan:
    """The plan for a rule that kernels may know; that of the reference where none takes the problem."""
    name = backend.of(device.type)
    if name == "cpu":
        return _plan_on_cpu(rule, shape, torch.get_num_threads())
    algorithm = None if name == "reference" else backend.gpu().choose(shape, rule)
    return _plan(name, algorithm, shape, device.type == "cuda")


@functools.lru_cache(maxsize=1024)  # 14 us otherwise, 2 % of the 10,000 iterations of a 4 x 4 problem
def _plan_on_cpu(rule: str, shape: Shape, threads: int) -> Plan:
    return _plan("cpu", backend.cpu.choose(shape, rule), shape, False)


def _plan(name: str, algorithm: Algorithm | None, shape: Shape, captures: bool) -> Plan:
    if algorithm is None:
        return Plan()
    captured = captures and algorithm.many_launches
    return Plan(
        name, algorithm.name, algorithm.exact, algorithm.keeps_residual, captured, algorithm.least_steps,
        _chunk(name, shape, algorithm, captured),
    )  # fmt: skip


def _chunk(backend_name: str, shape: Shape, algorithm: Algorithm, captured: bool) -> int:
    product = 4 * shape.p if shape.product else 1
    operations = shape.batch * (shape.m * shape.n * product + 200)
    chunk = max(algorithm.least_steps, min(CHUNK_OPERATIONS[backend_name] // max(operations, 1), 1 << 16))
    if backend_name == "cpu":
        # 16 MB of sums: the system hands out more than that afresh in every solve, at 2.5 us a page.
        chunk = min(chunk, max(64, (1 << 21) // max(shape.batch, 1)))
    if captured:  # enough to hide the fixed cost of a chunk, few enough to replay soon
        chunk = min(max(chunk, LEAST_CAPTURED), MOST_CAPTURED)
    if not algorithm.exact:  # each block of some 24 rows has a sum of its own for every iterate: 32 MB of them at most
        chunk = max(8, min(chunk, (24 << 22) // max(shape.batch * shape.m, 1)))
    return chunk
