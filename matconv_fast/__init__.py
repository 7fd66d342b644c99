"""matconv_fast: drive a matrix to equality, fast. Find X with ``X @ M = Y``, and stop when it is near enough."""

from ._ops.info import info
from .distance import distance, is_close
from .losses import ResidualLoss, residual_loss
from .problem import Problem
from .solve import ConvergenceError, RunView, Solution, Status, inv, iterate, solve
from .solvers import (
    LSQR,
    MINRES,
    Adam,
    Auto,
    Factor,
    GradientRule,
    HeavyBall,
    NewtonSchulz,
    Refinement,
    Solver,
    factorize,
)
from .step import heavy_ball_step, heavy_ball_step_

__version__ = "0.1.0"

__all__ = [
    "LSQR",
    "MINRES",
    "Adam",
    "Auto",
    "ConvergenceError",
    "Factor",
    "GradientRule",
    "HeavyBall",
    "NewtonSchulz",
    "Problem",
    "Refinement",
    "ResidualLoss",
    "RunView",
    "Solution",
    "Solver",
    "Status",
    "distance",
    "factorize",
    "heavy_ball_step",
    "heavy_ball_step_",
    "info",
    "inv",
    "is_close",
    "iterate",
    "residual_loss",
    "solve",
]
