"""`solve` for a function that is being compiled: called as it is, between two graphs.

A module of its own, imported only then: ``torch.compiler.disable`` imports the whole compiler, which takes a second.
"""

from __future__ import annotations

import torch

from .solve import solve as _solve

solve = torch.compiler.disable(_solve, reason="matconv_fast.solve iterates, and stops by itself")
