"""Validate arguments where they enter the library: an engine may crash or hang on a value that is out of range."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from reprlib import repr as short_repr

from dyce_runtime.errors import DyceError, RuntimeInputError


def whole(
    name: str, value: object, least: int, most: int | None = None, *, error: type[DyceError] = RuntimeInputError
) -> int:
    """Return the value as an int.

    Raises:
        error: the value is not an integer from ``least`` to ``most`` (None: no upper bound), or it is a bool.
    """
    fits = isinstance(value, Integral) and not isinstance(value, bool)
    if fits and least <= int(value) and (most is None or int(value) <= most):  # type: ignore[call-overload]
        return int(value)  # type: ignore[call-overload,no-any-return]
    wanted = f"at least {least}" if most is None else f"at least {least} and at most {most}"
    raise error(f"{name} is {shown(value)}; expected {wanted}, a whole number")


def number(
    name: str, value: object, least: float, most: float = math.inf, *, error: type[DyceError] = RuntimeInputError
) -> float:
    """Return the value as a float.

    Raises:
        error: the value is not a real number from ``least`` to ``most``, or it is NaN or a bool.
    """
    if is_real(value) and least <= float(value) <= most:  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    wanted = f"a number of at least {least:g}" if most == math.inf else f"a number from {least:g} to {most:g}"
    raise error(f"{name} is {shown(value)}; expected {wanted}")


def is_real(value: object) -> bool:
    """Return whether this is a real number within the range of a float. A bool does not count as one."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def text(name: str, value: object) -> str:
    """Return the value. Raises RuntimeInputError if it is not a string."""
    if not isinstance(value, str):
        raise RuntimeInputError(f"{name} is {shown(value)}; expected text")
    return value


def one_of(name: str, value: object, known: Collection[str]) -> None:
    """Raise RuntimeInputError unless the value is one of the known words."""
    if not isinstance(value, str) or value not in known:
        raise RuntimeInputError(f"{name} is {shown(value)}; expected {' or '.join(known)}")


def shown(value: object) -> str:
    """Return a shortened ``repr`` for messages. Never raises, whatever the value is."""
    try:
        return short_repr(value)
    except Exception:  # a foreign __repr__ raised, or an int has too many digits to be printed
        return f"a {type(value).__name__}"
