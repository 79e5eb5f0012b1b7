"""Terminal output that shows any name as plain text, never as markup, control characters or escape sequences.

Names of models, classes, configurations and files, notes in a bundle and messages of exceptions may contain anything.
Every string that the command line prints for people passes through :func:`escaped`, which is called only here. JSON
documents are not escaped this way: they hold exact data.
"""

from __future__ import annotations

import logging
import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

# Control characters, invisible formatting such as right-to-left overrides, unpaired surrogates (bytes of a file name
# that are no valid text), line and paragraph separators.
_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Kept: line breaks of our own messages, and the joiners that several scripts and emoji need.
_KEPT = "\n\u200c\u200d"


def escaped(text: str, *, one_line: bool = False) -> str:
    """Escape everything that could change how a terminal displays a text, such as the escape character to ``\\x1b``.

    Args:
        one_line: escape line breaks as well.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = "" if one_line else _KEPT
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character not in kept and (character == "\n" or unicodedata.category(character) in _ESCAPED)
        else character
        for character in text
    )


def bold(text: object) -> Text:
    """Return a name or heading in bold."""
    return Text(escaped(str(text)), "bold")


class Terminal(Console):
    """A console that prints strings literally: square brackets and colons have no special meaning.

    Lines are wrapped between words on a screen, and left whole elsewhere.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print like rich; ``soft_wrap=True`` leaves lines whole, for instance commands that users copy."""
        super().print(*objects, soft_wrap=not self.is_terminal if soft_wrap is None else soft_wrap, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape every string that is printed, including the cells of tables."""
        return super().render_str(escaped(text), **options)


class EscapedLines(logging.Formatter):
    """Formats the messages of loggers, which do not pass through ``render_str``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the escaped message."""
        return escaped(super().format(record))
