"""Solvers: how X is driven to ``X @ M = Y``. One file a solver; `solver` and `gradient_rule` are the base classes."""

from .adam import Adam
from .factor import Factor, factorize
from .gradient_rule import GradientRule
from .heavy_ball import HeavyBall
from .refinement import Refinement
from .solver import Ending, Iterate, Solver

__all__ = ["Adam", "Ending", "Factor", "GradientRule", "HeavyBall", "Iterate", "Refinement", "Solver", "factorize"]
