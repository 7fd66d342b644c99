"""State dicts: of tensors, numbers, strings, None and containers, which ``torch.load(weights_only=True)`` reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from . import _checks

# Grows when an older matconv_fast could not read what this one writes, or would read it as something else.
FORMAT = 2


def plain(value: Any) -> Any:
    """A value as a state dict may hold it: a NumPy number is a float, too, but needs code to be loaded."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Tensor):
        return value.as_subclass(Tensor).detach()
    if isinstance(value, tuple | list):
        return tuple(plain(v) for v in value)
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"a state dict holds tensors, numbers and strings, got {_checks.describe(value)}")


def sealed(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of an object of a kind."""
    return {"kind": kind, "format": FORMAT, **values}


def opened(state_dict: Any, kind: str, names: Collection[str]) -> dict[str, Any]:
    """The values of a state dict, whose names must be these.

    Raises:
        TypeError: it is no dict.
        ValueError: it is that of something else, incomplete, or in another format.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"{kind}.from_state_dict takes a dict of {kind}.state_dict(), got {_checks.describe(state_dict)}"
        )
    if state_dict.get("kind") != kind:
        came = f"of a {state_dict['kind']}" if "kind" in state_dict else f"with the keys {sorted(map(str, state_dict))}"
        raise ValueError(f"{kind}.from_state_dict takes a dict of {kind}.state_dict(), got one {came}")
    if state_dict.get("format") != FORMAT:
        raise ValueError(
            f"the state dict of a {kind} is in format {state_dict.get('format')!r}, and this matconv_fast reads format "
            f"{FORMAT}: use the version that wrote it"
        )
    values = {name: value for name, value in state_dict.items() if name not in ("kind", "format")}
    lacking, unknown = sorted(set(names) - set(values)), sorted(map(str, set(values) - set(names)))
    if lacking or unknown:
        wrong = " and ".join(
            f"{what} {', '.join(found)}" for what, found in (("lacks", lacking), ("has unknown", unknown)) if found
        )
        raise ValueError(f"the state dict of a {kind} {wrong}")
    return values
