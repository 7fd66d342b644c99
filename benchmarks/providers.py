"""Who runs a workload: matconv_fast, what people would take instead, and the limits of the machine.

A provider makes a `Side` of a workload's inputs: it is run once for a check against float64, which compiles what is to
be compiled, and gives the call that is timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import checks
import jax_peers
import peers
import torch
from measure import Side
from torch import Tensor

import matconv_fast as mcf
from matconv_fast import _workloads
from matconv_fast._workloads import Descent, LossInputs

SAMPLED_SECONDS = 0.06  # of a loop in Python, whose cost per iteration does not depend on their number
LONG_FLOP = 2e11  # of ours, some two seconds: workloads of more iterations are cut there, and have LEAST at least
LEAST = 20
ADAM_LR = 0.01


@dataclass(frozen=True)
class Provider:
    """``against``: the one of ours that it is compared with, "" for ours themselves and for limits."""

    name: str
    label: str
    side: Callable[[Any], Side]
    against: str = "matconv_fast"


# matconv_fast on descents


def solved(work: Descent, solver: mcf.Solver, record_every: int = 1) -> mcf.Solution:
    """The public call."""
    return mcf.solve(
        work.M, work.Y, work.X0, solver=solver, rtol=work.rtol, max_iters=work.iterations, record_every=record_every
    )


def heavy_ball(work: Descent, record_every: int = 1) -> mcf.Solution:
    """By the heavy ball."""
    return solved(work, mcf.HeavyBall(lr=work.lr, momentum=work.momentum), record_every)


def adam(work: Descent) -> mcf.Solution:
    """By Adam."""
    return solved(work, mcf.Adam(lr=work.lr))


def _path(solve: Callable[[Descent], mcf.Solution], work: Descent) -> peers.Path:
    """As the loops return it: the loss before each update; of problems that stop, the one that stopped them, too."""
    solution = solve(work)
    history = solution.history if work.rtol else solution.history[..., :-1]
    return solution.X, history.movedim(-1, 0)


def _ends(work: Descent, solution: mcf.Solution) -> dict[str, Any]:
    """Iterations, by status how many problems; raises unless every one that is counted was made."""
    made = solution.iterations
    if not work.rtol and not (made == work.iterations).all():
        raise checks.MismatchError(f"{work.name}: {made} iterations, {work.iterations} counted")
    codes = solution.status.flatten().bincount().tolist()
    found: dict[str, Any] = {"status": {mcf.Status(code).name: n for code, n in enumerate(codes) if n}}
    found["iterations"] = int(made.max())
    if work.rtol:
        found["flop"] = checks.flop(work) / len(work.X0) * int(made.sum())
    return found


def _ours(work: Descent) -> Side:
    if work.rtol:  # to the last problem's stop; like the loops it keeps no history
        checks.same_batch(work, functools.partial(_path, heavy_ball))
        return Side(functools.partial(heavy_ball, work, record_every=0), check=functools.partial(_ends, work))
    checks.same_descent(work, functools.partial(_path, heavy_ball))
    part = replace(work, iterations=min(work.iterations, max(LEAST, round(LONG_FLOP / checks.flop(work)))))
    return Side(functools.partial(heavy_ball, part), part.iterations, functools.partial(_ends, part))


def _our_adam(work: Descent) -> Side:
    work = _for_adam(work)
    checks.same_descent(work, functools.partial(_path, adam), adam=True)
    return Side(functools.partial(adam, work), work.iterations, functools.partial(_ends, work))


@functools.lru_cache(maxsize=1)  # one object for both sides: the truth is found once
def _for_adam(work: Descent) -> Descent:
    return replace(work, lr=ADAM_LR)


# Loops on descents


def _sampled(work: Descent) -> Descent:
    """A part of the iterations, by what one costs on two cores."""
    count = round(SAMPLED_SECONDS / (1e-4 + checks.flop(work) / 1e11))
    return replace(work, iterations=max(2, min(work.iterations, count)))


def _check(work: Descent, path: Callable[[Descent], peers.Path]) -> None:
    (checks.same_batch if work.rtol else checks.same_descent)(work, path)


def _loop(path: Callable[[Descent], peers.Path], work: Descent) -> Side:
    _check(work, path)
    if work.rtol:
        return Side(functools.partial(path, work))
    part = _sampled(work)
    return Side(functools.partial(path, part), part.iterations, lambda _: {"iterations": part.iterations})


def _torch_adam(work: Descent) -> Side:
    work = _for_adam(work)
    checks.same_descent(work, peers.adam_loop, adam=True)
    part = _sampled(work)
    return Side(functools.partial(peers.adam_loop, part), part.iterations, lambda _: {"iterations": part.iterations})


def _jax(call: Callable[[Descent], Callable[[], Any]], work: Descent) -> Side:
    _check(work, functools.partial(jax_peers.path, call))
    if work.rtol:
        return Side(call(work))
    # a jitted loop's time is per iteration, too: some are enough where they are long
    part = work if checks.flop(work) < 1e8 else _sampled(work)
    return Side(call(part), part.iterations, lambda _: {"iterations": part.iterations})


def _gemms(work: Descent) -> Side:
    part = _sampled(work)
    return Side(peers.bare_gemms(work, part.iterations), part.iterations)


def _one_thread(inputs: Any) -> Side:
    """Ours on one of torch's threads."""
    return replace(_ours(inputs), threads=1)


