"""Layer-wise reconstruction: a small matrix that corrects most of the error of rounding weights to a few bits.

Quantization replaces a layer's weight W, ``[out, in]``, by W_q of 2 to 4 bits. On activations A of real data,
``[in, rows]``, the outputs W A become W_q A. The matrix X, ``[out, out]``, with X @ (W_q A) = W A in the least-squares
sense corrects them; the layer is then X W_q. In float16 X costs 16 out / in bits per weight, little for few outputs.

    python examples/layerwise_reconstruction.py [--quick]
"""

from __future__ import annotations

import argparse
import functools
import statistics

import torch
from _measure import PAIRS, memory_row, print_table, seconds, time_row
from sklearn.datasets import load_digits
from torch import Tensor, nn

import matconv_fast as mcf

IN, OUT = 1024, 64
RIDGE = 0.02  # of the largest singular value: how strongly X is kept near the identity, where it starts


def trained(images: Tensor, labels: Tensor, steps: int) -> nn.Sequential:
    """A trained MLP, whose middle layer has most of the weights."""
    net = nn.Sequential(nn.Linear(64, IN), nn.ReLU(), nn.Linear(IN, OUT), nn.ReLU(), nn.Linear(OUT, 10))
    adam = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (256,))
        adam.zero_grad()
        nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
        adam.step()
    return net.requires_grad_(False)


def rounded(W: Tensor, bits: int) -> Tensor:
    """Each weight rounded to the nearest of the levels of `bits` bits, with one scale per row."""
    top = 2 ** (bits - 1) - 1
    scale = W.abs().amax(1, keepdim=True) / top
    return (W / scale).round() * scale


def equation(W: Tensor, W_q: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """M and Y of X @ M = Y: the layer's outputs, and next to them r X = r I, which keeps M well conditioned."""
    r = RIDGE * torch.linalg.matrix_norm(W_q @ A, 2)
    return torch.cat([W_q @ A, r * torch.eye(OUT)], 1), torch.cat([W @ A, r * torch.eye(OUT)], 1)


def correct(M: Tensor, Y: Tensor, iterations: int) -> mcf.Solution:
    """X, from the identity. There is no exact solution: it runs all iterations, towards the least-squares one."""
    solver = mcf.HeavyBall(momentum="auto")
    return mcf.solve(M, Y, torch.eye(OUT), solver=solver, rtol=0, max_iters=iterations, patience=iterations)


def plain_correct(M: Tensor, Y: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The same iterations in plain PyTorch, with the same lr and momentum: X, and the loss before each update."""
    s = torch.linalg.eigvalsh(M.double() @ M.double().mT).sqrt()
    low, high, c = float(s[0]), float(s[-1]), 2 / Y.numel()
    lr = (3 + (low / high) ** 2) / (c * (low + high) ** 2)
    momentum = (1 - low * (c * lr) ** 0.5) ** 2
    X, V, losses = torch.eye(OUT), torch.zeros(OUT, OUT), []
    for _ in range(iterations):
        R = X @ M - Y
        losses.append(R.square().mean())
        V = momentum * V + c * (R @ M.mT)
        X = X - lr * V
    return X, torch.stack(losses)


def main(quick: bool) -> None:
    """Train, quantize, correct, and measure the fit."""
    torch.manual_seed(314)
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(images))
    seen, held = order[:1400], order[1400:]
    net = trained(images[seen], labels[seen], 40 if quick else 150)
    A, A_held, W = net[:2](images[seen]).mT, net[:2](images[held]).mT, net[2].weight.clone()

    def tried(name: str, bits: float, weight: Tensor) -> tuple[str, ...]:
        net[2].weight.copy_(weight)
        error = float(mcf.distance(weight @ A_held, W @ A_held) / (W @ A_held).norm())
        right = float((net(images[held]).argmax(1) == labels[held]).float().mean())
        return name, f"{bits:g}", f"{error:.2%}", f"{right:.1%}"

    iterations = 300 if quick else 600
    rows, cost = [tried("float32", 32, W)], 16 * OUT / IN
    for bits in (2, 3, 4):
        W_q = rounded(W, bits)
        X = correct(*equation(W, W_q, A), iterations).X.half().float()
        rows += [tried(f"{bits} bits", bits, W_q), tried(f"{bits} bits, corrected", bits + cost, X @ W_q)]
    print(f"the layer {IN} -> {OUT} on {len(held)} digits that were used neither for training nor for the fit:")
    print_table(rows, ("", "bits a weight", "error of outputs", "accuracy"))

    M, Y = equation(W, rounded(W, 3), A)
    sol, (X, losses) = correct(M, Y, iterations), plain_correct(M, Y, iterations)
    gap = float(mcf.distance(sol.X, X) / X.norm())
    print(f"\nthe fit for 3 bits: X {OUT} x {OUT}, M {M.shape[0]} x {M.shape[1]:,}, {iterations:,} iterations; "
          f"loss {losses[0]:.2e} -> {sol.loss:.2e}")  # fmt: skip
    print(f"plain loop and mcf.solve: X differs by {gap:.1e} of its norm")
    assert gap < 1e-3
    once = statistics.median(seconds(lambda: torch.linalg.lstsq(M.mT, Y.mT)) for _ in range(PAIRS))
    plain, here = (functools.partial(fit, M, Y, iterations) for fit in (plain_correct, correct))
    print_table([time_row("time", plain, here), memory_row("peak memory", plain, here)])
    print(f"Memory: M is {M.nbytes / 2**20:.1f} MiB; both sides hold a few copies of it, so little is saved.")
    print(f"torch.linalg.lstsq instead: {once * 1e3:.1f} ms. Use it for a single exact fit.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a run of a few seconds")
    main(parser.parse_args().quick)
