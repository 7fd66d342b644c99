"""The rows of the CPU table: one per figure that the native kernels are judged by, and some that explain them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import checks
import peak_memory
import peers
import torch
from measure import Figure, Row, Side, paired

import matconv_fast as mcf
from matconv_fast import _workloads
from matconv_fast._workloads import Descent, square

Prepare = Callable[[], tuple[Side, Side]]

# Iterations timed of ours. The call's fixed cost, and the loss of the last X, half an iteration, are in every time.
RATE_ITERATIONS = {64: 10_000, 128: 2_000, 256: 400, 512: 100}
GEMM_ITERATIONS = {1024: 40, 2048: 20}
# And of the plain loop, whose cost per iteration does not depend on their number.
PLAIN_ITERATIONS = {4: 1_000, 16: 500, 64: 400, 256: 60, 1024: 4}


def _row(name: str, against: str, figure: Figure, prepare: Prepare, unit: str = "iteration", note: str = "") -> Row:
    return Row(name, against, figure, functools.partial(paired, prepare), unit, note)


def _ours(work: Descent) -> Side:
    check = functools.partial(checks.all_iterations, work)
    return Side(functools.partial(checks.our_solve, work), work.iterations, check)


def notebook() -> tuple[Side, Side]:
    """N1 to N4, one after another: ours in full, the loop for a tenth."""
    works = [run.descent() for run in _workloads.notebook_runs()]
    plain = [replace(work, iterations=PLAIN_ITERATIONS[4]) for work in works]
    for work in works:
        checks.same_descent(work, peers.autograd_loop)
        checks.all_iterations(work, checks.our_solve(work))
    return (
        Side(lambda: [checks.our_solve(work) for work in works], sum(work.iterations for work in works)),
        Side(lambda: [peers.autograd_loop(work) for work in plain], sum(work.iterations for work in plain)),
    )


def against(loop: Callable[[Descent], peers.Path], n: int) -> tuple[Side, Side]:
    """A plain loop on S."""
    work = square(n)
    checks.same_descent(work, loop)
    plain = replace(work, iterations=PLAIN_ITERATIONS[n])
    return _ours(work), Side(functools.partial(loop, plain), plain.iterations)


def against_jax(n: int) -> tuple[Side, Side]:
    """JAX on S, as many iterations as ours."""
    work = square(n)
    checks.same_descent(work, peers.jax_loop)
    return _ours(work), Side(peers.jax_scan(work), work.iterations)


def arithmetic_rate(n: int) -> tuple[Side, Side]:
    """FLOP of ours, 4 n^3 an iteration, against torch.mm's at 1,024."""
    work = square(n, RATE_ITERATIONS[n])
    checks.same_descent(work)
    A, B, C = torch.rand(1024, 1024), torch.rand(1024, 1024), torch.empty(1024, 1024)
    ours = _ours(work)
    return replace(ours, units=ours.units * 4 * n**3), Side(lambda: torch.mm(A, B, out=C), 2 * 1024**3)


def against_gemms(n: int) -> tuple[Side, Side]:
    """The two products alone."""
    work = square(n, GEMM_ITERATIONS[n])
    checks.same_descent(work)
    return _ours(work), Side(peers.bare_gemms(n, 4), 4)


def batch(loop: Callable[[Descent], peers.Path]) -> tuple[Side, Side]:
    """B8 to the last problem's stop; like the loops, ours keeps no history here."""
    work = _workloads.batch()
    checks.same_batch(work, loop)
    return Side(functools.partial(checks.our_solve, work, record_every=0)), Side(functools.partial(loop, work))


def batch_share(share: float) -> tuple[Side, Side]:
    """B8 with part of its problems solved at the start, against all running; 500 iterations."""
    full = replace(_workloads.batch(), iterations=500)
    sides = []
    for part in (share, 1.0):
        work = _workloads.partly_stopped(full, part)
        iterations = checks.our_solve(work).iterations
        if int((iterations == 500).sum()) != round(part * len(work.M)) or int(iterations.sum()) % 500:
            raise checks.MismatchError(f"B8 with a share of {part} running: {iterations.bincount().nonzero().tolist()}")
        sides.append(Side(functools.partial(checks.our_solve, work, record_every=0)))
    return sides[0], sides[1]


def loss() -> tuple[Side, Side]:
    """F, forward and backward."""
    inputs = _workloads.loss_inputs()
    checks.same_loss(inputs, peak_memory.our_loss, peers.eager_loss)
    ours, theirs = (functools.partial(function, inputs) for function in (peak_memory.our_loss, peers.eager_loss))
    return Side(ours), Side(theirs)


def distance(n: int) -> tuple[Side, Side]:
    """D against one read of both."""
    A, B = _workloads.pair(n)
    checks.same_distance(A, B)
    return Side(functools.partial(mcf.distance, A, B)), Side(peers.dot(A, B))


