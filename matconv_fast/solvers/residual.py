"""The residual of an iterate, as refinement needs it: what a factor takes, made once, and its norm."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem
from .factor import ILL_CONDITIONED, SAFE_SQUARES, Factor
from .measure import TOO_LARGE, TOO_SMALL, Measure, norm


class Residual(NamedTuple):
    """Of X, as the factor takes it.

    Attributes:
        part: R, ``[B, m, p]``, or ``R M^T``, ``[B, m, n]``, for the normal equations; float64.
        norm: ``||R||_F``, ``[B]`` float64.
    """

    part: Tensor
    norm: Tensor


class Work:
    """What a run keeps: the factor, made when the first problem needs it, and the residual of X.

    Attributes:
        normal: whether the factor takes ``R M^T``.
        residual: that of X; None before it is needed.
        squares: ``[B]``, ``||R||^2`` of X, which may be an estimate where that is far from the tolerance.
        estimated: whether it is one.
        rough: whether the residual was made in the dtype of X.
    """

    def __init__(self, problem: Problem, normal: bool) -> None:
        self.measure = Measure(problem)
        self.normal = normal
        self.factor: Factor | None = None
        self.residual: Residual | None = None
        self.squares: Tensor | None = None
        self.estimated = False
        self.rough = False

    def residual_of(self, X: Tensor) -> Residual:
        """Measured."""
        if self.normal:
            return Residual(*self.measure.normal_equations(X))
        R = self.measure.residual(X)
        return Residual(R, norm(R))

    def start(self, X: Tensor) -> Residual:
        """That of the X of a run's start; for ``X = 0`` without a product in float64, where that is safe."""
        measure, safe = self.measure, SAFE_SQUARES
        if not self.normal or not measure.is_zero(X):
            return self.residual_of(X)
        squares = measure.Y_norm.square()
        safe_gram = self.factor is not None and self.factor.gram is not None
        if not safe_gram or not bool(((squares == 0) | (squares > safe[0]) & (squares < safe[1])).all()):
            return self.residual_of(X)
        self.rough = True
        return Residual(-measure.normal_Y(), measure.Y_norm)

    def corrected(self, X: Tensor, unit: Tensor, correction: Tensor) -> Tensor:
        """``X - unit * correction``, and one more correction where the normal equations are ill-conditioned."""
        to = torch.addcmul(X.double(), unit, correction.double(), value=-1)
        factor = self.factor
        if factor is None or factor.condition is None:
            return to.to(X.dtype)
        if self.measure.waits or bool((factor.condition > ILL_CONDITIONED).any()):
            S, r = self.measure.normal_equations(to)
            unit = torch.where(r > 0, r, 1)[:, None, None]
            to.addcmul_(unit, factor.correction(S / unit)[0], value=-1)
        return to.to(X.dtype)

    def first_squares(self, X: Tensor, threshold: Tensor) -> Tensor:
        """``||R||^2`` of the X that a run starts from. An estimate will do where it is far from the threshold."""
        measure = self.measure
        if measure.problem.M is not None and measure.is_zero(X):
            return measure.unless_M_is_bad(measure.Y_norm.square())
        mix = measure.samples() if measure.is_large else None
        if mix is not None:
            squares = measure.sampled_norm(X, mix).square()
            if bool(((squares * TOO_SMALL**2 <= threshold) | (squares >= TOO_LARGE**2 * threshold)).all()):
                self.estimated = True
                return squares
        self.residual = self.residual_of(X)
        return self.residual.norm.square()
