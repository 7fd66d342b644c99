"""A layer whose output is the solution of an equation: h @ (A A^T + I) = features, a metric that training learns.

The forward pass iterates until h is accurate enough. The backward pass differentiates the solution, not the iterations:
plain PyTorch unrolls them and stores the matrices of each one, ``mcf.solve`` stores h only.

    python examples/implicit_layer.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from _measure import PAIRS, memory_row, print_table, seconds, time_row
from sklearn.datasets import load_digits
from torch import Tensor, nn

import matconv_fast as mcf

FEATURES = 48


class Whitening(nn.Module):
    """h with ``h @ (A A^T + I) = features``, which damps the directions in A. Starts from the h of the last call."""

    def __init__(self, features: int, rtol: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(features, features) / features**0.5)
        self.rtol, self.h, self.iterations = rtol, None, 0

    def forward(self, features: Tensor) -> Tensor:
        """``[rows, features]`` to the same shape."""
        M = self.A @ self.A.mT + torch.eye(len(self.A))
        sol = mcf.solve(M, features, self.h, solver=mcf.HeavyBall(momentum="auto"), rtol=self.rtol)
        self.h, self.iterations = sol.X.detach(), int(sol.iterations)
        return sol.X


def train(Y: Tensor, labels: Tensor, steps: int) -> None:
    """Classify the digits by the whitened features; the rows are the same in each step, so h changes little."""
    layer = Whitening(FEATURES, rtol=1e-4)
    net = nn.Sequential(nn.Linear(64, FEATURES), layer, nn.ReLU(), nn.Linear(FEATURES, 10))
    adam = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        adam.zero_grad()
        logits = net(Y)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        adam.step()
        losses.append(loss.detach())
    print(f"training: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {steps} steps, "
          f"{float((logits.argmax(1) == labels).float().mean()):.1%} of the digits right")  # fmt: skip
    warm, layer.h = layer.iterations, None
    net(Y)
    print(f"the layer's iterations: {warm} from the h of the step before, {layer.iterations} from zeros\n")


def solved(M: Tensor, Y: Tensor, rtol: float) -> Tensor:
    """X as the layer computes it."""
    return mcf.solve(M, Y, solver=mcf.HeavyBall(momentum="auto"), rtol=rtol).X


def unrolled(M: Tensor, Y: Tensor, iterations: int) -> Tensor:
    """The same heavy ball, with every iteration recorded by autograd."""
    s = torch.linalg.eigvalsh(M.detach())  # M is symmetric positive definite: its singular values
    low, high, c = s[0], s[-1], 2 / Y.numel()
    lr = (3 + (low / high) ** 2) / (c * (low + high) ** 2)
    momentum = (1 - low * (c * lr) ** 0.5) ** 2
    X = V = torch.zeros_like(Y)
    for _ in range(iterations):
        V = momentum * V + c * (X @ M - Y) @ M.mT
        X = X - lr * V
    return X


def direct(M: Tensor, Y: Tensor) -> Tensor:
    """The exact solution."""
    return torch.linalg.solve(M, Y, left=False)


def relative(a: Tensor, b: Tensor) -> float:
    """Distance of a from b, by the norm of b."""
    return float(mcf.distance(a.to(b.dtype), b) / b.norm())


def backward_through(layer: Callable[[Tensor, Tensor], Tensor], A: Tensor, Y: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients of half its sum of squares by A and Y."""
    A, Y = A.detach().requires_grad_(), Y.detach().requires_grad_()
    X = layer(A @ A.mT + torch.eye(len(A), dtype=A.dtype), Y)
    return X.detach(), *torch.autograd.grad(X, (A, Y), X.detach())


def main(quick: bool) -> None:
    """Train, check the gradients against the unrolled ones, measure."""
    torch.manual_seed(314)
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    train(images, labels, 30 if quick else 100)

    A = torch.randn(FEATURES, FEATURES) * 0.25
    Y = torch.randn(400 if quick else len(images), FEATURES)
    M = A @ A.mT + torch.eye(FEATURES)
    print(f"forward and backward: {len(Y):,} rows of {FEATURES}, condition number of M {torch.linalg.cond(M):.0f}")
    _, exact, _ = backward_through(direct, A.double(), Y.double())
    errors, sides = [], []
    for rtol in (1e-1, 1e-3, 1e-5):
        count = int(mcf.solve(M, Y, solver=mcf.HeavyBall(momentum="auto"), rtol=rtol).iterations)
        plain = partial(backward_through, partial(unrolled, iterations=count), A, Y)
        here = partial(backward_through, partial(solved, rtol=rtol), A, Y)
        (X_plain, by_A_plain, _), (X, by_A, _) = plain(), here()
        apart, off_plain, off = relative(X, X_plain), relative(by_A_plain, exact), relative(by_A, exact)
        assert apart < 1e-4  # h is the same; the gradients come from different formulas, and agree as rtol falls
        errors.append((f"rtol {rtol:.0e}", str(count), f"{apart:.1e}", f"{off_plain:.1e}", f"{off:.1e}"))
        sides.append((f"{count} iterations", plain, here))
    assert off < 1e-3
    assert off_plain < 1e-2
    print_table(errors, ("", "iterations", "difference of h", "error of A's gradient, plain PyTorch", "matconv_fast"))
    print()
    times = [time_row(f"time, {name}", plain, here) for name, plain, here in sides]
    once = statistics.median(seconds(partial(backward_through, direct, A, Y)) for _ in range(PAIRS))
    print_table([*times, *(memory_row(f"peak memory, {name}", plain, here) for name, plain, here in sides)])
    print(f"torch.linalg.solve instead: {once * 1e3:.1f} ms. Use it if you want the exact solution; iterate if a rough")
    print("one is enough, if you start from a good one, or if the iterations are the model.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a run of a few seconds")
    main(parser.parse_args().quick)
