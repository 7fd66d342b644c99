"""Launchers of `advance`, of the single step and of the end of a chunk, and the choice of an algorithm.

Everything is decided from shapes and dtypes, and nothing is read from the device. Nothing on a device is cached: a
cached tensor would belong to one stream, and to the memory pool of a CUDA graph that was captured at its first use.
X and the state matrices are float32 or float64; M and Y are that, or bfloat16 or float16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import LOSSES, Shape, StopCriteria, Trace
from .advance_products import launch_products, launch_products_step
from .advance_rows import launch_rows
from .advance_small import launch_small
from .choose_algorithm import ALGORITHMS, choose
from .direct import launch_direct_solve
from .finish_chunk import launch_finish_chunk
from .state import Problems, RuleState

__all__ = [
    "ALGORITHMS",
    "choose",
    "launch_advance",
    "launch_direct_solve",
    "launch_finish_chunk",
    "launch_heavy_ball_step_",
]


def launch_advance(
    rule: str, X: Tensor, state: list[Tensor], M: Tensor | None, Y: Tensor, hyper: Tensor, step: Tensor,
    scale: float, coupled: bool, limit: Tensor, threshold: Tensor, bail: Tensor, sums: Tensor, steps_done: Tensor,
    R: Tensor | None, algorithm: str,
) -> None:  # fmt: skip
    """``matconv_fast::advance``."""
    rule_state = RuleState(rule, X, tuple(state), hyper.contiguous(), step)
    problems = Problems(M, Y, scale, coupled)
    stop, trace = StopCriteria(limit, threshold, bail), Trace(sums, steps_done)
    if algorithm == "small":
        launch_small(rule_state, problems, stop, trace)
    elif algorithm == "rows":
        launch_rows(rule_state, problems, stop, trace)
    else:
        launch_products(rule_state, problems, stop, trace, R, fused=algorithm == "tiled")


def launch_heavy_ball_step_(
    X: Tensor, V: Tensor, M: Tensor | None, Y: Tensor, lr: float, momentum: float, loss: int
) -> Tensor:
    """``matconv_fast::heavy_ball_step_`` on ``[B, m, n]``: one update, without a residual after it."""
    batch, m, n = X.shape
    p = Y.shape[2]
    name, elements = LOSSES[loss], m * p
    hyper = X.new_empty((2, batch), dtype=torch.float64)
    hyper[0].fill_(lr)
    hyper[1].fill_(momentum)
    state = RuleState("heavy_ball", X, (V,), hyper, None)
    problems = Problems(M, Y, {"mse": 2 / elements, "sse": 2.0, "fro": 1.0}[name], name == "fro")
    sums = X.new_empty((batch, 1), dtype=torch.float64)
    # coupled: the row algorithm is for many updates
    algorithm = choose(Shape(batch, m, n, p, M is not None, True, Y.dtype), "heavy_ball")
    assert algorithm is not None
    if algorithm.name == "small":
        unread = torch.empty(batch, dtype=torch.int64, device=X.device)
        launch_small(state, problems, None, Trace(sums, unread))
    else:
        launch_products_step(state, problems, sums, fused=algorithm.name == "tiled")
    before = X.new_empty(batch)
    if name == "fro":
        return torch.sqrt(sums[:, 0], out=before)
    return torch.div(sums[:, 0], elements if name == "mse" else 1, out=before)
