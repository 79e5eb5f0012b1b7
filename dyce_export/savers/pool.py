"""Models that are judged together: each becomes a bundle and is recorded once, whatever it is asked for later."""

from __future__ import annotations

from pathlib import Path

from dyce_calibration.heads.resume import fingerprint
from dyce_calibration.records import Records
from dyce_export.options import Options
from dyce_export.pipeline import write_bundle
from dyce_export.prepare import Captured, capture_source, fingerprint_of, prepare
from dyce_export.progress import Progress
from dyce_export.savers.classes import open_for, prepare_saver, with_pictures_of
from dyce_export.savers.join_records import own_records, recorded_like
from dyce_export.savers.joint_verification import Mapped, Ready
from dyce_export.savers.resolve_saver import load_named
from dyce_export.sources.inputs import Input
from dyce_runtime.bundle.reader import RECORDS, Bundle, open_bundle
from dyce_runtime.errors import BundleError
from dyce_runtime.inputs.datasets import Dataset


class Pool:
    """Where candidates become bundles, each once: the folder's bundles are called by what they were made from.

    Attributes:
        folder: may be used again, by other pools, too.
        pictures: those that models are judged on, and others.
    """

    def __init__(
        self, folder: Path, data: str | Path, val: str | Path | None, options: Options, progress: Progress
    ) -> None:
        self.folder, self._places, self._options, self.progress = folder, (data, val), options, progress
        self._base: Ready | None = None
        self._data: Dataset | None = None
        self._val: Dataset | None = None

    @property
    def allow_suspicious(self) -> bool:
        """Whether models are judged whose answers do not go together with the labels."""
        return self._options.allow_suspicious

    @property
    def pictures(self) -> Dataset:
        """Those among which models are judged. The base was opened before."""
        found = self._val or self._data
        assert found is not None
        return found

    def base(self, model: Captured | Bundle) -> Bundle:
        """The base as a bundle with records, with whose classes the pictures are opened. Raises DyceError."""
        if not isinstance(model, Bundle):
            base = prepare(model, [], data=self._places[0], val=self._places[1], options=self._options)
            self._base, self._data, self._val = base, base.data, base.val
            return self.recorded(base)
        (self._data, self._val), _ = open_for(model, self._places, self._options)
        self._base = model
        if not model.file(RECORDS).is_file():
            raise BundleError(f"{model.path} has no records to judge by", hint="Export with --data, or name the model.")
        return model

    def ready(self, name: str, like: Input, *, trust_pickle: bool) -> Ready:
        """A model of the pool, without pictures yet. Raises DyceError: it cannot be read or captured."""
        model = load_named(name, like, trust_pickle=trust_pickle)
        return (
            model if isinstance(model, Bundle) else prepare_saver(capture_source(model, self.progress), self._options)
        )

    def with_pictures(self, model: Ready, mapping: Mapped | None) -> Ready:
        """A model of the pool with the pictures, labelled in its classes. Raises DyceError: these do not fit."""
        assert self._base is not None
        return with_pictures_of(model, self._base, mapping, (self._data, self._val), self._options)

    def recorded(self, model: Ready) -> Bundle:
        """A model as a bundle, written with its records, or found. Raises DyceError."""
        if isinstance(model, Bundle):
            return model
        path = self.folder / f"{model.source.name}-{fingerprint_of(model, self._options)[:16]}.dyce"
        if not path.is_dir():
            write_bundle(model, path, options=self._options, progress=self.progress)
        return open_bundle(path, check_hashes=False)

    def records(self, candidate: Bundle, like: Records) -> Records:
        """Of a candidate, on the pictures of ``like``: its own, or made once and kept."""
        own = own_records(like, candidate)
        if own is not None:
            return own
        kept = self.folder / f"{candidate.fingerprint[:16]}-{fingerprint([like.hashes])[:16]}.npz"
        if kept.is_file():
            return Records.load(kept)
        found = recorded_like(like, candidate, self.pictures, self.progress)
        self.folder.mkdir(parents=True, exist_ok=True)
        found.save(kept.with_suffix(".new.npz"))
        kept.with_suffix(".new.npz").replace(kept)
        return found
