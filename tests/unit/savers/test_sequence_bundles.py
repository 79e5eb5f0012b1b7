"""Bundles whose heads read what others have left: what runs, what it costs, and what does not fit together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dyce_calibration.records import Records
from dyce_calibration.search.costs import macs_of
from dyce_calibration.search.problem import make_problem
from dyce_export.graph.joining import assemble
from dyce_export.savers.exposed_features import expose_features
from dyce_runtime import Configuration, Session, load, open_bundle
from dyce_runtime.bundle.configuration import ExitSetting
from dyce_runtime.bundle.manifest import BUILTIN
from dyce_runtime.bundle.reader import MANIFEST, Bundle
from dyce_runtime.control.work_cap import WorkCap, exit_shares
from dyce_runtime.errors import BundleError, UsageError
from dyce_runtime.execution.plan import make_plan, path_macs
from dyce_runtime.measure.piece_costs import measure_times
from dyce_runtime.program.structure import needed_heads
from tests.bundles import HEAD
from tests.cascades import make_inputs
from tests.manifests import seen
from tests.sequences import HEADS, TYPE, all_heads, configurations, expected, near_threshold


@pytest.fixture(scope="module")
def bundle(sequence_bundle: Path) -> Bundle:
    return open_bundle(sequence_bundle)


@pytest.fixture(scope="module")
def session(sequence_bundle: Path) -> Iterator[Session]:
    with load(sequence_bundle, threads=1) as session:
        yield session


def setting(**heads: str) -> Configuration:
    """Exits that are on, with a head: ``setting(saver1="builtin", exit7="linear")``."""
    return Configuration(
        str(heads), {exit.removeprefix("exit"): ExitSetting(type, 0.5) for exit, type in heads.items()}
    )


def test_a_head_needs_all_that_leave_what_it_reads(bundle: Bundle):
    assert needed_heads(bundle.manifest) == {
        "3": {TYPE: (("saver1", BUILTIN),)},
        "7": {TYPE: (("saver1", BUILTIN), ("3", TYPE))},
    }
    assert macs_of(bundle.manifest).needs == needed_heads(bundle.manifest)


def test_what_a_head_needs_runs_and_nothing_leaves_there(bundle: Bundle):
    def steps(**heads: str) -> list[tuple[tuple[str, ...], str | None, bool]]:
        plan = make_plan(bundle.manifest, setting(**heads))
        found = seen(plan, bundle.manifest)
        return [(one.body, one.head, one.leave is not None and np.isfinite(one.leave.threshold)) for one in found]

    saver, end = ("saver1_segment_00",), (("segment_02",), None, False)
    assert steps(exit7=HEAD) == [(("segment_00", "segment_01"), "exit_07_linear", True), end]
    assert steps(exit3=TYPE) == [
        (saver, None, False),
        (("segment_00",), f"exit_03_{TYPE}", True),
        (("segment_01", "segment_02"), None, False),
    ]
    assert steps(saver1=BUILTIN, exit3=HEAD, exit7=TYPE) == [
        (saver, None, True),
        (("segment_00",), f"exit_03_{TYPE}", False),
        ((), "exit_03_linear", True),
        (("segment_01",), f"exit_07_{TYPE}", True),
        end,
    ]


@given(configurations, st.integers(1, 40), st.integers(0, 100))
def test_a_batch_answers_as_torch_does(session: Session, configuration, count, seed):
    inputs = make_inputs(count, seed)
    assume(not near_threshold(inputs, configuration))
    session.use(configuration)
    result, answer = session(inputs), expected(inputs, configuration)
    np.testing.assert_array_equal(result.exit, answer.exit)
    np.testing.assert_allclose(result.logits, answer.logits, atol=1e-4, rtol=1e-4)


@given(configurations)
def test_the_search_and_the_runtime_agree_on_what_a_sample_pays(bundle: Bundle, configuration):
    count, exits = 4, len(bundle.manifest.exits)
    columns = np.zeros((count, len(HEADS) + 1))
    labels = np.zeros(count, np.int64)
    records = Records.of_single_label(
        HEADS,
        columns.astype(np.int64),
        columns.astype(np.float32),
        labels,
        labels.astype(np.uint64),
        np.full(count, "search"),
    )
    problem = make_problem(records, macs_of(bundle.manifest))
    paid = np.array(problem.costs(problem.setting(configuration.exits))) * bundle.manifest.model.macs
    found = path_macs(bundle.manifest, configuration)
    on = [k for k in range(exits) if bundle.manifest.exits[k].id in configuration.exits or k == exits - 1]
    np.testing.assert_allclose(found[on], paid[on])


@given(configurations, st.floats(0.2, 2), st.integers(0, 100))
def test_a_cap_counts_what_a_head_needs(session: Session, configuration, share, seed):
    inputs = make_inputs(9, seed)
    session.use(configuration)
    shares = exit_shares(session.manifest, configuration, {})
    assume(shares.min() <= share)
    with WorkCap(session, max_share=max(share, 1.2)):
        result = session(inputs)
    assert (shares[result.exit] <= max(share, 1.2)).all()


def test_an_exit_that_is_off_costs_what_its_usual_head_needs(bundle: Bundle):
    shares = exit_shares(bundle.manifest, Configuration("full"), {"7": TYPE})
    on = path_macs(bundle.manifest, setting(exit7=TYPE)) / bundle.manifest.model.macs
    assert shares[[exit.id for exit in bundle.manifest.exits].index("7")] == on[4]


def test_every_head_is_timed(session: Session):
    costs = measure_times(session, [make_inputs(2)])
    assert {("3", TYPE), ("7", TYPE)} <= costs.heads.keys()
    assert costs.needs == needed_heads(session.manifest)


def test_all_heads_are_in_the_whole_network(bundle: Bundle):
    import onnxruntime

    inputs = make_inputs(3)
    whole = assemble(bundle).model
    for number, node in enumerate(whole.graph):  # the pieces of this bundle were made without names
        node.name = f"node_{number}"
    model = ir.to_proto(whole).SerializeToString()
    joined = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in joined.get_outputs()]
    found = dict(zip(names, joined.run(None, inputs), strict=True))
    logits, _ = all_heads(inputs)
    for index, point in ((4, 3), (6, 7)):
        np.testing.assert_allclose(found[f"logits.exit_{point:02d}_{TYPE}"], logits[:, index], atol=1e-4)


# --- what does not fit together --------------------------------------------------------------------------------------


def head(document: dict[str, Any], id: str) -> dict[str, Any]:
    return next(piece for piece in document["pieces"] if piece["id"] == id)


def forget_saver(document: dict[str, Any]) -> None:
    segment = head(document, "saver1_segment_00")
    segment["writes"] = segment["writes"][:3]


def read_later(document: dict[str, Any]) -> None:
    head(document, f"exit_03_{TYPE}")["reads"].append("esn_2")


def leave_twice(document: dict[str, Any]) -> None:
    head(document, f"exit_03_{TYPE}")["writes"].append("esn_1")


def require_nothing(document: dict[str, Any]) -> None:
    document["requires"].remove("carried")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (forget_saver, rf"runs \['exit_03_{TYPE}'\], which reads .*saver1_features.*; nothing has made it"),
        (read_later, rf"runs \['exit_03_{TYPE}'\], which reads .*esn_2.*; nothing has made it"),
        (leave_twice, f"piece exit_03_{TYPE} uses .*'esn_1', 'esn_1'.* each once"),
        (require_nothing, "the bundle carries tensors; expected 'carried' in what it requires"),
    ],
)
def test_heads_that_read_what_nothing_before_them_leaves_are_refused(
    sequence_bundle: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str
):
    copy = shutil.copytree(sequence_bundle, tmp_path / "copy.dyce")
    document = json.loads((copy / MANIFEST).read_bytes()) | {"digest": ""}
    damage(document)
    (copy / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message):
        open_bundle(copy)


# --- what a saver has seen -------------------------------------------------------------------------------------------


def classifier(kind: str) -> ir.Graph:
    """What ends in logits (N, 2): of features, a feature map or tokens; or in nothing linear."""
    shapes = {"Gemm": (None, 3), "Conv": (None, 3, 4, 4), "MatMul": (None, 5, 3), "Softmax": (None, 2)}
    shape = ir.Shape(["batch", *shapes[kind][1:]])  # type: ignore[list-item]
    read = ir.Value(name="read", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([read], [], nodes=[], opset_imports={"": 18}, name="classifier")
    tape = ir.tape.Tape(graph)

    def constant(array: np.ndarray, name: str) -> ir.Value:
        return tape.initializer(ir.tensor(array, name=name))

    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    if kind == "Gemm":
        logits = tape.op("Gemm", [read, constant(weight, "weight")])
    elif kind == "Conv":
        found = tape.op("Conv", [read, constant(weight.T[:, :, None, None].copy(), "weight")])
        logits = tape.op("ReduceMean", [found, constant(np.array([2, 3]), "axes")], {"keepdims": 0})
    elif kind == "MatMul":
        found = tape.op("MatMul", [read, constant(weight, "weight")])
        logits = tape.op("ReduceMean", [found, constant(np.array([1]), "axes")], {"keepdims": 0})
    else:
        logits = tape.op("Softmax", [read])
    logits.name, logits.dtype, logits.shape = "logits", ir.DataType.FLOAT, ir.Shape(["batch", 2])
    graph.outputs.append(logits)
    return graph


@pytest.mark.parametrize("kind", ["Gemm", "Conv", "MatMul"])
def test_features_are_what_the_classifier_reads(kind: str):
    import onnxruntime

    graph = classifier(kind)
    specs = expose_features(graph, "saver0", "small")
    assert [(spec.name, spec.shape) for spec in specs] == [
        ("saver0_features", ("batch", 3)),
        ("saver0_logits", ("batch", 2)),
    ]
    shape = [4, *map(int, graph.inputs[0].shape[1:])]  # type: ignore[index]
    read = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    logits, features, copied = onnxruntime.InferenceSession(model).run(None, {"read": read})
    positions = {"Gemm": (), "Conv": (2, 3), "MatMul": (1,)}[kind]
    np.testing.assert_allclose(features, read.mean(axis=positions) if positions else read, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(logits, copied)


def test_a_saver_whose_classifier_is_not_linear_is_refused():
    with pytest.raises(UsageError, match="the classifier of saver small is not a linear layer"):
        expose_features(classifier("Softmax"), "saver0", "small")
