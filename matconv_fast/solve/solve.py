"""`solve` and `inv`: drive X to ``X @ M = Y``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..solvers import Factor, Solver
from .callback import RunView
from .engine import solution_of
from .solution import Solution


def solve(
    M: Tensor | Factor | None,
    Y: Tensor | None = None,
    X0: Tensor | Solution | None = None,
    *,
    solver: Solver | None = None,
    loss: str = "mse",
    ridge: float | Tensor = 0.0,
    atol: float = 0.0,
    rtol: float | None = None,
    max_iters: int | None = None,
    left: bool = False,
    check_every: int | None = None,
    record_every: int | None = None,
    patience: int | None = None,
    progress: bool = False,
    callback: Callable[[RunView], Any] | None = None,
    throw: bool = False,
) -> Solution:
    """Find X with ``||X @ M - Y||_F <= max(atol, rtol ||Y||_F)``, in one call.

    Finds X with ``X @ M = Y``, M on the right. For ``M @ X = Y``, as in ``torch.linalg.solve(M, Y)``, pass
    ``left=True``. A problem stops at the first iterate that meets its tolerance, whatever `check_every` is. The
    problems of a batch stop independently.

    ``solution.X`` is differentiable in M, Y and ridge, to any order, by the implicit function theorem: its gradient is
    that of the exact solution, ``Y M^T (M M^T + ridge I)^-1``, or for an M with more rows than columns, and no ridge,
    that of the solution nearest to X0, a constant. It takes one QR decomposition and no memory for the iterations, and
    is as accurate as that: X is corrected once before it is used. The backward warns if a problem had not converged.
    It raises ``torch.linalg.LinAlgError`` for an M without full rank, and ``RuntimeError`` for an X that is not the
    solution nearest to X0 where that is asked for (`Adam` finds another one). A problem whose X has no part in the
    gradient may be as it likes. Loss, history and norms carry no gradient; X0, lr and momentum receive none.

    Args:
        M: ``[*, n, p]``, floating-point, or None for the identity; or a `Factor`, made by `factorize`.
        Y: ``[*, m, p]``, or None for the identity. Leading dimensions broadcast. Or a vector ``[p]``, which serves
            every problem of the batch of M, with m = 1; X0 and X are then ``[*, n]``. Any other Y is of matrices.
        X0: where to start: ``[*, m, n]``, zeros if None; or a `Solution`, to continue exactly from its state. A problem
            whose Y is 0, and whose tolerance is relative to that, starts and ends at ``X = 0``, its exact solution,
            except with a gradient rule.
        solver: a `Solver` such as `HeavyBall` or `Adam`, or one of your own; None is ``Auto()``, which chooses a
            direct or a Krylov method.
        loss: ``"mse"``, ``"sse"`` or ``"fro"``, which the solver minimizes; see `residual_loss`. The tolerance is on
            ``||R||_F`` for every loss.
        ridge: minimize ``||X @ M - Y||_F^2 + ridge ||X||_F^2`` (ridge regression, Tikhonov regularization, weight
            decay), divided by ``m p`` under ``mse``: at least 0, a number, a 0-d tensor or one value per problem,
            differentiable. It is solved as the equation ``X @ [M, sqrt(ridge) I] = [Y, 0]``, with n more columns, and
            everything said of R here holds for that one's: loss, history, residual norm and tolerance include the
            ridge. So the status is LEAST_SQUARES, which counts as converged, unless the tolerance is met before.
            ``residual_loss(X, M, Y)`` is the loss without it. Not for `NewtonSchulz`, `MINRES` and a `Factor`.
        atol: absolute tolerance.
        rtol: tolerance relative to ``||Y||_F``; None is 1e-10 in float64, 1e-5 in float32, 1e-3 in float16, 1e-2 in
            bfloat16. With ``atol=0, rtol=0`` it runs all `max_iters` unless the residual becomes exactly 0.
        max_iters: most updates that this call makes; None is 10,000.
        left: find X with ``M @ X = Y`` instead: M ``[*, p, n]``, Y ``[*, p, m]``, X ``[*, n, m]``; vectors as
            they are.
        check_every: most iterations between two checks by the host; None chooses. The result does not depend on it.
        record_every: iterations between two entries of the history; 0 records none. None begins with 1, and doubles it
            whenever the history of all problems together would hold more than 2^24 entries, by leaving out every second
            one; ``solution.record_every`` is what it came to.
        patience: stop as STAGNATED when the smallest ``||R||_F`` fell by less than 1 % over this many iterations. None
            checks every 1,000, and stops only if the residual no longer falls: at the rounding floor, or at the
            least-squares minimum of an equation without solution.
        progress: show a progress bar (needs tqdm).
        callback: called with a `RunView` after each chunk, so at least every `check_every` iterations, under
            ``torch.no_grad``. If it returns True, the run ends there, and the problems that went on are STOPPED; an
            exception ends the solve. Where X0 meets the tolerance there is no chunk.
        throw: raise unless every problem converges.

    Returns:
        A `Solution`. X is in float32 for bfloat16 and float16 inputs, which are computed in float32.

    Raises:
        TypeError: an argument is no dense real floating-point tensor, or dtypes differ.
        ValueError: shapes do not fit, devices differ, or an option is out of range.
        NotImplementedError: M, Y or ridge carries a forward-mode tangent, or a ``torch.func`` transform is active.
        ConvergenceError: with ``throw=True``, a problem did not converge.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> M = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> sol = mcf.solve(M, rtol=1e-6)
        >>> sol.X
        tensor([[ 0.6000, -0.2000],
                [-0.2000,  0.4000]])
        >>> mcf.Status(sol.status.item()), sol.history.shape[0] == sol.iterations + 1
        (<Status.CONVERGED: 0>, tensor(True))
    """
    options = {
        "atol": atol, "rtol": rtol, "max_iters": max_iters, "check_every": check_every, "record_every": record_every,
        "patience": patience, "progress": progress, "throw": throw,
    }  # fmt: skip
    given = {"solver": solver, "loss": loss, "left": left, "ridge": ridge, "callback": callback}
    if torch.compiler.is_compiling():
        from . import untraced  # imports the whole compiler, which takes a second

        return untraced.solution_of(M, Y, X0, **given, **options)
    return solution_of(M, Y, X0, **given, **options)


def inv(M: Tensor | Factor, *, X0: Tensor | Solution | None = None, **options: Any) -> Solution:
    """Iterate X until ``X @ M`` is the identity: `solve` with Y the identity.

    A warm start pays: after M has changed a little, ``inv(M, X0=solution.X)`` takes a few iterations. For one inverse
    to machine precision, use ``torch.linalg.inv``.

    Args:
        M: ``[*, n, n]``, floating-point; or a `Factor`, made by `factorize`.
        X0: where to start, ``[*, n, n]``, or a `Solution` to continue from.
        **options: those of `solve`.

    Returns:
        A `Solution`.

    Raises:
        As `solve`.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> mcf.inv(torch.diag(torch.tensor([1.0, 4.0])), rtol=1e-6).X.diagonal()
        tensor([1.0000, 0.2500])
    """
    if not isinstance(M, Factor):
        _checks.matrix("M", M)
    return solve(M, None, X0, **options)
