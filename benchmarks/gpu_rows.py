"""The rows of the GPU table, by the workloads' names; tiny sizes of the same rows for a dry run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from gpu_measure import Difference, MismatchError, Setting, agree, extra_bytes, paired
from gpu_peers import Graphed, half, large, loss_inputs, on
from measure import Figure, Row, Side
from peers import Eager
from torch import Tensor

import matconv_fast as mcf
from matconv_fast import _workloads
from matconv_fast._workloads import Descent, LossInputs

CHECKED = 5  # iterations that are compared before a row is timed
LITTLE = 2e-3  # half a rounding of bfloat16: sums of many can come out nearer by luck
EAGER_STEPS = 100  # of the peers, whose cost per iteration does not depend on their number

# Ten chunks of several iterations each.
LARGE_ITERATIONS = {512: 1_000, 1024: 400, 2048: 60}


def solved(work: Descent, iterations: int, record_every: int = 0, check_every: int | None = None) -> mcf.Solution:
    """The public call."""
    solver = mcf.HeavyBall(lr=work.lr, momentum=work.momentum)
    return mcf.solve(
        work.M, work.Y, work.X0, solver=solver, rtol=work.rtol, max_iters=iterations, record_every=record_every,
        check_every=check_every,
    )  # fmt: skip


def _ours(work: Descent) -> Side:
    """Iterations without the call's fixed cost: all of them less half of them.

    Where an iteration is several launches, ten chunks at least: from the second on they are replayed as a CUDA graph.
    """
    short = work.iterations // 2
    check_every = max(1, work.iterations // 10) if max(work.M.shape) > 256 else None

    def check(solution: mcf.Solution) -> None:
        if not (solution.iterations == work.iterations).all():
            raise MismatchError(f"{work.name}: {solution.iterations} iterations, {work.iterations} counted")

    return Difference(
        functools.partial(solved, work, work.iterations, check_every=check_every), work.iterations - short, check,
        functools.partial(solved, work, short, check_every=check_every),
    )  # fmt: skip


def _same_descent(work: Descent, steps: int) -> None:
    """Ours against float64, next to the eager loop."""
    truth, eager, ours = Eager(work.double(), steps).run(), Eager(work, steps).run(), solved(work, steps, 1)
    little = 1e-6 if work.M.dtype == torch.float32 else LITTLE
    agree(f"{work.name}: X", truth.X, eager.X, ours.X, little)
    agree(f"{work.name}: the last loss", truth.losses[-1], eager.losses[-1], ours.history[..., -2], little)


def descent(setting: Setting, make: Callable[[], Descent], against: str) -> tuple[Side, Side]:
    """A workload that makes all its iterations, against the eager loop, its CUDA graph, or two bare GEMMs."""
    work = on(setting.device, make())
    _same_descent(work, min(work.iterations, CHECKED))
    steps = min(EAGER_STEPS, work.iterations)
    if against == "two bare GEMMs":
        R, G = work.X0 @ work.M, torch.empty_like(work.X0)

        def gemms() -> None:
            for _ in range(steps):
                torch.mm(work.X0, work.M, out=R)
                torch.mm(R, work.M.mT, out=G)

        return _ours(work), Side(gemms, steps)
    loop = Eager(work, steps) if against == "eager" else Graphed(setting, work, steps)
    return _ours(work), Side(loop.run, steps)


def stopping(setting: Setting, against: str) -> tuple[Side, Side]:
    """B8, each problem to its own stop; the eager loop's host looks after every iteration, a graph's after 50."""
    full = _workloads.batch(setting.size(10_000, 3))
    work = replace(on(setting.device, full), iterations=setting.size(full.iterations, 3))
    ours, truth = solved(work, work.iterations), Eager(work.double(), work.iterations).run()
    loop = (Eager if against == "eager" else functools.partial(Graphed, setting))(work, work.iterations)
    theirs = loop.run()
    for name, X, taken in (("ours", ours.X, ours.iterations), (against, theirs.X, theirs.taken)):
        agree(f"B8, {name}: X", truth.X, truth.X, X, 1e-4)
        if (taken == truth.taken).double().mean() < 0.98:  # rounding moves the stop of a few
            raise MismatchError(f"B8, {name}: {(taken != truth.taken).sum()} problems stop elsewhere than in float64")
    return Side(functools.partial(solved, work, work.iterations)), Side(loop.run)


def notebook(setting: Setting, index: int) -> tuple[Side, Side]:
    """One of N1 to N4: ours whole, the notebook's loop for a hundredth."""
    work = _workloads.notebook_runs(setting.device)[index].descent()
    plain = replace(work, iterations=setting.size(100, 2))
    work = replace(work, iterations=setting.size(work.iterations, 2))
    (truth, _), (eager, _) = _workloads.notebook_loop(plain.double()), _workloads.notebook_loop(plain)
    agree(work.name, truth, eager, solved(plain, plain.iterations).X)
    ours = functools.partial(solved, work, work.iterations, 1)
    return Side(ours, work.iterations), Side(functools.partial(_workloads.notebook_loop, plain), plain.iterations)


