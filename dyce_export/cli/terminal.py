"""What a terminal is sent: names from anywhere as plain text, never as markup, control characters or escape sequences.

Model, class, configuration and file names, notes in a bundle and texts of exceptions may hold anything. Every string
that the command line prints for people passes through :func:`escaped`, here and nowhere else. JSON documents do not:
they hold exact data.
"""

from __future__ import annotations

import logging
import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

# Control characters, invisible formatting such as reversed writing, halves of surrogate pairs (bytes of a file name
# that are no text), line and paragraph separators.
_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Line breaks of our own messages, and the joiners that several scripts and emoji need.
_KEPT = "\n\u200c\u200d"


def escaped(text: str, *, one_line: bool = False) -> str:
    """The text with everything that could change how a terminal shows it written out, such as ``\\x1b``.

    Args:
        one_line: write line breaks out as well.
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
    """A name or a heading."""
    return Text(escaped(str(text)), "bold")


class Terminal(Console):
    """A console that shows strings as they are: square brackets and colons mean nothing.

    Lines are wrapped between words on a screen, and nowhere else.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """As rich prints; ``soft_wrap`` leaves lines whole, such as commands to be copied."""
        super().print(*objects, soft_wrap=not self.is_terminal if soft_wrap is None else soft_wrap, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed, also as the cell of a table, passes through here."""
        return super().render_str(escaped(text), **options)


class EscapedLines(logging.Formatter):
    """Formats the messages of loggers, which do not pass through ``render_str``."""

    def format(self, record: logging.LogRecord) -> str:
        """The message alone."""
        return escaped(super().format(record))
