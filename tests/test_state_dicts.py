"""State dicts of solutions, solvers and modules: plain data, in a format that is checked."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from round_trips import assert_same, saved, through_file
from torch import Tensor

import matconv_fast as mcf


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
    assert not plain({"lr": solver.lr})  # NumPy's number is a subclass of float
    assert_same(saved(sol), sol)


@pytest.mark.parametrize(
    ("change", "error", "pattern"),
    [
        (lambda d: 3, TypeError, "Solution.from_state_dict takes a dict of Solution.state_dict.*got int 3"),
        (lambda d: {}, ValueError, r"got one with the keys \[\]"),
        (lambda d: torch.nn.Linear(1, 1).state_dict(), ValueError, r"got one with the keys \['bias', 'weight'\]"),
        (lambda d: mcf.Adam().state_dict(), ValueError, "got one of a Adam"),
        (lambda d: {**d, "format": 1}, ValueError, "is in format 1, and this matconv_fast reads format 2"),
        (lambda d: {**d, "format": 3}, ValueError, "is in format 3, and this matconv_fast reads format 2"),
        (lambda d: {k: v for k, v in d.items() if k != "format"}, ValueError, "is in format None"),
        (lambda d: {k: v for k, v in d.items() if k not in ("X", "loss")}, ValueError, "of a Solution lacks X, loss"),
        (lambda d: {**d, "more": 1}, ValueError, "of a Solution has unknown more"),
        (lambda d: {**d, "state": {**d["state"], "format": 1}}, ValueError, "of a Checkpoint is in format 1"),
        (lambda d: {**d, "state": {**d["state"], "kind": "State"}}, ValueError, "got one of a State"),
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
    for kind in (type(solver), mcf.GradientRule, mcf.Solver):
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
        mcf.Solver.from_state_dict(3)


def test_solvers_that_differ_in_a_tensor_are_told_apart():
    a, b = mcf.HeavyBall(torch.tensor(0.1)), mcf.HeavyBall(torch.tensor(0.1))
    assert a.is_same(b, by_value=True)
    assert not a.is_same(b)  # by identity, which does not wait for the device
    for other in (mcf.HeavyBall(torch.tensor(0.2)), mcf.HeavyBall(torch.tensor(0.1).double()), mcf.HeavyBall(0.1)):
        assert not a.is_same(other, by_value=True)


def test_the_module_is_saved_and_copied_like_any_other():
    module = torch.nn.Sequential(mcf.ResidualLoss("sse"))
    assert module.state_dict() == {}
    assert module.load_state_dict(through_file(module.state_dict()), strict=True)
    X = torch.ones(2, 2)
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert repr(other) == repr(module)
        assert torch.equal(other[0](X, None), torch.tensor(2.0))