# Limits


def _gemm_limit(_: Any) -> Side:
    A, B, C = torch.rand(1024, 1024), torch.rand(1024, 1024), torch.empty(1024, 1024)
    return Side(lambda: torch.mm(A, B, out=C), 2 * 1024**3)


def _copy_limit(_: Any) -> Side:
    A = torch.rand(2**25)
    B = torch.empty_like(A)
    return Side(lambda: B.copy_(A), 2 * A.nbytes)


GEMM_LIMIT = Provider("mm1024", "torch.mm at 1,024", _gemm_limit, "")
COPY_LIMIT = Provider("copy", "copy of 128 MiB", _copy_limit, "")
LIMITS = {GEMM_LIMIT.name: "FLOP", COPY_LIMIT.name: "byte"}  # and what their times are per

OURS = Provider("matconv_fast", "matconv_fast", _ours, "")
ONE_THREAD = Provider("one_thread", "matconv_fast, 1 thread", _one_thread)
_OUR_ADAM = Provider("matconv_fast_adam", "matconv_fast, Adam", _our_adam, "")
_TORCH_ADAM = Provider("torch_adam", "Adam(fused=True)", _torch_adam, _OUR_ADAM.name)
_EQUAL = Provider("equal_loop", "torch.equal loop", functools.partial(_loop, peers.equal_loop))
_AUTOGRAD = Provider("autograd_loop", "notebook's loop", functools.partial(_loop, peers.autograd_loop))
_SGD = Provider("sgd", "SGD(fused=True)", functools.partial(_loop, peers.sgd_loop))
_ADDMM = Provider("addmm", "addmm(out=)", functools.partial(_loop, peers.addmm_loop))
_BADDBMM = replace(_ADDMM, name="baddbmm", label="baddbmm(out=)")
_COMPILE = Provider("compile", "torch.compile of the step", functools.partial(_loop, peers.compiled_loop))
_FUSED = replace(_COMPILE, side=functools.partial(_loop, peers.compiled_batch_loop))
_BMM = Provider("compile_bmm", "torch.compile, bmm", functools.partial(_loop, peers.compiled_matmul_batch_loop))
_SCAN = Provider("jax_scan", "JAX lax.scan", functools.partial(_jax, jax_peers.scan_call))
_WHILE = Provider("jax_while", "JAX lax.while_loop", functools.partial(_jax, jax_peers.while_call))
_GEMMS = Provider("gemms", "two bare GEMMs", _gemms)

DESCENT = (OURS, _EQUAL, _AUTOGRAD, _SGD, _ADDMM, _COMPILE, _SCAN, _WHILE, _GEMMS, GEMM_LIMIT)
SQUARE = (*DESCENT[:-2], _OUR_ADAM, _TORCH_ADAM, *DESCENT[-2:])
BATCH = (OURS, _AUTOGRAD, _BADDBMM, _COMPILE, _SCAN, _WHILE, _GEMMS, GEMM_LIMIT)  # SGD has one lr for all
STOPPING = (OURS, _BADDBMM, _FUSED, _BMM, _WHILE, GEMM_LIMIT)


# The question: the user's own update, 100 times


