"""torch.compile and torch.export: one graph around our operators, and the numbers of eager."""

from __future__ import annotations

import pytest
import torch
from problems import well_conditioned

import matconv_fast as mcf
from matconv_fast._ops import backend as backend_module

pytestmark = [
    pytest.mark.skipif(not backend_module.has_native(), reason="a compiled function on a CPU holds the C++ kernels"),
    # of the compiler's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*TensorFloat32.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tensors(*batch, n=4, dtype=torch.float32):
    shapes = (3, n), (3, n), (n, 5), (3, 5)
    return [rand(*batch, *shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]


FUNCTIONS = {
    "loss": lambda X, V, M, Y: mcf.residual_loss(X, M, Y),
    "loss fro": lambda X, V, M, Y: mcf.residual_loss(X, M, Y, loss="fro"),
    "loss without M": lambda X, V, M, Y: mcf.residual_loss(X, None, V, loss="sse"),
    "module": lambda X, V, M, Y: mcf.ResidualLoss("sse")(X, M, Y),
    "step": lambda X, V, M, Y: mcf.heavy_ball_step(X, V, M, Y, lr=0.1, momentum=0.9),
    "step fro": lambda X, V, M, Y: mcf.heavy_ball_step(X, V, M, Y, lr=0.1, momentum=0.9, loss="fro"),
    "distance": lambda X, V, M, Y: mcf.distance(X, V),
    "distance max": lambda X, V, M, Y: mcf.distance(X, V, ord="max"),
    "distance 1": lambda X, V, M, Y: mcf.distance(X, V, ord=1),
}
OPERATORS = {"loss": "residual_loss", "modu": "residual_loss", "step": "residual_products", "dist": "distance"}


class Graphs:
    """A backend that runs graphs as they are, and keeps them."""

    def __init__(self):
        self.graphs = []

    def __call__(self, module, inputs):
        self.graphs.append(module)
        return module.forward

    def operators(self):
        return {str(node.target) for graph in self.graphs for node in graph.graph.nodes if node.op == "call_function"}


def gradients(function, inputs):
    """What it returns, and the gradients of a mixture of that."""
    inputs = [t.clone().requires_grad_() for t in inputs]
    result = function(*inputs)
    results = result if isinstance(result, tuple) else (result,)
    mixture = sum((k + 1) * (r * r).sum() for k, r in enumerate(results))
    return [r.detach() for r in results], torch.autograd.grad(mixture, inputs, allow_unused=True)


@pytest.mark.parametrize(("batch", "dynamic"), [((), False), ((2, 3), True)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_equals_eager(name, batch, dynamic):
    """Values and gradients, in one graph; with dynamic shapes the second size is served by the same graph."""
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (4, 6):
        inputs = tensors(*batch, n=n)
        torch.testing.assert_close(gradients(compiled, inputs), gradients(FUNCTIONS[name], inputs))
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (1 if dynamic else 2)


@pytest.mark.parametrize("name", ["loss", "step", "distance"])
def test_inductors_code_equals_eager(name):
    inputs = tensors(2)
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), FUNCTIONS[name](*inputs))
    torch.testing.assert_close(gradients(compiled, inputs), gradients(FUNCTIONS[name], inputs))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_graph_holds_the_operator(name):
    """And not the product that the operator never writes out."""
    graphs = Graphs()
    torch.compile(FUNCTIONS[name], fullgraph=True, backend=graphs)(*tensors())
    found = graphs.operators()
    assert f"matconv_fast.{OPERATORS[name[:4]]}.default" in found
    assert not any("matmul" in operator for operator in found)


@pytest.mark.parametrize(("loss", "backend_name"), [("mse", "inductor"), ("sse", "aot_eager"), ("fro", "aot_eager")])
def test_a_step_in_place(loss, backend_name):
    def steps(X, V, M, Y):
        losses = [mcf.heavy_ball_step_(X, V, M, Y, lr=0.1, momentum=0.9, loss=loss) for _ in range(3)]
        return torch.stack(losses)

    graphs = Graphs()
    torch.compile(steps, fullgraph=True, backend=graphs)(*tensors())
    assert "matconv_fast.heavy_ball_step_.default" in graphs.operators()
    torch.compiler.reset()
    mine, eager = tensors(), tensors()
    losses = torch.compile(steps, fullgraph=True, backend=backend_name)(*mine)
    torch.testing.assert_close((losses, mine), (steps(*eager), eager))


def test_a_step_that_reads_what_it_writes():
    def step(X, V, Y):
        return mcf.heavy_ball_step_(X, V, X, Y, lr=0.1, momentum=0.9)

    mine, eager = ([rand(4, 4), rand(4, 4, seed=1), rand(4, 4, seed=2)] for _ in range(2))
    before = torch.compile(step, fullgraph=True)(*mine)
    torch.testing.assert_close((before, mine), (step(*eager), eager))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    def loss(X, M, Y):
        return mcf.residual_loss(X, M, Y)

    X, _, M, Y = tensors(dtype=dtype)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, (X, M, Y)), gradients(loss, (X, M, Y)))


