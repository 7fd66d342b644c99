"""The table of what kernels compile to: a row for a block shape, a column for a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kernel_binary import Binary
from kernel_launches import Launch


@dataclass
class Row:
    """A kernel, a precision and a block shape, with the binaries that each GPU has of it."""

    kernel: str
    precision: str
    config: str
    binaries: dict[str, list[tuple[Launch, Binary]]] = field(default_factory=dict)

    def cell(self, target: str) -> str:
        """The most that any of its launches takes: registers, stack bytes where there are any, shared memory, units."""
        if target not in self.binaries:
            return ""
        launches, binaries = zip(*self.binaries[target], strict=True)
        if any(binary.error for binary in binaries):
            return "fails"
        text = str(max(binary.registers for binary in binaries))
        stack = max(binary.stack for binary in binaries)
        if stack:
            text += f" +{stack} B"
        shared = max(binary.shared for binary in binaries)
        if shared:
            text += f", {-(-shared // 1024)} KB"
        if launches[0].has_product:
            text += ", " + "/".join(sorted({"+".join(binary.matrix) or "fma" for binary in binaries}))
        return text


def rows(compiled: Iterable[tuple[Launch, Binary]]) -> list[Row]:
    """By kernel, in the order in which they come."""
    found: dict[tuple[str, str, str], Row] = {}
    for launch, binary in compiled:
        key = launch.kernel.strip("_").removesuffix("_kernel"), launch.precision, config(launch)
        row = found.setdefault(key, Row(*key))
        row.binaries.setdefault(launch.target, []).append((launch, binary))
    order = {name: i for i, name in enumerate(dict.fromkeys(kernel for kernel, *_ in found))}
    return sorted(found.values(), key=lambda row: order[row.kernel])


def config(launch: Launch) -> str:
    """Block shape, and what else sets binaries apart."""
    constants = launch.constants
    sizes = [constants.get(name) for name in ("BM", "BN", "BP", "BK", "BLOCK")]
    parts = ["x".join(str(size) for size in sizes if size)]
    if "TILE" in constants and constants["TILE"] != constants["BP"]:
        parts.append(f"by {constants['TILE']}")
    parts.append(f"{launch.options['num_warps']} warps")
    if constants.get("PARTS", 1) > 1:
        parts.append(f"{constants['PARTS']} parts")
    parts += [name.lower() for name in ("SWAP", "DESCRIPTOR") if constants.get(name)]
    parts += [str(constants[name]) for name in ("RULE", "ORD", "HOW") if name in constants]
    if "PRECISION" in constants and not launch.has_product:
        parts.append("no product")
    return " ".join(parts)


def text(table: list[Row], targets: list[str]) -> str:
    """For a terminal."""
    lines = [("kernel", "precision", "config", *targets)]
    lines += [(row.kernel, row.precision, row.config, *map(row.cell, targets)) for row in table]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def markdown(table: list[Row], targets: list[str]) -> str:
    """For docs/gpu_kernels.md, a table for each kernel."""
    lines = []
    previous = None
    for row in table:
        if row.kernel != previous:
            lines += [
                "",
                f"## {row.kernel}",
                "",
                f"| | config | {' | '.join(targets)} |",
                "|---" * (2 + len(targets)) + "|",
            ]
        previous = row.kernel
        lines.append(f"| {row.precision} | {row.config} | " + " | ".join(map(row.cell, targets)) + " |")
    return "\n".join(lines) + "\n"
