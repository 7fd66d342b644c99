"""With the rest of PyTorch: saved and copied results, foreign arrays, subclasses, and global modes."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matconv_fast.solve.solver import Solver
from problems import well_conditioned
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import matconv_fast as mcf
from matconv_fast.solve import problem


def through_file(value: Any) -> Any:
    """Saved and loaded as a checkpoint is: nothing but data is read."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def saved(sol: mcf.Solution) -> mcf.Solution:
    return mcf.Solution.from_state_dict(through_file(sol.state_dict()))


def pickled(sol: mcf.Solution) -> mcf.Solution:
    return pickle.loads(pickle.dumps(sol))


TRIPS = {"saved": saved, "pickled": pickled, "deep-copied": copy.deepcopy}
RESULTS = ("X", "loss", "residual_norm", "iterations", "status", "history")


def assert_same(a: mcf.Solution, b: mcf.Solution) -> None:
    """Bit for bit, NaN included; the state too."""
    for name in RESULTS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0, equal_nan=True, msg=name)
    for before, after in ((a.state, b.state), (a.start, b.start)):
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            mine, theirs = vars(before), vars(after)
            assert mine.keys() == theirs.keys()
            assert mine["age"] == theirs["age"]
            for name in mine.keys() - {"solver", "age"}:
                torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=0, equal_nan=True, msg=name)
            assert before.solver.is_same(after.solver, by_value=True)


# Solutions that have come to a halt in the middle, and how they go on


def plain_heavy_ball() -> dict[str, Any]:
    return {"M": well_conditioned(5), "options": {"rtol": 1e-3}}


def tensor_hyperparameters() -> dict[str, Any]:
    lr = torch.tensor([0.1, 0.4], dtype=torch.float64)
    solver = mcf.HeavyBall(lr, torch.nn.Parameter(torch.tensor(0.5)))
    return {"M": well_conditioned(4, 2), "options": {"solver": solver, "rtol": 1e-3}}


def adam_from_the_left() -> dict[str, Any]:
    Y = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).double()
    return {"M": well_conditioned(5), "Y": Y, "options": {"solver": mcf.Adam(0.05), "left": True, "rtol": 1e-2}}


def low_precision() -> dict[str, Any]:
    return {"M": well_conditioned(5).bfloat16(), "Y": torch.eye(5).bfloat16(), "options": {}}


def no_product() -> dict[str, Any]:
    Y = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)).half()
    return {"M": None, "Y": Y, "options": {"solver": mcf.HeavyBall(0.3, 0.5), "check_every": 4}}


def a_stagnated_and_a_broken_problem() -> dict[str, Any]:
    """The first two have ended, and must not run again; the third goes on."""
    M = torch.stack([torch.diag(torch.tensor([1.0, 0.0])), torch.eye(2), torch.diag(torch.tensor([1.0, 0.3]))])
    M[1, 0, 0] = torch.nan
    return {"M": M, "options": {"solver": mcf.HeavyBall(torch.tensor(0.4), 0.2), "patience": 9, "rtol": 1e-4}}


CASES = [
    plain_heavy_ball,
    tensor_hyperparameters,
    adam_from_the_left,
    low_precision,
    no_product,
    a_stagnated_and_a_broken_problem,
]


