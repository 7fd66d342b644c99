"""Block shapes by search, if MATCONV_FAST_AUTOTUNE=1: from those of the tables to their neighbours, step by step.

Trials run on tensors of their own. Triton's cache directory (TRITON_CACHE_DIR) keeps the result by GPU, version and
source of the kernel, and problem. So a problem is searched for once, and gets the same shape, and the same bits, from
then on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import triton
from triton.runtime.cache import get_cache_manager
from triton.runtime.errors import TritonError

from . import target
from .advance_tiles import RowTile, SmallTile
from .product_tiles import DistanceTile, ProductTile

Tile = TypeVar("Tile", SmallTile, RowTile, ProductTile, DistanceTile)

WORTH = 0.97  # a faster shape takes at most this share of the time: smaller differences are noise
FILE = "tile.json"
STEPS = 16  # of a trial of `advance`

log = logging.getLogger("matconv_fast")

_found: dict[tuple[Any, ...], Any] = {}


@functools.cache
def requested() -> bool:
    """Whether block shapes are searched for; read once a process."""
    return os.environ.get("MATCONV_FAST_AUTOTUNE") == "1"


def best(
    kernel: Any,
    frozen: Tile,
    problem: tuple[Any, ...],
    trial: Callable[[], Callable[[Tile], object]],
    *,
    allowed: Callable[[Tile], bool] = lambda _: True,
) -> Tile:
    """`frozen`, or a faster block shape if a search is requested.

    ``problem``: shapes, dtypes and switches that the time depends on. ``trial()`` makes tensors for trials, and returns
    a function that launches `kernel` on them with a given shape.
    """
    if not requested():
        return frozen
    key = kernel.__name__, frozen, problem
    if key not in _found:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            _cannot_search()
            return frozen
        _found[key] = _stored(kernel, key, lambda: _search(key, trial, allowed))
    return _found[key]


@functools.cache
def _cannot_search() -> None:
    warnings.warn(
        "matconv_fast: MATCONV_FAST_AUTOTUNE=1 cannot search while a CUDA graph is captured, and takes the block "
        "shapes of the tables; make the same call once before the capture",
        RuntimeWarning, stacklevel=4,
    )  # fmt: skip


def _stored(kernel: Any, key: tuple[Any, ...], search: Callable[[], Tile]) -> Tile:
    """The cached result for this problem on this GPU; else what `search` finds, which is written to the cache."""
    gpu = target.current()
    interpreted = gpu.backend == "interpreter"
    device = "" if interpreted else torch.cuda.get_device_name()
    source = "" if interpreted else kernel.cache_key
    name = repr((triton.__version__, gpu, device, source, key))
    cache = get_cache_manager(hashlib.sha256(name.encode()).hexdigest())
    path = cache.get_file(FILE)
    if path is not None:
        return type(key[1])(**json.loads(Path(path).read_text()))
    found = search()
    cache.put(json.dumps(asdict(found)), FILE, binary=False)
    return found


def _search(
    key: tuple[str, Tile, tuple[Any, ...]],
    trial: Callable[[], Callable[[Tile], object]],
    allowed: Callable[[Tile], bool],
) -> Tile:
    """From the frozen shape to its fastest neighbour, and on from there as long as that is faster."""
    name, frozen, problem = key
    run = trial()
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # trials run on a stream of their own
    tile = frozen
    times = {tile: milliseconds(functools.partial(run, tile))}
    while True:
        for other in neighbours(tile):
            if other not in times and allowed(other):
                times[other] = milliseconds(functools.partial(run, other))
        fastest = min(times, key=lambda shape: times[shape])
        if not times[fastest] < WORTH * times[tile]:
            break
        tile = fastest
    log.info("%s %s: %s, %.3g ms for %.3g", name, problem, tile, times[tile], times[frozen])
    return tile


def neighbours(tile: Tile) -> Iterator[Tile]:
    """Shapes with one change: a power of two halved or doubled, a stage more or less, a switch flipped."""
    for name, bounds in tile.free.items():
        value = getattr(tile, name)
        if isinstance(value, bool):
            moves: tuple[int, ...] = (not value,)
        elif name == "stages":
            moves = value - 1, value + 1
        else:
            moves = value // 2, value * 2
        for move in moves:
            if bounds[0] <= move <= bounds[1]:
                yield replace(tile, **{name: move})


def milliseconds(run: Callable[[], object]) -> float:
    """Median time, with warm caches as in an iteration; infinity for what does not compile or fit."""
    try:
        if target.current().backend == "interpreter":
            start = time.perf_counter()
            run()
            return 1000 * (time.perf_counter() - start)
        return triton.testing.do_bench_cudagraph(run, rep=20, return_mode="median")
    except TritonError:
        return math.inf
    except RuntimeError as error:
        if "PassManager" not in str(error):  # a pass of the compiler that gave up
            raise
        return math.inf
