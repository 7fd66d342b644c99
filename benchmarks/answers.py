"""A: time to a right answer. Ours, without options, beside torch.linalg, SciPy and lineax.

Every answer's residual is made in float64 before anyone is timed; making arrays for SciPy and JAX is not timed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from descents import ended
from measure import OURS, Call, Contender, MismatchError, NotRunError, register
from scipy import linalg as scipy_linalg
from scipy.sparse import linalg as scipy_sparse
from torch import Tensor, linalg

import matconv_fast as mcf
from matconv_fast._workloads import Equation

Run = Callable[[], Any]  # it returns X, X and its iterations, a Solution, or one of these for each of `drift`
RIDGE = "ridge" in inspect.signature(mcf.solve).parameters


def check(work: Equation, found: Any) -> None:
    """Raise where an answer's residual is above the tolerance and the least there is."""
    answers = found if work.drift else [found]
    for M, answer in zip(work.drift or (work.M,), answers, strict=True):
        X = answer.X if isinstance(answer, mcf.Solution) else answer[0] if isinstance(answer, tuple) else answer
        least, norm, (wide, Y) = (
            _truth(work) if not work.drift else (0.0, len(M) ** 0.5, (M.double(), torch.eye(len(M))))
        )
        X = torch.from_numpy(np.array(X)).double().view(*wide.shape[:-2], -1, wide.shape[-2])
        over = linalg.matrix_norm(X @ wide - Y) / max(work.rtol * norm, (1 + work.rtol) * least)
        if not bool((over <= 1).all()):
            raise MismatchError(f"{work.name}: a residual is {float(over.max()):.1e} times what it may be")


@functools.lru_cache(maxsize=1)
def _truth(work: Equation) -> tuple[float, float, tuple[Tensor, Tensor]]:
    """The least residual, ``||Y||``, and M and Y in float64; normal equations do, as M is well conditioned."""
    M, Y = (t.double() for t in work.whole())
    if M.shape[-2] == M.shape[-1]:
        return 0.0, float(linalg.matrix_norm(Y)), (M, Y)
    return float(linalg.norm(linalg.solve(M @ M.mT, Y @ M.mT, left=False) @ M - Y)), float(linalg.norm(Y)), (M, Y)


def _ours(solver: mcf.Solver, work: Equation) -> Run:
    start = mcf.solve(work.M, solver=solver).X if work.drift else None

    def follow() -> list[mcf.Solution]:
        found: list[Any] = []
        for M in work.drift:
            found.append(mcf.inv(M, X0=found[-1].X if found else start, solver=solver))
        return found

    options = {"ridge": work.ridge, "loss": "sse"} if RIDGE and work.ridge else {}
    M, Y = (work.M, work.Y) if options else work.whole() if work.ridge else (work.M, work.Y)
    return follow if work.drift else lambda: mcf.solve(M, Y, solver=solver, rtol=work.rtol, **options)


def _torch(function: Callable[..., Any], work: Equation) -> Run:
    if work.drift:
        return lambda: [function(M, None) for M in work.drift]
    return functools.partial(function, *work.whole())


def _scipy(function: Callable[..., Any], work: Equation) -> Run:
    return functools.partial(function, *(t.numpy() for t in work.whole()))


@functools.cache
def _jitted(solver: str) -> Any:
    try:
        import jax
        import lineax
    except ImportError as error:
        raise NotRunError("lineax is not installed: pip install lineax") from error
    jax.config.update("jax_platforms", "cpu")

    def rows(M: Any, Y: Any) -> Any:
        one = lambda y: lineax.linear_solve(lineax.MatrixLinearOperator(M.T), y, getattr(lineax, solver)()).value  # noqa: E731
        return jax.vmap(one)(Y)

    return jax, jax.jit(rows), jax.jit(jax.vmap(rows, (0, None)))


def _lineax(solver: str, work: Equation) -> Run:
    jax, alone, batch = _jitted(solver)
    arrays = [jax.numpy.asarray(t.numpy()) for t in work.whole()]
    return lambda: jax.block_until_ready((batch if arrays[0].ndim == 3 else alone)(*arrays))


def _gram(M: Tensor, Y: Tensor) -> Tensor:
    return torch.cholesky_solve(M @ Y.mT, linalg.cholesky(M @ M.mT)).mT


def _minres(M: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, int]:
    made: list[Any] = []
    return scipy_sparse.minres(M, Y[0], rtol=1e-9, callback=made.append)[0], len(made)


def _lsqr(M: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, int]:
    tolerance = 32 * np.finfo(M.dtype).eps  # what LEAST_SQUARES asks for
    return scipy_sparse.lsqr(M.T, Y[0], atol=tolerance, btol=tolerance)[::2][:2]


PEERS: list[tuple[str, str, str, Callable[..., Run], Any]] = [
    ("inverse regression kfac gptq", OURS, "matconv_fast", _ours, mcf.Auto()),
    ("minres", OURS, "MINRES", _ours, mcf.MINRES()),
    ("lsqr", OURS, "LSQR", _ours, mcf.LSQR()),
    ("inverse kfac", "inv", "linalg.inv", _torch, lambda M, Y: linalg.inv(M)),
    ("inverse", "solve", "linalg.solve(M, I)", _torch, lambda M, Y: linalg.solve(M, Y)),
    ("inverse", "scipy", "SciPy's inv", _scipy, lambda M, Y: scipy_linalg.inv(M)),
    ("inverse", "lineax", "lineax, LU", _lineax, "LU"),
    ("kfac", "cholesky", "cholesky_inverse", _torch, lambda M, Y: torch.cholesky_inverse(linalg.cholesky(M))),
    ("regression gptq", "lstsq", "linalg.lstsq", _torch, lambda M, Y: linalg.lstsq(M.mT, Y.mT).solution.mT),
    ("regression gptq", "gram", "Gram matrix and Cholesky", _torch, _gram),
    ("regression gptq", "scipy", "SciPy's lstsq", _scipy, lambda M, Y: scipy_linalg.lstsq(M.T, Y.T)[0].T),
    ("regression gptq", "lineax", "lineax, QR", _lineax, "QR"),
    ("minres", "scipy", "SciPy's minres", _scipy, _minres),
    ("lsqr", "scipy", "SciPy's lsqr", _scipy, _lsqr),
]


def _register(kinds: str, name: str, label: str, make: Callable[..., Run], how: Any) -> None:
    def report(found: Any) -> dict[str, Any]:
        last = found[-1] if isinstance(found, list) else found
        return (
            ended(last)
            if isinstance(last, mcf.Solution)
            else {"iterations": last[1]}
            if isinstance(last, tuple)
            else {}
        )

    prepare = lambda work: Call(make(how, work), max(1, len(work.drift)), report)  # noqa: E731
    checked = lambda work: check(work, make(how, work)())  # noqa: E731
    register(kinds, name, Contender(label, prepare, checked, "" if name == OURS else OURS))


for _peer in PEERS:
    _register(*_peer)
