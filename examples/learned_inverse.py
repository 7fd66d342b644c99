"""Learn the inverse of a 4 x 4 matrix, X @ M = I, by gradient descent with momentum, as in the project's notebook.

The loop stays a Python loop, as in training code that does other things in between. An iteration with autograd has a
forward pass, a backward pass and an update; ``mcf.heavy_ball_step_`` is one call.

    python examples/learned_inverse.py [--quick]
"""

from __future__ import annotations

import argparse

import torch
from _measure import memory_row, print_table, seconds, time_row
from torch import Tensor

import matconv_fast as mcf

LR, MOMENTUM = 0.9, 0.9
Descent = tuple[Tensor, Tensor]  # the last X, and the loss before each update


def autograd_loop(X: Tensor, M: Tensor, iterations: int) -> Descent:
    """The loop with autograd."""
    X, V, eye = X.clone().requires_grad_(), torch.zeros_like(X), torch.eye(len(M))
    losses = []
    for _ in range(iterations):
        loss = ((X @ M - eye) ** 2).mean()
        loss.backward()
        losses.append(loss.detach())
        with torch.no_grad():
            V = MOMENTUM * V + X.grad
            X -= LR * V
        X.grad = None
    return X.detach(), torch.stack(losses)


def step_loop(X: Tensor, M: Tensor, iterations: int) -> Descent:
    """The same, with one call per iteration."""
    X, V = X.clone(), torch.zeros_like(X)
    losses = [mcf.heavy_ball_step_(X, V, M, lr=LR, momentum=MOMENTUM) for _ in range(iterations)]
    return X, torch.stack(losses)


def solve_once(X: Tensor, M: Tensor, iterations: int) -> Descent:
    """The same, with one call for all iterations."""
    sol = mcf.solve(M, X0=X, solver=mcf.HeavyBall(lr=LR, momentum=MOMENTUM), rtol=0, max_iters=iterations)
    return sol.X, sol.history[:-1]


def main(quick: bool) -> None:
    """Check that the iterates agree, compare with the direct inverse, measure."""
    torch.manual_seed(314)
    X0 = torch.rand(4, 4)
    matrices = {
        "diag(1, 2, 3, 4)": torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])),
        "2 I + rand(4, 4)": 2 * torch.eye(4) + torch.rand(4, 4),
    }
    iterations = 300 if quick else 2_000
    for name, M in matrices.items():
        X, losses = step_loop(X0, M, iterations)
        X_plain, plain_losses = autograd_loop(X0, M, iterations)
        gap = float((losses - plain_losses).abs().max())
        off = float(mcf.distance(X, X_plain, ord="max"))
        print(f"M = {name}: {iterations:,} iterations, loss {losses[0]:.4f} -> {losses[-1]:.1e}")
        print(f"  loop with autograd: losses differ by at most {gap:.1e}, the last X by {off:.1e}")
        assert gap < 1e-5
        assert off < 1e-5
        inverse = torch.linalg.inv(M)
        print(f"  largest |X - torch.linalg.inv(M)|: {mcf.distance(X, inverse, ord='max'):.1e}, "
              f"largest entry of the inverse {inverse.abs().max():.2f}")  # fmt: skip

    print(f"\n{iterations:,} iterations in a Python loop: autograd, and mcf.heavy_ball_step_")
    calls = {
        name: (lambda M=M: autograd_loop(X0, M, iterations), lambda M=M: step_loop(X0, M, iterations))
        for name, M in matrices.items()
    }
    rows = [time_row(f"time, {name}", *pair) for name, pair in calls.items()]
    print_table([*rows, memory_row("peak memory", *calls["diag(1, 2, 3, 4)"])])
    print("Memory: nothing to save. A matrix has 64 bytes; most of the memory is the losses, which both loops keep.\n")

    X, history = solve_once(X0, M, iterations)
    assert float((history - losses).abs().max()) < 1e-5
    once = seconds(lambda: solve_once(X0, M, iterations), 10)
    print(f"mcf.solve makes the same {iterations:,} iterations in one call: {once * 1e3:.2f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a run of a few seconds")
    main(parser.parse_args().quick)
