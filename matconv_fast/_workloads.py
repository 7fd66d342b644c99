"""The workloads that tests, demo and benchmarks share, and the plain PyTorch loops that people write for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Enough that the fixed cost of a call is small beside its iterations. At 1,024 and 2,048 also the loss of the last X,
# one more product.
SQUARE_ITERATIONS = {
    4: 10_000, 8: 10_000, 16: 10_000, 32: 10_000, 64: 10_000, 128: 2_000, 256: 400, 512: 100, 1024: 40, 2048: 20
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Descent:
    """Heavy ball on ``mean((X @ M - Y)^2)`` from X0: one problem, or a batch with one lr per problem.

    With ``rtol=0`` it runs all its iterations.
    """

    name: str
    M: Tensor
    Y: Tensor
    X0: Tensor
    lr: float | Tensor
    momentum: float
    iterations: int
    rtol: float = 0.0

    def double(self) -> Descent:
        """The same problem in float64."""
        lr = self.lr.double() if isinstance(self.lr, Tensor) else self.lr
        return replace(self, M=self.M.double(), Y=self.Y.double(), X0=self.X0.double(), lr=lr)


@dataclass(frozen=True, eq=False)
class NotebookRun:
    """One of the notebook's four runs: momentum descent on ``mean((X @ M - I)^2)``, 4 x 4 in float32."""

    name: str
    M: Tensor
    lr: float
    momentum: float
    iterations: int = 10_000

    @property
    def X0(self) -> Tensor:
        """The start, ``rand(4, 4)`` under seed 314."""
        generator = torch.Generator().manual_seed(314)
        return torch.rand(4, 4, generator=generator).to(self.M.device)

    @property
    def Y(self) -> Tensor:
        """The identity."""
        return torch.eye(4, device=self.M.device)

    def descent(self) -> Descent:
        """The same run as a `Descent`."""
        return Descent(self.name, self.M, self.Y, self.X0, self.lr, self.momentum, self.iterations)


def notebook_runs(device: torch.device | str = "cpu") -> list[NotebookRun]:
    """N1 to N4.

    The notebook's random M was drawn unseeded; here it is ``rand(4, 4)`` under seed 17, the first seed whose condition
    number is under 30 (19.7) and whose N4 is still falling after 10,000 iterations, as the notebook's was.
    """
    diagonal = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])).to(device)
    random = torch.rand(4, 4, generator=torch.Generator().manual_seed(17)).to(device)
    return [
        NotebookRun("N1", diagonal, lr=0.9, momentum=0.9),
        NotebookRun("N2", random, lr=0.9, momentum=0.9),
        NotebookRun("N3", diagonal, lr=0.9, momentum=0.1),
        NotebookRun("N4", random, lr=0.9, momentum=0.1),
    ]


def notebook_loop(run: NotebookRun | Descent) -> tuple[Tensor, Tensor]:
    """The notebook's own loop, with autograd. Returns X, and the loss before each update."""
    X = run.X0.clone().requires_grad_()
    velocity = X.grad = torch.zeros_like(X)  # backward() adds the gradient to it
    Y = run.Y
    losses = []
    for _ in range(run.iterations):
        loss = ((X @ run.M - Y) ** 2).mean()
        loss.backward()
        losses.append(loss.detach())
        with torch.no_grad():
            X -= run.lr * velocity
            velocity *= run.momentum
    return X.detach(), torch.stack(losses)


