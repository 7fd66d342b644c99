"""On a GPU: public functions give the CPU's results, no loop waits, and launches can be captured."""

from __future__ import annotations

import pytest
import torch
from problems import well_conditioned

import matconv_fast as mcf
from matconv_fast import _reference
from matconv_fast.kernels.contract import LOSSES, ORDS, Shape, StopCriteria, Trace
from matconv_fast.problem import Problem
from matconv_fast.solve.checkpoint import Checkpoint
from matconv_fast.solve.options import Options
from matconv_fast.solve.run import Run

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

DEVICE = torch.device("cuda")
# without a C++ compiler the CPU side runs on the reference, and says so; the sync check calls itself a prototype
pytestmark = [
    pytest.mark.filterwarnings("ignore:matconv_fast"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]
FULL, LOW, WIDE = torch.float32, torch.bfloat16, torch.float64
HEAVY, ADAM = mcf.HeavyBall(momentum=0.5), mcf.Adam(lr=1e-2)
FIXED = mcf.HeavyBall(lr=1e-2, momentum=0.5)

# What is solved: its algorithm, dtype, batch, m, n (= p), the solver, options, and how far X may be off.
# The lr of HEAVY is an estimate that both devices make of the same M; with momentum 0.5 the residual falls steadily, so
# that rounding moves a stop by an iteration at most.
CASES = {
    "small": ("small", WIDE, (50,), 8, 8, HEAVY, {"rtol": 1e-6}, 1e-9),
    "small fp32": ("small", FULL, (50,), 30, 30, HEAVY, {"rtol": 1e-3}, 1e-3),
    "rows": ("rows", FULL, (), 300, 64, HEAVY, {"rtol": 1e-3}, 1e-3),
    "rows bf16": ("rows", LOW, (), 300, 64, HEAVY, {"rtol": 0.0, "max_iters": 20}, 2e-2),
    "tiled": ("tiled", LOW, (), 200, 300, HEAVY, {"rtol": 0.0, "max_iters": 20}, 2e-2),
    "gemm": ("gemm", FULL, (), 100, 300, HEAVY, {"rtol": 1e-3}, 1e-3),
    "gemm batch": ("gemm", FULL, (3,), 70, 270, HEAVY, {"rtol": 1e-3, "check_every": 4}, 1e-3),
    "fro": ("gemm", FULL, (), 100, 80, FIXED, {"rtol": 0.0, "max_iters": 20, "loss": "fro"}, 1e-4),
    "Adam": ("gemm", FULL, (), 100, 80, ADAM, {"rtol": 0.0, "max_iters": 20}, 1e-3),
    "no M": ("gemm", FULL, (2,), 100, 80, FIXED, {"rtol": 0.0, "max_iters": 20, "loss": "sse"}, 1e-4),
}


def inputs(name):
    """M, Y and X0 on the CPU, and the options."""
    _, dtype, batch, m, n, solver, options, _ = CASES[name]
    generator = torch.Generator().manual_seed(0)
    M = None if name == "no M" else well_conditioned(n, *batch).to(dtype)
    X0, Y = (torch.rand(*batch, m, n, generator=generator, dtype=WIDE).to(dtype) for _ in range(2))
    return (M, Y, X0), {"solver": solver, **options}


def on_gpu(tensors):
    return [None if t is None else t.to(DEVICE) for t in tensors]


@pytest.mark.parametrize("name", CASES)
def test_a_solve_equals_the_cpus(name):
    from matconv_fast.kernels.gpu import launch

    algorithm, dtype, batch, m, n, solver, options, tolerance = CASES[name]
    shape = Shape(batch[0] if batch else 1, m, n, n, name != "no M", options.get("loss") == "fro", dtype)
    assert launch.choose(shape, solver.kernel_rule) == launch.ALGORITHMS[algorithm]
    tensors, keywords = inputs(name)
    theirs, ours = mcf.solve(*tensors, **keywords), mcf.solve(*on_gpu(tensors), **keywords)
    assert f"{algorithm} (triton)" in ours.method
    assert ours.X.device.type == DEVICE.type
    assert torch.equal(ours.status.cpu(), theirs.status)
    assert (ours.iterations.cpu() - theirs.iterations).abs().max() <= (0 if dtype == WIDE else 1)
    if batch and options["rtol"] and name != "gemm batch":
        assert theirs.iterations.unique().numel() > 3  # they stop one by one
    assert torch.linalg.vector_norm(ours.X.cpu() - theirs.X) <= tolerance * torch.linalg.vector_norm(theirs.X)
    length = min(ours.history.shape[-1], theirs.history.shape[-1])
    found, expected = (h[..., :length].cpu().nan_to_num(0.0) for h in (ours.history, theirs.history))
    agreed = (found > 0) == (expected > 0)
    assert agreed.double().mean() > 0.9
    torch.testing.assert_close(
        found[agreed], expected[agreed], rtol=0.1 if dtype == LOW else 1e-2, atol=0.0
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_batch_that_goes_on_from_a_solution_ends_as_one_run(name):
    tensors, keywords = inputs(name)
    tensors, keywords = on_gpu(tensors), {**keywords, "rtol": 0.0}
    whole = mcf.solve(*tensors, **{**keywords, "max_iters": 12})
    first = mcf.solve(*tensors, **{**keywords, "max_iters": 5})
    second = mcf.solve(*tensors[:2], first, **{**keywords, "max_iters": 7})
    assert torch.equal(second.X, whole.X)
    assert torch.equal(second.iterations, whole.iterations)


@pytest.fixture
def no_sync():
    """Whatever waits for the device inside raises. Kernels must be compiled before."""

    class NoSync:
        def __enter__(self):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *args):
            torch.cuda.set_sync_debug_mode("default")

    yield NoSync()
    torch.cuda.set_sync_debug_mode("default")


def test_the_sync_check_finds_a_sync(no_sync):
    flag = torch.ones(1, device=DEVICE)
    with no_sync, pytest.raises(RuntimeError, match="synchroniz"):
        flag.item()


@pytest.mark.parametrize("name", CASES)
def test_the_loop_does_not_wait(name, no_sync):
    """A start, six chunks that end at a tolerance or not, with a capture and replays, and checks of the flags."""
    tensors, keywords = inputs(name)
    tensors, solver, loss = on_gpu(tensors), keywords.pop("solver"), keywords.pop("loss", "mse")
    problem = Problem.of(*tensors, loss, left=False)
    X = problem.start(tensors[2])
    start = Checkpoint.fresh(X, solver.init(problem, X), solver)

    def drive(run):
        run.check_start()
        for _ in range(6):
            run.chunk(4)
            run.flags.latest()
        run.stop_stagnated(run.standing.best.clone(), explicit=False)
        return run

    with torch.no_grad():
        first = drive(Run(problem, solver, Options(**keywords), start))
        second = Run(problem, solver, Options(**keywords), start)
        with no_sync:
            drive(second)
    assert torch.equal(second.iterate.X, first.iterate.X)
    assert torch.equal(second.standing.updates, first.standing.updates)


def test_a_solve_without_history_does_not_wait(no_sync):
    """The history is cut to its length, which the device knows; without one nothing is read before the flags come."""
    tensors, keywords = inputs("gemm batch")
    tensors = on_gpu(tensors)
    keywords |= {"solver": FIXED, "loss": "sse", "record_every": 0, "max_iters": 40}
    first = mcf.solve(*tensors, **keywords)
    with no_sync:
        second = mcf.solve(*tensors, **keywords)
    assert torch.equal(second.X, first.X)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [LOW, FULL, WIDE])
