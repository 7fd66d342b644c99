"""Operators of the namespace ``matconv_fast``: schemas, implementations, and the choice of the backend.

The schemas are defined here, in Python. The C++ extension registers CPU implementations when it is loaded. Any other
device, and a CPU without the extension, gets the PyTorch reference through the composite key.
"""

from . import backend
from .advance import Descent, advance, register_rule
from .direct import direct_solve, plan_direct
from .distance import distance, try_distance
from .losses import loss_and_gradient, residual_loss, try_residual_loss
from .plan import Plan, plan_rule
from .run import end_run, finish_chunk, loss_history, start_run
from .step import heavy_ball_step_, try_heavy_ball_step, try_heavy_ball_step_

backend.load_native()

__all__ = [
    "Descent",
    "Plan",
    "advance",
    "backend",
    "direct_solve",
    "distance",
    "end_run",
    "finish_chunk",
    "heavy_ball_step_",
    "loss_and_gradient",
    "loss_history",
    "plan_direct",
    "plan_rule",
    "register_rule",
    "residual_loss",
    "start_run",
    "try_distance",
    "try_heavy_ball_step",
    "try_heavy_ball_step_",
    "try_residual_loss",
]
