"""``pytest --benchmark-only`` runs the benchmarks and nothing else; plain `pytest` runs the tests alone."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """With no path on the command line, ``--benchmark-only`` means benchmarks/test_speed.py."""
    if config.getoption("benchmark_only", default=False) and config.args_source is config.ArgsSource.TESTPATHS:
        config.args[:] = [str(config.rootpath / "benchmarks" / "test_speed.py")]
