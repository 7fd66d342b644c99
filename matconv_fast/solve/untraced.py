"""`solve` for a function that is being compiled: called as it is, between two graphs.

A module of its own, imported only then: ``torch.compiler.disable`` imports the whole compiler, which takes a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch

from .solution import Solution
from .solve import solve as _solve

solve = cast(
    "Callable[..., Solution]",
    torch.compiler.disable(_solve, reason="matconv_fast.solve iterates, and stops by itself"),
)
