"""Every user-facing error. Reads metadata only, never a tensor's data: a check costs no wait on any device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .kernels.contract import state_dtype

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def describe(value: object) -> str:
    """What came, for an error message: dtype, shape and device of a tensor, the repr of anything else."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)} on {value.device}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"


def matrix(name: str, value: Any, *, row: bool = False) -> None:
    """A real floating-point dense matrix or a batch of them; or, as a row, a vector or a batch of them."""
    if not isinstance(value, Tensor):
        if hasattr(value, "__array__") or isinstance(value, list):
            hint = "; torch.as_tensor converts it"
        else:
            hint = "; torch.from_dlpack takes it over" if hasattr(value, "__dlpack__") else ""
        raise TypeError(f"{name} must be a torch.Tensor, got {describe(value)}{hint}")
    if value.is_nested:
        raise TypeError(f"{name} must be dense, got a nested tensor; {name}.to_padded_tensor(0.0) converts it")
    if isinstance(value, torch.masked.MaskedTensor):
        raise TypeError(f"{name} must be dense, got a masked tensor; {name}.to_tensor(0.0) converts it")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got layout {value.layout}; {name}.to_dense() converts it")
    if value.dtype not in DTYPES:
        kinds = "float64, float32, bfloat16 or float16"
        hint = f"; {name}.float() converts it" if not value.dtype.is_complex else ""
        raise TypeError(f"{name} must be of dtype {kinds}, got a {describe(value)}{hint}")
    if value.ndim < (1 if row else 2):
        wanted = "a vector or a batch of vectors [*, n], as Y [p] is" if row else _MATRIX
        if name in ("X", "X0", "V") and value.ndim == 1:
            wanted += " (a vector X [*, n] needs a vector Y [p])"
        raise ValueError(f"{name} must be {wanted}, got a {describe(value)}")


_MATRIX = "a matrix or a batch of matrices [*, rows, columns]"


def is_vector(Y: Any) -> bool:
    """Whether Y is a right-hand side ``[p]``, with which X is ``[*, n]``."""
    return isinstance(Y, Tensor) and Y.ndim == 1 and Y.layout == torch.strided


def row(name: str, value: Any) -> Tensor:
    """A vector, or a batch of them, as matrices of one row: ``[*, n]`` as ``[*, 1, n]``."""
    matrix(name, value, row=True)
    return value.unsqueeze(-2)


def same_device(**tensors: Tensor | None) -> None:
    """All on one device."""
    given = {name: t for name, t in tensors.items() if t is not None}
    if len({t.device for t in given.values()}) > 1:
        raise ValueError("all tensors must be on one device, got " + _list(given))


def _list(given: dict[str, Tensor]) -> str:
    return ", ".join(f"{name}: {describe(t)}" for name, t in given.items())


