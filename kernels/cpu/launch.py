"""Loads the CPU extension, once, and knows which problems its kernels are the faster path for."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

VECTOR_BYTES = {"generic": 16, "avx2": 32, "avx512": 64}  # by instruction set

# Up to this size a problem in a lane takes less time than one by one: at 5, 8, 12, 14 and 16 square 17, 44, 118, 180
# and 253 ns an iteration in lanes, 53, 54, 177, 217 and 222 ns one by one (float32, one run on one Zen 3 core).
LANES_SIZE = 14

# Elements of M from which torch's GEMM is the faster one. With AVX2 the slabs are ahead up to 2,048 square, the largest
# measured (31.6 against 34.6 ms an iteration at 1,024, 235 against 267 at 2,048), but keep two packed copies of M. With
# AVX-512, where MKL is at its best, it is an estimate from the prototype, which drew level with MKL at 256; the generic
# one is a guess. Under some 32 rows a product waits for M, and the slabs are ahead (1.6 times at 16 rows, M 1,024
# square).
GEMM_AREA = {"generic": 128**2, "avx2": 4096**2, "avx512": 768**2}
GEMM_ROWS = 32


@functools.cache
def load() -> str:
    """Load the extension, whose operators register themselves; the name of the instruction set that it picked.

    Raises:
        ImportError: there is no extension here, or it does not load; the message says why.
    """
    wanted = os.environ.get("MATCONV_FAST_ISA", "")
    if wanted and wanted not in VECTOR_BYTES:
        raise ImportError(f"MATCONV_FAST_ISA must be one of {', '.join(VECTOR_BYTES)}, got {wanted!r}")
    found = sorted(Path(__file__).parent.glob("_C*.so")) + sorted(Path(__file__).parent.glob("_C*.pyd"))
    if not found:
        raise ImportError(
            "the C++ extension is not built: the installation found no C++ compiler, or no PyTorch to build against; "
            "reinstall with both present: pip install --no-build-isolation matconv_fast"
        )
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        raise ImportError(f"the C++ extension does not load: {error}") from error
    isa = ctypes.CDLL(str(found[0])).matconv_fast_isa
    isa.restype = ctypes.c_char_p
    return isa().decode()


# The ways in which a kernel can go about `advance`; the order is that of the enum in bindings_advance.cpp.
WAYS = ("lockstep", "alone", "lanes", "gemm")
STOPS_EXACTLY = WAYS
KEEPS_RESIDUAL = ("alone", "gemm")
MANY_LAUNCHES = ()
# Updates that repay a call: it packs M anew and copies the state of each slab, at 1,024 square a fifth of an iteration.
LEAST_UPDATES = {"alone": 16}


def advance_way(
    batch: int, m: int, n: int, p: int, *, product: bool, coupled: bool, lanes: bool, itemsize: int, threads: int
) -> str:
    """The fastest way to run `advance` on problems of a kind.

    * ``"lanes"``: many small problems, each in a lane of a vector.
    * ``"gemm"``: torch's GEMM for the products and one sweep after each.
    * ``"lockstep"``: one thread takes each problem through its iterations, slab of rows by slab.
    * ``"alone"``: the slabs run apart, on all threads, for stretches of iterations: for few problems that have several
      slabs and repay it.

    All of them stop each problem exactly where it should.

    Args:
        batch: problems, of sizes
        m: rows of X,
        n: columns of X,
        p: columns of M.
        product: whether there is an M.
        coupled: whether the rows of X depend on each other, as they do under loss fro.
        lanes: whether the solver can run in lanes.
        itemsize: bytes of an element.
        threads: that there are.
    """
    if lanes and product and max(m, n, p) <= LANES_SIZE and batch >= 2 * VECTOR_BYTES[load()] // itemsize:
        return "lanes"
    work = m * n * p if product else 8 * m * n
    few = batch < threads and m >= 16 and work >= 16**3
    if product and m >= GEMM_ROWS and (n * p >= GEMM_AREA[load()] or (coupled and few and work >= 64**3)):
        return "gemm"
    return "alone" if few and not coupled else "lockstep"
