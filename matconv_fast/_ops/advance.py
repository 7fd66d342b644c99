"""``matconv_fast::advance``: many updates of a gradient rule in one call, whatever the rule and the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _reference
from ..kernels.contract import StopCriteria, Trace
from . import backend

_library = torch.library.Library("matconv_fast", "FRAGMENT")
_library.define(
    "advance(str rule, Tensor(a!) X, Tensor(b!)[] state, Tensor? M, Tensor Y, Tensor hyper, Tensor step, float scale, "
    "bool coupled, Tensor limit, Tensor threshold, Tensor bail, Tensor(c!) sums, Tensor(d!) steps_done, "
    "Tensor(e!)? R, str algorithm) -> ()"
)


class Descent(NamedTuple):
    """What `advance` works on: the equation, the rule, and where the iteration stands.

    Attributes:
        rule: the name under which kernels know the rule.
        X: ``[B, m, n]``, updated in place.
        state: the rule's matrices, each ``[B, m, n]``, updated in place.
        M: ``[1 or B, n, p]``, or None for the identity.
        Y: ``[1 or B, m, p]``.
        hyper: ``[H, B]`` float64, one row a hyperparameter.
        step: ``[B]`` int64, updates made before.
        scale: c of the gradient ``c R M^T``.
        coupled: whether the gradient is that of ``||R||``, which couples the rows of X.
    """

    rule: str
    X: Tensor
    state: tuple[Tensor, ...]
    M: Tensor | None
    Y: Tensor
    hyper: Tensor
    step: Tensor
    scale: float
    coupled: bool


# By name, a rule's update for hyperparameters [H, B]; see `register_rule`.
_rules: dict[str, Callable[[Tensor], _reference.Update]] = {}


def register_rule(name: str, bind: Callable[[Tensor], _reference.Update]) -> None:
    """Tell the operator what a rule is in plain PyTorch: ``bind(hyper [H, B])`` returns its update."""
    _rules[name] = bind


def definition(rule: str) -> Callable[[Tensor], _reference.Update]:
    """What `register_rule` was given for a rule."""
    if rule not in _rules:
        raise ValueError(f"rule must be one of {', '.join(sorted(_rules))}, got {rule!r}")
    return _rules[rule]


def _by_reference(*arguments: object) -> None:
    """The arguments of the operator, for ``_reference.advance``."""
    descent = Descent(*arguments[:9])  # type: ignore[arg-type]
    criteria, trace = StopCriteria(*arguments[9:12]), Trace(*arguments[12:14])  # type: ignore[arg-type]
    one_step = _reference.gradient_step(
        definition(descent.rule)(descent.hyper), descent.M, descent.scale, descent.coupled
    )
    _reference.advance(
        one_step, lambda X: _reference.batched_residual(X, descent.M, descent.Y), descent.X, descent.state,
        descent.step, criteria, trace,
    )  # fmt: skip


_by_triton = backend.on_its_device(lambda *arguments: backend.gpu().launch_advance(*arguments), _by_reference, tensor=1)
_library.impl("advance", _by_reference, "CompositeExplicitAutograd")
_library.impl("advance", _by_triton, "CUDA")
torch.library.register_fake("matconv_fast::advance", lambda *_: None, lib=_library)
_KERNEL = torch.ops.matconv_fast.advance.default


def advance(descent: Descent, criteria: StopCriteria, trace: Trace, R: Tensor | None, algorithm: str) -> None:
    """Run a chunk by a kernel; the contract is in ``_reference/advance.py``.

    Args:
        descent: what to work on; X and the state are updated.
        criteria: when each problem stops.
        trace: filled.
        R: scratch memory for the residual, for an algorithm that keeps it; None for others.
        algorithm: of those that the backend has, the one that `plan_rule` chose.
    """
    backend.call(
        _KERNEL, _by_triton, *descent, criteria.limit, criteria.threshold, criteria.bail, trace.sums, trace.steps_done,
        R, algorithm,
    )  # fmt: skip
