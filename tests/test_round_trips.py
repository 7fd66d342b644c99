"""A solution that is saved and loaded, pickled, or deep-copied continues as if it had not been."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import well_conditioned
from round_trips import TRIPS, assert_same, saved, through_file
from torch import Tensor

import matconv_fast as mcf
from matconv_fast import problem as problem_module

# Solutions that ended in the middle of a run, and how they continue


def plain_heavy_ball() -> dict[str, Any]:
    return {"M": well_conditioned(5), "options": {"solver": mcf.HeavyBall(), "rtol": 1e-3}}


def tensor_hyperparameters() -> dict[str, Any]:
    lr = torch.tensor([0.1, 0.4], dtype=torch.float64)
    solver = mcf.HeavyBall(lr, torch.nn.Parameter(torch.tensor(0.5)))
    return {"M": well_conditioned(4, 2), "options": {"solver": solver, "rtol": 1e-3}}


def adam_from_the_left() -> dict[str, Any]:
    Y = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).double()
    return {"M": well_conditioned(5), "Y": Y, "options": {"solver": mcf.Adam(0.05), "left": True, "rtol": 1e-2}}


def low_precision() -> dict[str, Any]:
    return {"M": well_conditioned(5).bfloat16(), "Y": torch.eye(5).bfloat16(), "options": {"solver": mcf.HeavyBall()}}


def no_product() -> dict[str, Any]:
    Y = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)).half()
    return {"M": None, "Y": Y, "options": {"solver": mcf.HeavyBall(0.3, 0.5), "check_every": 4}}


def a_stagnated_and_a_broken_problem() -> dict[str, Any]:
    """The first two have ended and must not be iterated further; the third continues."""
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
def test_a_solution_continues_after_a_round_trip_as_it_would_have_without(backend, case, trip):
    made = case()
    M, Y, options = made["M"], made.get("Y"), made["options"]
    first = mcf.solve(M, Y, made.get("X0"), max_iters=23, **options)
    assert not bool(first.converged.all())
    other = TRIPS[trip](first)
    assert_same(other, first)
    assert (repr(other), other.message, other.options) == (repr(first), first.message, first.options)
    assert (other.problem.precision, other.problem.batch) == (first.problem.precision, first.problem.batch)
    with_solver = {**options, "max_iters": 60}
    without = {name: value for name, value in with_solver.items() if name != "solver"}
    for resumed in (without, with_solver):
        assert_same(mcf.solve(M, Y, other, **resumed), mcf.solve(M, Y, first, **resumed))


def test_the_cases_are_what_their_names_say(backend):
    made = a_stagnated_and_a_broken_problem()
    first = mcf.solve(made["M"], max_iters=23, **made["options"])
    names = ("STAGNATED", "NONFINITE", "MAX_ITERATIONS")
    assert [mcf.Status(code).name for code in first.status.tolist()] == list(names)
    second = mcf.solve(made["M"].clone(), X0=first, max_iters=60, **made["options"])
    assert second.iterations[0] > first.iterations[0]  # on another equation it continues
    made = low_precision()
    first = mcf.solve(made["M"], made["Y"], solver=mcf.HeavyBall(), max_iters=23)
    assert first.X.dtype == torch.float32  # which does not tell the default tolerance


@pytest.mark.parametrize("trip", TRIPS)
def test_another_equation_is_recognised_after_a_round_trip(backend, trip):
    M = well_conditioned(4)
    first = mcf.solve(M, solver=mcf.HeavyBall(), max_iters=9)
    for other in (M + 0.01, M.float().double() * 1.5):
        assert_same(mcf.solve(other, X0=TRIPS[trip](first)), mcf.solve(other, X0=first))


@pytest.mark.parametrize("trip", TRIPS)
def test_an_equation_that_was_modified_in_place_stays_marked(backend, trip):
    M = well_conditioned(4)
    first = mcf.solve(M, solver=mcf.HeavyBall(), max_iters=9)
    M.add_(0.01)
    other = TRIPS[trip](first)
    assert "M or Y was modified in place since" in first.message
    assert other.message == first.message
    assert_same(mcf.solve(M, X0=other), mcf.solve(M, X0=first))


@pytest.mark.parametrize("trip", TRIPS)
def test_a_copy_does_not_change_with_the_users_M(backend, trip):
    M = well_conditioned(4)
    first = mcf.solve(M, solver=mcf.HeavyBall(), max_iters=9)
    message, kept = first.message, M.clone()
    other = TRIPS[trip](first)
    M.zero_()
    assert other.message == message
    assert_same(mcf.solve(kept, X0=other, max_iters=9), mcf.solve(kept, X0=TRIPS[trip](other), max_iters=9))


def test_a_state_dict_keeps_its_M_when_the_user_changes_theirs(backend):
    M = well_conditioned(4)
    first = mcf.solve(M, solver=mcf.HeavyBall(), max_iters=9)
    message, state_dict = first.message, first.state_dict()
    M.zero_()
    assert mcf.Solution.from_state_dict(through_file(state_dict)).message == message


def test_a_solution_of_iterate_survives(backend):
    sol = mcf.iterate(lambda A: A / 2, torch.ones(3, 4, 4), torch.zeros(4, 4), atol=1e-3, max_iters=5)
    for trip in TRIPS.values():
        other = trip(sol)
        assert_same(other, sol)
        assert (repr(other), other.message) == (repr(sol), sol.message)
        with pytest.raises(ValueError, match="no state to continue from"):
            mcf.solve(None, torch.zeros(4, 4), other)


def test_the_dtype_of_a_start_alone_survives(backend):
    """M and Y are identities, and X in float32 does not tell the default tolerance of float16."""
    sol = mcf.solve(None, None, torch.ones(3, 3).half(), solver=mcf.HeavyBall(0.3, 0.5), max_iters=4)
    assert "tolerance 0.00173" in sol.message
    for trip in TRIPS.values():
        assert_same(trip(sol), sol)
        assert trip(sol).message == sol.message


def test_a_loaded_solution_plots_the_same():
    pytest.importorskip("plotly")
    sol = mcf.solve(well_conditioned(4), solver=mcf.HeavyBall(), rtol=1e-3)
    assert saved(sol).plot().to_dict() == sol.plot().to_dict()


def test_inference_tensors_are_saved_too(backend):
    with torch.inference_mode():
        M = well_conditioned(4)
        first = mcf.solve(M, solver=mcf.HeavyBall(), max_iters=9)
    assert first.X.is_inference()
    for trip in TRIPS.values():
        assert_same(mcf.solve(M, X0=trip(first)), mcf.solve(M, X0=first))


def test_a_copy_carries_no_gradient():
    M = well_conditioned(4).requires_grad_()
    sol = mcf.solve(M, solver=mcf.HeavyBall())
    assert sol.X.requires_grad
    for trip in TRIPS.values():
        other = trip(sol)
        assert not other.X.requires_grad
        assert torch.equal(other.X, sol.X)
        assert not any(t.requires_grad for t in other.state_dict().values() if isinstance(t, Tensor))
    assert copy.copy(sol).X is sol.X


def test_values_are_compared_only_after_a_round_trip(backend, monkeypatch):
    """Comparing them waits for the device."""
    M = well_conditioned(4)
    first = mcf.solve(M, solver=mcf.HeavyBall(), max_iters=9)

    def refuse(*arguments: object) -> None:
        raise AssertionError("compared")

    monkeypatch.setattr(problem_module.Source, "equals", refuse)
    second = mcf.solve(M, X0=first, max_iters=9)
    mcf.solve(M + 0.1, X0=second, max_iters=9)
    with pytest.raises(AssertionError, match="compared"):
        mcf.solve(M, X0=saved(first))


def test_a_solution_of_another_device_is_refused():
    """As after ``torch.load(..., map_location=...)``, with an M that stayed on its device."""
    sol = mcf.solve(torch.eye(3), solver=mcf.HeavyBall(), max_iters=2)
    elsewhere = replace(sol, problem=replace(sol.problem, Y=sol.problem.Y.to("meta")))
    with pytest.raises(ValueError, match="its device is meta, this one's cpu"):
        mcf.solve(torch.eye(3), X0=elsewhere)


def test_an_error_can_leave_another_process():
    with pytest.raises(mcf.ConvergenceError) as caught:
        mcf.solve(torch.eye(3), solver=mcf.HeavyBall(), max_iters=1, throw=True)
    other = pickle.loads(pickle.dumps(caught.value))
    assert str(other) == str(caught.value)
    assert_same(other.solution, caught.value.solution)
