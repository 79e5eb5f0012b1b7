"""The committed schema, and the bundles that have to keep opening."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator, ValidationError

from dyce_runtime import load, open_bundle
from dyce_runtime.bundle.schema import as_text, schemas
from dyce_runtime.bundle.test_vectors import answered, read_vectors
from tests import golden

SCHEMAS = Path(__file__).parents[3] / "docs" / "schema"
GOLDEN = sorted(path for path in golden.FOLDER.glob("*/*.dyce"))


def test_the_committed_schema_is_that_of_the_types():
    """If this fails: ``python -m dyce_runtime.bundle.schema docs/schema``, and see docs/compatibility.md."""
    assert {path.name: path.read_text() for path in SCHEMAS.iterdir()} == {
        name: as_text(schema) for name, schema in schemas().items()
    }


def test_the_schema_refuses_what_is_no_bundle():
    manifest = json.loads((golden.bundle("exits") / "manifest.json").read_text())
    validator = Draft202012Validator(schemas()["manifest-2.schema.json"])
    validator.validate(manifest)
    for change in ({"program": [{"op": "jump"}]}, {"tensors": None}, {"heads": "unsure"}, {"requires": "savers"}):
        with pytest.raises(ValidationError):
            validator.validate(manifest | change)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_golden_bundles_open_and_answer_as_they_did(path: Path):
    bundle = open_bundle(path)
    assert bundle.manifest.schema_version == path.parent.name
    with load(path, "onnxruntime", threads=1) as session:
        for name in session.configurations:
            session.use(name)
            for count in (1, 5):
                inputs = {
                    spec.name: np.ones((count, *map(int, spec.shape[1:])), np.float32)
                    for spec in bundle.manifest.specs(bundle.manifest.inputs)
                }
                assert session(inputs).logits.shape == (count, bundle.manifest.classes)
        if bundle.file("testvectors/vectors.npz").is_file():
            expected = read_vectors(bundle)
            found = answered(expected, session)
            np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
            for head, scores in expected.scores.items():
                np.testing.assert_allclose(found.scores[head], scores, atol=1e-5)


def test_there_are_golden_bundles_of_this_version():
    assert {path.stem for path in GOLDEN if path.parent.name == "2.0"} == set(golden.NAMES)
