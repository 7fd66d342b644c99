"""The files of the package, as they stand in this repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def sources(root: Path = ROOT) -> list[Path]:
    """Every Python file of the package. The link matconv_fast/kernels of a checkout is left out."""
    files = [*root.glob("matconv_fast/**/*.py"), *root.glob("kernels/**/*.py")]
    return sorted(file for file in files if file.relative_to(root).parts[:2] != ("matconv_fast", "kernels"))
