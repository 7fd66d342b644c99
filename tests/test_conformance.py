"""What every solver must do, on every backend: those of the package, and the two of docs/adding-a-solver.md."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import re
import sys
from pathlib import Path

import pytest
import torch
from problems import well_conditioned

import matconv_fast as mcf

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "adding-a-solver.md").read_text()

# By name, a solver for `equation`, with an lr that converges there. A rule with kernels joins the package here.
SOLVERS = {
    "heavy_ball": lambda: mcf.HeavyBall(lr=0.01, momentum=0.7),
    "nesterov": lambda: mcf.HeavyBall(lr=0.01, momentum=0.5, nesterov=True),
    "adam": lambda: mcf.Adam(lr=0.05, betas=(0.8, 0.95)),
    "Nesterov": lambda: documented("nesterov").Nesterov(lr=0.01, momentum=0.5),
    "SteepestDescent": lambda: documented("steepest_descent").SteepestDescent(),
}
STEPS = 40
LOSS = "sse"  # whose gradient, 2 R M^T, is the same for every shape


def source(name: str) -> str:
    """The code block of the page that begins with ``# name.py``."""
    return re.search(rf"```python\n(# {name}\.py\n.*?)```", PAGE, re.DOTALL)[1]


def documented(name: str):
    """The example as a module of its own, outside the package."""
    module = sys.modules.get(f"documented_{name}")
    if module is None:
        spec = importlib.util.spec_from_loader(f"documented_{name}", loader=None)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        exec(compile(source(name), f"{name}.py", "exec"), module.__dict__)
    return module


@pytest.fixture(params=SOLVERS)
def solver(request) -> mcf.Solver:
    return SOLVERS[request.param]()


