"""`solve` and `inv`: drive X to ``X @ M = Y``."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .. import _checks
from .._ops import backend
from . import implicit, loop
from .heavy_ball import HeavyBall
from .loop import State
from .options import Options
from .phases import whole_solve
from .problem import Problem
from .solution import Solution
from .solver import Solver


def _fresh(problem: Problem, solver: Solver, X0: Tensor | None) -> State:
    X = problem.start(X0)
    return State.fresh(X, solver.buffers(problem, X), solver)


def _resume(problem: Problem, options: Options, solver: Solver | None, previous: Solution) -> State:
    """The state that `previous` ended in, as a start.

    On the same equation it keeps what was known of it, and a problem that had diverged or stagnated under the same
    tolerances stays as it was; on another one, X and the solver's buffers alone go on.
    """
    state = previous.state
    if state is None:
        raise ValueError("X0 is a Solution of iterate(), which has no state to go on from; pass its X instead")
    before, now = previous.problem, problem
    for name in ("batch", "m", "n", "p", "loss", "left", "dtype", "device"):
        if getattr(before, name) != getattr(now, name):
            raise ValueError(
                f"X0 is a Solution of another kind of problem: its {name} is {getattr(before, name)}, this one's "
                f"{getattr(now, name)}; pass X0=solution.X to start anew from its X"
            )
    if solver is not None and type(solver) is not type(state.solver):
        was, wanted = type(state.solver).__name__, type(solver).__name__
        raise ValueError(
            f"X0 is a Solution of {was}, whose state {wanted} cannot go on from; "
            "pass X0=solution.X to start anew from its X"
        )
    by_value = previous.restored
    if not problem.is_same(previous.problem, by_value=by_value):
        return State.fresh(state.X, state.buffers, solver or state.solver, state.iterations)
    same_solver = solver is None or solver.is_same(state.solver, by_value=by_value)
    return state.going_on(all_problems=not (same_solver and options.tolerances == previous.options.tolerances))


def solve(
    M: Tensor | None,
    Y: Tensor | None = None,
    X0: Tensor | Solution | None = None,
    *,
    solver: Solver | None = None,
    loss: str = "mse",
    atol: float = 0.0,
    rtol: float | None = None,
    max_iters: int | None = None,
    left: bool = False,
    check_every: int | None = None,
    record_every: int = 1,
    patience: int | None = None,
    progress: bool = False,
    throw: bool = False,
) -> Solution:
    """Iterate X until ``||X @ M - Y||_F <= max(atol, rtol ||Y||_F)``, in one call.

    Finds X with ``X @ M = Y``, M on the right. ``torch.linalg.solve(A, B)`` solves ``A @ X = B``, M on the left: that
    is ``left=True`` here. A problem stops at the first iterate that meets its tolerance, whatever `check_every` is, and
    the problems of a batch stop one by one.

    ``solution.X`` is differentiable by M and Y, to any order: by the implicit function theorem, as the exact solution
    ``X = Y M^T (M M^T)^-1``, from one QR decomposition and without memory for the iterations. The backward warns where
    a problem had not converged, and raises ``torch.linalg.LinAlgError`` for an M without full row rank (column rank
    with ``left=True``), whose solution depends on X0. Loss, history and norms carry no gradient, nor do X0, lr and
    momentum receive one.

    Args:
        M: ``[*, n, p]``, floating-point, or None for the identity.
        Y: ``[*, m, p]``, or None for the identity. Leading dimensions broadcast.
        X0: where to start: ``[*, m, n]``, zeros if None; or a `Solution`, to go on exactly from its state.
        solver: `HeavyBall` or `Adam`; None is ``HeavyBall()``, with an estimated step size.
        loss: ``"mse"``, ``"sse"`` or ``"fro"``, what the solver descends; see `residual_loss`. The tolerance is on
            ``||R||_F`` whatever the loss.
        atol: absolute tolerance.
        rtol: tolerance relative to ``||Y||_F``; None is 1e-10 in float64, 1e-5 in float32, 1e-3 in float16, 1e-2 in
            bfloat16. With ``atol=0, rtol=0`` it runs all `max_iters` unless the residual becomes exactly 0.
        max_iters: most updates that this call makes; None is 10,000.
        left: find X with ``M @ X = Y`` instead: M ``[*, p, n]``, Y ``[*, p, m]``, X ``[*, n, m]``.
        check_every: iterations between two looks at the result by the host; None chooses. It changes no result.
        record_every: iterations between two entries of the history; 0 records none.
        patience: end STAGNATED when the smallest ``||R||_F`` fell by less than 1 % over this many iterations. None
            asks every 1,000, and ends it only where the residual stands still: at what rounding allows, or at the
            least-squares minimum of an equation without solution.
        progress: show a progress bar (needs tqdm).
        throw: raise unless every problem converges.

    Returns:
        A `Solution`. X is in float32 for bfloat16 and float16 inputs: they are computed in float32.

    Raises:
        TypeError: an argument is no dense real floating-point tensor, or dtypes differ.
        ValueError: shapes do not fit, devices differ, an option is out of range, or a gradient is asked for of an M
            with more rows than columns (more columns than rows with ``left=True``).
        NotImplementedError: M or Y carries a forward-mode tangent, or a ``torch.func`` transform is at work.
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
    if torch.compiler.is_compiling():
        from .untraced import solve as untraced

        return untraced(
            M, Y, X0, solver=solver, loss=loss, atol=atol, rtol=rtol, max_iters=max_iters, left=left,
            check_every=check_every, record_every=record_every, patience=patience, progress=progress, throw=throw,
        )  # fmt: skip
    options = Options(atol, rtol, max_iters, check_every, record_every, patience, progress, throw)
    if solver is not None and not isinstance(solver, Solver):
        raise TypeError(f"solver must be a solver object such as HeavyBall(), got {_checks.describe(solver)}")
    with torch.no_grad(), _without_autocast(M, Y), whole_solve(M, Y, X0):
        _refuse_transforms(M, Y)
        problem = Problem.of(M, Y, None if isinstance(X0, Solution) else X0, loss, left)
        if isinstance(X0, Solution):
            start = _resume(problem, options, solver, X0)
            solver = solver or start.solver
        else:
            solver = solver or HeavyBall()
            start = _fresh(problem, solver, X0)
        solution = _solution(problem, options, start, loop.run(problem, solver, options, start))
    if backend.records_grad(M, Y):
        solution = replace(solution, X=_differentiable(M, Y, solution, left=left))
    if throw:
        solution.raise_for_status()
    return solution


