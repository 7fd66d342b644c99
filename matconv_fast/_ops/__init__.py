"""Operators of the namespace ``matconv_fast``: schemas, implementations, and the choice of the path that runs.

One schema source, in Python. The C++ extension registers its CPU implementations when it is loaded; every other device,
and a CPU without the extension, gets the PyTorch reference through the composite key.
"""

from . import backend
from .advance import advance
from .chunk import finish_chunk, loss_history, start_run
from .distance import distance, kernel_distance
from .losses import kernel_residual_loss, loss_and_gradient, residual_loss
from .step import heavy_ball_step, heavy_ball_step_, traced_step_

backend.load_native()

__all__ = [
    "advance",
    "backend",
    "distance",
    "finish_chunk",
    "heavy_ball_step",
    "heavy_ball_step_",
    "kernel_distance",
    "kernel_residual_loss",
    "loss_and_gradient",
    "loss_history",
    "residual_loss",
    "start_run",
    "traced_step_",
]
