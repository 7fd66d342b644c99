"""The keyword options of `solve`, checked once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import _checks

DEFAULT_MAX_ITERS = 10_000

# Residuals that a well-conditioned problem reaches in a few thousand iterations, an order of magnitude from its floor.
DEFAULT_RTOL = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}

# Iterations between two checks for stagnation where the user gave no patience.
AUTO_PATIENCE = 1_000


@dataclass(frozen=True)
class Options:
    """Options of one solve; see `matconv_fast.solve` for their meaning."""

    atol: float = 0.0
    rtol: float | None = None
    max_iters: int | None = None
    check_every: int | None = None
    record_every: int | None = None
    patience: int | None = None
    progress: bool = False
    throw: bool = False

    def __post_init__(self) -> None:
        _checks.number("atol", self.atol, minimum=0)
        if self.rtol is not None:
            _checks.number("rtol", self.rtol, minimum=0)
        _checks.integer("max_iters", self.max_iters, 0, optional=True)
        _checks.integer("check_every", self.check_every, 1, optional=True)
        _checks.integer("record_every", self.record_every, 0, optional=True)
        _checks.integer("patience", self.patience, 1, optional=True)

    @property
    def limit(self) -> int:
        """Most updates that this call makes."""
        return DEFAULT_MAX_ITERS if self.max_iters is None else self.max_iters

    @property
    def tolerances(self) -> tuple[float | int | None, ...]:
        """The options that decide when a problem is done."""
        return self.atol, self.rtol, self.patience

    def relative(self, dtype: torch.dtype) -> float:
        """The relative tolerance; by the dtype of the inputs where the user gave none."""
        return DEFAULT_RTOL[dtype] if self.rtol is None else self.rtol

    def stagnation_interval(self, dtype: torch.dtype) -> int | None:
        """Iterations between two checks for stagnation; None where both tolerances are 0, so that none is missed."""
        if self.patience is not None:
            return self.patience
        return AUTO_PATIENCE if self.atol > 0 or self.relative(dtype) > 0 else None
