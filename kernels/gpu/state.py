"""What the launchers of `advance` pass on: the rule's tensors, and the problems."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


class RuleArguments(NamedTuple):
    """`RuleState` as kernels take it; ``step`` is None where no update was made before."""

    X: Tensor
    state: tuple[Tensor, ...]
    hyper: Tensor
    step: Tensor | None


@dataclass(frozen=True, eq=False)
class RuleState:
    """X, and all that a rule updates it by.

    Attributes:
        rule: a name in ``rules.RULES``.
        X: ``[B, m, n]``.
        state: the rule's matrices, each ``[B, m, n]``.
        hyper: ``[H, B]`` float64, a row for each hyperparameter.
        step: ``[B]`` int64, updates made before; None for none.
    """

    rule: str
    X: Tensor
    state: tuple[Tensor, ...]
    hyper: Tensor
    step: Tensor | None

    def clone(self) -> RuleState:
        """A copy for tuning trials, which may overwrite X and the state matrices."""
        return replace(self, X=self.X.clone(), state=tuple(t.clone() for t in self.state))

    @property
    def arguments(self) -> RuleArguments:
        """For a kernel."""
        return RuleArguments(self.X, self.state, self.hyper, self.step)


@dataclass(frozen=True, eq=False)
class Problems:
    """A batch of equations ``X M = Y`` and its loss.

    Attributes:
        M: ``[1 or B, n, p]``, None for the identity.
        Y: ``[1 or B, m, p]``.
        scale: c of the gradient ``c R M^T``.
        coupled: the gradient is divided by ``||R||``, which couples the rows of X (``fro``).
    """

    M: Tensor | None
    Y: Tensor
    scale: float
    coupled: bool

    def rows_between(self) -> tuple[int, int]:
        """Rows of M and of Y from one problem to the next, 0 where all problems share one."""
        M, Y = self.M, self.Y
        return 0 if M is None or M.shape[0] == 1 else M.shape[1], 0 if Y.shape[0] == 1 else Y.shape[1]