def test_lr_as_a_tensor_that_learns():
    def loss(X, V, M, Y, lr):
        X, V, _ = mcf.heavy_ball_step(X, V, M, Y, lr=lr, momentum=0.9)
        return mcf.residual_loss(X, M, Y)

    inputs = [*tensors(), torch.tensor(0.1)]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, inputs), gradients(loss, inputs))


def test_what_broadcasts_gets_plain_operators():
    X, _, M, Y = tensors(2)
    graphs = Graphs()
    value = torch.compile(mcf.residual_loss, fullgraph=True, backend=graphs)(X, M[0], Y)
    torch.testing.assert_close(value, mcf.residual_loss(X, M[0], Y))
    assert not any("matconv_fast" in operator for operator in graphs.operators())


def test_inside_a_compiled_vmap_and_grad():
    X, _, M, Y = tensors(3)

    def per_problem(X):
        return torch.func.vmap(torch.func.grad(lambda x, m, y: mcf.residual_loss(x, m, y)))(X, M, Y)

    compiled = torch.compile(per_problem, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), per_problem(X))


def test_is_close():
    A, B = rand(3, 4), rand(3, 4) + 1e-4
    compiled = torch.compile(lambda A, B: mcf.is_close(A, B, rtol=1e-2), fullgraph=True, backend="aot_eager")
    assert compiled(A, B)
    assert not compiled(A, B + 1)


def test_errors_are_those_of_eager():
    compiled = torch.compile(lambda X, M: mcf.residual_loss(X, M), backend="eager")
    with pytest.raises(ValueError, match="X @ M does not multiply"):
        compiled(rand(3, 4), rand(5, 3))


@pytest.mark.parametrize("function", [mcf.solve, mcf.inv], ids=["solve", "inv"])
def test_a_solve_breaks_the_graph_once(function):
    def work(M):
        solution = function(2 * M, rtol=1e-6)
        return solution.X + 1, solution.iterations

    M = well_conditioned(4, dtype=torch.float32)
    graphs = Graphs()
    torch._dynamo.utils.counters.clear()
    found = torch.compile(work, backend=graphs)(M)
    for a, b in zip(found, work(M), strict=True):
        assert torch.equal(a, b)
    (reason,) = torch._dynamo.utils.counters["graph_break"]  # once for `work`, once for what it calls
    assert "matconv_fast.solve iterates" in reason
    assert 1 <= len(graphs.graphs) <= 2  # what comes before, and what comes after; nothing of the iteration itself
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"matconv_fast\.solve iterates"):
        torch.compile(work, fullgraph=True)(M)


def test_gradients_through_a_solve_in_a_compiled_function():
    def work(M):
        return (mcf.solve(2 * M, solver=mcf.HeavyBall(), rtol=1e-6).X * M).sum()

    M = well_conditioned(4, dtype=torch.float64)
    torch.testing.assert_close(gradients(torch.compile(work, backend="aot_eager"), [M]), gradients(work, [M]))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.M = torch.nn.Parameter(rand(4, 5))
        self.loss = mcf.ResidualLoss("fro")

    def forward(self, X, Y):
        return self.loss(X.tanh(), self.M, Y)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_module_runs_without_this_package(strict):
    """It holds plain PyTorch, for any number of rows."""
    model, (X, _, _, Y) = Model(), tensors()
    rows = torch.export.Dim("rows")
    shapes = {"X": {0: rows}, "Y": {0: rows}}
    program = torch.export.export(model, (X, Y), dynamic_shapes=shapes, strict=strict)
    assert not any("matconv_fast" in str(node.target) for node in program.graph.nodes)
    for count in (2, 3):
        torch.testing.assert_close(program.module()(X[:count], Y[:count]), model(X[:count], Y[:count]))


def test_ahead_of_time_on_a_cpu(tmp_path):
    """AOTInductor: exported, compiled to a shared library, loaded."""
    model, (X, _, _, Y) = Model(), tensors()
    with torch.no_grad():
        program = torch.export.export(model, (X, Y))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(package)(X, Y), model(X, Y))
