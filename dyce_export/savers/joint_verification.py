"""Check that savers fit a base: each is cheaper, reads the same images, and has the same classes in a known order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec

from dyce_export.prepare import Prepared
from dyce_runtime.bundle.manifest import Model
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.errors import UsageError
from dyce_runtime.json_files import read_json

NAMES = "names"
_HINT = f"Say which class is which with --saver-classes: `{NAMES}`, or a file."

# The value of `--saver-classes`: for every class of the saver the class of the base, each by its name or index. In an
# empty mapping, classes of the same name correspond.
Mapped = Mapping[str, "str | int"]


# A model that is ready to be exported, or a bundle.
Ready: TypeAlias = "Prepared | Bundle"


class Member(NamedTuple):
    """What has to be known of a model to compose it with others.

    Attributes:
        channels: number of channels of its input images.
    """

    model: Model
    channels: int

    @staticmethod
    def of(model: Ready) -> Member:
        """Describe a model. Raises UsageError for a bundle that has savers or is not in float32."""
        if isinstance(model, Prepared):
            return Member(model.model, model.source.input_size[0])
        manifest = model.manifest
        name = manifest.model.name
        if manifest.savers:
            raise UsageError(
                f"{name} has savers of its own; expected a model without",
                hint="Give all savers to one export: --saver A --saver B.",
            )
        if manifest.precision != "float32":
            raise UsageError(f"{name} is in {manifest.precision}; expected float32")
        return Member(manifest.model, int(manifest.input.shape[1]))


def check_members(base: Member, savers: Sequence[Member], mapping: Mapped | None) -> None:
    """Raise UsageError unless the savers can run before the base.

    Each has to be cheaper than the base, to be given once, and to have the base's number of channels and its classes.
    """
    for place, saver in enumerate(savers):
        name = saver.model.name
        if saver in savers[:place]:
            raise UsageError(f"saver {name} ({saver.model.source}) was given twice; expected each once")
        if saver.model.macs >= base.model.macs:
            raise UsageError(
                f"saver {name} takes {saver.model.macs / 1e6:.1f} MMACs and {base.model.name} "
                f"{base.model.macs / 1e6:.1f}; a saver has to be cheaper than the base"
            )
        if saver.channels != base.channels:
            raise UsageError(
                f"saver {name} takes pictures of {saver.channels} channels and {base.model.name} of {base.channels}; "
                "expected the same pictures"
            )
        class_order(saver.model, base.model, mapping)


def read_mapping(text: str | None) -> Mapped | None:
    """Read the value of ``--saver-classes``.

    Args:
        text: ``names``, or the path of a JSON file ``{class of the saver: class of the base}``, in which a class is
            given by its name or its index; None if the option was not given.

    Returns:
        the mapping; empty for ``names``, None for None.

    Raises:
        UsageError: the file cannot be read.
    """
    if text is None or text == NAMES:
        return None if text is None else {}
    try:
        return read_json(Path(text), dict[str, str | int])
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(
            f"--saver-classes {text} cannot be read: {error}",
            hint='Expected a JSON file such as {"cat": "Cat", "0": 3}: the class of the base for each of the saver.',
        ) from error


def class_order(saver: Model, base: Model, mapping: Mapped | None) -> tuple[int, ...] | None:
    """Return for every class of the base its index among the saver's classes; None if the order is the same.

    Args:
        mapping: see :func:`read_mapping`. With None the names have to be equal, unless those of a model are not known.

    Raises:
        UsageError: the classes differ, or the mapping is not one to one.
    """
    if saver.num_classes != base.num_classes:
        raise UsageError(
            f"saver {saver.name} has {saver.num_classes} classes and {base.name} has {base.num_classes}; a saver has "
            "to answer in the classes of the base"
        )
    if mapping is not None:
        order = _by_names(saver, base) if not mapping else _by_mapping(saver, base, mapping)
        return None if order == tuple(range(base.num_classes)) else order
    if saver.class_names and base.class_names and saver.class_names != base.class_names:
        row = next(
            row for row, names in enumerate(zip(saver.class_names, base.class_names, strict=True)) if len({*names}) > 1
        )
        raise UsageError(
            f"class {row} is {saver.class_names[row]!r} of saver {saver.name} and {base.class_names[row]!r} of "
            f"{base.name}; expected the same classes in the same order",
            hint=_HINT,
        )
    return None


def _by_names(saver: Model, base: Model) -> tuple[int, ...]:
    if not saver.class_names or not base.class_names:
        unknown = base if saver.class_names else saver
        raise UsageError(f"the names of the classes of {unknown.name} are not known, so they cannot be compared")
    lacking = sorted({*base.class_names} - {*saver.class_names})
    if lacking:
        raise UsageError(f"saver {saver.name} has no class {lacking[0]!r}, which {base.name} has", hint=_HINT)
    return tuple(saver.class_names.index(name) for name in base.class_names)


def _by_mapping(saver: Model, base: Model, mapping: Mapped) -> tuple[int, ...]:
    order: dict[int, int] = {}
    for own, of_base in mapping.items():
        order[_index(base, of_base)] = _index(saver, own)
    if len(order) < base.num_classes or len(set(order.values())) < base.num_classes:
        raise UsageError(
            f"--saver-classes maps {len(set(order.values()))} classes of saver {saver.name} to {len(order)} of "
            f"{base.name}; expected each of {base.num_classes} once"
        )
    return tuple(order[row] for row in range(base.num_classes))


def _index(model: Model, name: str | int) -> int:
    if model.class_names and name in model.class_names:
        return model.class_names.index(str(name))
    if str(name).isdecimal() and int(name) < model.num_classes:
        return int(name)
    raise UsageError(f"--saver-classes names the class {name!r}, which {model.name} does not have")
