"""A: time to a right answer. Ours, without options, beside torch.linalg, SciPy and lineax.

Every answer's residual is made in float64 before anyone is timed; making arrays for SciPy and JAX is not timed.
"""

from __future__ import annotations

import functools
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

Run = Callable[[], Any]  # it returns X, X and its iterations, or a Solution; where M drifts, a list of these


@functools.lru_cache(maxsize=1)
def _standard(work: Equation) -> tuple[Tensor, Tensor, float]:
    """M and Y in float64, and the ``||R||`` that counts. By the normal equations: M is well conditioned."""
    M, Y = (t.double() for t in work.whole())
    norm = float(linalg.matrix_norm(Y))
    if M.shape[-2] == M.shape[-1]:
        return M, Y, work.rtol * norm
    least = linalg.matrix_norm(linalg.solve(M @ M.mT, Y @ M.mT, left=False) @ M - Y)
    return M, Y, max(work.rtol * norm, (1 + work.rtol) * float(least))


def check(work: Equation, found: Any) -> None:
    """Raise where the residual of an answer is above what counts."""
    M, Y, most = _standard(work)
    for A, answer in zip(work.drift or (M,), found if work.drift else (found,), strict=True):
        X = answer.X if isinstance(answer, mcf.Solution) else answer[0] if isinstance(answer, tuple) else answer
        X = (X if isinstance(X, Tensor) else torch.from_numpy(np.array(X))).double()
        over = linalg.matrix_norm(X.view(*M.shape[:-2], len(Y), -1) @ A.double() - Y) / most
        if not (over <= 1).all():
            raise MismatchError(f"{work.name}: a residual is {float(over.max()):.1e} times what it may be")


def _ours(solver: mcf.Solver, work: Equation) -> Run:
    options: Any = {"solver": solver, "rtol": work.rtol}
    if work.drift:
        before = mcf.inv(work.M, **options).X

        def follow() -> list[mcf.Solution]:
            found: list[mcf.Solution] = []
            for M in work.drift:
                found.append(mcf.inv(M, X0=found[-1].X if found else before, **options))
            return found

        return follow
    return lambda: mcf.solve(work.M, work.Y, ridge=work.ridge, **options)


def _torch(function: Callable[..., Any], work: Equation) -> Run:
    if work.drift:
        return lambda: [function(M, None) for M in work.drift]
    return functools.partial(function, *work.whole())


def _scipy(function: Callable[..., Any], work: Equation) -> Run:
    return functools.partial(function, *(t.numpy() for t in work.whole()))


@functools.cache
def _jitted(solver: str, batch: bool) -> Any:
    try:
        import jax
        import lineax
    except ImportError as error:
        raise NotRunError("lineax is not installed: pip install lineax") from error
    jax.config.update("jax_platforms", "cpu")

    def answer(M: Any, Y: Any) -> Any:
        operator, method = lineax.MatrixLinearOperator(M.T), getattr(lineax, solver)()
        return jax.vmap(lambda y: lineax.linear_solve(operator, y, method).value)(Y)

    return jax, jax.jit(jax.vmap(answer, (0, None)) if batch else answer)


def _lineax(solver: str, work: Equation) -> Run:
    jax, answer = _jitted(solver, work.M.dim() == 3)
    M, Y = (jax.numpy.asarray(t.numpy()) for t in work.whole())
    return lambda: jax.block_until_ready(answer(M, Y))


def _minres(M: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, int]:
    made: list[Any] = []  # its own test has the norm of M in it: the largest tolerance whose answer counts
    return scipy_sparse.minres(M, Y[0], rtol=1e-10, callback=made.append)[0], len(made)


def _lsqr(M: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, int]:
    same = 32 * np.finfo(M.dtype).eps  # that LEAST_SQUARES asks for
    X, _, made, *_ = scipy_sparse.lsqr(M.T, Y[0], atol=same, btol=same)
    return X, made


def _register(kinds: str, name: str, label: str, make: Callable[..., Run], how: Any) -> None:
    def report(found: Any) -> dict[str, Any]:
        last = found[-1] if isinstance(found, list) else found
        return {"iterations": last[1]} if isinstance(last, tuple) else ended(last) if name == OURS else {}

    prepare = lambda work: Call(make(how, work), len(work.drift) or 1, report)  # noqa: E731
    against = "" if name == OURS else OURS
    register(kinds, name, Contender(label, prepare, lambda work: check(work, make(how, work)()), against))


for _peer in (
    ("inverse regression kfac gptq", OURS, "matconv_fast", _ours, mcf.Auto()),
    ("minres", OURS, "matconv_fast, MINRES", _ours, mcf.MINRES()),
    ("lsqr", OURS, "matconv_fast, LSQR", _ours, mcf.LSQR()),
    ("inverse kfac", "inv", "linalg.inv", _torch, lambda M, _: linalg.inv(M)),
    ("inverse", "solve", "linalg.solve(M, I)", _torch, linalg.solve),
    ("inverse", "scipy", "SciPy inv", _scipy, lambda M, _: scipy_linalg.inv(M)),
    ("inverse", "lineax", "lineax LU", _lineax, "LU"),
    ("kfac", "cholesky", "cholesky_inverse", _torch, lambda M, _: torch.cholesky_inverse(linalg.cholesky(M))),
    ("regression gptq", "lstsq", "linalg.lstsq", _torch, lambda M, Y: linalg.lstsq(M.mT, Y.mT).solution.mT),
    ("regression gptq", "gram", "Gram matrix and Cholesky", _torch,
     lambda M, Y: torch.cholesky_solve(M @ Y.mT, linalg.cholesky(M @ M.mT)).mT),
    ("regression gptq", "scipy", "SciPy lstsq", _scipy, lambda M, Y: scipy_linalg.lstsq(M.T, Y.T)[0].T),  # type: ignore
    ("regression gptq", "lineax", "lineax QR", _lineax, "QR"),
    ("minres", "scipy", "SciPy minres", _scipy, _minres),
    ("lsqr", "scipy", "SciPy lsqr", _scipy, _lsqr),
):  # fmt: skip
    _register(*_peer)
