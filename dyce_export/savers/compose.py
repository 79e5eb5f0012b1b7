"""Compose the bundles of a base and of savers into one bundle, and search the configurations of all of them together.

Nothing is trained, and no model is captured again: the pieces (ONNX files) of the bundles are reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dyce_calibration.promises.choose import choose
from dyce_calibration.recorder import write_records
from dyce_calibration.records import Records
from dyce_calibration.search.costs import macs_again
from dyce_export.doubts import accept
from dyce_export.graph.programs import requires
from dyce_export.graph.spans import write_spans
from dyce_export.progress import Progress
from dyce_export.reports import report_bundle
from dyce_export.savers.classes import doubts_of_saver
from dyce_export.savers.fitting import check_parts, probe_of
from dyce_export.savers.join_records import join_records, join_vectors, recorded_like, unseen_by
from dyce_export.savers.joint_verification import Mapped, Member, check_members, class_order
from dyce_export.savers.parts import Part, write_part
from dyce_export.verification.verify import PROBE
from dyce_export.writing.bundle_writer import copy_files, seal
from dyce_export.writing.rewrite import check_spans
from dyce_export.writing.staging import staged
from dyce_runtime.bundle.configuration import FULL, Configurations, Entry
from dyce_runtime.bundle.manifest import UNCUT, Manifest, Piece, Verification
from dyce_runtime.bundle.reader import (
    RECORDS,
    Bundle,
    open_bundle,
)
from dyce_runtime.bundle.test_vectors import Vectors, answered, write_vectors
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.inputs.class_order import Doubt
from dyce_runtime.inputs.datasets import Dataset
from dyce_runtime.targets import registry


@dataclass(frozen=True)
class Parts:
    """The bundles of a base and of the savers that run before it.

    Attributes:
        base: bundle of the base. Its lower precisions are not taken over, since their thresholds would not fit.
        savers: in the order in which they run. They may have exits of their own.
        orders: for each saver, the index among its classes of every class of the base; None if they are the same.
    """

    base: Bundle
    savers: tuple[Bundle, ...]
    orders: tuple[Sequence[int] | None, ...]

    @staticmethod
    def of(base: Bundle, savers: Sequence[Bundle], mapping: Mapped | None) -> Parts:
        """Return the parts, with the savers sorted by their cost, the cheapest first.

        Args:
            mapping: between the classes; see :func:`dyce_export.savers.joint_verification.read_mapping`.

        Raises:
            UsageError: the models cannot be composed; see :func:`check_members`.
        """
        savers = sorted(savers, key=lambda saver: saver.manifest.model.macs)
        members = [Member.of(bundle) for bundle in (base, *savers)]
        check_members(members[0], members[1:], mapping)
        orders = [class_order(saver.manifest.model, base.manifest.model, mapping) for saver in savers]
        return Parts(base, tuple(savers), tuple(orders))


@dataclass(frozen=True)
class Joined:
    """A bundle that is being written: it has all pieces of its parts, and no configurations but ``full`` yet.

    Attributes:
        records: records of all heads on the images of the base's records; None if the base has none.
        vectors: test vectors with the scores of all heads of the parts.
    """

    bundle: Bundle
    records: Records | None
    vectors: Vectors


def compose(
    base: Bundle,
    savers: Sequence[Bundle],
    output: Path,
    *,
    val: Dataset | None,
    mapping: Mapped | None = None,
    progress: Progress,
    force: bool = False,
) -> Bundle:
    """Write a bundle in which the savers run before the base, and choose its configurations.

    Args:
        val: contains the images of the base's records, for savers that were not recorded on them.
        mapping: between the classes; see :func:`dyce_export.savers.joint_verification.read_mapping`.
        force: replace an existing bundle.

    Raises:
        DyceError: see :meth:`Parts.of`, :func:`join` and :func:`choose_and_verify`.
    """
    parts = Parts.of(base, savers, mapping)
    with staged(output, force=force) as folder:
        made = choose_and_verify(parts, join(parts, folder, val=val, progress=progress), val=val, progress=progress)
        seal(folder, made.manifest, made.configurations)
    return open_bundle(output)


def join(
    parts: Parts,
    folder: Path,
    *,
    val: Dataset | None,
    progress: Progress,
    expose: bool = False,
    suspicious: Sequence[str] = (),
    allow_suspicious: bool = False,
) -> Joined:
    """Write the pieces of all parts into ``folder``, and join their manifests, records and test vectors.

    Args:
        val: contains the images of the base's records, for savers that were not recorded on them.
        expose: whether the last saver also outputs what an exit sequence network reads; see
            :func:`dyce_export.savers.exposed_features.expose_features`.
        suspicious: doubts that the user has accepted so far.
        allow_suspicious: continue if the classes of a saver seem to differ from those of the base.

    Raises:
        DataError: a saver has to be recorded and the images for it are missing, or the savers were trained on all
            samples of a split that has to be unseen.
        SuspiciousDataError: the predictions of a saver do not agree with the labels, and that is not allowed.
    """
    with progress.stage("savers"):
        base, savers = parts.base, parts.savers
        _copy(base, folder)
        written = _write_parts(parts, folder, expose=expose)
        manifest = _joined(base.manifest, [saver.manifest for saver in savers], written)
        vectors = join_vectors(base, savers, manifest.savers)
        recorded = _recorded(base, savers, val, progress)
        doubts = accept(_doubts(parts, recorded), allowed=allow_suspicious)
        doubts = tuple(dict.fromkeys((*manifest.suspicious, *suspicious, *doubts)))
        records = _joined_records(parts, [part.network.id for part in written], recorded)
        bare = Bundle(
            folder, msgspec.structs.replace(manifest, suspicious=doubts), Configurations(named={FULL: Entry({})})
        )
        return Joined(bare, None if records is None else unseen_by(savers, records), vectors)


def choose_and_verify(parts: Parts, joined: Joined, *, val: Dataset | None, progress: Progress) -> Bundle:
    """Choose configurations, add the spans that they need, verify, and write records, test vectors and the report.

    Args:
        val: contains the images of the base's records, for the report.

    Returns:
        the bundle. All its files are written except the manifest and the configurations.

    Raises:
        VerificationError: a piece does not compute what it computed in the bundle that it comes from.
    """
    manifest, records, vectors = joined.bundle.manifest, joined.records, joined.vectors
    folder = joined.bundle.path
    with progress.stage("search"):
        probe = Entry(probe_of(manifest, vectors).exits)
        found = Configurations(named={FULL: Entry({}), PROBE: probe})
        configurations = found if records is None else choose(records, macs_again(manifest, parts.base.configurations))
    with progress.stage("spans"):
        spans = write_spans(manifest, configurations, folder)
    made = Bundle(folder, msgspec.structs.replace(manifest, pieces=(*manifest.pieces, *spans)), configurations)
    write_vectors(_with_further_heads(vectors, made), made)
    with progress.stage("verify"):
        manifest = check_spans(made, spans)
        check_parts(made, [*parts.savers, parts.base], [*parts.orders, None], vectors)
    if records is not None:
        write_records(records, parts.base, folder)
        with progress.stage("report"):
            report_bundle(made, records, val)
    return Bundle(folder, manifest, configurations)


def _with_further_heads(vectors: Vectors, made: Bundle) -> Vectors:
    """Add the scores of heads that none of the parts has: those of an exit sequence network.

    They are computed by the pieces, which were compared with torch before.
    """
    heads = {(exit.id, head.type) for exit in made.manifest.exits for head in exit.heads}
    if heads == vectors.scores.keys():
        return vectors
    with Session(made, registry.reference().name, TargetSpec(), allow_untrained=True) as session:
        return vectors._replace(scores={**answered(vectors, session).scores, **vectors.scores})


def _recorded(base: Bundle, savers: Sequence[Bundle], val: Dataset | None, progress: Progress) -> list[Records]:
    """Return the records of every saver on the images of the base's records; an empty list if the base has none."""
    if not base.file(RECORDS).is_file():
        return []
    like = Records.load(base.file(RECORDS))
    return [recorded_like(like, saver, val, progress) for saver in savers]