@pytest.mark.parametrize(("m", "n", "p"), [(1030, 60, 1100), (130, 300, 70)])
def test_the_loss_and_its_gradients(m, n, p, dtype, loss):
    """With R computed for each gradient, and with R held."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, generator=generator, dtype=WIDE).to(DEVICE, dtype) for shape in ((m, n), (n, p), (m, p))
    ]
    plain = [t.double().requires_grad_() for t in tensors]
    truth = _reference.residual_loss(*plain, loss)
    truth.backward()
    mine = [t.requires_grad_() for t in tensors]
    value = mcf.residual_loss(*mine, loss=loss)
    value.backward()
    eps = torch.finfo(dtype).eps
    assert value.dtype == (WIDE if dtype == WIDE else FULL)
    torch.testing.assert_close(value.double(), truth, rtol=max(4 * eps, 1e-13), atol=0.0)
    for found, expected in zip(mine, plain, strict=True):
        off = torch.linalg.vector_norm(found.grad.double() - expected.grad)
        assert off <= 4 * eps * torch.linalg.vector_norm(expected.grad)


@pytest.mark.parametrize("size", [5, 40, 200])
def test_a_step_in_place(size):
    generator = torch.Generator().manual_seed(0)
    X, V, M, Y = (torch.rand(2, size, size, generator=generator, dtype=WIDE).to(DEVICE, FULL) for _ in range(4))
    rates = X.new_tensor((0.1, 0.9)).unbind()
    truth = _reference.heavy_ball_step(*(t.double() for t in (X, V, M, Y, *rates)), "mse")
    before = mcf.heavy_ball_step_(X, V, M, Y, lr=0.1, momentum=0.9)
    for found, expected in zip((X, V, before), truth, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_distances_and_closeness():
    A, B = torch.rand(2, 3, 70, 1100, generator=torch.Generator().manual_seed(0), dtype=WIDE).to(DEVICE, FULL)
    for ord_ in ORDS:
        truth = _reference.distance(A.double(), B.double(), ord_)
        torch.testing.assert_close(mcf.distance(A, B, ord=ord_).double(), truth, rtol=1e-5, atol=0.0)
    near = torch.stack((A[0], A[1] + 1e-3, A[2]))
    assert mcf.is_close(A, near, rtol=1e-4).tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["small", "rows", "tiled", "gemm"])
def test_a_replay_of_a_captured_graph_reads_a_new_lr(name):
    """All arguments of `advance` but shapes and the scale are in device memory: one graph serves every lr."""
    algorithm, dtype, batch, m, n, _, _, _ = CASES[name]
    (M, Y, X0), _ = inputs(name)
    count, state = (batch[0] if batch else 1), (WIDE if dtype == WIDE else FULL)
    M, Y, X0 = (t.view(count, *t.shape[-2:]) for t in on_gpu((M, Y, X0)))
    X, V = X0.to(state), torch.zeros(count, m, n, dtype=state, device=DEVICE)
    hyper = torch.full((2, count), 0.5, dtype=WIDE, device=DEVICE)
    stop, trace = StopCriteria.steps(count, 4, DEVICE), Trace.empty(count, 4, DEVICE)
    step = torch.zeros_like(trace.steps_done)

    def run():
        torch.ops.matconv_fast.advance(
            "heavy_ball", X, [V], M, Y, hyper, step, 2.0, False, stop.limit, stop.threshold, stop.bail,
            trace.sums, trace.steps_done, None, algorithm,
        )  # fmt: skip

    def from_the_start(call, lr):
        X.copy_(X0)
        V.zero_()
        hyper[0].fill_(lr)
        call()
        return X.clone(), trace.sums.clone()

    expected = [from_the_start(run, lr) for lr in (1e-3, 2e-3)]
    assert not torch.equal(expected[0][0], expected[1][0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for lr, (X_end, sums_end) in zip((1e-3, 2e-3), expected, strict=True):
        found = from_the_start(graph.replay, lr)
        torch.testing.assert_close(found, (X_end, sums_end))


def test_a_search_finds_block_shapes_and_keeps_them(monkeypatch, tmp_path):
    """MATCONV_FAST_AUTOTUNE=1, timed on the device: results don't change, and the shapes are kept in files."""
    from matconv_fast.kernels.gpu import search

    A, B = torch.rand(2, 3, 70, 1100, generator=torch.Generator().manual_seed(0), dtype=WIDE).to(DEVICE, FULL)
    plain = mcf.distance(A, B)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(search, "requested", lambda: True)
    monkeypatch.setattr(search, "_found", {})
    test_a_solve_equals_the_cpus("small")
    torch.testing.assert_close(mcf.distance(A, B), plain)
    assert len(search._found) >= 2
    assert len(list(tmp_path.rglob(search.FILE))) == len(search._found)