def distance(setting: Setting, n: int, against: str) -> tuple[Side, Side]:
    """D in CUDA graphs, over as many pairs of matrices as four times the L2 cache holds; seconds per byte."""
    A, B = (t.to(setting.device) for t in _workloads.pair(n))
    truth = torch.linalg.norm(A.double() - B.double())
    agree(f"D{n}", truth, torch.linalg.norm(A - B), mcf.distance(A, B))
    cache = 0 if setting.dry else torch.cuda.get_device_properties(setting.device).L2_cache_size
    count = min(64, max(2, math.ceil(4 * cache / (A.nbytes + B.nbytes))))
    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "ours": mcf.distance,
        "device-to-device copy": lambda A, B: B.copy_(A),
        "linalg.norm(A - B)": lambda A, B: torch.linalg.norm(A - B),
    }

    def over_pairs(call: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        pairs = [(A.clone(), B.clone()) for _ in range(count)]

        def run() -> None:
            for pair in pairs:
                call(*pair)

        return run

    moved = count * (A.nbytes + B.nbytes)
    ours, theirs = (Side(setting.captured(over_pairs(calls[name])), moved) for name in ("ours", against))
    return ours, theirs


def small_distance(setting: Setting) -> tuple[Side, Side]:
    """D64 as it is called, the host's time included."""
    A, B = (t.to(setting.device) for t in _workloads.pair(setting.size(64, 4)))
    return Side(lambda: mcf.distance(A, B)), Side(lambda: torch.linalg.norm(A - B))


def _loss_inputs(setting: Setting) -> LossInputs:
    if setting.dry:
        return loss_inputs(40, 20, 70, setting.device)
    return loss_inputs(16_384, 1_024, 16_384, setting.device)


def _eager_loss(inputs: LossInputs) -> Tensor:
    return torch.nn.functional.mse_loss(inputs.X @ inputs.M, inputs.Y)


def _our_loss(inputs: LossInputs) -> Tensor:
    return mcf.residual_loss(inputs.X, inputs.M, inputs.Y)


def _with_gradients(loss: Callable[[LossInputs], Tensor], inputs: LossInputs) -> tuple[Tensor, ...]:
    """Loss, and its gradients by X and M."""
    X, M = inputs.X.detach().requires_grad_(), inputs.M.detach().requires_grad_()
    value = loss(LossInputs(X, M, inputs.Y))
    return value.detach(), *torch.autograd.grad(value, (X, M))


def _same_loss(inputs: LossInputs) -> None:
    """Against float32, which is 2^16 times as fine and far cheaper than float64 at this size."""
    wide = LossInputs(inputs.X.float(), inputs.M.float(), inputs.Y.float())
    found = (_with_gradients(*pair) for pair in ((_eager_loss, wide), (_eager_loss, inputs), (_our_loss, inputs)))
    for what, truth, eager, ours in zip(("loss", "by X", "by M"), *found, strict=True):
        agree(f"F, {what}", truth.double(), eager, ours, LITTLE)


def forward(setting: Setting, against: str) -> tuple[Side, Side]:
    """F's forward alone, against eager's, or seconds per FLOP against torch.mm at 8,192."""
    inputs = _loss_inputs(setting)
    _same_loss(inputs)
    ours = functools.partial(_our_loss, inputs)
    if against == "eager mse_loss":
        return Side(ours), Side(functools.partial(_eager_loss, inputs))
    n = setting.size(8_192, 40)
    A, B = torch.randn(2, n, n, device=setting.device).bfloat16()
    C = torch.empty_like(A)
    operations = 2 * inputs.X.shape[0] * inputs.M.numel()
    return Side(ours, operations), Side(lambda: torch.mm(A, B, out=C), 2 * n**3)


def backward(setting: Setting) -> tuple[Side, Side]:
    """F forward and backward."""
    inputs = _loss_inputs(setting)
    _same_loss(inputs)
    ours, theirs = (functools.partial(_with_gradients, loss, inputs) for loss in (_our_loss, _eager_loss))
    return Side(ours), Side(theirs)


def memory(setting: Setting, gradients: bool, rounds: int) -> list[tuple[float, float]]:
    """Extra bytes of F at their peak, beside those of R."""
    inputs = _loss_inputs(setting)
    call: Callable[[], tuple[Tensor, ...]] = (
        functools.partial(_with_gradients, _our_loss, inputs) if gradients else lambda: (_our_loss(inputs),)
    )
    if setting.dry:
        call()
        return [(0.0, float(inputs.Y.nbytes))]
    return [(extra_bytes(call), float(inputs.Y.nbytes)) for _ in range(min(rounds, 3))]


def rows(setting: Setting) -> Iterator[Row]:
    """In the order of the table; what is asked for are the targets on an H100."""

    def row(name: str, against: str, figure: Figure, prepare: Callable[..., tuple[Side, Side]], *arguments: object,
            unit: str = "iteration", note: str = "") -> Row:  # fmt: skip
        prepared = functools.partial(prepare, setting, *arguments)
        return Row(name, against, figure, functools.partial(paired, setting, prepared), unit, note)

    free, EAGER, GRAPH = Figure("speedup"), "eager", "eager as a CUDA graph"

    def difference(k: int) -> str:
        return f"ours {k:,} less {k // 2:,} iterations"

    yield row("D64", "linalg.norm(A - B)", free, small_distance, unit="call", note="host's time included")
    for n in (1_024, 4_096, 8_192):
        for against, figure in (("device-to-device copy", Figure("share", 0.9)), ("linalg.norm(A - B)", free)):
            size = setting.size(n, 4 if n == 1_024 else 70)
            yield row(f"D{n}", against, figure, distance, size, against, unit="byte", note="graphs, L2 cold")

    k = setting.size(100, 2)
    make = functools.partial(large, setting.size(4_096, 66), k, setting.device)
    for against, figure in (("two bare GEMMs", Figure("share", 0.85)), (EAGER, free), (GRAPH, free)):
        yield row("L4096 bf16", against, figure, descent, make, against, note=difference(k))

    k = setting.size(200, 2)
    tall_ = functools.partial(_workloads.tall, setting.size(8_192, 40), setting.size(256, 70), k)
    for against, figure in ((EAGER, Figure("speedup", 5)), (GRAPH, Figure("speedup", 2))):
        yield row("T256", against, figure, descent, tall_, against, note=difference(k))
        yield row("T256 bf16", against, free, descent, lambda: half(tall_()), against, note=difference(k))

    k = setting.size(500, 2)
    batch_ = functools.partial(_workloads.batch, setting.size(512, 2), setting.size(64, 10), k, rtol=0.0)
    for against, figure in ((EAGER, Figure("speedup", 5)), (GRAPH, Figure("speedup", 2))):
        yield row("B64", against, figure, descent, batch_, against, note=difference(k))

    yield row("F forward", "torch.mm at 8,192", Figure("share", 0.7), forward, "torch.mm", unit="FLOP", note="bf16")
    yield row("F forward", "eager mse_loss", free, forward, "eager mse_loss", unit="call", note="bf16")
    yield row("F forward and backward", "eager mse_loss", free, backward, unit="call", note="bf16")
    for gradients, asked in ((False, 0.05), (True, None)):
        name = "F memory, forward and backward" if gradients else "F memory, forward"
        pairs = functools.partial(memory, setting, gradients)
        yield Row(name, "R's size", Figure("cost", asked), pairs, "bytes", "peak beyond inputs and results")

    for against in (EAGER, GRAPH):
        yield row("B8", against, free, stopping, against, unit="call", note="10,000 problems, each to its stop")
    for index in range(4):
        yield row(f"N{index + 1}", "notebook's loop", free, notebook, index, note="ours 10,000 iterations, whole")
    for n, iterations in (_workloads.SQUARE_ITERATIONS | LARGE_ITERATIONS).items():
        k = setting.size(iterations, 2)
        square = functools.partial(_workloads.square, setting.size(n, min(n, 70)), k)
        for against in (EAGER, GRAPH) if n in (4, 16, 64, 256, 1_024, 2_048) else (GRAPH,):
            yield row(f"S{n}", against, free, descent, square, against, note=difference(k))
