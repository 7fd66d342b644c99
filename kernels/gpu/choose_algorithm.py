"""The algorithm of `advance` that problems of a kind get, by their shape, their dtype and the rule.

* ``small``: one program a problem, X and the state matrices on chip for all iterations.
* ``rows``: one program a block of rows, for all iterations, without waiting for the others. The loss must not couple
  the rows, and the rule must accumulate (``rules.Rule``). A problem may overshoot its stop.
* ``tiled``: two kernels an iteration, each a product with what follows it fused.
* ``gemm``: cuBLAS, and a pass after each product. It is faster than ``tiled`` where our products reach only a fraction
  of cuBLAS's rate, in float32 and float64 without tensor cores, where the passes take little time beside them; and
  where ``p`` is so far above ``m n`` that only a product split along p fills the GPU.
"""

from __future__ import annotations

from ..contract import Algorithm, Shape
from . import advance_tiles, target
from .rules import RULES, Rule

ALGORITHMS = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("small"),
        Algorithm("rows", exact=False, least_steps=8),
        Algorithm("tiled", keeps_residual=True, many_launches=True),
        Algorithm("gemm", keeps_residual=True, many_launches=True),
    )
}


def choose(shape: Shape, rule: str) -> Algorithm | None:
    """The algorithm; None where no kernel takes the problem: it is empty, or there is no such rule."""
    found = RULES.get(rule)
    if found is None or 0 in (shape.batch, shape.m, shape.n, shape.p):
        return None
    return ALGORITHMS[_name(shape, found)]


def _name(shape: Shape, rule: Rule) -> str:
    batch, m, n, p = shape[:4]
    precision = target.precision(shape.dtype)
    if max(m, n, p) <= advance_tiles.small_limit(precision, rule.states):
        return "small"
    by_rows = shape.product and rule.accumulates and not shape.coupled
    if by_rows and advance_tiles.rows(batch, m, n, p, precision) is not None:
        return "rows"
    if not shape.product or precision in ("ieee", "fp64"):
        return "gemm"
    return "gemm" if p > 16 * m * n else "tiled"
