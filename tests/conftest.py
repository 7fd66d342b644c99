"""Fixtures shared by the suite: every test that takes `path` runs once on each implementation."""

from __future__ import annotations

import pytest
import torch

from matconv_fast._ops import backend


@pytest.fixture(params=["reference", "cpu"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force one implementation; the kernels' own suite and the reference's are the same tests."""
    monkeypatch.setenv("MATCONV_FAST_BACKEND", request.param)
    backend.announce.cache_clear()  # what is said once a process is said once a test here
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
