"""Which models go together as savers and base, and how their classes are put in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_calibration.savers import take_over
from dyce_export.savers.joint_verification import Member, check_members, class_order, read_mapping
from dyce_runtime.bundle.manifest import Model
from dyce_runtime.errors import UsageError

NAMES = ("ant", "bee", "cat")


def model(name: str = "small", names: tuple[str, ...] | None = NAMES, macs: int = 10, classes: int = 3) -> Model:
    return Model(name, f"{name}.pt", "checkpoint", classes, macs, 1, class_names=names)


BASE = model("large", macs=100)


@pytest.mark.parametrize(
    ("saver", "message"),
    [
        (Member(model(macs=100), 3), "small takes 0.0 MMACs and large 0.0; a saver has to be cheaper"),
        (Member(model(), 1), "small takes pictures of 1 channels and large of 3; expected the same pictures"),
        (Member(model(names=None, classes=4), 3), "small has 4 classes and large has 3; a saver has to answer"),
        (Member(model(names=("ant", "cat", "bee")), 3), "class 1 is 'cat' of saver small and 'bee' of large"),
    ],
)
def test_what_cannot_run_first_is_refused(saver: Member, message: str):
    with pytest.raises(UsageError, match=message):
        check_members(Member(BASE, 3), [saver], None)


def test_each_model_runs_once():
    check_members(Member(BASE, 3), [Member(model("a"), 3), Member(model("b"), 3)], None)
    with pytest.raises(UsageError, match=r"saver a \(a.pt\) was given twice"):
        check_members(Member(BASE, 3), [Member(model("a"), 3), Member(model("b"), 3), Member(model("a"), 3)], None)


def test_names_that_are_not_known_are_trusted():
    assert class_order(model(names=None), BASE, None) is None
    assert class_order(model(), BASE, None) is None


@given(st.permutations(range(3)))
def test_classes_are_found_by_their_names(order):
    saver = model(names=tuple(NAMES[index] for index in order))
    found = class_order(saver, BASE, {})
    logits = np.array([10.0 * NAMES.index(name) for name in saver.class_names or ()])
    np.testing.assert_array_equal(logits if found is None else logits[list(found)], [0, 10, 20])
    assert (found is None) == (list(order) == [0, 1, 2])


@pytest.mark.parametrize(
    "mapping", [{"x": "cat", "y": "ant", "z": "bee"}, {"0": 2, "1": 0, "2": 1}, {"x": 2, "1": "ant", "z": 1}]
)
def test_a_mapping_names_the_class_of_the_base_for_each_of_the_saver(mapping: dict[str, Any]):
    assert class_order(model(names=("x", "y", "z")), BASE, mapping) == (1, 2, 0)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"x": "cat", "y": "ant"}, "maps 2 classes of saver small to 2 of large; expected each of 3 once"),
        ({"x": "cat", "y": "cat", "z": "bee"}, "maps 2 classes of saver small to 2 of large"),
        ({"x": "cat", "y": "ant", "z": "dog"}, "names the class 'dog', which large does not have"),
        ({"x": "cat", "y": "ant", "7": "bee"}, "names the class '7', which small does not have"),
        ({}, "saver small has no class 'ant', which large has"),
    ],
)
def test_a_mapping_that_leaves_a_class_out_is_refused(mapping: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        class_order(model(names=("x", "y", "z")), BASE, mapping)


def test_names_have_to_be_known_to_be_compared():
    with pytest.raises(UsageError, match="the names of the classes of small are not known"):
        class_order(model(names=None), BASE, {})


def test_mappings_come_from_a_file_or_from_the_names(tmp_path: Path):
    (tmp_path / "map.json").write_text(json.dumps({"x": 2, "y": "ant"}))
    assert read_mapping(str(tmp_path / "map.json")) == {"x": 2, "y": "ant"}
    assert read_mapping("names") == {}
    assert read_mapping(None) is None
    for text in ("[1, 2]", "nothing"):
        (tmp_path / "map.json").write_text(text)
        with pytest.raises(UsageError, match="cannot be read"):
            read_mapping(str(tmp_path / "map.json"))
    with pytest.raises(UsageError, match="No such file"):
        read_mapping(str(tmp_path / "missing.json"))


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_saver_takes_what_it_is_surer_of_than_the_first_threshold_at_which_the_base_is_better(samples):
    confidence = np.array([n / 100 for n, _, _ in samples], np.float32)
    right, base_right = (np.array([sample[k] for sample in samples]) for k in (1, 2))
    found = take_over(confidence, *(np.logical_not(one).astype(np.float32) for one in (right, base_right)))
    for k in range(101):
        threshold = np.float32(1 - k / 100)
        taken = [s for s, sure in zip(samples, confidence, strict=True) if sure > threshold]
        if sum(s[1] for s in taken) < sum(s[2] for s in taken):
            break
    assert found.share == pytest.approx(len(taken) / len(samples), abs=1e-12)
    assert found.threshold == threshold
