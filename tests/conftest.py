"""Fixtures shared by the suite: every test that takes `backend` runs once on each backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch

from matconv_fast._ops import backend as backend_module


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set MATCONV_FAST_BACKEND as if the process had just started: it is read once, and a warning is given once."""

    def forget() -> None:
        for cached in ("forced", "has_native", "of", "announce"):
            getattr(backend_module, cached).cache_clear()

    def set_to(value: str) -> None:
        monkeypatch.setenv("MATCONV_FAST_BACKEND", value)
        forget()

    yield set_to
    monkeypatch.undo()
    forget()


def _patch_triton_once() -> None:
    """Patch ``triton.language`` for the interpreter once.

    The interpreter does it at each launch and at each call of a device function, which takes 3 ms: most of its time.
    """
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
    np.seterr(all="ignore")  # a GPU does not warn that infinity - infinity is NaN

# With TRITON_INTERPRET=1 the Triton kernels are one more backend: `make test-triton` selects its tests.
BACKENDS = ["reference", "cpu", *(["triton"] if backend_module.INTERPRETED else [])]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, force: Callable[[str], None]) -> str:
    """Force one backend: the same tests run on the kernels and on the reference."""
    if request.param == "triton" and request.node.get_closest_marker("long"):
        pytest.skip("thousands of iterations or calls take the interpreter minutes")
    force(request.param)
    return request.param


@pytest.fixture
def reference(force: Callable[[str], None]) -> None:
    """Force the reference, for solvers that have no kernels."""
    force("reference")


@pytest.fixture
def native(force: Callable[[str], None]) -> None:
    """The C++ kernels serve the operators. Without the extension the test fails: the reference would pass it."""
    force("cpu")
    assert backend_module.of("cpu") == "cpu"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
