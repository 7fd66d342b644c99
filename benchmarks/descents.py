"""Who runs a heavy ball: matconv_fast, the loops that people write for it, and bare GEMMs; checked against float64.

A loop returns X at the end and the loss before each update, as the notebook's does. A loop of a batch with an `rtol`
runs until every problem meets it; a problem that has met it keeps its X.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from measure import COPY, GEMM, OURS, Call, Contender, MismatchError, near, register
from torch import Tensor

import matconv_fast as mcf
from matconv_fast import _workloads
from matconv_fast._workloads import Descent, notebook_loop

Path = tuple[Tensor, Tensor]  # X at the end, and the losses by iteration
Loop = Callable[[Descent], Path]

# float32 on well-conditioned problems, before the residual reaches its rounding level: loose, but no other iteration
# (a Nesterov step, a loss after the update, a momentum of 0.89) comes near.
X_RTOL, LOSS_RTOL = 1e-4, 1e-3
SAMPLED_SECONDS = 0.04  # of a Python loop, whose cost per iteration does not depend on their number
LONG_FLOP = 2e11  # of ours, some two seconds: longer workloads are cut there, to LEAST iterations or more
LEAST = 20
ADAM_LR = 0.01


def flop(work: Descent) -> float:
    """Two products: one iteration of the whole batch."""
    return 4.0 * work.X0.numel() * work.M.shape[-1]


def scale(work: Descent) -> float:
    """Factor of a mean's gradient, of one problem."""
    return 2 / (work.X0.shape[-2] * work.M.shape[-1])


def step_size(work: Descent) -> Any:
    """One number, or one a problem, that multiplies matrices."""
    return work.lr.view(-1, 1, 1) if isinstance(work.lr, Tensor) else work.lr


def tolerance_of(work: Descent) -> Tensor:
    """Bound on ``sum(R^2)``, per problem."""
    return (work.rtol**2 * work.Y.square().sum((-2, -1))).expand(work.X0.shape[:-2])


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


def _ours(solve: Callable[..., mcf.Solution], work: Descent, threads: int | None = None) -> Call:
    most = max(LEAST, round(LONG_FLOP / flop(work)))
    part = work if work.rtol else replace(work, iterations=min(work.iterations, most))

    def report(solution: mcf.Solution) -> dict[str, Any]:
        """Iterations, and the number of problems by status."""
        made = solution.iterations
        if not work.rtol and not (made == part.iterations).all():
            raise MismatchError(f"{work.name}: {made} iterations, {part.iterations} counted")
        codes = enumerate(solution.status.flatten().bincount().tolist())
        facts = {"iterations": int(made.max()), "status": {mcf.Status(code).name: n for code, n in codes if n}}
        return facts | ({"flop": flop(work) / len(work.X0) * int(made.sum())} if work.rtol else {})

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


def loop_of(kinds: str, name: str, label: str, check: Any = check, against: str = OURS) -> Callable[[Any], Any]:
    """Register a loop as a contender."""

    def decorate(loop: Loop) -> Loop:
        def prepare(work: Descent) -> Call:
            part = work if work.rtol else sampled(work)
            return counted(part, functools.partial(loop, part))

        register(kinds, name, Contender(label, prepare, lambda work: check(work, loop), against))
        return loop

    return decorate


@loop_of("descent", "equal_loop", "torch.equal loop")
def equal_loop(work: Descent) -> Path:
    """The question's loop around the heavy ball: new tensors in every iteration, until ``torch.equal(X @ M, Y)``."""
    X, V, losses = work.X0, torch.zeros_like(work.X0), []
    Y = work.Y.expand(*work.X0.shape[:-1], work.M.shape[-1])
    for _ in range(work.iterations):
        P = X @ work.M
        if torch.equal(P, Y):
            break
        R = P - Y
        losses.append((R * R).mean((-2, -1)))
        V = work.momentum * V + scale(work) * (R @ work.M.mT)
        X = X - step_size(work) * V
    return X, torch.stack(losses)


@loop_of("descent call_step", "autograd_loop", "notebook's loop")
def autograd_loop(work: Descent) -> Path:
    """The notebook's loop. Of a batch it takes the mean of all losses, so that lr grows by the number of problems."""
    return notebook_loop(work if work.X0.dim() == 2 else replace(work, lr=step_size(work) * len(work.X0)))


@loop_of("descent call_step", "sgd", "SGD(fused=True)")
def sgd_loop(work: Descent) -> Path:
    return _optimized(work, lambda X: torch.optim.SGD([X], lr=work.lr, momentum=work.momentum, fused=True))


