"""A sparse autoencoder on handwritten digits that never stores its reconstruction error: ``mcf.residual_loss``.

Codes X = relu(Y @ W_enc + b), most of them zero, times a dictionary M reconstruct the data Y. Training needs the loss
||X @ M - Y||^2 and its gradients, not X @ M itself. Plain PyTorch stores X @ M, the squared errors and their gradient,
each as large as the batch; ``mcf.residual_loss`` computes the loss and the gradients block by block.

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

SIDE = 48  # pixels: 8 x 8 digits, enlarged fourfold, at a random place of a 48 x 48 canvas
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
    """An encoder of images to codes, and the dictionary ``W_dec`` that decodes them."""

    def __init__(self, pixels: int, atoms: int) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(torch.randn(pixels, atoms) / pixels**0.5)
        self.b = nn.Parameter(torch.zeros(atoms))
        self.W_dec = nn.Parameter(torch.randn(atoms, pixels) / atoms**0.5)

    def forward(self, Y: Tensor) -> Tensor:
        """The codes X, ``[rows, atoms]``."""
        return torch.relu(torch.addmm(self.b, Y, self.W_enc))


def plain_loss(X: Tensor, M: Tensor, Y: Tensor) -> Tensor:
    """The usual reconstruction loss."""
    return nn.functional.mse_loss(X @ M, Y)


def trainer(loss: Callable[[Tensor, Tensor, Tensor], Tensor], Y: Tensor) -> tuple[SparseAutoencoder, Callable]:
    """A model from seed 0, and a function that makes one training step and returns both parts of the loss."""
    torch.manual_seed(0)
    model = SparseAutoencoder(Y.shape[1], ATOMS)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)

    def step() -> tuple[Tensor, Tensor]:
        adam.zero_grad()
        X = model(Y)
        reconstruction, sparsity = loss(X, model.W_dec, Y), X.mean()  # X is at least 0: an L1 penalty
        (reconstruction + L1 * sparsity).backward()
        adam.step()
        return reconstruction.detach(), sparsity.detach()

    return model, step


def main(quick: bool) -> None:
    """Check that both losses train alike, train, measure."""
    torch.manual_seed(314)
    Y = canvas(512 if quick else 2048)
    model, here = trainer(mcf.residual_loss, Y)
    _, plain = trainer(plain_loss, Y)
    losses = [(here()[0], plain()[0]) for _ in range(5)]
    largest = max(float((a - b).abs() / b) for a, b in losses)
    print(f"five steps of both: the losses differ by at most {largest:.1e}, relative")
    assert largest < 1e-4

    curve = [here()[0] for _ in range(20 if quick else 60)]
    print(f"reconstruction loss: first {losses[0][0]:.4f}, after {len(curve) + 5} steps {curve[-1]:.4f}")
    print(f"codes that are zero: {float((model(Y) == 0).float().mean()):.0%} of {ATOMS} per image\n")

    print(f"one training step: {len(Y):,} images of {Y.shape[1]:,} pixels, {ATOMS} atoms; "
          f"X @ M - Y would be {Y.nbytes / 2**20:.1f} MiB")  # fmt: skip
    print_table([time_row("time", plain, here), memory_row("peak memory", plain, here)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a run of a few seconds")
    main(parser.parse_args().quick)
