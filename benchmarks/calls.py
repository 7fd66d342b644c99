"""Single calls: the loss with its gradients, the distance, the question's loops, one step; and everything in JAX.

JAX runs a whole loop jitted. Moving data from torch to JAX is not timed. Without JAX: `NotRunError`.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from descents import LOSS_RTOL, X_RTOL, check, counted, sampled
from measure import OURS, Call, Contender, MismatchError, NotRunError, near, register
from torch import Tensor

import matconv_fast as mcf
from matconv_fast._loops import Path, compiled, flop, scale, step_size, tolerance_of
from matconv_fast._workloads import Descent, LossInputs

NORM_RTOL = 1e-2  # torch.linalg.norm in float32 is off by 5e-3 at 8,192: it sums in float32
Gradients = tuple[Tensor, Tensor, Tensor]  # a loss, and its gradients by X and M
Pair = tuple[Tensor, Tensor]

# F: the loss and its gradients, or the loss alone


def mse_loss(X: Tensor, M: Tensor, Y: Tensor) -> Tensor:
    return torch.nn.functional.mse_loss(X @ M, Y)


def with_gradients(function: Callable[..., Tensor], inputs: LossInputs) -> Gradients:
    X, M = inputs.X.detach().requires_grad_(), inputs.M.detach().requires_grad_()
    loss = function(X, M, inputs.Y)
    by_X, by_M = torch.autograd.grad(loss, (X, M))
    return loss.detach(), by_X, by_M


@functools.lru_cache(maxsize=1)
def _loss_truth(inputs: LossInputs) -> Gradients:
    X, M, Y = (t.double() for t in (inputs.X, inputs.M, inputs.Y))
    R = X @ M - Y
    return R.square().mean(), 2 / R.numel() * (R @ M.T), 2 / R.numel() * (X.T @ R)


def same_loss(inputs: LossInputs, found: Gradients) -> None:
    """Compare the loss and its gradients with the formula's."""
    rtol = X_RTOL if inputs.X.dtype == torch.float32 else 3e-2  # bfloat16
    for what, mine, truth in zip(("loss", "gradient by X", "gradient by M"), found, _loss_truth(inputs), strict=True):
        near(f"F: {what}", mine, truth, rtol)


def _three_gemms(inputs: LossInputs) -> Call:
    """The products of the loss and its two gradients, in place."""
    R, by_X, by_M = inputs.X @ inputs.M, torch.empty_like(inputs.X), torch.empty_like(inputs.M)
    factors = ((inputs.X, inputs.M, R), (R, inputs.M.mT, by_X), (inputs.X.mT, R, by_M))
    return Call(lambda: [torch.mm(A, B, out=C) for A, B, C in factors])


def _loss(name: str, label: str, make: Callable[[], Callable[..., Tensor]], against: str = OURS) -> None:
    def check(inputs: LossInputs) -> None:
        same_loss(inputs, with_gradients(make(), inputs))

    both = lambda inputs: Call(functools.partial(with_gradients, make(), inputs))  # noqa: E731
    forward = lambda inputs: Call(functools.partial(make(), inputs.X, inputs.M, inputs.Y))  # noqa: E731
    register("loss", name, Contender(label, both, check, against))
    register("loss_forward", name, Contender(label, forward, check, against))


_loss(OURS, "matconv_fast", lambda: mcf.residual_loss, "")
_loss("mse_loss", "mse_loss(X @ M, Y)", lambda: mse_loss)
_loss("compile", "torch.compile of it", lambda: compiled(mse_loss))
register("loss", "gemms", Contender("three bare GEMMs", _three_gemms))

# D: the distance of two matrices


def norm_of_difference(A: Tensor, B: Tensor) -> Tensor:
    return torch.linalg.norm(A - B)


def root_of_squares(A: Tensor, B: Tensor) -> Tensor:  # inductor has no kernel of its own for `torch.linalg.norm`
    return (A - B).square().sum().sqrt()


@functools.lru_cache(maxsize=1)
def _distance_truth(A: Tensor, B: Tensor) -> Tensor:
    return torch.linalg.norm(A.double() - B.double())


def same_distance(pair: Pair, found: Tensor, rtol: float = NORM_RTOL) -> None:
    near("the distance", found, _distance_truth(*pair), rtol)


def _distance(name: str, label: str, function: Any, rtol: float = NORM_RTOL, against: str = OURS) -> None:
    """`rtol` 0: the function reads both matrices, and computes something else."""
    check = (lambda pair: same_distance(pair, function(*pair), rtol)) if rtol else None
    register("distance", name, Contender(label, lambda pair: Call(functools.partial(function, *pair)), check, against))