def _doubts(parts: Parts, recorded: Sequence[Records]) -> list[Doubt]:
    """Return the doubts about the classes of the savers."""
    if not recorded:
        return []
    like = Records.load(parts.base.file(RECORDS))
    pairs = zip(parts.savers, recorded, parts.orders, strict=True)
    return [
        doubt
        for saver, records, order in pairs
        for doubt in doubts_of_saver(saver.manifest.model.name, records, order, like)
    ]


def _joined_records(parts: Parts, ids: Sequence[str], recorded: Sequence[Records]) -> Records | None:
    """Return the records of all heads on the images of the base's records; None if there are no records."""
    return join_records(Records.load(parts.base.file(RECORDS)), ids, recorded, parts.orders) if recorded else None


def _copy(base: Bundle, folder: Path) -> None:
    """Copy the pieces of the base, except for the spans that only its own configurations need."""
    copy_files(base, {name for piece in _of_base(base.manifest) for name in (piece.file, *piece.data)}, folder)


def _of_base(base: Manifest) -> tuple[Piece, ...]:
    return tuple(piece for piece in base.pieces if piece.role != "span" or piece.id == UNCUT)


def _write_parts(parts: Parts, folder: Path, *, expose: bool) -> list[Part]:
    """Write the pieces of the savers. Networks with the same preprocessing and input shape read the same input."""
    written: list[Part] = []
    known = [(parts.base.manifest.preprocessing, parts.base.manifest.input)]
    for number, (saver, order) in enumerate(zip(parts.savers, parts.orders, strict=True)):
        spec = saver.manifest.input
        own = saver.manifest.preprocessing, spec.shape
        alike = (spec for preprocessing, spec in known if (preprocessing, spec.shape) == own)
        image = next(alike, msgspec.structs.replace(spec, name=f"saver{number}_image"))
        known.append((saver.manifest.preprocessing, image))
        last = number == len(parts.savers) - 1
        written.append(write_part(saver, f"saver{number}", image, order, folder, expose=expose and last))
    return written


