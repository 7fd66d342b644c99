"""Who runs a heavy ball: matconv_fast, the loops of `_loops`, and bare GEMMs; checked against float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from measure import COPY, GEMM, OURS, Call, Contender, MismatchError, near, register
from torch import Tensor

import matconv_fast as mcf
from matconv_fast import _loops, _workloads
from matconv_fast._loops import ADAM_LR, Path, adam_loop, addmm_loop, autograd_loop, flop
from matconv_fast._workloads import Descent

Loop = Callable[[Descent], Path]

# float32 on well-conditioned problems, before the residual reaches its rounding level: loose, but no other iteration
# (a Nesterov step, a loss after the update, a momentum of 0.89) comes near.
X_RTOL, LOSS_RTOL = 1e-4, 1e-3
SAMPLED_SECONDS = 0.04  # of a Python loop, whose cost per iteration does not depend on their number
LONG_FLOP = 2e11  # of ours, some two seconds: longer workloads are cut there, to LEAST iterations or more
LEAST = 20


# The check


@functools.lru_cache(maxsize=4)
def _truth(work: Descent, loop: Loop, iterations: int) -> Path:
    return loop(replace(work.double(), iterations=iterations))


def same_batch(work: Descent, loop: Loop) -> None:
    """Compare every problem's X, stop and loss; rounding moves the stops of a few in a thousand, whose loss differs."""
    (X, truth), (found_X, found) = _truth(work, addmm_loop, work.iterations), loop(work)
    near(f"{work.name}: X", found_X, X, X_RTOL)
    tolerance = work.rtol**2 * work.Y.square().mean()
    # later losses of a stopped problem repeat, or are missing (NaN)
    stops, true_stops = ((path > tolerance).sum(0) for path in (found, truth))
    agreed = stops == true_stops
    both = (found, stops), (truth, true_stops)
    last, true_last = (path.gather(0, at.clamp(max=len(path) - 1).unsqueeze(0)).squeeze(0) for path, at in both)
    near(f"{work.name}: the last loss", last[agreed], true_last[agreed], 10 * LOSS_RTOL)
    if agreed.double().mean() < 0.98 or not (last <= tolerance * (1 + LOSS_RTOL)).all():
        raise MismatchError(f"{work.name}: {(~agreed).sum()} stop elsewhere, {(last > tolerance).sum()} too early")


def check(work: Descent, loop: Loop, adam: bool = False) -> None:
    """Compare the last X and the last loss after a few iterations, or all of a batch that stops."""
    if work.rtol:
        same_batch(work, loop)
        return
    cost, loose = flop(work), 1 if work.M.dtype == torch.float32 else 100  # bfloat16
    count = min(work.iterations, 50 if cost < 1e8 else 10 if cost < 1e9 else 3)
    true_loop, few = adam_loop if adam else autograd_loop, replace(work, iterations=count)
    (X, losses), (found_X, found) = _truth(work, true_loop, count), loop(few)
    near(f"{work.name}: X", found_X, X, X_RTOL * loose)
    near(f"{work.name}: the last loss", found[-1].mean(), losses[-1].mean(), LOSS_RTOL * loose)


check_adam = functools.partial(check, adam=True)

# matconv_fast


def heavy_ball(work: Descent, record_every: int = 1) -> mcf.Solution:
    options: Any = {"rtol": work.rtol, "max_iters": work.iterations, "record_every": record_every}
    return mcf.solve(work.M, work.Y, work.X0, solver=mcf.HeavyBall(lr=work.lr, momentum=work.momentum), **options)


def adam(work: Descent) -> mcf.Solution:
    return mcf.solve(work.M, work.Y, work.X0, solver=mcf.Adam(lr=ADAM_LR), rtol=0.0, max_iters=work.iterations)


def ended(solution: mcf.Solution) -> dict[str, Any]:
    """Iterations, and the number of problems by status."""
    codes = enumerate(solution.status.flatten().bincount().tolist())
    made = int(solution.iterations.max())
    return {"iterations": made, "status": {mcf.Status(code).name: n for code, n in codes if n}}


def _ours(solve: Callable[..., mcf.Solution], work: Descent, threads: int | None = None) -> Call:
    most = max(LEAST, round(LONG_FLOP / flop(work)))
    part = work if work.rtol else replace(work, iterations=min(work.iterations, most))

    def report(solution: mcf.Solution) -> dict[str, Any]:
        made = solution.iterations
        if not work.rtol and not (made == part.iterations).all():
            raise MismatchError(f"{work.name}: {made} iterations, {part.iterations} counted")
        return ended(solution) | ({"flop": flop(work) / len(work.X0) * int(made.sum())} if work.rtol else {})

    if work.rtol:  # until the last problem stops; like the loops it keeps no history
        return Call(functools.partial(solve, work, record_every=0), report=report)
    return Call(functools.partial(solve, part), part.iterations, report, threads)


