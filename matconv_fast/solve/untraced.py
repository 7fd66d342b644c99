"""`solution_of` in code that is being compiled: called uncompiled, between two graphs.

A module of its own, imported only there: ``torch.compiler.disable`` imports the whole compiler, which takes a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch

from . import engine
from .solution import Solution

solution_of = cast(
    "Callable[..., Solution]",
    torch.compiler.disable(engine.solution_of, reason="matconv_fast.solve iterates, and stops by itself"),
)
