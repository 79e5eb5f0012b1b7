"""Models that are judged together: each becomes a bundle and is recorded once, whatever it is asked for later."""

from __future__ import annotations

from pathlib import Path

from dyce_calibration.records import Records
from dyce_calibration.resume import fingerprint
from dyce_export.inputs import Input
from dyce_export.pipeline import Captured, Options, Prepared, capture_source, fingerprint_of, prepare, write_bundle
from dyce_export.progress import Progress
from dyce_export.savers.agreement import Ready
from dyce_export.savers.named import load_named
from dyce_export.savers.together import own_records, recorded_like
from dyce_runtime.bundle import RECORDS, Bundle, open_bundle
from dyce_runtime.datasets import Dataset, open_dataset
from dyce_runtime.errors import BundleError
from dyce_runtime.manifest import Model


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
        self._data: Dataset | None = None
        self._val: Dataset | None = None

    @property
    def pictures(self) -> Dataset:
        """Those among which models are judged. The base was opened before."""
        found = self._val or self._data
        assert found is not None
        return found

    def base(self, model: Captured | Bundle) -> Bundle:
        """The base as a bundle with records, with whose classes the pictures are opened. Raises DyceError."""
        known = model.manifest.model if isinstance(model, Bundle) else model.source
        way = (model.manifest if isinstance(model, Bundle) else model.source).preprocessing
        classes = known.num_classes if isinstance(known, Model) else None
        data, val = (
            None
            if place is None
            else open_dataset(
                place, class_names=known.class_names, num_classes=classes, classes_file=self._options.classes_file
            ).check(way)
            for place in self._places
        )
        self._data, self._val = data, val
        if not isinstance(model, Bundle):
            return self.recorded(self.prepared(model))
        if not model.file(RECORDS).is_file():
            raise BundleError(f"{model.path} has no records to judge by", hint="Export with --data, or name the model.")
        return model

    def ready(self, name: str, like: Input, *, trust_pickle: bool) -> Ready:
        """A model of the pool, nothing of it recorded yet. Raises DyceError: it cannot be read or captured."""
        model = load_named(name, like, trust_pickle=trust_pickle)
        return model if isinstance(model, Bundle) else self.prepared(capture_source(model, self.progress))

    def prepared(self, model: Captured) -> Prepared:
        """A model without exits, with the pictures. Raises DyceError."""
        return prepare(model, [], data=self._data, val=self._val, options=self._options)

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