def question(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """A and B of the question "how do I iterate until A equals B?": ``rand(5, 5)`` each, under seed 0."""
    generator = torch.Generator().manual_seed(0)
    A, B = torch.rand(2, 5, 5, generator=generator).to(device)
    return A, B


def random_step(A: Tensor) -> Tensor:
    """The update of Q1 and Q2: a random walk that uses torch's global generator."""
    return A + 0.1 * torch.randn_like(A)


def loop_until(
    stop: Callable[[Tensor, Tensor], bool], A: Tensor, B: Tensor, max_iters: int = 100
) -> tuple[Tensor, int]:
    """The plain loop of Q1 and Q2: update until ``stop(A, B)``. Returns A and the number of updates."""
    for iteration in range(max_iters):
        if stop(A, B):
            return A, iteration
        A = random_step(A)
    return A, max_iters


def equal(A: Tensor, B: Tensor) -> bool:
    """The stopping test of Q1."""
    return torch.equal(A, B)


def near(A: Tensor, B: Tensor) -> bool:
    """The stopping test of Q2."""
    return bool(torch.linalg.norm(A - B) < 1e-6)


def adam_loop(A: Tensor, B: Tensor, max_iters: int = 100) -> tuple[Tensor, int]:
    """The plain loop of Q3: Adam on a copy of A, loss ``||A - B||_F``. Returns A and the number of updates."""
    A = A.clone().requires_grad_()
    optimizer = torch.optim.Adam([A], lr=0.01)
    for iteration in range(max_iters):
        optimizer.zero_grad()
        loss = torch.linalg.norm(A - B)
        if loss.item() < 1e-6:
            return A.detach(), iteration
        loss.backward()
        optimizer.step()
    return A.detach(), max_iters


def _curved(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``M = A A^T / n + I`` with A of `shape`, and lr = 0.9 / curvature of the loss, ``2 ||M||_2^2 / numel(Y)``."""
    n = shape[-1]
    A = torch.randn(*shape, generator=generator)
    M = A @ A.mT / n + torch.eye(n)
    largest = torch.linalg.eigvalsh(M)[..., -1]  # M is symmetric positive definite: its 2-norm
    return M, 0.9 * n * n / (2 * largest**2)


def square(n: int, iterations: int | None = None) -> Descent:
    """S: one n x n problem."""
    generator = torch.Generator().manual_seed(0)
    M, lr = _curved((n, n), generator)
    X0 = torch.rand(n, n, generator=generator)
    return Descent(f"S{n}", M, torch.eye(n), X0, lr.item(), 0.9, iterations or SQUARE_ITERATIONS[n])


def batch(problems: int = 10_000, n: int = 8, iterations: int = 2_000, rtol: float = 1e-5) -> Descent:
    """B8: 8 x 8 problems that stop one by one, each with its own M and lr; with other arguments, B64."""
    generator = torch.Generator().manual_seed(0)
    M, lr = _curved((problems, n, n), generator)
    X0 = torch.rand(problems, n, n, generator=generator)
    return Descent(f"B{n}", M, torch.eye(n), X0, lr, 0.9, iterations, rtol)


def tall(m: int = 8192, n: int = 256, iterations: int = 200) -> Descent:
    """T256: many rows, X m x n, on one n x n matrix."""
    generator = torch.Generator().manual_seed(0)
    M, lr = _curved((n, n), generator)
    X0, Y = torch.rand(2, m, n, generator=generator)
    return Descent(f"T{n}", M, Y, X0, lr.item() * m / n, 0.9, iterations)


def wide(m: int = 64, n: int = 256, p: int = 100_000, iterations: int = 500) -> Descent:
    """R, a regression: few unknowns, many samples (p)."""
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(n, p, generator=generator)
    Y, X0 = torch.randn(m, p, generator=generator), torch.rand(m, n, generator=generator)
    curvature = 2 * torch.linalg.eigvalsh(M @ M.mT)[-1].item() / (m * p)
    return Descent("R", M, Y, X0, 0.9 / curvature, 0.9, iterations)


def partly_stopped(work: Descent, share: float) -> Descent:
    """`work` with a `share` of its problems, drawn at random, that run all iterations; the others stop at once.

    Those have ``X0 = Y = 0``, whose residual is exactly 0 however it is computed.
    """
    problems = len(work.M)
    drawn = torch.randperm(problems, generator=torch.Generator().manual_seed(0))
    stopped = (drawn >= round(share * problems)).view(-1, 1, 1)
    return replace(work, X0=work.X0.masked_fill(stopped, 0), Y=work.Y.masked_fill(stopped, 0), rtol=0.0)


@dataclass(frozen=True, eq=False)
class LossInputs:
    """F: `residual_loss` with its gradients, as training code uses it."""

    X: Tensor
    M: Tensor
    Y: Tensor


def loss_inputs(m: int = 4096, n: int = 256, p: int = 8192) -> LossInputs:
    """F in its size for a CPU; other arguments for a smaller one."""
    generator = torch.Generator().manual_seed(0)
    X, M, Y = (torch.randn(shape, generator=generator) for shape in ((m, n), (n, p), (m, p)))
    return LossInputs(X, M, Y)


def pair(n: int) -> tuple[Tensor, Tensor]:
    """D: two n x n matrices to compute the distance of."""
    A, B = torch.randn(2, n, n, generator=torch.Generator().manual_seed(0))
    return A, B


@dataclass(frozen=True, eq=False)
class Equation:
    """A: an equation to be answered, without a path to follow: an inverse where Y is None.

    An answer counts whose ``||X @ M - Y||``, in float64, is at most ``rtol ||Y||`` or ``1 + rtol`` times the least.
    """

    name: str
    M: Tensor
    Y: Tensor | None = None
    rtol: float = 1e-5
    drift: tuple[Tensor, ...] = ()  # to be inverted in place of M, each from the inverse before; the first from M's
    ridge: float = 0.0

    def whole(self) -> tuple[Tensor, Tensor]:
        """M and Y, with ``sqrt(ridge)`` times the identity, and zeros, as further columns."""
        n = self.M.shape[-2]
        Y = torch.eye(n) if self.Y is None else self.Y
        if not self.ridge:
            return self.M, Y
        return torch.cat([self.M, self.ridge**0.5 * torch.eye(n)], 1), torch.cat([Y, torch.zeros(len(Y), n)], 1)


def inverses(name: str, problems: int, n: int) -> Equation:
    """A4 and A64: a batch of matrices of normal numbers, with condition numbers up to 100."""
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(2 * problems, n, n, generator=generator) + (n > 16) * 2 * n**0.5 * torch.eye(n)
    return Equation(name, M[torch.linalg.cond(M) < 100][:problems].contiguous())


def inverses_of_batch(name: str) -> Equation:
    """A8: those of B8."""
    return Equation(name, batch().M)


def dense(name: str, n: int) -> Equation:
    """A256 and A1024: one matrix with singular values between 1 and 3."""
    M = torch.randn(n, n, generator=torch.Generator().manual_seed(0)) / n**0.5 + 2 * torch.eye(n)
    return Equation(name, M)


def regression(name: str, m: int, n: int, p: int) -> Equation:
    """Areg and Awide: few unknowns, many samples; the least-squares solution is asked for."""
    generator = torch.Generator().manual_seed(0)
    return Equation(name, torch.randn(n, p, generator=generator), torch.randn(m, p, generator=generator))


def covariance(name: str, n: int, steps: int = 3) -> Equation:
    """Akfac: the damped covariance of n features, condition number some 150, and how it drifts as samples come in."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -1, n)
    found: list[Tensor] = []
    for _ in range(steps + 1):
        A = spread * torch.randn(4 * n, n, generator=generator)
        new = A.mT @ A / len(A)
        found.append(new if not found else 0.99 * found[-1] + 0.01 * new)
    damped = [C + 0.01 * torch.eye(n) for C in found]
    return Equation(name, damped[0], drift=tuple(damped[1:]))


def quantized(name: str, inputs: int = 128, outputs: int = 64, bits: int = 3) -> Equation:
    """Agptq: a correction of weights rounded to 3 bits, on a layer's activations for scikit-learn's digits."""
    from sklearn.datasets import load_digits

    generator = torch.Generator().manual_seed(0)
    images = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 16
    A = torch.relu(images @ torch.randn(images.shape[1], inputs, generator=generator)).mT / 8
    W = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    unit = W.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    rest = (W - (W / unit).round() * unit) @ A
    return Equation(name, A, rest, ridge=1e-2 * float(torch.linalg.matrix_norm(A, 2)) ** 2)


def poisson(name: str, side: int = 30) -> Equation:
    """The five-point Laplacian of a square grid, dense and in float64, and one right-hand side."""
    one = 2 * torch.eye(side) - torch.diag(torch.ones(side - 1), 1) - torch.diag(torch.ones(side - 1), -1)
    M = torch.kron(one, torch.eye(side)) + torch.kron(torch.eye(side), one)
    Y = torch.randn(1, side * side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Equation(name, M.double(), Y, rtol=1e-8)


def samples(name: str, n: int = 200, p: int = 2_000) -> Equation:
    """A random least-squares problem in float64, one right-hand side."""
    generator = torch.Generator().manual_seed(0)
    M, Y = (torch.randn(k, p, generator=generator, dtype=torch.float64) for k in (n, 1))
    return Equation(name, M, Y, rtol=1e-8)
