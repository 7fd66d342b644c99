"""The workloads of workloads.json: inputs made once for everyone who runs one, and what one unit has to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import answers  # noqa: F401  # registers its contenders
import calls  # noqa: F401
from measure import CONTENDERS, GEMM, ROOT, Contender

import matconv_fast as mcf
from matconv_fast import _workloads
from matconv_fast._workloads import Descent


def notebook(index: int) -> Descent:
    return _workloads.notebook_runs()[index].descent()


def question(index: int) -> tuple[Callable[[], mcf.Solution], Callable[[], Any]]:
    """Ours, and the asker's loop."""
    A, B = _workloads.question()
    step, until = _workloads.random_step, _workloads.loop_until
    options: Any = {"solver": mcf.Adam(lr=0.01), "loss": "fro", "atol": 1e-6, "rtol": 0, "max_iters": 100}
    return (
        (lambda: mcf.iterate(step, A, B), lambda: until(_workloads.equal, A, B)),
        (lambda: mcf.iterate(step, A, B, atol=1e-6), lambda: until(_workloads.near, A, B)),
        (lambda: mcf.solve(None, B, A, **options), lambda: _workloads.adam_loop(A, B)),
    )[index]


@dataclass(frozen=True)
class Workload:
    """``flop`` and ``bytes`` are of one unit: the products, and what must be read and written at least."""

    name: str
    group: str
    kind: str
    make: Callable[..., Any]
    arguments: list[Any]
    contenders: dict[str, Contender]
    unit: str = "iteration"
    flop: float = 0.0
    bytes: float = 0.0
    size: tuple[str, int] | None = None
    memory: tuple[str, ...] = ()
    small: tuple[int, ...] = ()
    quick: bool = False
    dtype: str = "float32"

    def setup(self) -> Any:
        return self.make(*self.arguments)


def load(device: str) -> dict[str, Workload]:
    data, found = json.loads((ROOT / "benchmarks" / "workloads.json").read_text()), {}
    for row in data[device]:
        mine, limits = CONTENDERS[row["kind"]], CONTENDERS["limit"]
        names = data["lists"][row.pop("contenders")] if "contenders" in row else mine
        row["contenders"] = {name: mine[name] for name in names}  # the order of the tables
        row["contenders"] |= {name: limits[name] for name in row.pop("limits", [GEMM])}
        function, *arguments = row.pop("setup")
        row["make"], row["arguments"] = globals().get(function) or getattr(_workloads, function), arguments
        row["memory"] = data["lists"].get(row.get("memory"), ())
        if shape := row.pop("shape", None):  # two products; X and V are read and written, M and Y read: float32
            batch, m, n, p = shape
            row |= {"flop": 4 * batch * m * n * p, "bytes": batch * (4 * m * n + n * p + m * p) * 4}
        found[row["name"]] = Workload(**row)
    return found


WORKLOADS = load("cpu")
