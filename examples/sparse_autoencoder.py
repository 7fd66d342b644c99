"""A sparse autoencoder on the digits, whose decoder never holds the difference to the data: ``mcf.residual_loss``.

Codes X = relu(Y @ W_enc + b), of which most are zero, times a dictionary M give the data Y back. Training asks for the
loss ||X @ M - Y||^2 and its gradients, not for X @ M itself: plain PyTorch holds that in memory, the squared errors and
the gradient, each as large as the batch. Here the loss works through it block by block.

    python examples/sparse_autoencoder.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _measure import memory_row, print_table, time_row
from sklearn.datasets import load_digits
from torch import Tensor, nn

import matconv_fast as mcf

SIDE = 48  # pixels: digits of 8 x 8, enlarged fourfold, somewhere on a canvas of 48 x 48
ATOMS = 128
L1 = 0.02


def canvas(rows: int) -> Tensor:
    """`rows` digits, each enlarged and shifted at random, as ``[rows, SIDE * SIDE]`` in 0 to 1."""
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(images, scale_factor=4, mode="bilinear")[:, 0]
    out = torch.zeros(rows, SIDE, SIDE)
    for k, (dy, dx) in enumerate(torch.randint(0, SIDE - 32 + 1, (rows, 2)).tolist()):
        out[k, dy : dy + 32, dx : dx + 32] = images[k % len(images)]
    return out.flatten(1)


class SparseAutoencoder(nn.Module):
    """Codes of a batch, and the dictionary that they choose from."""

    def __init__(self, pixels: int, atoms: int) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(torch.randn(pixels, atoms) / pixels**0.5)
        self.b = nn.Parameter(torch.zeros(atoms))
        self.W_dec = nn.Parameter(torch.randn(atoms, pixels) / atoms**0.5)

    def forward(self, Y: Tensor) -> Tensor:
        """The codes X, ``[rows, atoms]``."""
        return torch.relu(torch.addmm(self.b, Y, self.W_enc))


def plain_loss(X: Tensor, M: Tensor, Y: Tensor) -> Tensor:
    """As it is written everywhere."""
    return nn.functional.mse_loss(X @ M, Y)


def trainer(loss: Callable[[Tensor, Tensor, Tensor], Tensor], Y: Tensor) -> tuple[SparseAutoencoder, Callable]:
    """A model from seed 0, and a function that makes one step of its training and returns both parts of the loss."""
    torch.manual_seed(0)
    model = SparseAutoencoder(Y.shape[1], ATOMS)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)

    def step() -> tuple[Tensor, Tensor]:
        adam.zero_grad()
        X = model(Y)
        reconstruction, sparsity = loss(X, model.W_dec, Y), X.mean()  # no code is negative: the mean is the L1 norm's
        (reconstruction + L1 * sparsity).backward()
        adam.step()
        return reconstruction.detach(), sparsity.detach()

    return model, step


def main(quick: bool) -> None:
    """Check that both ways train alike, train, measure."""
    torch.manual_seed(314)
    Y = canvas(512 if quick else 2048)
    model, here = trainer(mcf.residual_loss, Y)
    _, plain = trainer(plain_loss, Y)
    losses = [(here()[0], plain()[0]) for _ in range(5)]
    largest = max(float((a - b).abs() / b) for a, b in losses)
    print(f"five steps of both: losses differ by at most {largest:.1e} of themselves")
    assert largest < 1e-4

    curve = [here()[0] for _ in range(20 if quick else 60)]
    print(f"reconstruction loss: first {losses[0][0]:.4f}, after {len(curve) + 5} steps {curve[-1]:.4f}")
    print(f"codes that are zero: {float((model(Y) == 0).float().mean()):.0%} of {ATOMS} an image\n")

    print(f"one training step: {len(Y):,} images of {Y.shape[1]:,} pixels, {ATOMS} atoms; "
          f"X @ M - Y would be {Y.nbytes / 2**20:.1f} MiB")  # fmt: skip
    print_table([time_row("time", plain, here), memory_row("peak memory", plain, here)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a run of a few seconds")
    main(parser.parse_args().quick)
