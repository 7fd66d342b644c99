"""What `gpu.py` starts in processes of their own: ``python benchmarks/gpu_run.py facts|rows|short``."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_measure import MismatchError, Setting
from gpu_rows import rows
from measure import NotRunError, Result

import matconv_fast as mcf
from matconv_fast._ops import backend

CRASHED = 3  # exit status after a row that left the device unusable


def facts() -> dict[str, Any]:
    """Device and versions."""
    found: dict[str, Any] = {
        "versions": {
            "matconv_fast": mcf.__version__, "torch": torch.__version__, "triton": triton.__version__,
            "cuda": torch.version.cuda, "python": platform.python_version(),
        },
        "paths": {d.device: d.path for d in mcf.info().devices},
    }  # fmt: skip
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        found["device"] = {
            "name": p.name, "capability": [p.major, p.minor], "multiprocessors": p.multi_processor_count,
            "memory": p.total_memory, "l2_cache": p.L2_cache_size,
        }  # fmt: skip
    return found


def measure_rows(setting: Setting, out: Path, first: int, rounds: int, wanted: str) -> int:
    """Write a line of JSON when a row starts and when it is done; from row `first` on."""
    failed = False
    with out.open("a", buffering=1) as lines:
        for index, row in enumerate(rows(setting)):
            name = f"{row.name} / {row.against}"
            if index < first or not re.search(wanted, name):
                continue
            lines.write(json.dumps({"start": index, "name": row.name, "against": row.against}) + "\n")
            try:
                found: dict[str, Any] = Result(row, row.pairs(rounds)).as_json()
            except NotRunError as reason:
                found = {"name": row.name, "against": row.against, "not_run": str(reason)}
            except MismatchError as error:
                found, failed = {"name": row.name, "against": row.against, "failed": str(error)}, True
            except Exception as error:  # one broken row must not take the others with it
                text = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
                found, failed = {"name": row.name, "against": row.against, "failed": text}, True
            lines.write(json.dumps(found) + "\n")
            gc.collect()
            if not setting.dry:
                try:
                    torch.cuda.synchronize()
                except RuntimeError:
                    return CRASHED
                torch.cuda.empty_cache()
    return int(failed)


def short() -> None:
    """Every tier for three iterations, the loss with its gradients and a distance: what compute-sanitizer looks at."""
    generator = torch.Generator("cuda").manual_seed(0)

    def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, device="cuda") / shape[-1] ** 0.5).to(dtype)

    low, full = torch.bfloat16, torch.float32
    for wanted, dtype, (batch, m, n, p) in (
        ("small", full, (3, 20, 17, 20)), ("small", low, (2, 64, 64, 64)), ("rows", full, (1, 300, 64, 80)),
        ("rows", low, (1, 300, 256, 256)), ("rows", low, (2, 70, 130, 33)), ("tiled", low, (1, 130, 300, 70)),
        ("tiled", low, (1, 1536, 1536, 1536)), ("gemm", full, (2, 70, 300, 90)),
    ):  # fmt: skip
        way = backend.advance_way(
            torch.device("cuda"), dtype, batch, m, n, p, product=True, coupled=False, heavy_ball=True
        )
        assert way is not None
        assert way.name == wanted, (way.name, wanted)
        M, Y, X0 = (rand(*shape, dtype=dtype) for shape in ((batch, n, p), (batch, m, p), (batch, m, n)))
        mcf.solve(M, Y, X0, solver=mcf.HeavyBall(lr=1e-2, momentum=0.5), loss="sse", rtol=0.0, max_iters=3)
    X, M, Y = rand(40, 30), rand(30, 50), rand(40, 50)
    mcf.solve(None, rand(2, 33, 65), solver=mcf.Adam(lr=1e-2), loss="fro", rtol=0.0, max_iters=3)
    mcf.solve(M, Y, X, solver=mcf.Adam(lr=1e-2), rtol=0.0, max_iters=3)
    mcf.heavy_ball_step_(X, torch.zeros_like(X), M, Y, lr=1e-2, momentum=0.5)
    for m, n, p in ((1024, 64, 1100), (130, 300, 90)):  # R made again, and R held
        X, M, Y = rand(m, n, dtype=low).requires_grad_(), rand(n, p, dtype=low).requires_grad_(), rand(m, p, dtype=low)
        mcf.residual_loss(X, M, Y).backward()
    mcf.distance(rand(65, 1100), rand(65, 1100))
    torch.cuda.synchronize()


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("facts", "rows", "short"))
    parser.add_argument("--out", type=Path, help="rows: where their lines go")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", metavar="REGEX", default="")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    if arguments.part == "facts":
        print(json.dumps(facts()))
    elif arguments.part == "short":
        short()
    else:
        setting = Setting(torch.device("cpu" if arguments.dry_run else "cuda"))
        sys.exit(measure_rows(setting, arguments.out, arguments.first, arguments.rounds, arguments.rows))


if __name__ == "__main__":
    main()