@loop_of("descent", "torch_adam", "Adam(fused=True)", check_adam, "matconv_fast_adam")
def adam_loop(work: Descent) -> Path:
    return _optimized(work, lambda X: torch.optim.Adam([X], lr=ADAM_LR, fused=True))


def _optimized(work: Descent, make: Callable[[Tensor], torch.optim.Optimizer]) -> Path:
    X, losses = work.X0.clone().requires_grad_(), []
    optimizer = make(X)
    for _ in range(work.iterations):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(X @ work.M, work.Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return X.detach(), torch.stack(losses)


@loop_of("descent call_step", "addmm", "addmm(out=)")
@loop_of("stopping", "baddbmm", "baddbmm(out=)")
def addmm_loop(work: Descent) -> Path:
    """In place: two products that also add, a norm, an update."""
    product, lr, Mt = torch.baddbmm if work.M.dim() == 3 else torch.addmm, step_size(work), work.M.mT.contiguous()
    X, V, Y = work.X0.clone(), torch.zeros_like(work.X0), work.Y.expand(*work.X0.shape[:-1], work.M.shape[-1])
    R, norms = torch.empty_like(Y, memory_format=torch.contiguous_format), X.new_empty(work.iterations, *X.shape[:-2])
    tolerance, running, made = tolerance_of(work).sqrt(), torch.ones_like(norms[0], dtype=torch.bool), 0
    for k in range(work.iterations):
        product(Y, X, work.M, beta=-1, out=R)
        torch.linalg.vector_norm(R, dim=(-2, -1), out=norms[k])
        product(V, R, Mt, beta=work.momentum, alpha=scale(work), out=V)
        made = k + 1
        if work.rtol:
            running.logical_and_(norms[k] > tolerance)
            X.addcmul_(V, lr * running.view(-1, 1, 1), value=-1)
            if not running.any():
                break
        else:
            X.addcmul_(V, lr, value=-1) if isinstance(lr, Tensor) else X.sub_(V, alpha=lr)
    return X, norms[:made].double().square() * (scale(work) / 2)


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False, fullgraph=True)


def _broadcast_product(X: Tensor, M: Tensor) -> Tensor:
    """``X @ M`` as a sum that inductor fuses with its neighbours: a fifth of the time of ``bmm`` on 8 x 8."""
    return (X.unsqueeze(-1) * M.unsqueeze(-3)).sum(-2)


@functools.cache
def _compiled_step(product: Callable[[Tensor, Tensor], Tensor], momentum: float, stops: bool) -> Callable[..., Any]:
    """One step in place; ``sum(R^2)`` before it. With `stops`, of the problems above their tolerance.

    The factor is no ``alpha=`` of ``add_``: inductor (torch 2.13) drops that where it makes the sum an ``addmm``.
    """

    def step(X: Tensor, V: Tensor, M: Tensor, Y: Tensor, lr: Tensor, tolerance: Tensor, running: Tensor) -> Any:
        R = product(X, M) - Y
        sums = R.square().sum((-2, -1))
        V.mul_(momentum).add_((2 / (R.shape[-2] * R.shape[-1])) * product(R, M.mT))
        if stops:
            running.logical_and_(sums > tolerance)
            lr = torch.where(running[:, None, None], lr, 0.0)
        X.sub_(lr * V)
        return sums, running.any() if stops else None

    return compiled(step)


@loop_of("descent call_step", "compile", "torch.compile of the step")
@loop_of("stopping", "compile_bmm", "torch.compile, bmm")
def compiled_loop(work: Descent, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> Path:
    """The host reads one scalar an iteration where problems stop."""
    step, X, V, sums = _compiled_step(product, work.momentum, bool(work.rtol)), work.X0.clone(), 0 * work.X0, []
    fixed = work.M, work.Y, torch.as_tensor(step_size(work), dtype=work.M.dtype), tolerance_of(work)
    running = torch.ones(work.X0.shape[:-2], dtype=torch.bool, device=X.device)
    for _ in range(work.iterations):
        now, going_on = step(X, V, *fixed, running)
        sums.append(now)
        if going_on is not None and not going_on:
            break
    return X, torch.stack(sums) * (scale(work) / 2)


@loop_of("stopping", "compile", "torch.compile of the step")
def compiled_fused_loop(work: Descent) -> Path:
    return compiled_loop(work, _broadcast_product)


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
