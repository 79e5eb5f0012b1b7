"""Weights come from the bundle, whatever a graph asks for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data

from dyce_runtime import load, open_bundle
from dyce_runtime.bundle.documents import write_document
from dyce_runtime.bundle.reader import MANIFEST
from dyce_runtime.errors import BundleError
from tests.bundles import expected, finish, make_images

GRAPH = "segments/segment_00.onnx"


def move_weights_out(bundle: Path, location: str) -> None:
    """Let the first segment read its weights from another file."""
    model = onnx.load(bundle / GRAPH)
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, bundle / GRAPH)
    model = onnx.load(bundle / GRAPH, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (bundle / GRAPH).write_bytes(model.SerializeToString())


def listed(bundle: Path, *data: str) -> None:
    """List files as weights of the first segment."""
    manifest = open_bundle(bundle, check_hashes=False).manifest
    pieces = tuple(
        msgspec.structs.replace(piece, data=data) if piece.id == "segment_00" else piece for piece in manifest.pieces
    )
    finish(bundle, pieces=pieces)


def test_weights_in_a_file_beside_the_graph_are_read(bundle_copy: Path):
    move_weights_out(bundle_copy, "weights.bin")
    finish(bundle_copy)
    listed(bundle_copy, "segments/weights.bin")
    with load(bundle_copy, "onnxruntime", threads=1) as session:
        session.use("fast")
        images = make_images(5)
        np.testing.assert_array_equal(session(images).exit, expected(images, session.configuration).exit)


@pytest.mark.parametrize(
    "location", ["../../weights.bin", "/etc/hostname", "other.bin", "x" * 500, "../segments/weights.bin"]
)
def test_weights_from_elsewhere_are_refused(bundle_copy: Path, location: str):
    move_weights_out(bundle_copy, location)
    finish(bundle_copy)
    listed(bundle_copy, "segments/weights.bin")
    with pytest.raises(BundleError, match=r"segment_00\.onnx reads weights from .*; expected a file"):
        open_bundle(bundle_copy)


def test_weights_that_no_piece_lists_are_refused(bundle_copy: Path):
    move_weights_out(bundle_copy, "weights.bin")
    finish(bundle_copy)
    with pytest.raises(BundleError, match=r"reads weights from 'weights\.bin'"):
        open_bundle(bundle_copy)


def test_the_manifest_is_written_as_it_was(bundle_copy: Path):
    before = open_bundle(bundle_copy).manifest
    write_document(before, bundle_copy / MANIFEST)
    assert open_bundle(bundle_copy).manifest == before