def small_distance() -> tuple[Side, Side]:
    """D64 against the norm of the difference: there the calls cost more than the reads."""
    A, B = _workloads.pair(64)
    checks.same_distance(A, B, peers.norm_of_difference)
    return Side(functools.partial(mcf.distance, A, B)), Side(functools.partial(peers.norm_of_difference, A, B))


def step() -> tuple[Side, Side]:
    """One step in place, beside an iteration of the notebook's loop, on N2."""
    work = _workloads.notebook_runs()[1].descent()

    def steps(work: Descent) -> peers.Path:
        X, V = work.X0.clone(), torch.zeros_like(work.X0)
        rates = {"lr": work.lr, "momentum": work.momentum}
        losses = [mcf.heavy_ball_step_(X, V, work.M, work.Y, **rates) for _ in range(work.iterations)]
        return X, torch.stack(losses)

    checks.same_descent(work, steps, peers.autograd_loop)
    X, V = work.X0.clone(), torch.zeros_like(work.X0)
    ours = functools.partial(mcf.heavy_ball_step_, X, V, work.M, work.Y, lr=work.lr, momentum=work.momentum)
    plain = replace(work, iterations=PLAIN_ITERATIONS[4])
    return Side(ours), Side(functools.partial(peers.autograd_loop, plain), plain.iterations)


def rows() -> Iterator[Row]:
    """In the order of the table."""

    def counted(ours: int, theirs: int) -> str:
        return f"{ours:,} iterations against {theirs:,}"

    note = counted(40_000, 4 * PLAIN_ITERATIONS[4])
    yield _row("N1-N4", "notebook's loop", Figure("speedup", 2000), notebook, note=note)
    for n, asked in ((16, 300), (64, 28), (256, 2.3), (1024, 1.25)):
        note = counted(_workloads.SQUARE_ITERATIONS[n], PLAIN_ITERATIONS[n])
        prepare = functools.partial(against, peers.autograd_loop, n)
        yield _row(f"S{n}", "notebook's loop", Figure("speedup", asked), prepare, note=note)
    for n, asked in ((4, 10), (8, 10), (16, 10), (64, 4), (256, 1.8)):
        note = counted(*2 * [_workloads.SQUARE_ITERATIONS[n]])
        prepare = functools.partial(against_jax, n)
        yield _row(f"S{n}", "JAX lax.scan", Figure("speedup", asked), prepare, note=note)
    note = counted(_workloads.SQUARE_ITERATIONS[64], PLAIN_ITERATIONS[64])
    prepare = functools.partial(against, peers.compiled_loop, 64)
    yield _row("S64", "torch.compile of the step", Figure("speedup"), prepare, note=note)
    for n, iterations in RATE_ITERATIONS.items():
        prepare = functools.partial(arithmetic_rate, n)
        yield _row(
            f"S{n} rate", "torch.mm at 1,024", Figure("share", 0.88), prepare, "FLOP", f"{iterations:,} iterations"
        )
    for n, iterations in GEMM_ITERATIONS.items():
        prepare = functools.partial(against_gemms, n)
        yield _row(f"S{n}", "two bare GEMMs", Figure("cost", 1.06), prepare, note=counted(iterations, 4))
    prepare = functools.partial(batch, peers.baddbmm_loop)
    yield _row("B8", "baddbmm loop", Figure("speedup", 40), prepare, "call")
    prepare = functools.partial(batch, peers.compiled_batch_loop)
    yield _row("B8", "torch.compile of the step", Figure("speedup", 2), prepare, "call", "products fused")
    prepare = functools.partial(batch, peers.compiled_matmul_batch_loop)
    yield _row("B8", "torch.compile of the step, bmm", Figure("speedup"), prepare, "call")
    for share in (0.5, 0.1, 0.01):
        prepare = functools.partial(batch_share, share)
        yield _row(f"B8, {share:.0%} running", "B8, 100% running", Figure("cost"), prepare, "call", "500 iterations")
    yield _row("F", "eager mse_loss", Figure("speedup", 1.8), loss, "call", "forward and backward")
    note = "peak above inputs and gradients"
    yield Row("F memory", "R's size", Figure("cost", 0.05), peak_memory.extra_and_residual, "bytes", note)
    for n in (1024, 4096, 8192):
        yield _row(f"D{n}", "torch.dot", Figure("cost", 1.1), functools.partial(distance, n), "call")
    yield _row("D64", "linalg.norm(A - B)", Figure("cost", 1.0), small_distance, "call")
    yield _row("heavy_ball_step_ 4 x 4", "notebook's iteration", Figure("time", 5e-6), step, "call", "N2")
