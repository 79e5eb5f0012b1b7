"""Manifests that make no sense are refused by what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dyce_runtime import open_bundle
from dyce_runtime.bundle.reader import MANIFEST
from dyce_runtime.errors import BundleError
from tests.unit.bundle.documents import edit, piece


def tensor(manifest: Any, name: str) -> Any:
    return next(spec for spec in manifest["tensors"] if spec["name"] == name)


def rename_seam(manifest: Any) -> None:
    piece(manifest, "exit_03_linear")["reads"] = ["seam_7"]


def unknown_tensor(manifest: Any) -> None:
    piece(manifest, "exit_07_linear")["reads"] = ["seam_9"]


def shorten_span(manifest: Any) -> None:
    piece(manifest, "span_00_01")["covers"].pop()


def overlong_span(manifest: Any) -> None:
    piece(manifest, "full")["covers"].append("segment_03")


def other_span(manifest: Any) -> None:
    piece(manifest, "span_00_01")["covers"] = ["segment_01", "segment_02"]


def no_uncut(manifest: Any) -> None:
    manifest["pieces"].remove(piece(manifest, "full"))


def drop_segment(manifest: Any) -> None:
    manifest["pieces"].remove(piece(manifest, "segment_01"))


def drop_head(manifest: Any) -> None:
    manifest["pieces"].remove(piece(manifest, "exit_03_linear"))


def swap_heads(manifest: Any) -> None:
    first, second, _ = manifest["exits"]
    first["heads"], second["heads"] = second["heads"], first["heads"]


def rename_final(manifest: Any) -> None:
    manifest["exits"][-1]["id"] = manifest["networks"][0]["exits"][-1] = "12"


def reorder_answer(manifest: Any) -> None:
    piece(manifest, "exit_03_linear")["writes"].reverse()


def two_of_a_name(manifest: Any) -> None:
    piece(manifest, "segment_01")["id"] = "segment_00"


def a_path_as_name(manifest: Any) -> None:
    piece(manifest, "segment_01")["id"] = "../segment_01"


def hostile_shape(manifest: Any) -> None:
    tensor(manifest, "seam_3")["shape"] = ["batch", 1 << 40, 1 << 40]


def immense_shape(manifest: Any) -> None:
    tensor(manifest, "seam_3")["shape"] = ["batch", 1 << 14, 1 << 14]


def negative_shape(manifest: Any) -> None:
    tensor(manifest, "seam_3")["shape"] = ["batch", -4]


def fixed_batch(manifest: Any) -> None:
    tensor(manifest, "seam_3")["shape"] = [1, 4, 4, 4]


def strange_type(manifest: Any) -> None:
    tensor(manifest, "seam_3")["dtype"] = "object"


def other_classes(manifest: Any) -> None:
    manifest["networks"][0]["model"]["num_classes"] = 6


def other_crop(manifest: Any) -> None:
    manifest["networks"][0]["inputs"][0]["preprocessing"]["crop"] = [5, 5]


def no_work(manifest: Any) -> None:
    manifest["networks"][0]["model"]["macs"] = 0


def too_much_work(manifest: Any) -> None:
    piece(manifest, "segment_01")["macs"] = 10**19


def never_ends(manifest: Any) -> None:
    manifest["program"][-1]["always"] = False


def ends_early(manifest: Any) -> None:
    manifest["program"][3]["always"] = True


def leave_before_the_head(manifest: Any) -> None:
    manifest["program"][2:4] = reversed(manifest["program"][2:4])


def run_twice(manifest: Any) -> None:
    manifest["program"].insert(2, manifest["program"][1])


def no_feed(manifest: Any) -> None:
    manifest["program"].pop(0)


def no_program(manifest: Any) -> None:
    manifest["program"] = []


def span_twice(manifest: Any) -> None:
    span = next(piece for piece in manifest["pieces"] if piece["id"] == "span_00_01")
    manifest["pieces"].append({**span, "id": "again"})


def unknown_operation(manifest: Any) -> None:
    manifest["program"][0]["op"] = "jump"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": 0}, "resizes to 0 and crops to .*; expected edges of 1 to 131072 pixels"),
        ({"resize": -3}, "resizes to -3 and crops"),
        ({"resize": [4, 0]}, r"resizes to \(4, 0\) and crops"),
        ({"resize": 10**9}, "resizes to 1000000000 and crops"),
        ({"std": [0.5, 0.0, 0.5]}, r"std \[0.5, 0.0, 0.5\]; expected finite numbers, the std over 0"),
        ({"std": [0.5, -1.0, 0.5]}, "expected finite numbers, the std over 0"),
        ({"interpolation": "magic"}, "interpolation 'magic'; expected one of nearest, bilinear"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(bundle_copy: Path, change: dict[str, Any], message: str):
    edit(bundle_copy / MANIFEST, lambda manifest: manifest["networks"][0]["inputs"][0]["preprocessing"].update(change))
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle_copy)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename_seam, r"runs \['exit_03_linear'\], which reads \['seam_7'\]; nothing has made it"),
        (unknown_tensor, "piece exit_07_linear uses .*seam_9.*; expected tensors of the manifest"),
        (shorten_span, "span span_00_01 covers .*; expected segments that follow each other"),
        (overlong_span, "span full covers .*; expected segments that follow each other"),
        (other_span, "span span_00_01 does not read and write what segment_01 and segment_02 do"),
        (span_twice, "the spans span_00_01 and again cover the same segments"),
        (no_uncut, "no span 'full'"),
        (drop_segment, "the program runs 'segment_01', which is no piece or runs twice"),
        (drop_head, "exit 3 names the head 'exit_03_linear', which is no head of that exit alone"),
        (swap_heads, "leave at exit '3' with head 'linear', which did not run right before"),
        (rename_final, "network final does not end in an exit of its name"),
        (reorder_answer, r"piece exit_03_linear writes \['label', .*\]; expected \['logits', "),
        (two_of_a_name, "two of the piece 'segment_00'"),
        (a_path_as_name, r"a piece called '\.\./segment_01'; expected letters, digits"),
        (hostile_shape, "tensor seam_3 is 'float32' of shape"),
        (immense_shape, "tensor seam_3 is .* at most 134,217,728 elements in all"),
        (negative_shape, "tensor seam_3 is 'float32' of shape"),
        (fixed_batch, "tensor seam_3 is 'float32' of shape"),
        (strange_type, "tensor seam_3 is 'object' of shape"),
        (other_classes, r"tensor logits is .*; expected float32 of shape \['batch', 6\]"),
        (other_crop, r"tensor image has the shape .*; its preprocessing makes \['batch', 3, 5, 5\]"),
        (no_work, "the model has 0 multiply-accumulates"),
        (too_much_work, "piece segment_01 has 1000.* multiply-accumulates or parameters; expected 0 to 1e[+]15"),
        (never_ends, "lets all samples leave at exit final; expected that of the last alone"),
        (ends_early, "lets all samples leave at exit 3; expected that of the last alone"),
        (leave_before_the_head, "leave at exit '3' with head 'linear', which did not run right before"),
        (run_twice, "the program runs 'segment_00', which is no piece or runs twice"),
        (no_feed, r"the program feeds \[\]; expected the inputs of the networks"),
        (no_program, r"the program feeds \[\]; expected the inputs of the networks"),
        (unknown_operation, "manifest.json cannot be read: Invalid value 'jump'"),
    ],
)
def test_pieces_that_do_not_fit_together_are_refused(bundle_copy: Path, damage, message):
    edit(bundle_copy / MANIFEST, damage)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle_copy)