_distance(OURS, "matconv_fast", mcf.distance, X_RTOL, "")
_distance("norm", "linalg.norm(A - B)", norm_of_difference)
_distance("dist", "torch.dist", torch.dist)
_distance("compile", "torch.compile of the formula", lambda A, B: compiled(root_of_squares)(A, B))
_distance("allclose", "torch.allclose", torch.allclose, 0)
_distance("dot", "torch.dot", lambda A, B: torch.dot(A.view(-1), B.view(-1)), 0)
# of a matrix and its copy: otherwise it ends at the first entry
twice = lambda pair: Call(functools.partial(torch.equal, pair[0], pair[0].clone()))  # noqa: E731
register("distance", "equal", Contender("torch.equal (the same matrix twice)", twice))

# Q: ours and the asker's loop, 100 updates; both end at the same matrix, from one state of torch's generator

Question = tuple[Callable[[], mcf.Solution], Callable[[], tuple[Tensor, int]]]


def _seeded(call: Callable[[], Any]) -> Any:
    torch.manual_seed(1)
    return call()


def _check_question(question: Question) -> None:
    solution, (X, made) = _seeded(question[0]), _seeded(question[1])
    if int(solution.iterations) != made:
        raise MismatchError(f"{int(solution.iterations)} updates, the loop made {made}")
    near("the last matrix", solution.X, X.double(), X_RTOL)


def _side(index: int) -> Callable[[Question], Call]:
    return lambda question: Call(functools.partial(_seeded, question[index]))


register("question", OURS, Contender("matconv_fast", _side(0), _check_question, ""))
register("question", "plain_loop", Contender("the asker's loop", _side(1)))

# One call on 4 x 4: ours and the same by hand, each eager, recording a gradient, computing it, and compiled

Function = Callable[[Descent, Tensor, Tensor], Tensor]  # of a problem, X and V


def step_by_hand(work: Descent, X: Tensor, V: Tensor) -> Tensor:
    """In place; returns the loss before the update. Without ``alpha=``, which inductor drops (see descents.py)."""
    R = X @ work.M - work.Y
    V.mul_(work.momentum).add_(2 / 16 * (R @ work.M.mT))
    X.sub_(work.lr * V)
    return (R * R).mean()


ALL_MODES, IN_PLACE = ("", "_recorded", "_backward", "_compiled"), ("", "_compiled")
# By kind of workload: ours and its label, the same by hand and its label. The step in place records no gradient.
CALLS: dict[str, tuple[Function, str, Function, str, tuple[str, ...]]] = {
    "call_step": (
        lambda work, X, V: mcf.heavy_ball_step_(X, V, work.M, work.Y, lr=work.lr, momentum=work.momentum),
        "heavy_ball_step_", step_by_hand, "the step in place by hand", IN_PLACE,
    ),
    "call_new_step": (
        lambda work, X, V: mcf.heavy_ball_step(X, V, work.M, work.Y, lr=work.lr, momentum=work.momentum)[0],
        "heavy_ball_step",
        lambda work, X, V: X - work.lr * (work.momentum * V + 2 / 16 * ((X @ work.M - work.Y) @ work.M.mT)),
        "the step by hand", ALL_MODES,
    ),
    "call_loss": (
        lambda work, X, V: mcf.residual_loss(X, work.M, work.Y), "residual_loss",
        lambda work, X, V: mse_loss(X, work.M, work.Y), "mse_loss(X @ M, Y)", ALL_MODES,
    ),
    "call_distance": (
        lambda work, X, V: mcf.distance(X, work.Y), "distance",
        lambda work, X, V: norm_of_difference(X, work.Y), "linalg.norm(A - B)", ALL_MODES,
    ),
}  # fmt: skip


def _run_of(function: Function, mode: str, work: Descent) -> Callable[[], Tensor]:
    X, V = work.X0.clone().requires_grad_(mode in ("_recorded", "_backward")), torch.zeros_like(work.X0)
    if mode == "_compiled":
        function = torch.compile(function, dynamic=False, fullgraph=True)
    if mode == "_backward":
        return lambda: torch.autograd.grad(function(work, X, V).sum(), X)[0]
    return lambda: function(work, X, V)


def _call(kind: str, mode: str) -> None:
    ours, our_label, by_hand, label, _ = CALLS[kind]

    def check(function: Function, work: Descent) -> None:
        """Of three calls: a step in place then depends on X, V and momentum."""
        run, truth = _run_of(function, mode, work), _run_of(by_hand, mode.replace("_compiled", ""), work.double())
        for _ in range(3):
            near(kind + mode, run().detach(), truth().detach(), LOSS_RTOL)

    for name, function, text, against in ((OURS, ours, our_label, ""), ("by_hand", by_hand, label, OURS)):
        prepare = lambda work, function=function: Call(_run_of(function, mode, work))  # noqa: E731
        register(kind + mode, name, Contender(text, prepare, functools.partial(check, function), against))
    add = Contender("torch.add alone", lambda work: Call(functools.partial(torch.add, work.X0, work.Y)))
    register(kind + mode, "add", add)


