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
from matconv_fast.kernels.contract import StopCriteria, Trace
from problems import well_conditioned

import matconv_fast as mcf
from matconv_fast.solvers import Iterate

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "adding-a-solver.md").read_text()

# By name, a solver for `equation`, with an lr that converges there. A rule with kernels joins the package here.
SOLVERS = {
    "heavy_ball": lambda: mcf.HeavyBall(lr=0.01, momentum=0.7),
    "nesterov": lambda: mcf.HeavyBall(lr=0.01, momentum=0.5, nesterov=True),
    "adam": lambda: mcf.Adam(lr=0.05, betas=(0.8, 0.95)),
    "refinement": lambda: mcf.Refinement(),
    "refinement by qr": lambda: mcf.Refinement("qr", precision="float32"),
    "lsqr": lambda: mcf.LSQR(),
    "minres": lambda: mcf.MINRES(),
    "newton_schulz": lambda: mcf.NewtonSchulz(),
    "auto": lambda: mcf.Auto(),
    "Nesterov": lambda: documented("nesterov").Nesterov(lr=0.01, momentum=0.5),
    "SteepestDescent": lambda: documented("steepest_descent").SteepestDescent(),
}
STEPS = 40
INVERSES_ALONE = mcf.NewtonSchulz
# Their iterates depend on the tolerance, since a cycle asks for no more than that.
AIMED = (mcf.LSQR, mcf.MINRES)
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