def _joined(base: Manifest, savers: Sequence[Manifest], parts: Sequence[Part]) -> Manifest:
    """Return the joint manifest, in which the base comes after its savers."""
    exits = (*(exit for part in parts for exit in part.exits), *base.exits)
    networks = (*(part.network for part in parts), base.base)
    program = (*(operation for part in parts for operation in part.program), *base.program)
    tensors = {spec.name: spec for specs in (*(part.tensors for part in parts), base.tensors) for spec in specs}
    return msgspec.structs.replace(
        base,
        requires=requires(networks, tensors.values(), program),
        networks=networks,
        tensors=tuple(tensors.values()),
        exits=exits,
        pieces=(*(piece for part in parts for piece in part.pieces), *_of_base(base)),
        program=program,
        heads="trained" if all(head.trained for exit in exits for head in exit.heads) else "untrained",
        suspicious=tuple(doubt for manifest in (base, *savers) for doubt in manifest.suspicious),
        verification=_verified(base, savers, parts),
        precisions=(),
        files={},
    )


def _verified(base: Manifest, savers: Sequence[Manifest], parts: Sequence[Part]) -> Verification | None:
    """Join the results of verification: the largest error and the lowest agreement. None if a part has none."""
    found = [manifest.verification for manifest in (base, *savers)]
    if base.verification is None or any(one is None for one in found):
        return None
    seams = {name: error for name, error in base.verification.seams.items() if name in _kept(base)}
    known = [one for one in found if one is not None]
    for part, manifest, one in zip(parts, savers, known[1:], strict=True):
        seams |= {f"{part.network.id} {name}": e for name, e in one.seams.items() if name in _kept(manifest)}
    return msgspec.structs.replace(
        base.verification,
        seams=seams,
        max_relative_error=max(seams.values()),
        tolerance=max(one.tolerance for one in known),
        exit_agreement=min(one.exit_agreement for one in known),
        exempt=sum(one.exempt for one in known),
    )


def _kept(manifest: Manifest) -> set[str]:
    """Return the names of the errors that still apply: all but those of spans that are not copied."""
    assert manifest.verification is not None
    spans = {span.id for span in manifest.spans if span.id != UNCUT}
    return set(manifest.verification.seams) - spans