for _kind, _mode in ((kind, mode) for kind, call in CALLS.items() for mode in call[-1]):
    _call(_kind, _mode)


# In JAX


@functools.cache
def _jitted() -> types.SimpleNamespace:
    try:
        import jax
    except ImportError as error:
        raise NotRunError("JAX is not installed: pip install jax") from error
    jax.config.update("jax_platforms", "cpu")
    np, lax = jax.numpy, jax.lax

    def moved(X: Any, V: Any, R: Any, M: Any, lr: Any, momentum: float) -> Any:
        V = momentum * V + (2 / (R.shape[-2] * R.shape[-1])) * (R @ np.swapaxes(M, -2, -1))
        return X - lr * V, V

    @functools.partial(jax.jit, static_argnames="iterations")
    def scan(X: Any, M: Any, Y: Any, lr: Any, momentum: float, _: Any, *, iterations: int) -> Any:
        def step(state: Any, _: None) -> Any:
            X, V = state
            R = X @ M - Y
            return moved(X, V, R, M, lr, momentum), (R * R).sum((-2, -1))

        (X, _), sums = lax.scan(step, (X, 0 * X), None, length=iterations)
        return X, sums, iterations

    @functools.partial(jax.jit, static_argnames="iterations")
    def until(X: Any, M: Any, Y: Any, lr: Any, momentum: float, tolerance: Any, *, iterations: int) -> Any:
        def goes_on(state: Any) -> Any:
            k, _, _, running, _ = state
            return (k < iterations) & running.any()

        def step(state: Any) -> Any:
            k, X, V, running, sums = state
            R = X @ M - Y
            now = (R * R).sum((-2, -1))
            running &= now > tolerance
            after, V = moved(X, V, R, M, lr, momentum)
            return k + 1, np.where(running[..., None, None], after, X), V, running, sums.at[k].set(now)

        batch = X.shape[:-2]
        start = 0, X, 0 * X, np.ones(batch, bool), np.zeros((iterations, *batch), X.dtype)
        made, X, _, _, sums = lax.while_loop(goes_on, step, start)
        return X, sums, made

    loss = jax.jit(jax.value_and_grad(lambda X, M, Y: ((X @ M - Y) ** 2).mean(), (0, 1)))
    distance = jax.jit(lambda A, B: np.linalg.norm(A - B))
    return types.SimpleNamespace(scan=scan, until=until, loss=loss, distance=distance, jax=jax)


def _bound(name: str, *inputs: Tensor | float, **options: Any) -> Callable[[], Any]:
    """A call on JAX's own arrays that waits for its results."""
    made = _jitted()
    arrays = [made.jax.numpy.asarray(t.numpy()) if isinstance(t, Tensor) else t for t in inputs]
    return lambda: made.jax.block_until_ready(getattr(made, name)(*arrays, **options))


def _tensor(array: Any) -> Tensor:
    return torch.from_dlpack(array).clone()


def _jax_descent(kinds: str, name: str, jitted: str, label: str) -> None:
    def bound(work: Descent) -> Callable[[], Any]:
        inputs = work.X0, work.M, work.Y, step_size(work), work.momentum, tolerance_of(work)
        return _bound(jitted, *inputs, iterations=work.iterations)

    def path(work: Descent) -> Path:
        X, sums, made = bound(work)()
        return _tensor(X), _tensor(sums)[: int(made)] * (scale(work) / 2)

    def prepare(work: Descent) -> Call:
        part = work if work.rtol or flop(work) < 1e8 else sampled(work)  # long iterations cost the same each
        return counted(part, bound(part))

    register(kinds, name, Contender(label, prepare, lambda work: check(work, path)))


def _check_loss(inputs: LossInputs) -> None:
    loss, gradients = _bound("loss", inputs.X, inputs.M, inputs.Y)()
    same_loss(inputs, (_tensor(loss), _tensor(gradients[0]), _tensor(gradients[1])))


_jax_descent("descent", "jax_scan", "scan", "JAX lax.scan")
_jax_descent("descent stopping", "jax_while", "until", "JAX lax.while_loop")
jax_loss = lambda inputs: Call(_bound("loss", inputs.X, inputs.M, inputs.Y))  # noqa: E731
register("loss", "jax_grad", Contender("JAX value_and_grad", jax_loss, _check_loss))
jax_norm = lambda pair: Call(_bound("distance", *pair))  # noqa: E731
same = lambda pair: same_distance(pair, _tensor(jax_norm(pair).run()))  # noqa: E731
register("distance", "jax_norm", Contender("JAX norm", jax_norm, same))
