"""Operators of the namespace ``matconv_fast``: schemas, implementations, and the choice of the path that runs.

One schema source, in Python. The C++ extension registers its CPU implementations when it is loaded; every other device,
and a CPU without the extension, gets the PyTorch reference through the composite key.
"""

from . import backend
from .chunk import finish_chunk
from .distance import distance
from .heavy_ball import heavy_ball_advance

backend.load_native()

__all__ = ["backend", "distance", "finish_chunk", "heavy_ball_advance"]
