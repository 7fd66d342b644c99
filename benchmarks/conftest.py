"""What the results depend on goes beside them."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import facts
import pytest

# What is compiled is compiled in this run: else its time would be that of a look at the disk.
_compiled = tempfile.TemporaryDirectory(prefix="benchmarks-inductor-", ignore_cleanup_errors=True)
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", _compiled.name)

collect_ignore_glob = ["[!t]*.py"]  # only test_*.py: the other modules have no doctests


def pytest_configure(config: pytest.Config) -> None:
    """A row that is skipped, or that fails, has no times for pytest-benchmark, and its warning would be an error."""
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Processor, device, threads and versions, in place of all that names the machine."""
    kept = {"cpu": machine_info["cpu"].get("brand_raw", ""), "system": machine_info["system"]}
    machine_info.clear()
    machine_info.update(kept, **facts.facts())


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict[str, Any]) -> None:
    """Options are the same for all, parameters are in the name; a row's rounds are in ``extra_info``."""
    output_json["commit_info"] = {key: output_json["commit_info"].get(key) for key in ("id", "time", "dirty")}
    for found in output_json["benchmarks"]:
        for key in ("options", "params", "param", "fullname"):
            found.pop(key, None)


@pytest.fixture(autouse=True)
def machine(benchmark) -> None:
    """In every row."""
    benchmark.extra_info.update(facts.facts())
