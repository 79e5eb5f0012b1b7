"""What the reference needs beside mkdocstrings: roles such as ``:class:`Session``` as links, arguments of structs.

An extension of Griffe, which reads the sources and imports nothing of them.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|attr|data|mod):`(?P<name>[^`]+)`")
# Several names that share one line of a section.
_NAMES = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)", re.MULTILINE)
_FACTORY = re.compile(r"(?:msgspec\.)?field\(default_factory=(?P<factory>.*)\)")
# Classes whose fields are the arguments of their constructor; Griffe knows this of dataclasses alone.
_OF_FIELDS = {"msgspec.Struct", "NamedTuple"}


class Docstrings(griffe.Extension):
    """Changes what was read, once a whole package is there."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Every object of a package."""
        self._change(pkg)

    def _change(self, own: griffe.Object) -> None:
        if own.docstring is not None:
            text = _NAMES.sub(_one_by_one, own.docstring.value)
            own.docstring.value = _ROLE.sub(lambda role: _link(role["name"], own), text)
        if isinstance(own, griffe.Class) and _OF_FIELDS.intersection(map(str, own.bases)):
            own.members.setdefault("__init__", _constructor(own))
        for member in own.members.values():
            if not member.is_alias:
                self._change(member)  # type: ignore[arg-type]


def _one_by_one(line: re.Match[str]) -> str:
    """A line for each of the names."""
    return "\n".join(f"{line['indent']}{name}: {line['text']}" for name in line["names"].split(", "))


def _link(name: str, where: griffe.Object) -> str:
    """The last word of a name; a link where the reference has an entry for it."""
    try:
        path = where.resolve(name)
    except griffe.NameResolutionError:
        path = name
    shown = name.rpartition(".")[2]
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'


def _constructor(struct: griffe.Class) -> griffe.Function:
    """What Python makes of the fields of a class."""
    made = griffe.Function("__init__", parent=struct)
    any_kind = griffe.ParameterKind.positional_or_keyword
    fields = [
        griffe.Parameter(field.name, annotation=field.annotation, kind=any_kind, default=_default(field.value))
        for field in struct.attributes.values()
        if field.annotation is not None and not field.has_labels("property")
    ]
    made.parameters = griffe.Parameters(griffe.Parameter("self", kind=any_kind), *fields)
    return made


def _default(value: Any) -> Any:
    """As a reader expects it: what a factory makes, if it has a name."""
    found = _FACTORY.fullmatch(str(value))
    if found is None:
        return value
    return f"{found['factory']}()" if found["factory"].isidentifier() else "..."
