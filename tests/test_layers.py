"""The architecture: imports point down the layers and form no cycle, and functions have few parameters."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_tree import ROOT, sources

import matconv_fast as mcf

# From low to high; a file imports from its own layer and from lower ones, also inside functions. A name that ends in .*
# stands for a package and everything below it that is not listed by itself.
LAYERS = [
    ["kernels.contract"],
    ["kernels.*"],
    ["matconv_fast._reference.*"],
    ["matconv_fast._checks", "matconv_fast._saved"],
    ["matconv_fast._ops.backend"],
    ["matconv_fast._ops.*"],
    [f"matconv_fast.{name}" for name in ("losses", "distance", "step", "precision", "source", "problem")],
    ["matconv_fast.solvers.solver"],
    ["matconv_fast.solvers.*"],
    [f"matconv_fast.solve.{name}" for name in ("status", "options", "progress", "flags", "graph")],
    [f"matconv_fast.solve.{name}" for name in ("checkpoint", "convergence", "history", "phases", "implicit")],
    [f"matconv_fast.solve.{name}" for name in ("run", "diagnosis")],
    ["matconv_fast.solve.loop", "matconv_fast.solve.callback", "matconv_fast.solve.direct"],
    ["matconv_fast.solve.chain", "matconv_fast.solve.bound"],
    ["matconv_fast.plotting"],
    ["matconv_fast.solve.snapshots"],
    ["matconv_fast.solve.solution"],
    ["matconv_fast.solve.engine", "matconv_fast.solve.iterate"],
    ["matconv_fast.solve.untraced"],
    ["matconv_fast.solve.solve"],
    ["matconv_fast.solve"],
    ["matconv_fast._workloads"],
    ["matconv_fast._loops"],
    ["matconv_fast._demo"],
    ["matconv_fast"],
    ["matconv_fast.__main__"],
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def module_of(file: Path, root: Path = ROOT) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank(module: str) -> int:
    """The layer of a module.

    Raises:
        KeyError: it is in none.
    """
    if module in RANKS:
        return RANKS[module]
    package = module
    while f"{package}.*" not in RANKS:
        if "." not in package:
            raise KeyError(f"{module} is in no layer: add it to LAYERS")
        package = package.rpartition(".")[0]
    return RANKS[f"{package}.*"]


def imports(file: Path, root: Path = ROOT) -> set[str]:
    """The modules of ours that a file imports anywhere; those for type checkers alone are left out."""
    package = file.relative_to(root).parts[:-1]
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {ours(alias.name) for alias in node.names if is_ours(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            target = ".".join(part for part in (base, node.module) if part)
            if is_ours(target):
                found |= {ours(f"{target}.{alias.name}", target) for alias in node.names}
    return found


def is_ours(name: str) -> bool:
    return name.split(".")[0] in ("matconv_fast", "kernels")


def ours(name: str, otherwise: str = "") -> str:
    """The module of this name, or ``otherwise`` where the name is that of something inside a module."""
    name, otherwise = (text.replace("matconv_fast.kernels", "kernels") for text in (name, otherwise))
    path = ROOT / Path(*name.split("."))
    return name if not otherwise or path.with_suffix(".py").exists() or path.is_dir() else otherwise


def upward_imports(file: Path, root: Path = ROOT) -> list[str]:
    """The modules of higher layers that a file imports."""
    limit = rank(module_of(file, root))
    return sorted(target for target in imports(file, root) if rank(target) > limit)


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """Modules that import each other in a circle, if there are any."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def import_graph() -> dict[str, set[str]]:
    return {module_of(file): imports(file) - {module_of(file)} for file in sources()}


every_file = pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))


@every_file
def test_imports_point_down_the_layers(file):
    assert upward_imports(file) == []
    if module_of(file).startswith("kernels"):
        assert all(target.startswith("kernels") for target in imports(file))


