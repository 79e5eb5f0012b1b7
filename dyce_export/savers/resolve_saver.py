"""Load the savers that a user names: bundles, or models that become bundles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dyce_export.prepare import Captured
from dyce_export.savers.joint_verification import Mapped, read_mapping
from dyce_export.sources.inputs import Input
from dyce_export.sources.source import Source, from_module, load_source
from dyce_runtime.bundle.reader import Bundle, is_bundle, open_bundle


@dataclass(frozen=True)
class Savers:
    """The savers of a base.

    Attributes:
        models: bundles, or models that become bundles.
        mapping: between their classes and the base's; see
            :func:`dyce_export.savers.joint_verification.read_mapping`.
    """

    models: tuple[Source | Bundle, ...]
    mapping: Mapped | None = None

    @staticmethod
    def load(names: Sequence[str], classes: str | None, base: Captured | Bundle, *, trust_pickle: bool) -> Savers:
        """Load savers by their names; see :func:`load_named`.

        Args:
            classes: the value of ``--saver-classes``.
            trust_pickle: see :func:`dyce_export.sources.source.load_source`.

        Raises:
            DyceError: a saver, or the file of classes, cannot be found or read.
        """
        like = input_of(base)
        models = tuple(load_named(name, like, trust_pickle=trust_pickle) for name in names)
        return Savers(models, read_mapping(classes))

    @staticmethod
    def of(models: Sequence[nn.Module | str | Path], base: Captured) -> Savers:
        """Load savers from modules, which are copied, and from names as in :func:`load_named`.

        A module that does not state its input size and preprocessing gets those of the base.

        Raises:
            DyceError: a saver cannot be found or read.
        """
        like = input_of(base)
        return Savers(
            tuple(
                from_module(model, like=like) if isinstance(model, nn.Module) else load_named(str(model), like)
                for model in models
            )
        )


def input_of(base: Captured | Bundle) -> Input:
    """Return the input size and the preprocessing of a base."""
    if isinstance(base, Captured):
        return Input(base.source.input_size, base.source.preprocessing)
    channels, height, width = (int(n) for n in base.manifest.input.shape[1:])
    return Input((channels, height, width), base.manifest.preprocessing)


def load_named(name: str, like: Input, *, trust_pickle: bool = False) -> Bundle | Source:
    """Load a saver.

    Args:
        name: a bundle, a checkpoint, an exported program or ``timm:NAME``; ``ARCH=CHECKPOINT``, where the architecture
            is a name of timm or ``package.module:callable``; or that callable alone.
        like: input size and preprocessing for models that do not state theirs: those of the base.
        trust_pickle: see :func:`dyce_export.sources.source.load_source`.

    Raises:
        DyceError: it cannot be found or read; see :func:`dyce_export.sources.source.load_source` and
            :func:`dyce_runtime.bundle.reader.open_bundle`.
    """
    if is_bundle(name):
        return open_bundle(name)
    architecture, equals, checkpoint = name.rpartition("=")
    if not equals and ":" in name and not name.startswith("timm:") and not Path(name).exists():
        return load_source(None, factory=name, trust_pickle=trust_pickle, like=like)
    if not equals or Path(name).exists():
        return load_source(name, trust_pickle=trust_pickle, like=like)
    own = ":" in architecture and not architecture.startswith("timm:")
    return load_source(
        checkpoint,
        arch=None if own else architecture,
        factory=architecture if own else None,
        trust_pickle=trust_pickle,
        like=like,
    )
