"""Time and peak memory of two programs with the same result, measured in turns in one process, as a small table."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matconv_fast as mcf

Call = Callable[[], Any]
PAIRS = 5  # the ratio is the median over the pairs, not the ratio of the two medians
HEADER = (f"medians of {PAIRS} pairs", "plain PyTorch", "matconv_fast", "times less")

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_M_MMAP_THRESHOLD = -3  # of malloc.h
_NOISE = 2**18  # bytes that the interpreter adds to a peak, or not


def seconds(call: Call, repeats: int = 1) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def paired_seconds(plain: Call, here: Call, pairs: int = PAIRS, repeats: int = 1) -> list[tuple[float, float]]:
    """Seconds of both, after one call of each that is not timed; the order alternates from pair to pair."""
    plain()
    here()
    found = []
    for k in range(pairs):
        if k % 2:
            b = seconds(here, repeats)
            found.append((seconds(plain, repeats), b))
        else:
            found.append((seconds(plain, repeats), seconds(here, repeats)))
    return found


def peak_bytes(call: Call) -> int | None:
    """Peak memory of the process during the call, above what it held before; None on a system that does not report it.

    On Linux, writing 5 to clear_refs resets the peak resident set size (VmHWM). Memory that the allocator has kept is
    returned to the system first; the call could use it without raising the peak. From here on, blocks of 64 KiB or more
    are mapped one by one, because gaps between blocks would count. Mapping takes time, so measure times first.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**16)
        libc.malloc_trim(0)
        _CLEAR.write_text("5")
        before = _high_water()
        call()
        return _high_water() - before
    except (OSError, AttributeError):
        return None


def _high_water() -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def time_row(name: str, plain: Call, here: Call, pairs: int = PAIRS, repeats: int = 1) -> tuple[str, ...]:
    """A row of the table: median seconds of both, and the median ratio."""
    found = paired_seconds(plain, here, pairs, repeats)
    a, b = (statistics.median(column) for column in zip(*found, strict=True))
    return name, _time(a), _time(b), _ratio(statistics.median(a / b for a, b in found))


def memory_row(name: str, plain: Call, here: Call, pairs: int = PAIRS) -> tuple[str, ...]:
    """A row of the table: median peaks of both, the first one left out, and their ratio if both are above noise."""

    def measure() -> list[tuple[int | None, int | None]]:
        return [(peak_bytes(plain), peak_bytes(here)) for _ in range(pairs + 1)][1:]

    with ThreadPoolExecutor(1) as thread:  # its heap is new; with the gaps in this thread's heap, 2 MiB became 50
        peaks = thread.submit(measure).result()
    if any(peak is None for pair in peaks for peak in pair):
        return name, "-", "-", "-"
    a, b = (statistics.median(column) for column in zip(*peaks, strict=True))
    return name, _size(a), _size(b), _ratio(a / b) if min(a, b) > _NOISE else "-"


def _time(value: float) -> str:
    unit, name = next(((u, n) for u, n in ((1, "s"), (1e-3, "ms")) if value >= u), (1e-6, "us"))
    return f"{value / unit:.3g} {name}" if value / unit < 100 else f"{value / unit:.0f} {name}"


def _size(value: float) -> str:
    return f"{value / 2**20:.1f} MiB" if value > _NOISE else f"< {_NOISE / 2**20:.2f} MiB"


def _ratio(value: float) -> str:
    return f"{value:.0f}x" if value >= 100 else f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def print_table(rows: list[tuple[str, ...]], header: tuple[str, ...] = HEADER) -> None:
    """Print aligned columns; below the table of savings, say why if a time is no shorter."""
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
    for row in (header, *rows):
        cells = (c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        print("  ".join(cells).rstrip())
    if header is HEADER and any(row[0].startswith("time") and float(row[-1].removesuffix("x")) < 1 for row in rows):
        if mcf.info().devices[0].backend.startswith("reference"):
            print("Below 1: the PyTorch reference ran, not the C++ kernels; `python -m matconv_fast info` says why.")
        else:
            print("Below 1: other programs probably use the cores, and the threads of a kernel wait for each other.")