def test_every_layer_names_modules_that_exist():
    modules = {module_of(file) for file in sources()}
    assert len(modules) > 40
    for name in RANKS:
        assert name.removesuffix(".*") in modules, name
    with pytest.raises(KeyError, match="is in no layer"):
        rank("matconv_fast.utils")
    with pytest.raises(KeyError, match="is in no layer"):
        rank("matconv_fast.solve.utils")


def test_no_module_imports_itself_by_way_of_others():
    assert cycle(import_graph()) is None


def test_an_import_inside_a_function_is_seen(tmp_path):
    """In copies: one that points up the layers, and one that closes a cycle within a layer."""
    assert "matconv_fast.solve.untraced" in imports(ROOT / "matconv_fast" / "solve" / "solve.py")
    for module, statement, target in (
        ("losses", "from .solve import inv", "matconv_fast.solve"),
        ("_ops/plan", "from ..solvers.adam import Adam", "matconv_fast.solvers.adam"),
        ("solve/loop", "from .. import plotting", "matconv_fast.plotting"),
        ("_checks", "import matconv_fast", "matconv_fast"),
    ):
        original, copy = (root / "matconv_fast" / f"{module}.py" for root in (ROOT, tmp_path))
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(original.read_text() + f"\n\ndef planted():\n    {statement}\n")
        assert upward_imports(original) == []
        assert upward_imports(copy, tmp_path) == [target]
    copy = tmp_path / "matconv_fast" / "precision.py"
    copy.write_text("def planted():\n    from .problem import Problem\n")
    assert upward_imports(copy, tmp_path) == []  # of the same layer
    planted = {**import_graph(), "matconv_fast.precision": imports(copy, tmp_path)}
    assert set(cycle(planted)) == {"matconv_fast.precision", "matconv_fast.problem"}


def test_an_import_for_type_checkers_alone_is_none(tmp_path):
    copy = tmp_path / "matconv_fast" / "losses.py"
    copy.parent.mkdir()
    statement = "from .solve.solution import Solution"
    copy.write_text(f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {statement}\n")
    assert imports(copy, tmp_path) == set()
    copy.write_text(statement)
    assert imports(copy, tmp_path) == {"matconv_fast.solve.solution"}


def test_kernels_are_imported_as_part_of_the_package():
    for file in [*sources(), *ROOT.glob("tests/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.split(".")[0] == "kernels" for name in names), file


MOST_PARAMETERS = 8

# Operators' implementations, whose parameters are those of the schema.
MIRROR_A_SCHEMA = {"kernels.gpu.launch.launch_advance", "kernels.gpu.finish_chunk.launch_finish_chunk"}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def parameters(function: ast.FunctionDef, *, public: bool = False) -> int:
    """How many, besides self and cls. Keyword-only options of a public function do not count."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *(() if public else given.kwonlyargs))]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def is_kernel(function: ast.FunctionDef) -> bool:
    """Whether Triton compiles it."""
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


@every_file
def test_no_function_has_more_than_8_parameters(file):
    for function in functions(ast.parse(file.read_text())):
        name = f"{module_of(file)}.{function.name}"
        if not is_kernel(function) and name not in MIRROR_A_SCHEMA:
            count = parameters(function, public=function.name in mcf.__all__)
            assert count <= MOST_PARAMETERS, f"{name} has {count} parameters"


def test_parameters_are_counted():
    source = (
        "def f(self, a, /, b, *c, d, **e): ...\n@triton.jit\ndef g(cls): ...\n@torch.no_grad()\ndef h(a, *, b): ..."
    )
    f, g, h = functions(ast.parse(source))
    assert [parameters(function) for function in (f, g, h)] == [3, 0, 2]
    assert parameters(h, public=True) == 1
    assert [is_kernel(function) for function in (f, g, h)] == [False, True, False]
    names = {f"{module_of(file)}.{f.name}" for file in sources() for f in functions(ast.parse(file.read_text()))}
    assert names >= MIRROR_A_SCHEMA
