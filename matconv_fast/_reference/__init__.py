"""The definition of every operator in plain PyTorch. Kernels are tested against it; it runs where there is no kernel.

It works on any device, on batches of problems ``X [B, m, n]``, ``M [1 or B, n, p]``, ``Y [1 or B, m, p]``. With
``M=None``, the identity, no product is made.

* `losses`: losses, distances, their gradients, and the single step.
* `advance`: the iteration under every solver, with the contract that all backends meet.
* `run`: what happens before, between and after the chunks of a run.
"""

from .advance import Step, Update, advance, batched_gradient, batched_residual, gradient_step
from .direct import direct_solve
from .losses import (
    distance,
    gradient_scale,
    heavy_ball_step,
    loss_gradient,
    loss_of_residual,
    loss_of_sums,
    residual,
    residual_loss,
)
from .run import Standing, end_run, finish_chunk, loss_history, norms, start_run, tolerances

__all__ = [
    "Standing",
    "Step",
    "Update",
    "advance",
    "batched_gradient",
    "batched_residual",
    "direct_solve",
    "distance",
    "end_run",
    "finish_chunk",
    "gradient_scale",
    "gradient_step",
    "heavy_ball_step",
    "loss_gradient",
    "loss_history",
    "loss_of_residual",
    "loss_of_sums",
    "norms",
    "residual",
    "residual_loss",
    "start_run",
    "tolerances",
]