def _our(label: str, solve: Callable[..., mcf.Solution], against: str = "", threads: int | None = None) -> Contender:
    def path(work: Descent) -> Path:
        """As the loops return it: the loss before each update; of problems that stop, that of the last X, too."""
        solution: Any = solve(work)
        return solution.X, solution.history[..., : None if work.rtol else -1].movedim(-1, 0)

    compare = check_adam if solve is adam else check
    return Contender(label, lambda work: _ours(solve, work, threads), lambda work: compare(work, path), against)


register("descent stopping", OURS, _our("matconv_fast", heavy_ball))
register("descent", "one_thread", _our("matconv_fast, 1 thread", heavy_ball, OURS, 1))
register("descent", "matconv_fast_adam", _our("matconv_fast, Adam", adam))


def _share(part: float, work: Descent) -> Call:
    """B8 with part of its problems running to the last iteration; the others are solved at the start."""
    mine = _workloads.partly_stopped(work, part)

    def report(solution: mcf.Solution) -> dict[str, Any]:
        if int((solution.iterations == mine.iterations).sum()) != round(part * len(mine.M)):
            raise MismatchError(f"a share of {part} running: {solution.iterations.unique().tolist()} iterations")
        return {"iterations": mine.iterations}

    return Call(functools.partial(heavy_ball, mine, record_every=0), report=report)


register("shares", OURS, Contender("all running", functools.partial(_share, 1.0), against=""))
for _part in (0.5, 0.1, 0.01):
    register("shares", f"running_{_part * 100:g}", Contender(f"{_part:.0%} running", functools.partial(_share, _part)))


# Loops in PyTorch


def sampled(work: Descent) -> Descent:
    """A part of the iterations, by what one costs on two cores; on a GPU 100."""
    count = 100 if work.M.is_cuda else round(SAMPLED_SECONDS / (1e-4 + flop(work) / 1e11))
    return replace(work, iterations=max(2, min(work.iterations, count)))


def counted(part: Descent, run: Callable[[], Any]) -> Call:
    """A call of all iterations, or of a batch until it stops."""
    if part.rtol:
        return Call(run)
    return Call(run, part.iterations, lambda _: {"iterations": part.iterations})


def _loop(kinds: str, name: str, label: str, loop: Loop, check: Any = check, against: str = OURS) -> None:
    def prepare(work: Descent) -> Call:
        part = work if work.rtol else sampled(work)
        return counted(part, functools.partial(loop, part))

    register(kinds, name, Contender(label, prepare, lambda work: check(work, loop), against))


_loop("descent", "equal_loop", "torch.equal loop", _loops.equal_loop)
_loop("descent call_step", "autograd_loop", "notebook's loop", autograd_loop)
_loop("descent call_step", "sgd", "SGD(fused=True)", _loops.sgd_loop)
_loop("descent", "torch_adam", "Adam(fused=True)", adam_loop, check_adam, "matconv_fast_adam")
_loop("descent call_step", "addmm", "addmm(out=)", addmm_loop)
_loop("stopping", "baddbmm", "baddbmm(out=)", addmm_loop)
_loop("descent call_step", "compile", "torch.compile of the step", _loops.compiled_loop)
_loop("stopping", "compile_bmm", "torch.compile, bmm", _loops.compiled_loop)
_loop("stopping", "compile", "torch.compile of the step", _loops.compiled_fused_loop)

# Limits of the machine


def _gemms(work: Descent) -> Call:
    """The two products of an iteration alone, in place: what the arithmetic costs."""
    X, product, iterations = work.X0, torch.bmm if work.X0.dim() == 3 else torch.mm, sampled(work).iterations
    R, G, Mt = X @ work.M, torch.empty_like(X), work.M.mT

    def run() -> None:
        for _ in range(iterations):
            product(X, work.M, out=R)
            product(R, Mt, out=G)

    return Call(run, iterations)


def _like(inputs: Any, *shape: int) -> Tensor:
    """A matrix in the dtype and on the device of some inputs."""
    values = [*(inputs if isinstance(inputs, tuple) else vars(inputs).values()), torch.empty(0)]
    first = next(t for t in values if isinstance(t, Tensor))
    return torch.rand(*shape, device=first.device).to(first.dtype)


def _mm(n: int, inputs: Any) -> Call:
    A, B, C = _like(inputs, 3, n, n)
    return Call(lambda: torch.mm(A, B, out=C), 2 * n**3)


def _copy(inputs: Any) -> Call:
    A, B = _like(inputs, 2, 2**25)
    return Call(lambda: B.copy_(A), 2 * A.nbytes)


register("descent", "gemms", Contender("two bare GEMMs", _gemms))
register("limit", GEMM, Contender("torch.mm at 1,024", functools.partial(_mm, 1024), None, "", "FLOP"))
register("limit", "mm8192", Contender("torch.mm at 8,192", functools.partial(_mm, 8192), None, "", "FLOP"))
register("limit", COPY, Contender("copy of 128 MiB", _copy, None, "", "byte"))
