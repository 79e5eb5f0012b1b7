"""Keep the bundles and records of candidate savers in a folder, so that each is exported and recorded only once."""

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
    """Candidate savers for one base, exported to bundles in a folder that serves as a cache.

    :meth:`base` has to be called first: it opens the images.

    Attributes:
        folder: the cache. File names contain a fingerprint of the content, so other pools may share it.
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
        """Whether models whose predictions do not agree with the labels are accepted."""
        return self._options.allow_suspicious

    @property
    def pictures(self) -> Dataset:
        """Images that include those on which models are compared. Available after :meth:`base`."""
        found = self._val or self._data
        assert found is not None
        return found

    def base(self, model: Captured | Bundle) -> Bundle:
        """Return the base as a bundle with records, and open the images with its classes.

        Raises:
            DyceError: the base cannot be exported or has no records, or the images do not fit it.
        """
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
        """Load a candidate, without images yet. Raises DyceError if it cannot be read or captured."""
        model = load_named(name, like, trust_pickle=trust_pickle)
        return (
            model if isinstance(model, Bundle) else prepare_saver(capture_source(model, self.progress), self._options)
        )

    def with_pictures(self, model: Ready, mapping: Mapped | None) -> Ready:
        """Return a candidate with the images, labelled in its classes. Raises DyceError if they do not fit it."""
        assert self._base is not None
        return with_pictures_of(model, self._base, mapping, (self._data, self._val), self._options)

    def recorded(self, model: Ready) -> Bundle:
        """Return a model as a bundle: from the cache, or exported. Raises DyceError if the export fails."""
        if isinstance(model, Bundle):
            return model
        path = self.folder / f"{model.source.name}-{fingerprint_of(model, self._options)[:16]}.dyce"
        if not path.is_dir():
            write_bundle(model, path, options=self._options, progress=self.progress)
        return open_bundle(path, check_hashes=False)

    def records(self, candidate: Bundle, like: Records) -> Records:
        """Return a candidate's records of the samples of ``like``: its own, from the cache, or made and cached.

        Raises:
            DataError: the images of ``like`` are not all in the pool's data.
        """
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