def equation(*batch: int, n: int = 5, dtype: torch.dtype = torch.float64):
    M = well_conditioned(n, *batch, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    Y, X0 = (torch.randn(*batch, n, n, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return M, Y, X0


def iterates(solver: mcf.Solver, M, Y, X0, steps: int = STEPS):
    """X_0 .. X_steps and their ||R||_F: the solver's own iteration in a loop that shares no code with `solve`."""
    problem = mcf.Problem.of(M, Y, X0, LOSS, left=False)
    X = X0.clone()[None]
    state, found, norms = solver.init(problem, X), [X0], [(X0 @ M - Y).norm()]
    for k in range(steps):
        R = X @ M - Y
        step = torch.full((1, 1, 1), k + 1.0, dtype=torch.float64)
        if isinstance(solver, mcf.GradientRule):
            X, state = solver.update(X, state, 2 * R @ M.mT, step)
        else:
            X, state = solver.step(problem, X, state, R, step)
        found.append(X[0])
        norms.append((X[0] @ M - Y).norm())
    return found, torch.stack(norms)


def first_at(norms: torch.Tensor, k: int) -> float:
    """A tolerance that iterate k is the first to meet, if ||R|| falls to a new minimum there."""
    assert norms[k] < norms[:k].min()
    return float(norms[:k].min() * norms[k]) ** 0.5


def new_minima(norms: torch.Tensor) -> list[int]:
    return [k for k in range(1, len(norms)) if norms[k] < 0.999 * norms[:k].min()]


@pytest.mark.parametrize("n", [3, 5, 20])
def test_follows_its_own_iteration(backend, solver, n):
    M, Y, X0 = equation(n=n)
    found, norms = iterates(solver, M, Y, X0)
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
    torch.testing.assert_close(solution.X, found[-1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solution.history, norms**2, rtol=1e-9, atol=1e-12)
    assert solution.status == mcf.Status.MAX_ITERATIONS
    assert solution.iterations == STEPS


@pytest.mark.parametrize("check_every", [None, 1, 3, 7])
def test_stops_at_the_first_iterate_that_meets_the_tolerance(backend, solver, check_every):
    M, Y, X0 = equation()
    found, norms = iterates(solver, M, Y, X0)
    minima = new_minima(norms)
    assert len(minima) > 3
    for k in {minima[0], minima[1], minima[len(minima) // 2], minima[-1]}:
        solution = mcf.solve(
            M,
            Y,
            X0,
            solver=solver,
            loss=LOSS,
            atol=first_at(norms, k),
            rtol=0,
            max_iters=STEPS + 5,
            check_every=check_every,
        )
        assert solution.status == mcf.Status.CONVERGED
        assert solution.iterations == k
        assert solution.history.shape == (k + 1,)
        torch.testing.assert_close(solution.X, found[k], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(solution.residual_norm, norms[k], rtol=1e-9, atol=1e-12)


def test_the_problems_of_a_batch_stop_independently(backend, solver):
    M, Y, X0 = equation(4)
    tolerances = [
        norms[STEPS // 2 :].min() for norms in (iterates(solver, *one)[1] for one in zip(M, Y, X0, strict=True))
    ]
    options = {"solver": solver, "loss": LOSS, "atol": 1.001 * float(max(tolerances)), "rtol": 0, "max_iters": STEPS}
    together = mcf.solve(M, Y, X0, **options)
    assert len(set(together.iterations.tolist())) > 1
    for b in range(4):
        one = mcf.solve(M[b], Y[b], X0[b], **options)
        assert one.status == mcf.Status.CONVERGED
        assert together.iterations[b] == one.iterations
        assert together.status[b] == one.status
        torch.testing.assert_close(together.X[b], one.X, rtol=1e-12, atol=1e-12)
        entries = one.history.shape[0]
        torch.testing.assert_close(together.history[b, :entries], one.history, rtol=1e-10, atol=1e-14)
        assert together.history[b, entries:].isnan().all()


def test_one_bad_problem_spoils_no_other(backend, solver):
    M, Y, X0 = equation(3)
    X0[1, 0, 0] = torch.nan
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
    assert solution.status.tolist() == [mcf.Status.MAX_ITERATIONS, mcf.Status.NONFINITE, mcf.Status.MAX_ITERATIONS]
    assert solution.iterations.tolist() == [STEPS, 0, STEPS]
    for b in (0, 2):
        one = mcf.solve(M[b], Y[b], X0[b], solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
        torch.testing.assert_close(solution.X[b], one.X, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resumes_exactly(backend, solver, batch, dtype):
    M, Y, X0 = equation(*batch, dtype=dtype)
    whole = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=17)
    part = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=6)
    rest = mcf.solve(M, Y, part, loss=LOSS, atol=0, rtol=0, max_iters=11)
    assert torch.equal(rest.X, whole.X)
    assert torch.equal(rest.iterations, whole.iterations)
    assert torch.equal(torch.cat([part.history, rest.history[..., 1:]], -1), whole.history)


def test_resumes_exactly_from_a_file(backend, solver):
    M, Y, X0 = equation(2)
    whole = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=17)
    file = io.BytesIO()
    torch.save(mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=6).state_dict(), file)
    file.seek(0)
    part = mcf.Solution.from_state_dict(torch.load(file, weights_only=True))
    assert part.state.solver == solver
    assert part.method.startswith(type(solver).__name__)
    assert torch.equal(mcf.solve(M, Y, part, loss=LOSS, atol=0, rtol=0, max_iters=11).X, whole.X)


def test_its_own_state_dict(solver):
    assert type(solver).from_state_dict(solver.state_dict()) == solver
    assert mcf.Solver.from_state_dict(solver.state_dict()) == solver


@pytest.mark.parametrize("record_every", [0, 1, 4])
def test_records_the_history_asked_for(backend, solver, record_every):
    M, Y, X0 = equation(2)
    every = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS, record_every=record_every)
    wanted = every.history[:, ::record_every] if record_every else every.history[:, :0]
    assert torch.equal(solution.history, wanted)
    assert torch.equal(solution.X, every.X)


def test_takes_hyperparameters_of_each_problem(backend, solver):
    if not hasattr(solver, "lr"):
        pytest.skip("it has no lr")
    M, Y, X0 = equation(3)
    lr = solver.lr * torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    each = dataclasses.replace(solver, lr=lr)
    solution = mcf.solve(M, Y, X0, solver=each, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
    for b in range(3):
        found, _ = iterates(dataclasses.replace(solver, lr=float(lr[b])), M[b], Y[b], X0[b])
        torch.testing.assert_close(solution.X[b], found[-1], rtol=1e-10, atol=1e-10)
    part = mcf.solve(M, Y, X0, solver=each, loss=LOSS, atol=0, rtol=0, max_iters=9)
    resumed = mcf.solve(M, Y, part, loss=LOSS, atol=0, rtol=0, max_iters=STEPS - 9)
    assert torch.equal(resumed.X, solution.X)


def test_a_start_that_meets_the_tolerance_takes_no_iteration(backend, solver):
    M, Y, _ = equation(2)
    X0 = torch.linalg.solve(M.mT, Y.mT).mT.contiguous()
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, rtol=1e-8)
    assert solution.iterations.tolist() == [0, 0]
    assert bool(solution.converged.all())
    assert torch.equal(solution.X, X0)


def test_no_iteration_is_made_for_max_iters_0(backend, solver):
    M, Y, X0 = equation()
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, max_iters=0)
    assert solution.status == mcf.Status.MAX_ITERATIONS
    assert torch.equal(solution.X, X0)
    assert solution.history.shape == (1,)


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_an_empty_batch_has_an_empty_solution(backend, solver, batch):
    M, Y, X0 = equation(*batch)
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, max_iters=3)
    assert solution.X.shape == (*batch, 5, 5)
    assert solution.status.shape == batch


def test_left_is_the_transposed_equation(backend, solver):
    M, Y, X0 = equation(2)
    right = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
    left = mcf.solve(M.mT, Y.mT, X0.mT, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS, left=True)
    assert torch.equal(left.X.mT, right.X)


def test_shows_progress(backend, solver, capsys):
    M, Y, X0 = equation()
    mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS, progress=True)
    assert f"{STEPS}/{STEPS}" in capsys.readouterr().err


def test_has_profiler_names(backend, solver):
    M, Y, X0 = equation()
    with torch.profiler.profile(record_shapes=True) as profile:
        mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
    names = {event.key for event in profile.key_averages()}
    assert {"matconv_fast.solve", "matconv_fast.solve.advance", "matconv_fast.solve.reduce"} <= names


def test_runs_in_compiled_code(backend, solver):
    M, Y, X0 = equation()

    def work(M, Y, X0):
        return mcf.solve(2 * M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=9).X + 1

    torch.testing.assert_close(torch.compile(work, backend="eager")(M, Y, X0), work(M, Y, X0), rtol=0, atol=0)


def test_names_what_ran(backend, solver):
    M, Y, X0 = equation()
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, max_iters=3)
    in_plain_pytorch = backend == "reference" or getattr(solver, "kernel_rule", None) is None
    ran = "reference" if in_plain_pytorch else backend
    assert re.fullmatch(rf"{type(solver).__name__}: \w+ \({ran}\)", solution.method)
    assert mcf.info().devices[0].last in solution.method


def test_the_examples_of_the_page_are_short_and_complete():
    assert len(source("nesterov").splitlines()) <= 30
    assert len(source("steepest_descent").splitlines()) <= 40
    calls = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if not block.startswith("# ")]
    assert len(calls) == 1
    exec(calls[0], {**documented("nesterov").__dict__})
