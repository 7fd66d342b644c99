"""`advance`, algorithms ``tiled`` and ``gemm``: iterate by iterate, the residual, what its norm decides, the step.

With ``tiled`` our kernels make the products and fuse what follows them; with ``gemm`` cuBLAS makes the products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..contract import StopCriteria, Trace
from . import gemm
from .product_tiles import ProductTile
from .reduce import launch_finish_iterate, launch_finish_norm, launch_start
from .residual import launch_residual, new_partials, residual_tile
from .state import Problems, RuleState
from .step import Iterate, launch_step, step_tile


@dataclass(frozen=True, eq=False)
class _Products:
    """The tensors and block shapes of a run's residuals and steps.

    Attributes:
        operand: X as products read it.
        copy: the same where it is a copy in a lower precision, which the step keeps up to date; else None.
        R: the residual.
        by_cublas: the factor of cuBLAS's products, None where our kernels make them, or there are none.
        factor: the factor of our kernels' products, None where they make none.
        products: cuBLAS's ``X M`` and ``R M^T``, in the same memory; else X and R.
        partials: ``[B, tiles]``, sums of squares of each tile of R.
        tiles: block shapes of the residual and of the step.
    """

    state: RuleState
    problems: Problems
    operand: Tensor
    copy: Tensor | None
    R: Tensor
    by_cublas: Tensor | None
    factor: Tensor | None
    products: tuple[Tensor, Tensor]
    partials: Tensor
    tiles: tuple[ProductTile, ProductTile]

    @classmethod
    def of(cls, state: RuleState, problems: Problems, R: Tensor | None, *, fused: bool) -> _Products:
        """With new memory; R too where it is None. ``fused``: our kernels make the products."""
        X, M, Y = state.X, problems.M, problems.Y
        batch, m, n = X.shape
        p = Y.shape[2]
        low_precision = M is not None and Y.dtype != X.dtype
        operand = X.to(Y.dtype) if low_precision else X
        copy = operand if low_precision else None
        if R is None:
            R = X.new_empty((batch, m, p), dtype=X.dtype if M is None else Y.dtype)
        products = operand, R
        if M is not None and not fused:
            memory = X.new_empty(batch * m * max(n, p))
            products = memory[: batch * m * p].view(batch, m, p), memory[: batch * m * n].view(batch, m, n)
        factor = M if fused else None
        residual = residual_tile(products[0], factor, Y, R)
        step = step_tile(products[1], factor, state, copy, coupled=problems.coupled)
        partials = new_partials(X, p, residual)
        return cls(
            state, problems, operand, copy, R, None if fused else M, factor, products, partials, (residual, step)
        )

    def residual(self, active: Tensor | None) -> None:
        """R, and its partial sums, of the problems that are ``active [B]``."""
        if self.by_cublas is not None:
            gemm.multiply(self.operand, self.by_cublas, out=self.products[0])
        launch_residual(self.products[0], self.factor, self.problems.Y, self.R, self.partials, self.tiles[0], active)

    def step(self, iterate: Iterate) -> None:
        """The rule's update."""
        if self.by_cublas is not None:
            gemm.multiply(self.R, self.by_cublas.mT, out=self.products[1])
        scale, tile = self.problems.scale, self.tiles[1]
        launch_step(self.products[1], self.factor, self.state, self.copy, iterate, scale, tile)


def launch_products(
    state: RuleState, problems: Problems, stop: StopCriteria, trace: Trace, R: Tensor | None, *, fused: bool
) -> None:
    """The updates of all problems, each up to its own stop."""
    products = _Products.of(state, problems, R, fused=fused)
    batch, columns = trace.sums.shape
    active = torch.empty(batch, dtype=torch.int32, device=state.X.device)
    missing = None if R is None else torch.empty_like(active)
    launch_start(stop.limit, trace, active, missing)
    for j in range(columns):
        measured = active if j > 0 or missing is None else missing
        products.residual(measured)
        launch_finish_iterate(products.partials, stop, trace, active, measured, j)
        if j < columns - 1:
            products.step(Iterate(j, active, trace.sums if problems.coupled else None))


def launch_products_step(state: RuleState, problems: Problems, sums: Tensor, *, fused: bool) -> None:
    """One update of every problem; ``sums [B, 1]``: ``||R||^2`` before it."""
    products = _Products.of(state, problems, None, fused=fused)
    products.residual(None)
    launch_finish_norm(products.partials, sums, elements=1, how="sum")
    products.step(Iterate(0, None, sums if problems.coupled else None))
