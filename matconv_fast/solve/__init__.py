"""The iteration: what is solved (`problem`), by what (one file a solver), until when (`convergence`), in one `loop`."""

from .adam import Adam
from .heavy_ball import HeavyBall
from .iterate import iterate
from .solution import ConvergenceError, Solution
from .solve import inv, solve
from .status import Status

__all__ = ["Adam", "ConvergenceError", "HeavyBall", "Solution", "Status", "inv", "iterate", "solve"]
