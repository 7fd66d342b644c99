"""What one call costs on 4 x 4, eager, with gradients recorded, and compiled: ``python benchmarks/call_overhead.py``.

``--json FILE`` writes every round; ``--markdown FILE`` prints the table of docs/call_overhead.md from such a file. In
each round the cases run in turns, next to one ``torch.add`` of the same matrices: a shared machine's speed changes from
round to round, the ratio to it less so.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import matconv_fast as mcf

CALLS = 2000  # a round


def cases() -> dict[str, dict[str, Callable[[], Any]]]:
    """Functions by name, each eager, with a gradient recorded (and made, where one is), and compiled."""
    X, V, M, Y = torch.rand(4, 4), torch.zeros(4, 4), torch.rand(4, 4), torch.eye(4)
    leaf = X.clone().requires_grad_()

    def loss(X: torch.Tensor) -> torch.Tensor:
        return mcf.residual_loss(X, M, Y)

    def plain_loss(X: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(X @ M, Y)

    def step_(X: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
        return mcf.heavy_ball_step_(X, V, M, Y, lr=1e-3, momentum=0.9)

    def step(X: torch.Tensor) -> torch.Tensor:
        return mcf.heavy_ball_step(X, V, M, Y, lr=1e-3, momentum=0.9)[0]

    def plain_step_(X: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
        R = X @ M - Y
        V.mul_(0.9).add_(R @ M.mT, alpha=2 / 16)
        X.sub_(V, alpha=1e-3)
        return (R * R).mean()

    def distance(X: torch.Tensor) -> torch.Tensor:
        return mcf.distance(X, Y)

    def plain_distance(X: torch.Tensor) -> torch.Tensor:
        return torch.linalg.norm(X - Y)

    def backward(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Any]:
        return lambda: function(leaf).sum().backward()

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, dynamic=False)

    found: dict[str, dict[str, Callable[[], Any]]] = {"torch.add": {"eager": lambda: torch.add(X, Y)}}
    for name, function in (
        ("residual_loss", loss), ("mse_loss(X @ M, Y)", plain_loss), ("heavy_ball_step", step),
        ("distance", distance), ("linalg.norm(A - B)", plain_distance),
    ):  # fmt: skip
        fast = compiled(function)
        found[name] = {
            "eager": lambda function=function: function(X),
            "forward, gradient recorded": lambda function=function: function(leaf),
            "forward and backward": backward(function),
            "compiled": lambda fast=fast: fast(X),
        }
    for name, function in (("heavy_ball_step_", step_), ("the same by hand", plain_step_)):
        fast = compiled(function)
        found[name] = {
            "eager": lambda function=function: function(X, V),
            "compiled": lambda fast=fast: fast(X, V),
        }
    return found


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Microseconds a call, by function and way, one number a round."""
    every = cases()
    times: dict[str, dict[str, list[float]]] = {name: {way: [] for way in ways} for name, ways in every.items()}
    for ways in every.values():
        for call in ways.values():
            for _ in range(20):  # compiles, and warms up
                call()
    for _ in range(rounds):
        for name, ways in every.items():
            for way, call in ways.items():
                start = time.perf_counter()
                for _ in range(CALLS):
                    call()
                times[name][way].append((time.perf_counter() - start) / CALLS * 1e6)
    return times


def markdown(found: dict[str, Any]) -> str:
    """One line a function: medians in microseconds, and the eager call's ratio to ``torch.add``."""
    times = found["times"]
    ways = ["eager", "forward, gradient recorded", "forward and backward", "compiled"]
    lines = [f"| call on 4 x 4 | {' | '.join(ways)} | eager over torch.add |", "| --- " * (len(ways) + 2) + "|"]
    for name, mine in times.items():
        cells = [f"{statistics.median(mine[way]):.1f} us" if way in mine else "" for way in ways]
        ratios = [a / b for a, b in zip(mine["eager"], times["torch.add"]["eager"], strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} | {statistics.median(ratios):.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="measure nothing: print the table of such a file")
    arguments = parser.parse_args()
    if arguments.markdown is not None:
        print(markdown(json.loads(arguments.markdown.read_text())))
        return
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    found = {"device": asdict(mcf.info().devices[0]), "versions": versions, "times": measure(arguments.rounds)}
    print(markdown(found))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