def equation(solver: mcf.Solver, *batch: int, n: int = 5, dtype: torch.dtype = torch.float64):
    """M symmetric, Y and X0 random; Y is None, the identity, for solvers that find inverses alone."""
    M = well_conditioned(n, *batch, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    Y, X0 = (torch.randn(*batch, n, n, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return M, None if isinstance(solver, INVERSES_ALONE) else Y, X0


def alone(b: int, *tensors):
    """Problem b of a batch."""
    return [None if t is None else t[b] for t in tensors]


def target(M, Y):
    return torch.eye(M.shape[-1], dtype=M.dtype) if Y is None else Y


def iterates(solver: mcf.Solver, M, Y, X0, steps: int = STEPS):
    """X_0 .. X_steps and their ||R||_F: the solver's own iteration in a loop that shares no code with `solve`.

    A solver without `step` is asked for one iteration at a time; the loop ends where its own verdict falls.
    """
    problem = mcf.Problem.of(M, Y, X0, LOSS, left=False)
    one_step = stepper(solver, problem)
    X = X0.clone()[None]
    state, found, norms = solver.init(problem, X), [X0], [(X0 @ M - target(M, Y)).norm()]
    for k in range(steps):
        X, state, ended = one_step(X, state, X @ M - target(M, Y), torch.full((1, 1, 1), k + 1.0, dtype=torch.float64))
        if ended:
            break
        found.append(X[0].clone())
        norms.append((X[0] @ M - target(M, Y)).norm())
    return found, torch.stack(norms)


def stepper(solver: mcf.Solver, problem: mcf.Problem):
    """A function of (X, state, R, step) that returns (X, state, whether the solver ended instead)."""
    if isinstance(solver, mcf.GradientRule):
        return lambda X, state, R, step: (*solver.update(X, state, 2 * R @ problem.M.mT, step), False)
    if type(solver).step is not mcf.Solver.step:
        return lambda X, state, R, step: (*solver.step(problem, X, state, R, step), False)
    plan = solver.plan(problem)

    def one_step(X, state, R, step):
        trace = Trace.empty(1, 1, X.device)
        iterate = Iterate(X, state, step.long().view(1) - 1)
        solver.advance(problem, plan, iterate, StopCriteria.steps(1, 1, X.device), trace)
        return X, state, trace.steps_done == 0

    return one_step


def first_at(norms: torch.Tensor, k: int) -> float:
    """A tolerance that iterate k is the first to meet, if ||R|| falls to a new minimum there."""
    assert norms[k] < norms[:k].min()
    return float(norms[:k].min() * norms[k]) ** 0.5


def new_minima(norms: torch.Tensor) -> list[int]:
    return [k for k in range(1, len(norms)) if norms[k] < 0.999 * norms[:k].min()]


@pytest.mark.parametrize("n", [3, 5, 20])
def test_follows_its_own_iteration(backend, solver, n):
    M, Y, X0 = equation(solver, n=n)
    found, norms = iterates(solver, M, Y, X0)
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
    torch.testing.assert_close(solution.X, found[-1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solution.history, norms**2, rtol=1e-9, atol=1e-12)
    assert solution.iterations == len(found) - 1
    assert (solution.status == mcf.Status.MAX_ITERATIONS) == (solution.iterations == STEPS)
    assert solution.iterations == STEPS or gives_verdicts(solver)


def gives_verdicts(solver: mcf.Solver) -> bool:
    """Whether it may end a problem by itself, and few iterations may be all that it makes."""
    return type(solver).verdict is not mcf.Solver.verdict


@pytest.mark.parametrize("check_every", [None, 1, 3, 7])
def test_stops_at_the_first_iterate_that_meets_the_tolerance(backend, solver, check_every):
    M, Y, X0 = equation(solver)
    found, norms = iterates(solver, M, Y, X0)
    minima = new_minima(norms)
    assert len(minima) > (0 if gives_verdicts(solver) else 3)
    for k in {minima[0], minima[len(minima) > 1], minima[len(minima) // 2], minima[-1]}:
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
        assert bool((solution.history[:-1] > first_at(norms, k) ** 2).all())
        if isinstance(solver, AIMED):
            torch.testing.assert_close(solution.residual_norm, (solution.X @ M - target(M, Y)).norm())
            continue
        assert solution.iterations == k
        assert solution.history.shape == (k + 1,)
        torch.testing.assert_close(solution.X, found[k], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(solution.residual_norm, norms[k], rtol=1e-9, atol=1e-12)


def test_the_problems_of_a_batch_stop_independently(backend, solver):
    M, Y, X0 = equation(solver, 4)
    if gives_verdicts(solver):  # which may take one iteration each
        X0[0] = torch.linalg.solve(M[0].mT, target(M, Y).expand_as(M)[0].mT).mT
    norms = [iterates(solver, *alone(b, M, Y, X0))[1] for b in range(4)]
    tolerances = [found[min(STEPS // 2, len(found) - 1) :].min() for found in norms]
    options = {"solver": solver, "loss": LOSS, "rtol": 0, "max_iters": STEPS}
    options["atol"] = max(1.001 * float(max(tolerances)), 1e-10)
    together = mcf.solve(M, Y, X0, **options)
    assert len(set(together.iterations.tolist())) > 1
    for b in range(4):
        one = mcf.solve(*alone(b, M, Y, X0), **options)
        assert one.status == mcf.Status.CONVERGED
        assert together.iterations[b] == one.iterations
        assert together.status[b] == one.status
        torch.testing.assert_close(together.X[b], one.X, rtol=1e-12, atol=1e-12)
        entries = one.history.shape[0]
        torch.testing.assert_close(together.history[b, :entries], one.history, rtol=1e-10, atol=1e-14)
        assert together.history[b, entries:].isnan().all()


def test_one_bad_problem_spoils_no_other(backend, solver):
    M, Y, X0 = equation(solver, 3)
    X0[1, 0, 0] = torch.nan
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
    assert (solution.status[1], solution.iterations[1]) == (mcf.Status.NONFINITE, 0)
    for b in (0, 2):
        one = mcf.solve(*alone(b, M, Y, X0), solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
        assert (solution.status[b], solution.iterations[b]) == (one.status, one.iterations)
        assert one.iterations == STEPS or gives_verdicts(solver)
        torch.testing.assert_close(solution.X[b], one.X, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resumes_exactly(backend, solver, batch, dtype):
    M, Y, X0 = equation(solver, *batch, dtype=dtype)
    whole = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=17)
    part = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=6)
    rest = mcf.solve(M, Y, part, loss=LOSS, atol=0, rtol=0, max_iters=11)
    assert torch.equal(rest.X, whole.X)
    assert torch.equal(rest.iterations, whole.iterations)
    joined = torch.cat([part.history, rest.history[..., 1:]], -1)
    torch.testing.assert_close(joined, whole.history, rtol=0, atol=0, equal_nan=True)


def test_resumes_exactly_from_a_file(backend, solver):
    M, Y, X0 = equation(solver, 2)
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
    M, Y, X0 = equation(solver, 2)
    every = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS, record_every=record_every)
    wanted = every.history[:, ::record_every] if record_every else every.history[:, :0]
    torch.testing.assert_close(solution.history, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(solution.X, every.X)


def test_takes_hyperparameters_of_each_problem(backend, solver):
    if not hasattr(solver, "lr"):
        pytest.skip("it has no lr")
    M, Y, X0 = equation(solver, 3)
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
    M, Y, _ = equation(solver, 2)
    X0 = torch.linalg.solve(M.mT, target(M, Y).expand_as(M).mT).mT.contiguous()
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, rtol=1e-8)
    assert solution.iterations.tolist() == [0, 0]
    assert bool(solution.converged.all())
    assert torch.equal(solution.X, X0)


def test_no_iteration_is_made_for_max_iters_0(backend, solver):
    M, Y, X0 = equation(solver)
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, max_iters=0)
    assert solution.status == mcf.Status.MAX_ITERATIONS
    assert torch.equal(solution.X, X0)
    assert solution.history.shape == (1,)


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_an_empty_batch_has_an_empty_solution(backend, solver, batch):
    M, Y, X0 = equation(solver, *batch)
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, max_iters=3)
    assert solution.X.shape == (*batch, 5, 5)
    assert solution.status.shape == batch


def test_left_is_the_transposed_equation(backend, solver):
    M, Y, X0 = equation(solver, 2)
    right = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
    M, Y, X0 = (None if t is None else t.mT for t in (M, Y, X0))
    left = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS, left=True)
    assert torch.equal(left.X.mT, right.X)


def test_shows_progress(backend, solver, capsys):
    M, Y, X0 = equation(solver)
    mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS, progress=True)
    shown = capsys.readouterr().err
    assert f"/{STEPS}" in shown
    assert f"{STEPS}/{STEPS}" in shown or gives_verdicts(solver)


def test_has_profiler_names(backend, solver):
    M, Y, X0 = equation(solver)
    with torch.profiler.profile(record_shapes=True) as profile:
        mcf.solve(M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=STEPS)
    names = {event.key for event in profile.key_averages()}
    assert {"matconv_fast.solve", "matconv_fast.solve.advance", "matconv_fast.solve.reduce"} <= names


def test_runs_in_compiled_code(backend, solver):
    M, Y, X0 = equation(solver)

    def work(M, Y, X0):
        return mcf.solve(2 * M, Y, X0, solver=solver, loss=LOSS, atol=0, rtol=0, max_iters=9).X + 1

    torch.testing.assert_close(torch.compile(work, backend="eager")(M, Y, X0), work(M, Y, X0), rtol=0, atol=0)


def test_names_what_ran(backend, solver):
    M, Y, X0 = equation(solver)
    solution = mcf.solve(M, Y, X0, solver=solver, loss=LOSS, max_iters=3)
    in_plain_pytorch = backend == "reference" or getattr(solver, "kernel_rule", None) is None
    ran = "reference" if in_plain_pytorch else backend
    assert re.fullmatch(rf"{type(solver).__name__}: \w+ \({ran}\)(; .+)?", solution.method)
    assert mcf.info().devices[0].last in solution.method


def test_the_examples_of_the_page_are_short_and_complete():
    assert len(source("nesterov").splitlines()) <= 30
    assert len(source("steepest_descent").splitlines()) <= 40
    calls = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if not block.startswith("# ")]
    assert len(calls) == 1
    exec(calls[0], {**documented("nesterov").__dict__})