def _differentiable(M: Tensor | None, Y: Tensor | None, solution: Solution, *, left: bool) -> Tensor:
    if not left:
        return implicit.differentiable(M, Y, solution.X, solution.status)
    M, Y = (None if t is None else t.mT for t in (M, Y))
    return implicit.differentiable(M, Y, solution.X.mT, solution.status).mT


def _without_autocast(M: Any, Y: Any) -> contextlib.AbstractContextManager[Any]:
    """The iteration has its own rules of precision."""
    kind = next((t.device.type for t in (M, Y) if isinstance(t, Tensor)), "cpu")
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def _refuse_transforms(M: Tensor | None, Y: Tensor | None) -> None:
    """A result that silently has no derivative, or one problem of a batch, would be worse."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "solve() does not run inside torch.func transforms: for vmap give it the batch, [*, n, p], and for grad "
            "use X.backward() or torch.autograd.grad"
        )
    for name, t in (("M", M), ("Y", Y)):
        if isinstance(t, Tensor) and unpack_dual(t).tangent is not None:
            raise NotImplementedError(
                f"{name} carries a forward-mode tangent, and solve() has reverse-mode gradients alone: pass "
                f"{name}.detach()"
            )


def _solution(problem: Problem, options: Options, start: State, outcome: loop.Outcome) -> Solution:
    state, batch = outcome.state, problem.batch
    sums = state.sums.view(batch)
    return Solution(
        X=problem.of_user(state.X.clone()),  # the user's to change: the state stays
        loss=problem.loss_of(sums),
        residual_norm=sums.sqrt(),
        iterations=state.iterations.clone().view(batch),
        status=state.status.clone().view(batch),
        history=outcome.history.view(*batch, outcome.history.shape[1]),
        state=state,
        problem=problem,
        options=options,
        start=start,
    )


def inv(M: Tensor, *, X0: Tensor | Solution | None = None, **options: Any) -> Solution:
    """Iterate X until ``X @ M`` is the identity: `solve` with Y the identity.

    A warm start pays: after M has changed a little, ``inv(M, X0=solution.X)`` takes a few iterations. For one inverse
    to machine precision, ``torch.linalg.inv`` is the better tool.

    Args:
        M: ``[*, n, n]``, floating-point.
        X0: where to start, ``[*, n, n]``, or a `Solution` to go on from.
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
    _checks.matrix("M", M)
    return solve(M, None, X0, **options)