@pytest.mark.parametrize("trip", TRIPS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_solution_goes_on_after_a_round_trip_as_it_would_have_without(backend, case, trip):
    made = case()
    M, Y, options = made["M"], made.get("Y"), made["options"]
    first = mcf.solve(M, Y, made.get("X0"), max_iters=23, **options)
    assert not bool(first.converged.all())
    other = TRIPS[trip](first)
    assert_same(other, first)
    assert (repr(other), other.message, other.options) == (repr(first), first.message, first.options)
    assert (str(other.problem.input_dtype), other.problem.batch) == (
        str(first.problem.input_dtype),
        first.problem.batch,
    )
    with_solver = {**options, "max_iters": 60}
    without = {name: value for name, value in with_solver.items() if name != "solver"}
    for goes_on in (without, with_solver):
        assert_same(mcf.solve(M, Y, other, **goes_on), mcf.solve(M, Y, first, **goes_on))


def test_the_solutions_above_test_what_they_mean_to(backend):
    made = a_stagnated_and_a_broken_problem()
    first = mcf.solve(made["M"], max_iters=23, **made["options"])
    names = ("STAGNATED", "NONFINITE", "MAX_ITERATIONS")
    assert [mcf.Status(code).name for code in first.status.tolist()] == list(names)
    second = mcf.solve(made["M"].clone(), X0=first, max_iters=60, **made["options"])
    assert second.iterations[0] > first.iterations[0]  # on another equation it runs on
    made = low_precision()
    first = mcf.solve(made["M"], made["Y"], max_iters=23)
    assert first.X.dtype == torch.float32  # from which the default tolerance would not follow


@pytest.mark.parametrize("trip", TRIPS)
def test_another_equation_is_known_after_a_round_trip(backend, trip):
    M = well_conditioned(4)
    first = mcf.solve(M, max_iters=9)
    for other in (M + 0.01, M.float().double() * 1.5):
        assert_same(mcf.solve(other, X0=TRIPS[trip](first)), mcf.solve(other, X0=first))


@pytest.mark.parametrize("trip", TRIPS)
def test_an_equation_that_was_changed_in_place_stays_changed(backend, trip):
    M = well_conditioned(4)
    first = mcf.solve(M, max_iters=9)
    M.add_(0.01)
    other = TRIPS[trip](first)
    assert "M or Y was changed in place since" in first.message
    assert other.message == first.message
    assert_same(mcf.solve(M, X0=other), mcf.solve(M, X0=first))


@pytest.mark.parametrize("trip", TRIPS)
def test_what_is_changed_after_a_round_trip_leaves_the_copy_alone(backend, trip):
    M = well_conditioned(4)
    first = mcf.solve(M, max_iters=9)
    message, kept = first.message, M.clone()
    other = TRIPS[trip](first)
    M.zero_()
    assert other.message == message
    assert_same(mcf.solve(kept, X0=other, max_iters=9), mcf.solve(kept, X0=TRIPS[trip](other), max_iters=9))


def test_a_state_dict_keeps_its_M_when_the_user_changes_theirs(backend):
    M = well_conditioned(4)
    first = mcf.solve(M, max_iters=9)
    message, state_dict = first.message, first.state_dict()
    M.zero_()
    assert mcf.Solution.from_state_dict(through_file(state_dict)).message == message


def test_a_solution_of_iterate_survives(backend):
    sol = mcf.iterate(lambda A: A / 2, torch.ones(3, 4, 4), torch.zeros(4, 4), atol=1e-3, max_iters=5)
    for trip in TRIPS.values():
        other = trip(sol)
        assert_same(other, sol)
        assert (repr(other), other.message) == (repr(sol), sol.message)
        with pytest.raises(ValueError, match="no state to go on from"):
            mcf.solve(None, torch.zeros(4, 4), other)


def test_the_dtype_of_a_start_alone_survives(backend):
    """M and Y are identities, and from X in float32 the default tolerance of float16 would not follow."""
    sol = mcf.solve(None, None, torch.ones(3, 3).half(), solver=mcf.HeavyBall(0.3, 0.5), max_iters=4)
    assert "tolerance 0.00173" in sol.message
    for trip in TRIPS.values():
        assert_same(trip(sol), sol)
        assert trip(sol).message == sol.message


def test_a_loaded_solution_plots_the_same():
    pytest.importorskip("plotly")
    sol = mcf.solve(well_conditioned(4), rtol=1e-3)
    assert saved(sol).plot().to_dict() == sol.plot().to_dict()


def test_inference_tensors_are_saved_too(backend):
    with torch.inference_mode():
        M = well_conditioned(4)
        first = mcf.solve(M, max_iters=9)
    assert first.X.is_inference()
    for trip in TRIPS.values():
        assert_same(mcf.solve(M, X0=trip(first)), mcf.solve(M, X0=first))


def test_a_state_dict_is_plain_data():
    solver = mcf.HeavyBall(np.float64(0.1), np.float32(0.5).item())
    sol = mcf.solve(torch.eye(3), solver=solver, atol=np.float64(1e-3), loss=str(np.str_("sse")), max_iters=2)

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(type(name) is str and plain(item) for name, item in value.items())
        if isinstance(value, tuple | list):
            return all(map(plain, value))
        return value is None or type(value) in (Tensor, int, float, str, bool)

    assert plain(sol.state_dict())
    assert not plain({"lr": solver.lr})  # NumPy's number is a float, and no plain one
    assert_same(saved(sol), sol)


def test_a_gradient_is_left_behind():
    M = well_conditioned(4).requires_grad_()
    sol = mcf.solve(M)
    assert sol.X.requires_grad
    for trip in TRIPS.values():
        other = trip(sol)
        assert not other.X.requires_grad
        assert torch.equal(other.X, sol.X)
        assert not any(t.requires_grad for t in other.state_dict().values() if isinstance(t, Tensor))
    assert copy.copy(sol).X is sol.X


@pytest.mark.parametrize(
    ("change", "error", "pattern"),
    [
        (lambda d: 3, TypeError, "Solution.from_state_dict takes a dict of Solution.state_dict.*got int 3"),
        (lambda d: {}, ValueError, r"got one with the keys \[\]"),
        (lambda d: torch.nn.Linear(1, 1).state_dict(), ValueError, r"got one with the keys \['bias', 'weight'\]"),
        (lambda d: mcf.Adam().state_dict(), ValueError, "got one of a Adam"),
        (lambda d: {**d, "format": 2}, ValueError, "is in format 2, and this matconv_fast reads format 1"),
        (lambda d: {k: v for k, v in d.items() if k != "format"}, ValueError, "is in format None"),
        (lambda d: {k: v for k, v in d.items() if k not in ("X", "loss")}, ValueError, "of a Solution lacks X, loss"),
        (lambda d: {**d, "more": 1}, ValueError, "of a Solution has unknown more"),
        (lambda d: {**d, "state": {**d["state"], "format": 2}}, ValueError, "of a State is in format 2"),
        (lambda d: {**d, "state": {**d["state"], "solver": {"kind": "SGD"}}}, ValueError, "got one of a SGD"),
        (lambda d: {**d, "problem": {}}, ValueError, "Problem.from_state_dict takes"),
        (lambda d: {**d, "options": {**d["options"], "atol": -1.0}}, ValueError, "atol must be finite and at least 0"),
    ],
)
def test_what_is_no_state_dict_of_a_solution_is_refused(change, error, pattern):
    good = mcf.solve(torch.eye(3), max_iters=2).state_dict()
    with pytest.raises(error, match=pattern):
        mcf.Solution.from_state_dict(change(good))


@pytest.mark.parametrize(
    "solver",
    [
        mcf.HeavyBall(),
        mcf.HeavyBall(0.1, "auto"),
        mcf.HeavyBall(torch.tensor([0.1, 0.2]), torch.tensor(0.5), form="residual"),
        mcf.Adam(0.1, (0.8, 0.99), 1e-6),
    ],
)
def test_a_solver_survives(solver):
    for kind in (type(solver), Solver):
        other = kind.from_state_dict(through_file(solver.state_dict()))
        assert type(other) is type(solver)
        assert other.is_same(solver, by_value=True)
    assert not type(solver)(lr=0.7).is_same(solver, by_value=True)
    assert pickle.loads(pickle.dumps(solver)).is_same(solver, by_value=True)


def test_a_solver_refuses_the_state_dict_of_another():
    with pytest.raises(ValueError, match=r"HeavyBall.from_state_dict takes a dict of HeavyBall.state_dict.*of a Adam"):
        mcf.HeavyBall.from_state_dict(mcf.Adam().state_dict())
    with pytest.raises(ValueError, match="the state dict of a Adam lacks eps and has unknown epsilon"):
        mcf.Adam.from_state_dict({("epsilon" if k == "eps" else k): v for k, v in mcf.Adam().state_dict().items()})
    with pytest.raises(TypeError, match="got int 3"):
        Solver.from_state_dict(3)


def test_solvers_that_differ_in_a_tensor_are_told_apart():
    a, b = mcf.HeavyBall(torch.tensor(0.1)), mcf.HeavyBall(torch.tensor(0.1))
    assert a.is_same(b, by_value=True)
    assert not a.is_same(b)  # reads no device
    for other in (mcf.HeavyBall(torch.tensor(0.2)), mcf.HeavyBall(torch.tensor(0.1).double()), mcf.HeavyBall(0.1)):
        assert not a.is_same(other, by_value=True)


def test_values_are_compared_after_a_round_trip_alone(backend, monkeypatch):
    """It waits for the device."""
    M = well_conditioned(4)
    first = mcf.solve(M, max_iters=9)

    def refuse(*arguments: object) -> None:
        raise AssertionError("compared")

    monkeypatch.setattr(problem.Source, "equals", refuse)
    second = mcf.solve(M, X0=first, max_iters=9)
    mcf.solve(M + 0.1, X0=second, max_iters=9)
    with pytest.raises(AssertionError, match="compared"):
        mcf.solve(M, X0=saved(first))


def test_a_solution_of_another_device_is_refused():
    """As after ``torch.load(..., map_location=...)``, to go on with an M that stayed where it was."""
    sol = mcf.solve(torch.eye(3), max_iters=2)
    elsewhere = replace(sol, problem=replace(sol.problem, Y=sol.problem.Y.to("meta")))
    with pytest.raises(ValueError, match="its device is meta, this one's cpu"):
        mcf.solve(torch.eye(3), X0=elsewhere)


def test_an_error_comes_out_of_another_process():
    with pytest.raises(mcf.ConvergenceError) as caught:
        mcf.solve(torch.eye(3), max_iters=1, throw=True)
    other = pickle.loads(pickle.dumps(caught.value))
    assert str(other) == str(caught.value)
    assert_same(other.solution, caught.value.solution)


def test_the_module_is_saved_and_copied_like_any_other():
    module = torch.nn.Sequential(mcf.ResidualLoss("sse"))
    assert module.state_dict() == {}
    assert module.load_state_dict(through_file(module.state_dict()), strict=True)
    X = torch.ones(2, 2)
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert repr(other) == repr(module)
        assert torch.equal(other[0](X, None), torch.tensor(2.0))


# Other arrays


class Foreign:
    """An array of another library that speaks DLPack, and no NumPy."""

    def __init__(self, t: Tensor) -> None:
        self.t = t

    def __dlpack__(self, **options: Any) -> object:
        return self.t.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.t.__dlpack_device__()


M = torch.eye(4) + 0.1
V = torch.zeros(4, 4)
STEP = {"lr": 0.1, "momentum": 0.9}
TAKERS: dict[str, Callable[[Any], object]] = {
    "solve M": lambda t: mcf.solve(t),
    "solve Y": lambda t: mcf.solve(M, t),
    "solve X0": lambda t: mcf.solve(M, None, t),
    "inv": lambda t: mcf.inv(t),
    "iterate": lambda t: mcf.iterate(lambda A: A / 2, t, V),
    "residual_loss": lambda t: mcf.residual_loss(M, t),
    "distance": lambda t: mcf.distance(M, t),
    "is_close": lambda t: mcf.is_close(t, M),
    "heavy_ball_step": lambda t: mcf.heavy_ball_step(M, V, t, **STEP),
    "heavy_ball_step_ M": lambda t: mcf.heavy_ball_step_(M.clone(), V.clone(), t, **STEP),
    "heavy_ball_step_ X": lambda t: mcf.heavy_ball_step_(t, V.clone(), M, **STEP),
}


def masked(t: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype
        return torch.masked.masked_tensor(t, t > 0.5)


FOREIGN = {
    "NumPy": (lambda: M.numpy(), "must be a torch.Tensor, got ndarray.*; torch.as_tensor converts it"),
    "list": (lambda: M.tolist(), "must be a torch.Tensor, got list.*; torch.as_tensor converts it"),
    "DLPack": (lambda: Foreign(M), "must be a torch.Tensor, got Foreign.*; torch.from_dlpack takes it over"),
    "sparse": (lambda: M.to_sparse(), r"must be dense, got layout torch.sparse_coo; .*to_dense\(\)"),
    "masked": (lambda: masked(M), r"must be dense, got a masked tensor; .*to_tensor\(0.0\) converts it"),
    "jagged": (
        lambda: torch.nested.nested_tensor([M, M], layout=torch.jagged),
        r"must be dense, got a nested tensor; .*to_padded_tensor\(0.0\) converts it",
    ),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_dense_tensor_is_refused_with_the_way_to_make_it_one(backend, kind, taker):
    make, pattern = FOREIGN[kind]
    with pytest.raises(TypeError, match=re.compile(pattern, re.DOTALL)):
        TAKERS[taker](make())


def test_the_ways_that_are_named_work():
    assert torch.equal(torch.from_dlpack(Foreign(M)), M)
    assert torch.equal(torch.as_tensor(M.numpy()), M)
    assert mcf.solve(torch.from_dlpack(Foreign(M))).converged
    assert mcf.solve(masked(M).to_tensor(0.0)).converged


# Subclasses


class Sub(Tensor):
    """Nothing of its own: what PyTorch's own functions make of it is one again."""


class Logged(Tensor):
    """Sees every function that is called on it."""

    calls: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        cls.calls.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("kind", [Sub, Logged])
def test_a_subclass_gives_the_numbers_of_a_plain_tensor(backend, kind):
    def of_kind(t: Tensor) -> Tensor:
        return t.clone().as_subclass(kind)

    def step(t: Tensor) -> Tensor:
        X, velocity = M.clone(), V.clone()
        mcf.heavy_ball_step_(X, velocity, t, **STEP)
        return X

    keeps_its_kind = {
        "residual_loss": lambda t: mcf.residual_loss(t, M),
        "distance": lambda t: mcf.distance(t, V),
        "functional step": lambda t: mcf.heavy_ball_step(t, V, M, **STEP)[0],
        "iterate": lambda t: mcf.iterate(lambda A: A / 2, t, V, atol=1e-3).X,
    }
    for name, call in keeps_its_kind.items():
        result = call(of_kind(M))
        assert type(result) is kind, name
        torch.testing.assert_close(result.as_subclass(kind), call(M).as_subclass(kind), rtol=1e-6, atol=1e-7, msg=name)
    torch.testing.assert_close(step(of_kind(M)), step(M), rtol=1e-6, atol=1e-7)
    X, velocity = of_kind(M), V.clone()
    mcf.heavy_ball_step_(X, velocity, M, **STEP)
    torch.testing.assert_close(X, step(M).as_subclass(kind), rtol=1e-6, atol=1e-7)

    lr = torch.tensor(0.5)
    plain = mcf.solve(M, M, V, solver=mcf.HeavyBall(lr, 0.5), rtol=1e-4)
    for M_, Y_, X_, lr_ in (
        (of_kind(M), M, V, lr),
        (M, of_kind(M), V, lr),
        (M, M, of_kind(V), lr),
        (M, M, V, of_kind(lr)),
        (of_kind(M), of_kind(M), of_kind(V), of_kind(lr)),
    ):
        sol = mcf.solve(M_, Y_, X_, solver=mcf.HeavyBall(lr_, 0.5), rtol=1e-4)
        assert_same(sol, plain)  # the same bits: a solve iterates on plain memory, by the same path
        assert {type(getattr(sol, name)) for name in RESULTS} == {Tensor}
        assert sol.message == plain.message
        assert_same(mcf.solve(M_, Y_, saved(sol), rtol=1e-6), mcf.solve(M, M, plain, rtol=1e-6))


def test_a_solve_calls_no_function_of_a_subclass_while_it_iterates(backend):
    of_kind, solver = M.as_subclass(Logged), mcf.HeavyBall(torch.tensor(0.3).as_subclass(Logged), 0.5)
    Logged.calls.clear()
    mcf.solve(of_kind, of_kind, of_kind, solver=solver, max_iters=5, rtol=0.0)
    few = len(Logged.calls)
    mcf.solve(of_kind, of_kind, of_kind, solver=solver, max_iters=100, rtol=0.0)
    assert 0 < len(Logged.calls) == 2 * few
    assert not any("matmul" in name or "advance" in name for name in Logged.calls)


def test_a_parameter_is_a_tensor(backend):
    def parameter(t: Tensor) -> torch.nn.Parameter:
        return torch.nn.Parameter(t.clone())

    plain = mcf.solve(M)
    sol = mcf.solve(parameter(M), X0=parameter(V))
    assert torch.equal(sol.X, plain.X)
    assert type(sol.X) is Tensor
    weight = parameter(M)
    mcf.solve(weight).X.sum().backward()
    assert weight.grad is not None
    loss = mcf.residual_loss(weight, M)
    assert type(loss) is Tensor
    assert loss.requires_grad
    assert mcf.heavy_ball_step_(weight, V.clone(), M, **STEP) == loss
    assert type(mcf.distance(weight, V)) is Tensor


def test_a_gradient_flows_through_a_subclass(backend):
    for kind in (Sub, Logged):
        leaf = M.clone().requires_grad_()
        plain = M.clone().requires_grad_()
        mcf.solve(leaf.as_subclass(kind)).X.sum().backward()
        mcf.solve(plain).X.sum().backward()
        torch.testing.assert_close(leaf.grad, plain.grad, rtol=1e-6, atol=1e-7)


def test_what_has_no_memory_to_iterate_on_is_refused(backend):
    fake = FakeTensorMode().from_tensor(M)
    for call in (lambda: mcf.solve(fake), lambda: mcf.solve(M, fake), lambda: mcf.solve(M, None, fake)):
        with pytest.raises(TypeError, match="must be a tensor in memory, got a FakeTensor, which has operators of its"):
            call()
    with pytest.raises(ValueError, match=r"no values to iterate on, got a float32 tensor of shape \[4, 4\] on meta"):
        mcf.solve(M.to("meta"))


# Modes of the whole process


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    before = torch.get_default_device()
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None if before.type == "cpu" else before)


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # also fills new memory with NaN
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "default device meta": lambda: default_device("meta"),
    "default device cpu": lambda: default_device("cpu"),
    "default dtype float64": default_dtype,
    "deterministic": deterministic,
    "inference": torch.inference_mode,
}

X0 = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
MANY = well_conditioned(4, 33, dtype=torch.float32)
WIDE = well_conditioned(70, dtype=torch.float32)
LARGE = torch.eye(520) + torch.rand(520, 520, generator=torch.Generator().manual_seed(0)) / 520


def step_in_place() -> tuple[Tensor, ...]:
    X, velocity = X0.clone(), V.clone()
    return mcf.heavy_ball_step_(X, velocity, M, **STEP), X, velocity


def gradients() -> tuple[Tensor, ...]:
    """By autograd where it records, by hand where it does not."""
    X, A = X0.clone(), M.clone()
    if torch.is_inference_mode_enabled():
        return mcf.residual_loss(X, A), mcf.solve(A).X
    X.requires_grad_()
    A.requires_grad_()
    value, solution = mcf.residual_loss(X, A), mcf.solve(A).X
    value.backward()
    solution.sum().backward()
    return value.detach(), solution.detach()


def results(sol: mcf.Solution) -> tuple[Any, ...]:
    return *(getattr(sol, name) for name in RESULTS), sol.converged, sol.message, repr(sol)


CALLS: dict[str, Callable[[], Any]] = {
    "solve": lambda: results(mcf.solve(M, X0, rtol=0.3)),
    "go on": lambda: results(mcf.solve(M, X0=mcf.solve(M, max_iters=5), max_iters=5)),
    "iterate": lambda: results(mcf.iterate(lambda A: A / 2, MANY[:2], V, atol=1.0)),
    "residual_loss": lambda: [mcf.residual_loss(X0, M, loss=loss) for loss in ("mse", "sse", "fro")],
    "gradients": gradients,
    "distance": lambda: [mcf.distance(X0, M, ord=norm) for norm in ("fro", "max", 1)],
    "is_close": lambda: [mcf.is_close(X0, M, atol=0.1, rtol=0.2)],
    "heavy_ball_step": lambda: mcf.heavy_ball_step(X0, V, M, **STEP),
    "heavy_ball_step_": step_in_place,
}
LONG: dict[str, Callable[[], Any]] = {
    "solve by an optimal pair": lambda: results(mcf.solve(M, X0, solver=mcf.HeavyBall(momentum="auto"))),
    "solve by Adam": lambda: results(mcf.solve(M, solver=mcf.Adam(0.02), max_iters=40)),
    "solve fro": lambda: results(mcf.solve(M, solver=mcf.HeavyBall(1e-3, 0.5), loss="fro", max_iters=40)),
    "solve low precision": lambda: results(mcf.solve(M.bfloat16(), max_iters=40)),
    "solve without M": lambda: results(mcf.solve(None, X0, solver=mcf.HeavyBall(0.3, 0.5))),
    "solve a batch": lambda: results(mcf.solve(MANY, rtol=1e-2, record_every=3)),
    "solve 70": lambda: results(mcf.solve(WIDE, WIDE[:4], V.new_zeros(4, 70), rtol=0.3)),
    "solve a large one": lambda: results(mcf.solve(LARGE, max_iters=5)),  # power iteration finds its step size
    "stagnate": lambda: results(mcf.solve(M, rtol=1e-9, patience=20, max_iters=200)),
    "diverge": lambda: results(mcf.solve(M, solver=mcf.HeavyBall(1e3), max_iters=60)),
    "go on from a copy": lambda: results(mcf.solve(M, X0=copy.deepcopy(mcf.solve(M, max_iters=9)), max_iters=9)),
    "iterate far": lambda: results(mcf.iterate(lambda A: A / 2, MANY, 0 * MANY, atol=1e-2, check_every=4)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", [*CALLS, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_a_mode_of_the_process_changes_no_result(backend, call, mode):
    function = {**CALLS, **LONG}[call]
    expected = function()
    with MODES[mode]():
        found = function()
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, Tensor):
            assert (a.device, a.dtype) == (b.device, b.dtype)
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b


def test_what_was_made_in_inference_mode_goes_on_outside_of_it(backend):
    with torch.inference_mode():
        first = mcf.solve(M, max_iters=9)
    second = mcf.solve(M, X0=first, max_iters=9)
    assert not second.X.is_inference()
    assert_same(second, mcf.solve(M, X0=mcf.solve(M, max_iters=9), max_iters=9))