def same_dtype(X: Tensor | None = None, **tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in. X may also be float32 where the others are low-precision."""
    given = {name: t for name, t in tensors.items() if t is not None}
    dtypes = {t.dtype for t in given.values()}
    if X is not None:
        fits = not dtypes or X.dtype in dtypes or {X.dtype} == {state_dtype(d) for d in dtypes}
        given = {"X": X, **given}
        if not dtypes or not fits:
            dtypes.add(X.dtype)
    if len(dtypes) > 1:
        raise TypeError(
            "all tensors must be of one dtype (X may be float32 for low-precision M and Y), got " + _list(given)
        )
    return state_dtype(dtypes.pop())


def problem(X: Tensor | None, M: Tensor | None, Y: Tensor | None) -> tuple[torch.Size, int, int, int]:
    """Batch shape, m, n, p of ``X @ M = Y``; checks everything that metadata tells."""
    for name, value in (("X", X), ("M", M), ("Y", Y)):
        if value is not None:
            matrix(name, value)
    return equation(X, M, Y)


def equation(X: Tensor | None, M: Tensor | None, Y: Tensor | None) -> tuple[torch.Size, int, int, int]:
    """As `problem`, of what `matrix` has passed already."""
    given = {name: t for name, t in (("X", X), ("M", M), ("Y", Y)) if t is not None}
    if not given:
        raise ValueError("M and Y are both None: give at least one of them")
    same_device(**given)
    same_dtype(**given)
    wanted = "X [*, m, n], M [*, n, p], Y [*, m, p] (with m = 1: X [*, n], Y [p])"
    if X is not None:
        m, n = X.shape[-2:]
    else:
        m = Y.shape[-2] if Y is not None else M.shape[-1] if M is not None else 0
        n = M.shape[-2] if M is not None else Y.shape[-1] if Y is not None else 0
    p = M.shape[-1] if M is not None else n
    if M is not None and M.shape[-2] != n:
        raise ValueError(f"X @ M does not multiply: wanted {wanted}, got {_list(given)}")
    if Y is not None and tuple(Y.shape[-2:]) != (m, p):
        raise ValueError(f"Y must have the shape of X @ M, [{m}, {p}]: wanted {wanted}, got {_list(given)}")
    if Y is None and m != p:
        raise ValueError(f"Y=None is the identity, so X @ M must be square, but it is [{m}, {p}]: got {_list(given)}")
    return _broadcast_batch(given), m, n, p


def _broadcast_batch(given: dict[str, Tensor]) -> torch.Size:
    """The common batch shape; torch.broadcast_shapes takes 30 us, and 0.4 s to import at its first call."""
    shapes = {t.shape[:-2] for t in given.values()} - {torch.Size()}
    if len(shapes) <= 1:
        return shapes.pop() if shapes else torch.Size()
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(f"batch dimensions do not broadcast: got {_list(given)}") from None


def momentum_buffer(X: Tensor, V: Tensor, batch: torch.Size) -> None:
    """V of a step that returns new tensors: X's rows and columns, and a batch that broadcasts."""
    if V.shape[-2:] != X.shape[-2:]:
        raise ValueError(f"V must match X, got {_list({'X': X, 'V': V})}")
    try:
        torch.broadcast_shapes(V.shape[:-2], batch)
    except RuntimeError:
        raise ValueError(f"batch dimensions do not broadcast: V: {describe(V)}, the problem {list(batch)}") from None


def pair(A: Any, B: Any) -> None:
    """Two matrices that can be subtracted, as they are."""
    matrix("A", A)
    matrix("B", B)
    same_device(A=A, B=B)
    same_dtype(A=A, B=B)
    if A.shape[-2:] != B.shape[-2:]:
        raise ValueError(f"A and B must have the same rows and columns, got {_list({'A': A, 'B': B})}")
    _broadcast_batch({"A": A, "B": B})


def choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """One of a few values; True is not 1 here."""
    if value not in allowed or isinstance(value, bool):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def integer(name: str, value: Any, minimum: int, *, optional: bool = False) -> None:
    """An int of at least `minimum`."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int{' or None' if optional else ''}, got {describe(value)}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def number(
    name: str, value: Any, *, above: float = -math.inf, minimum: float = -math.inf, below: float = math.inf
) -> None:
    """A finite Python number within bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    if not (above < value < below and value >= minimum and math.isfinite(value)):
        low = f"above {above:g}" if above > -math.inf else f"at least {minimum:g}" if minimum > -math.inf else ""
        high = f"below {below:g}" if below < math.inf else ""
        wanted = " and ".join(part for part in ("finite", low, high) if part)
        raise ValueError(f"{name} must be {wanted}, got {value}")


def hyperparameter(name: str, value: Any, **bounds: float) -> None:
    """A number within bounds, or a real floating-point tensor (whose values are not read)."""
    if not isinstance(value, Tensor):
        number(name, value, **bounds)
    elif value.dtype not in DTYPES:
        raise TypeError(f"{name} must be a number or a floating-point tensor, got a {describe(value)}")


def representable(name: str, value: float, dtype: torch.dtype) -> None:
    """A number that the dtype can hold."""
    if abs(value) > torch.finfo(dtype).max:
        raise ValueError(f"{name} must be representable in {str(dtype).removeprefix('torch.')}, got {value}")


def per_problem(name: str, value: Tensor, batch: torch.Size, device: torch.device) -> None:
    """A hyperparameter tensor: 0-d, or one value per problem."""
    if value.device != device and value.ndim > 0:
        raise ValueError(f"{name} must be on {device} like the problem, got a {describe(value)}")
    try:
        fits = torch.broadcast_shapes(value.shape, batch) == batch
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{name} must be 0-d or one value per problem {list(batch)}, got a {describe(value)}")


def _are_one(X: Tensor, V: Tensor) -> bool:
    """Whether they begin in the same place; a compiler's tensors have none."""
    if torch.compiler.is_compiling() or X.numel() == 0:
        return X is V
    return V.untyped_storage().data_ptr() == X.untyped_storage().data_ptr() and V.data_ptr() == X.data_ptr()


def writable_state(X: Tensor, V: Tensor, batch: torch.Size) -> None:
    """X and V that an in-place step can write to."""
    if V.shape != X.shape or V.dtype != X.dtype:
        raise ValueError(f"V must match X in shape and dtype, got {_list({'X': X, 'V': V})}")
    if _are_one(X, V):
        raise ValueError(f"X and V must not share memory, got {_list({'X': X, 'V': V})}")
    if X.shape[:-2] != batch:
        raise ValueError(f"X must hold the whole batch {list(batch)} to be updated in place, got a {describe(X)}")
    for name, t in (("X", X), ("V", V)):
        if any(size > 1 and stride == 0 for size, stride in zip(t.shape, t.stride(), strict=True)):
            raise ValueError(f"elements of {name} share memory (an expanded view); {name}.clone() makes it writable")
