"""How a solve ended."""

from __future__ import annotations

import enum

from ..kernels import contract


class Status(enum.IntEnum):
    """Code of how a problem's iteration ended; `Solution.message` suggests a fix.

    Example:
        >>> import torch, matconv_fast as mcf
        >>> mcf.Status(mcf.inv(torch.eye(3)).status.item())
        <Status.CONVERGED: 0>
    """

    CONVERGED = contract.CONVERGED
    """``||R||_F <= max(atol, rtol ||Y||_F)``, measured on the true residual of the returned X."""
    MAX_ITERATIONS = contract.MAX_ITERATIONS
    """`max_iters` updates were made without meeting the tolerance."""
    DIVERGED = contract.DIVERGED
    """``||R||^2`` passed 1e10 times the larger of its first value and ``||Y||^2``, or overflowed."""
    STAGNATED = contract.STAGNATED
    """The residual stopped falling short of the tolerance: rounding, or an equation without solution."""
    NONFINITE = contract.NONFINITE
    """NaN or infinity in the first residual, or NaN in a later one."""
    LEAST_SQUARES = contract.LEAST_SQUARES
    """The residual is above the tolerance and at its minimum: ``||R M^T||_F`` is at most 32 eps ``||M||_F ||R||_F``, or
    as near to that as the rounding of X allows. `Solution.converged` counts it where M has more columns than rows."""
    BREAKDOWN = contract.BREAKDOWN
    """The solver cannot go on with this M: it is singular to working precision, or not symmetric where it must be."""
    STOPPED = contract.STOPPED
    """The user's callback stopped the run before."""
