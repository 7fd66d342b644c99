"""``||X @ M - Y||`` as a differentiable loss."""

from __future__ import annotations

from torch import Tensor, nn

from . import _checks, _ops
from .kernels.contract import LOSSES


def residual_loss(X: Tensor, M: Tensor | None, Y: Tensor | None = None, *, loss: str = "mse") -> Tensor:
    """Loss of the residual ``R = X @ M - Y``, one value per problem, differentiable in X, M and Y.

    ======= ============================== =======================================
    loss    value                          gradient by X
    ======= ============================== =======================================
    mse     ``sum(R^2) / (m p)``           ``2 / (m p) R M^T``
    sse     ``sum(R^2)``                   ``2 R M^T``
    fro     ``sqrt(sum(R^2))``             ``R M^T / ||R||``, and 0 where ``R = 0``
    ======= ============================== =======================================

    Args:
        X: ``[*, m, n]``, floating-point; ``[*, n]`` where Y is a vector.
        M: ``[*, n, p]``, or None for the identity, which makes no product.
        Y: ``[*, m, p]``, or None for the identity; or a vector ``[p]``, which serves every problem, with m = 1.
            Leading dimensions broadcast.
        loss: ``"mse"``, ``"sse"`` or ``"fro"``.

    Returns:
        The losses, of the batch's shape; float64 for float64 inputs and float32 for all others, since bfloat16 and
        float16 inputs are computed in float32. A residual without elements has loss 0.

    Raises:
        TypeError: an argument is no dense real floating-point tensor, or their dtypes differ.
        ValueError: shapes do not fit, devices differ, or `loss` is unknown.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> X = torch.zeros(2, 3, requires_grad=True)
        >>> loss = mcf.residual_loss(X, torch.eye(3, 2))
        >>> loss.backward()
        >>> loss.item(), X.grad[0].tolist()
        (0.5, [-0.5, 0.0, 0.0])
    """
    value = _ops.try_residual_loss(X, M, Y, loss)
    if value is not None:
        return value
    _checks.choice("loss", loss, LOSSES)
    if _checks.is_vector(Y):
        X, Y = _checks.row("X", X), _checks.row("Y", Y)
    _checks.matrix("X", X)
    _checks.problem(X, M, Y)
    return _ops.residual_loss(X, M, Y, loss)


class ResidualLoss(nn.Module):
    """`residual_loss` as a module.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> mcf.ResidualLoss("sse")(torch.ones(2, 2), None, torch.zeros(2, 2))
        tensor(4.)
    """

    def __init__(self, loss: str = "mse") -> None:
        super().__init__()
        _checks.choice("loss", loss, LOSSES)
        self.loss = loss

    def forward(self, X: Tensor, M: Tensor | None, Y: Tensor | None = None) -> Tensor:
        """See `residual_loss`."""
        return residual_loss(X, M, Y, loss=self.loss)

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f"loss={self.loss!r}"
