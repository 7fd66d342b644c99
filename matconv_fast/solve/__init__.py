"""`solve`, `inv` and `iterate`, and the loop under every solver."""

from .callback import RunView
from .iterate import iterate
from .solution import ConvergenceError, Solution
from .solve import inv, solve
from .status import Status

__all__ = ["ConvergenceError", "RunView", "Solution", "Status", "inv", "iterate", "solve"]
