"""Make an image classifier early-exit: ``dyce_export.export(module, exits, "model.dyce", ...)``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from dyce_export.pipeline import Export

__all__ = ["export"]


def export(
    module: nn.Module,
    exits: Sequence[str | int],
    output: str | Path,
    *,
    input_size: tuple[int, int, int] | None = None,
    savers: Sequence[nn.Module | str | Path] = (),
    data: str | Path | None = None,
    val: str | Path | None = None,
    force: bool = False,
    tolerance: float = 1e-4,
    esn: str | None = None,
    classes: str | Path | None = None,
    task: str = "single-label",
    allow_suspicious: bool = False,
    **input_description: Any,
) -> Export:
    """Split any ``nn.Module`` at the given exits and write a verified bundle.

    Args:
        module: the classifier; takes float32 images of shape (N, C, H, W) and returns logits of shape (N, classes).
            It is not modified.
        exits: numbers or module names of exit points, in ascending order; may be empty if there are savers.
        output: folder of the bundle.
        input_size: (C, H, W); may be omitted for timm models.
        savers: small classifiers that run before the model: modules, or anything that ``dyce export --saver`` accepts.
        data: images on which the heads are trained; without them the heads stay untrained.
        val: images that the model has never seen; without them they are split off from ``data``.
        force: replace an existing bundle.
        tolerance: largest relative error against torch that verification accepts.
        esn: type of the exit sequence network that runs after the savers, ``esn<layers>x<width>``, such as ``esn1x64``.
        classes: file that maps class folders to the model's classes, for data whose folder names differ from them.
        task: what the outputs mean; ``single-label`` is the only task supported.
        allow_suspicious: continue when the labels contradict the model's predictions; the bundle then records this.
        **input_description: ``name``, ``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``,
            ``class_names``; see :func:`dyce_export.sources.source.from_module`.

    Raises:
        DyceError: a step failed; the subclass says which. Nothing is written to ``output`` then.
    """
    from dyce_export.cascade import export_source
    from dyce_export.options import Options
    from dyce_export.sources.source import from_module

    source = from_module(module, input_size=input_size, **input_description)
    return export_source(
        source,
        [str(exit) for exit in exits],
        Path(output),
        savers=savers,
        data=data,
        val=val,
        options=Options(
            force=force,
            classes_file=None if classes is None else Path(classes),
            tolerance=tolerance,
            sequence=esn,
            task=task,
            allow_suspicious=allow_suspicious,
        ),
    )
