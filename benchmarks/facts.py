"""What figures depend on."""

from __future__ import annotations

import functools
import platform
import re
from typing import Any

import torch

import matconv_fast as mcf
from matconv_fast._ops.info import installed_version


def slug() -> str:
    """Folder of the results of this kind of processor: cpu-avx2."""
    isa = re.search(r"generic|avx2|avx512", mcf.info().devices[0].path)
    return f"cpu-{isa.group() if isa else 'reference'}"


@functools.cache
def facts() -> dict[str, Any]:
    """Device, path, threads, versions."""
    versions = {name: installed_version(name) for name in ("matconv_fast", "torch", "jax", "numpy")}
    versions["python"] = platform.python_version()
    here = mcf.info().devices[0]
    return {"device": f"{here.name}; path: {here.path}", "threads": torch.get_num_threads(), "versions": versions}
