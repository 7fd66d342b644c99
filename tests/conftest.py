"""Fixtures shared by the suite: every test that takes `backend` runs once on each implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch

from matconv_fast._ops import backend as backend_module


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set MATCONV_FAST_BACKEND as if the process had just started: it is read once, and some things are said once."""

    def forget() -> None:
        backend_module.forced.cache_clear()
        backend_module.has_native.cache_clear()
        backend_module.has_kernels.cache_clear()
        backend_module.of.cache_clear()
        backend_module.announce.cache_clear()

    def set_to(value: str) -> None:
        monkeypatch.setenv("MATCONV_FAST_BACKEND", value)
        forget()

    yield set_to
    monkeypatch.undo()
    forget()


def _patch_triton_once() -> None:
    """The interpreter replaces the functions of ``triton.language`` at each launch, and at each call of one device
    function by another: 3 ms every time, most of what interpreting costs. Here all of Triton is interpreted, always."""
    from triton.runtime import interpreter

    class Forever:
        def restore(self) -> None:
            pass

    patch, patched = interpreter._patch_lang, set()

    def patch_once(function: FunctionType) -> Forever:
        visible = frozenset(
            value.__name__
            for value in function.__globals__.values()
            if isinstance(value, ModuleType) and value.__name__.startswith("triton.language")
        )
        if visible not in patched:
            patched.add(visible)
            patch(function)
        return Forever()

    interpreter._patch_lang = patch_once


if backend_module.INTERPRETED:
    _patch_triton_once()
    np.seterr(all="ignore")  # infinity - infinity is NaN on a GPU, too, and no warning

# With TRITON_INTERPRET=1 the Triton kernels are one more implementation: `make test-triton` takes its tests.
BACKENDS = ["reference", "cpu", *(["triton"] if backend_module.INTERPRETED else [])]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, force: Callable[[str], None]) -> str:
    """Force one implementation; the kernels' own suite and the reference's are the same tests."""
    if request.param == "triton" and request.node.get_closest_marker("long"):
        pytest.skip("thousands of iterations or calls take the interpreter minutes")
    force(request.param)
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
