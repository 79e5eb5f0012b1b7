"""Arguments of the library, checked where they enter: an engine answers what is out of range with a crash or a hang."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from reprlib import repr as short_repr

from dyce_runtime.errors import DyceError, RuntimeInputError


def whole(
    name: str, value: object, least: int, most: int | None = None, *, error: type[DyceError] = RuntimeInputError
) -> int:
    """The value as an int. Raises ``error`` unless it is a whole number from ``least`` to ``most``; bool is none."""
    fits = isinstance(value, Integral) and not isinstance(value, bool)
    if fits and least <= int(value) and (most is None or int(value) <= most):  # type: ignore[call-overload]
        return int(value)  # type: ignore[call-overload,no-any-return]
    wanted = f"at least {least}" if most is None else f"at least {least} and at most {most}"
    raise error(f"{name} is {shown(value)}; expected {wanted}, a whole number")


def number(
    name: str, value: object, least: float, most: float = math.inf, *, error: type[DyceError] = RuntimeInputError
) -> float:
    """The value as a float. Raises ``error`` unless it is a real number from ``least`` to ``most``; NaN is none."""
    if is_real(value) and least <= float(value) <= most:  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    wanted = f"a number of at least {least:g}" if most == math.inf else f"a number from {least:g} to {most:g}"
    raise error(f"{name} is {shown(value)}; expected {wanted}")


def is_real(value: object) -> bool:
    """Whether this is a real number that a float can hold; bool is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def text(name: str, value: object) -> str:
    """The value. Raises RuntimeInputError unless it is text."""
    if not isinstance(value, str):
        raise RuntimeInputError(f"{name} is {shown(value)}; expected text")
    return value


def one_of(name: str, value: object, known: Collection[str]) -> None:
    """Raise RuntimeInputError unless it is one of the known words."""
    if not isinstance(value, str) or value not in known:
        raise RuntimeInputError(f"{name} is {shown(value)}; expected {' or '.join(known)}")


def shown(value: object) -> str:
    """A short ``repr`` for messages, whatever the value is."""
    try:
        return short_repr(value)
    except Exception:  # of somebody's __repr__, or a number with too many digits for one
        return f"a {type(value).__name__}"
