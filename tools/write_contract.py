"""Write the constants of kernels/contract.py to kernels/cpu/contract.h, from which C++ reads them.

    python tools/write_contract.py [--check]

With ``--check`` nothing is written, and the exit status is 1 where the file is stale.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONTRACT, HEADER = ROOT / "kernels/contract.py", ROOT / "kernels/cpu/contract.h"
TEMPLATE = """// Written by tools/write_contract.py from kernels/contract.py. Do not edit.
#pragma once

#include <cstdint>

namespace mcf {{

{enums}

constexpr double kBailFactor = {bail};
constexpr double kSmallestSquare = {square};
constexpr double kFloorUnits = {units}, kFloorShare = {share};

}}  // namespace mcf
"""


def enum(name: str, prefix: str, codes: Mapping[object, int]) -> str:
    """A C++ enum, ``kPrefixKey = code`` for each."""
    entries = (f"{prefix}{''.join(w.capitalize() for w in str(key).split('_'))} = {c}" for key, c in codes.items())
    return "\n".join((f"enum {name} : int64_t {{", *(f"  {entry}," for entry in entries), "};"))


def header(contract: Mapping[str, Any]) -> str:
    """The text of contract.h."""
    enums = (
        enum("Loss", "kLoss", {name: code for code, name in enumerate(contract["LOSSES"])}),
        enum("Ord", "kOrd", {name: code for code, name in enumerate(contract["ORDS"])}),
        enum("Status", "kStatus", contract["STATUS_CODES"]),
    )
    return TEMPLATE.format(
        enums="\n".join(enums),
        bail=repr(contract["BAIL_FACTOR"]),
        square=repr(contract["SMALLEST_SQUARE"]),
        units=contract["FLOOR_UNITS"],
        share=contract["FLOOR_SHARE"],
    )


def main() -> int:
    """0 where the header is up to date at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the file is stale")
    options = parser.parse_args()
    text = header(runpy.run_path(str(CONTRACT)))
    stale = not HEADER.exists() or HEADER.read_text() != text
    if stale and options.check:
        print(f"{HEADER.relative_to(ROOT)} is stale: run python tools/write_contract.py", file=sys.stderr)
        return 1
    if stale:
        HEADER.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
