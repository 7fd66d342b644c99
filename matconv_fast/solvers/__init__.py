"""Solvers: how X is driven to ``X @ M = Y``. One file a solver; `solver` and `gradient_rule` are the base classes."""

from .adam import Adam
from .auto import Auto
from .factor import Factor, factorize
from .gradient_rule import GradientRule
from .heavy_ball import HeavyBall
from .lsqr import LSQR
from .minres import MINRES
from .newton_schulz import NewtonSchulz
from .refinement import Refinement
from .solver import Ending, Iterate, Solver

__all__ = [
    "LSQR",
    "MINRES",
    "Adam",
    "Auto",
    "Ending",
    "Factor",
    "GradientRule",
    "HeavyBall",
    "Iterate",
    "NewtonSchulz",
    "Refinement",
    "Solver",
    "factorize",
]