def question(
    ours: Callable[[], mcf.Solution], plain: Callable[[], tuple[Tensor, int]], label: str
) -> tuple[Provider, ...]:
    """Q: both end at the same matrix after as many updates, from one state of torch's generator."""

    def seeded(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            torch.manual_seed(1)
            return call()

        return run

    def same(solution: mcf.Solution) -> dict[str, Any]:
        X, made = seeded(plain)()
        if int(solution.iterations) != made:
            raise checks.MismatchError(f"{int(solution.iterations)} updates, the loop made {made}")
        checks.near("the last matrix", solution.X, X.double(), checks.X_RTOL)
        return {"iterations": made, "status": {mcf.Status(int(solution.status)).name: 1}}

    return (
        Provider("matconv_fast", "matconv_fast", lambda _: Side(seeded(ours), check=same), ""),
        Provider("plain_loop", label, lambda _: Side(seeded(plain), check=lambda found: {"iterations": found[1]})),
        GEMM_LIMIT,
    )


# Calls: F, D, and one step


def our_loss(inputs: LossInputs) -> peers.Gradients:
    """The loss, and its gradients by X and M."""
    return peers.with_gradients(mcf.residual_loss, inputs)


def _loss(function: Callable[[LossInputs], peers.Gradients], inputs: LossInputs) -> Side:
    checks.same_loss(inputs, function)
    return Side(functools.partial(function, inputs))


def _jax_loss(inputs: LossInputs) -> Side:
    checks.same_loss(inputs, jax_peers.loss_gradients)
    return Side(jax_peers.loss_call(inputs))


LOSS = (
    Provider("matconv_fast", "matconv_fast", functools.partial(_loss, our_loss), ""),
    Provider("mse_loss", "mse_loss(X @ M, Y)", functools.partial(_loss, peers.eager_loss)),
    Provider("compile", "torch.compile of it", functools.partial(_loss, peers.compiled_loss)),
    Provider("jax_grad", "JAX value_and_grad", _jax_loss),
    Provider("gemms", "three bare GEMMs", lambda inputs: Side(peers.loss_gemms(inputs))),
    GEMM_LIMIT,
)

Pair = tuple[Tensor, Tensor]


def _distance(function: Callable[[Tensor, Tensor], Tensor], pair: Pair) -> Side:
    checks.same_distance(*pair, function)
    return Side(functools.partial(function, *pair))


def _jax_distance(pair: Pair) -> Side:
    checks.same_distance(*pair, jax_peers.distance)
    return Side(jax_peers.distance_call(*pair))


def _read(function: Callable[[Tensor, Tensor], Any], pair: Pair) -> Side:
    """Something else about the two matrices: there is no distance to check."""
    return Side(functools.partial(function, *pair))


def _equal(pair: Pair) -> Side:
    """Of two that are equal: else it ends at the first entry."""
    return _read(torch.equal, (pair[0], pair[0].clone()))


DISTANCE = (
    Provider("matconv_fast", "matconv_fast", functools.partial(_distance, mcf.distance), ""),
    Provider("norm", "linalg.norm(A - B)", functools.partial(_distance, peers.norm_of_difference)),
    Provider("dist", "torch.dist", functools.partial(_distance, torch.dist)),
    Provider("compile", "torch.compile of the formula", functools.partial(_distance, peers.compiled_norm)),
    Provider("jax_norm", "JAX norm", _jax_distance),
    Provider("equal", "torch.equal (the same matrix twice)", _equal),
    Provider("allclose", "torch.allclose", functools.partial(_read, torch.allclose)),
    Provider("dot", "torch.dot", functools.partial(_read, peers.dot)),
    COPY_LIMIT, GEMM_LIMIT,
)  # fmt: skip


def our_steps(work: Descent) -> peers.Path:
    """A Python loop around the step in place."""
    X, V = work.X0.clone(), torch.zeros_like(work.X0)
    rates = {"lr": work.lr, "momentum": work.momentum}
    losses = [mcf.heavy_ball_step_(X, V, work.M, work.Y, **rates) for _ in range(work.iterations)]
    return X, torch.stack(losses)


def _step(work: Descent) -> Side:
    checks.same_descent(work, our_steps)
    X, V = work.X0.clone(), torch.zeros_like(work.X0)
    return Side(functools.partial(mcf.heavy_ball_step_, X, V, work.M, work.Y, lr=work.lr, momentum=work.momentum))


STEP = (
    Provider("matconv_fast", "heavy_ball_step_", _step, ""),
    _AUTOGRAD, _SGD, _ADDMM, _COMPILE,
    Provider("add", "torch.add alone", lambda work: Side(functools.partial(torch.add, work.X0, work.Y))), GEMM_LIMIT,
)  # fmt: skip


def _loss_call(function: Callable[..., Tensor], work: Descent) -> Side:
    arguments = work.X0, work.M, work.Y
    truth = peers.plain_loss(*(t.double() for t in arguments))
    checks.near("the loss", function(*arguments), truth, checks.LOSS_RTOL)
    return Side(functools.partial(function, *arguments))


LOSS_CALL = (
    Provider("matconv_fast", "residual_loss", functools.partial(_loss_call, mcf.residual_loss), ""),
    Provider("mse_loss", "mse_loss(X @ M, Y)", functools.partial(_loss_call, peers.plain_loss)),
    Provider("compile", "torch.compile of it", functools.partial(_loss_call, peers.compiled_plain_loss)),
    *STEP[-2:],
)


def share(part: float) -> Provider:
    """B8 with part of its problems running, for 500 iterations, the others solved at the start."""

    def side(work: Descent) -> Side:
        mine = _workloads.partly_stopped(work, part)

        def check(solution: mcf.Solution) -> dict[str, Any]:
            made = solution.iterations
            if int((made == mine.iterations).sum()) != round(part * len(mine.M)) or int(made.sum()) % mine.iterations:
                raise checks.MismatchError(f"a share of {part} running: {made.bincount().nonzero().tolist()}")
            return {"iterations": mine.iterations}

        return Side(functools.partial(heavy_ball, mine, record_every=0), check=check)

    name = "matconv_fast" if part == 1 else f"running_{part * 100:g}"
    return Provider(name, f"matconv_fast, {part:.0%} running", side, "" if part == 1 else "matconv_fast")


SHARES = (*(share(part) for part in (1.0, 0.5, 0.1, 0.01)), GEMM_LIMIT)
