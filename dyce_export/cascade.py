"""Export a model, alone or as a cascade with savers: small networks that run before it, which is then the base.

For a cascade every model becomes a bundle first; these are then composed into one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from dyce_calibration.processes import connect
from dyce_export.options import Options
from dyce_export.pipeline import Export, write_bundle
from dyce_export.precision.lower import add
from dyce_export.prepare import Captured, Prepared, capture_source, check_data, fingerprint_of, prepare
from dyce_export.progress import Progress
from dyce_export.savers.classes import open_for, prepare_saver, with_pictures_of
from dyce_export.savers.compose import Parts, choose_and_verify, join
from dyce_export.savers.joint_verification import Mapped, Member, Ready, check_members
from dyce_export.savers.resolve_saver import Savers
from dyce_export.savers.sequence import Training, add_sequence, check_sequence
from dyce_export.sources.source import Source
from dyce_export.sources.torch_settings import usual_settings
from dyce_export.writing.bundle_writer import seal
from dyce_export.writing.staging import check_destination, kept_work, staged
from dyce_runtime.bundle.reader import RECORDS, Bundle, open_bundle
from dyce_runtime.errors import BundleError, ExitPointError
from dyce_runtime.inputs.datasets import Dataset

_USUAL = Options()


def export_source(
    source: Source,
    exits: Sequence[str],
    output: Path,
    *,
    savers: Sequence[nn.Module | str | Path] = (),
    data: str | Path | None = None,
    val: str | Path | None = None,
    options: Options = _USUAL,
    progress: Progress | None = None,
) -> Export:
    """Split a model at the given exits and write a verified bundle.

    Args:
        exits: numbers or module names of exit points, in ascending order, or ``["auto"]``. May be empty if there are
            savers.
        output: the bundle's folder.
        savers: models that run first; see :meth:`dyce_export.savers.resolve_saver.Savers.of`.
        data: images to train the heads on; without it the heads stay untrained. See
            :func:`dyce_runtime.inputs.datasets.open_dataset`.
        val: images that the model has not seen, on which configurations are chosen; None holds out a part of ``data``.

    Raises:
        DyceError: the subclass says which step failed; ``output`` is then not written.
    """
    if not (exits or savers):
        raise ExitPointError("no exits were given; expected numbers or module names, such as 3,7,12")
    progress = progress or Progress()
    check_destination(output, force=options.force)
    base = capture_source(source, progress)
    cascade = prepare_cascade(base, exits, Savers.of(savers, base), data, val, options, progress)
    return export_cascade(cascade, output, options=options, progress=progress)


@dataclass(frozen=True)
class Cascade:
    """A base and the savers before it, after all checks that need no training.

    Attributes:
        savers: may be empty.
        mapping: between the classes; see :func:`dyce_export.savers.joint_verification.read_mapping`.
        data: images that train the exit sequence network and determine the ranges of integers.
        pictures: images among which are those of the base's records.
        suspicious: doubts about the labels that the user accepted, if the base is a bundle. Otherwise they are in the
            prepared base.
    """

    base: Ready
    savers: tuple[Ready, ...]
    mapping: Mapped | None
    data: Dataset | None
    pictures: Dataset | None
    suspicious: tuple[str, ...] = ()


def prepare_cascade(
    base: Captured | Bundle,
    exits: Sequence[str],
    savers: Savers,
    data: str | Path | None,
    val: str | Path | None,
    options: Options,
    progress: Progress,
) -> Cascade:
    """Select exits, capture the savers and open the data. Writes nothing.

    Args:
        exits: exits of the base; see :func:`dyce_export.prepare.prepare`. Not used if the base is a bundle.

    Raises:
        DyceError: the exits, the data or the savers are not usable.
    """
    first: Ready
    if isinstance(base, Bundle):
        check_data(data, val, options)
        if (options.precisions or options.sequence) and not base.file(RECORDS).is_file():
            wanted = f"compare {', '.join(options.precisions)}" if options.precisions else "judge new heads"
            raise BundleError(f"{base.path} has no records to {wanted} by", hint="Export it with --data.")
        first = base
        opened, suspicious = open_for(base, (data, val), options)
    else:
        first = prepare(base, exits, data=data, val=val, options=options)
        opened, suspicious = (first.data, first.val), ()
    bare = [
        model if isinstance(model, Bundle) else prepare_saver(capture_source(model, progress), options)
        for model in savers.models
    ]
    check_members(Member.of(first), list(map(Member.of, bare)), savers.mapping)
    before = tuple(with_pictures_of(model, first, savers.mapping, opened, options) for model in bare)
    if options.sequence is not None:
        exits_there = len(first.manifest.exits) > 1 if isinstance(first, Bundle) else bool(first.backbone.points)
        check_sequence(savers=bool(before), exits=exits_there, data=opened[0] is not None)
    return Cascade(first, before, savers.mapping, opened[0], opened[1] or opened[0], suspicious)


@usual_settings()
def export_cascade(cascade: Cascade, output: Path, *, options: Options, progress: Progress) -> Export:
    """Export the base and every saver that is not a bundle yet, and write the bundle in which savers run first.

    Raises:
        DyceError: the subclass says which step failed; ``output`` is then not written.
    """
    base = cascade.base
    if isinstance(base, Prepared) and not cascade.savers:
        return write_bundle(base, output, options=options, progress=progress)
    processes, plain = connect(), replace(options, precisions=(), sequence=None)
    with kept_work(output, processes.rank) as work:

        def made(model: Ready) -> Bundle:
            """Return the bundle of a model, reusing one that an interrupted export has completed."""
            if isinstance(model, Bundle):
                return model
            path = work / f"{fingerprint_of(model, plain)[:16]}.dyce"
            if processes.from_main(path.is_dir):
                return processes.from_main(lambda: open_bundle(path))
            found = write_bundle(model, path, options=plain, progress=progress)
            return Bundle(found.path, found.manifest, found.configurations)

        first, savers = made(base), list(map(made, cascade.savers))
        return processes.from_main(lambda: _write(cascade, first, savers, output, work / "sequence", options, progress))


def _write(
    cascade: Cascade,
    base: Bundle,
    savers: Sequence[Bundle],
    output: Path,
    work: Path,
    options: Options,
    progress: Progress,
) -> Export:
    """Compose the bundles of the models, add what the options ask for, and write the result.

    Args:
        work: folder for features and half-trained exit sequence networks.
    """
    parts, val = Parts.of(base, savers, cascade.mapping), cascade.pictures
    with staged(output, force=options.force) as folder:
        joined = join(
            parts,
            folder,
            val=val,
            progress=progress,
            expose=options.sequence is not None,
            suspicious=cascade.suspicious,
            allow_suspicious=options.allow_suspicious,
        )
        if options.sequence is not None:
            assert cascade.data is not None
            assert val is not None
            how = Training(options.sequence, options.recipe, options.seed, cascade.data, val, work)
            with progress.stage("sequence"):
                joined = add_sequence(joined, [*savers, base], how, progress)
        made = choose_and_verify(parts, joined, val=val, progress=progress)
        manifest = made.manifest
        if options.precisions:
            assert cascade.data is not None
            assert val is not None
            manifest = add(made, options.precisions, cascade.data, val, options.limits, progress)
        manifest = seal(folder, manifest, made.configurations)
    return Export(output, manifest, made.configurations, progress.seconds)
