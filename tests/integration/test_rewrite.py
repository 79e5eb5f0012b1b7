"""``dyce search -o``: a new bundle with spans for what was chosen."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dyce_calibration.search.costs import CostTable, write_costs
from dyce_export.writing.rewrite import rewrite
from dyce_runtime import load, open_bundle
from dyce_runtime.bundle.reader import sha256_of
from dyce_runtime.errors import VerificationError
from dyce_runtime.execution.plan import make_plan
from tests.integration.digits import Digits
from tests.manifests import seen
from tests.unit.cli.command import dyce_here


def search(*arguments: object) -> subprocess.CompletedProcess[str]:
    return dyce_here("search", *map(str, arguments))


@pytest.fixture
def table(digits: Digits, tmp_path: Path) -> Path:
    """Heads and cuts are dear, so that few exits are worth it."""
    bundle = open_bundle(digits.path)
    heads = {exit.id: {exit.heads[0].type: 1.0} for exit in bundle.manifest.exits[:-1]}
    backbone = {exit.id: 4.0 * n for n, exit in enumerate(bundle.manifest.exits, 1)}
    write_costs(CostTable("ms", backbone, heads, 12.0, bundle.fingerprint), tmp_path / "ms.json")
    return tmp_path / "ms.json"


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def test_a_new_bundle_has_spans_for_what_was_chosen_and_the_old_one_stays(
    digits: Digits, table: Path, tmp_path: Path
) -> None:
    before, new = contents(digits.path), tmp_path / "new.dyce"
    done = search(digits.path, "--costs", table, "-o", new, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bundle"] == str(new)
    assert contents(digits.path) == before
    bundle = open_bundle(new)
    assert bundle.configurations.unit == "ms"
    assert any(0 < len(entry.exits) < 3 for entry in bundle.configurations.named.values()), "some exits are off"
    spans = {span.id for span in bundle.manifest.spans}
    used = set()
    for name in bundle.configurations.named:
        for stretch in seen(make_plan(bundle.manifest, bundle.configuration(name)), bundle.manifest):
            assert len(stretch.body) == 1, name
            used |= {*stretch.body} & spans
    assert used | {"full"} == spans > {"full"}
    assert spans - {"full"} <= set(bundle.manifest.verification.seams)
    with np.load(digits.path / "testvectors/vectors.npz") as file:
        images = file["images"]
    with load(new) as one, load(digits.path) as other:
        for name in bundle.configurations.named:
            one.use(name)
            other.use(bundle.configuration(name))
            np.testing.assert_allclose(one(images).logits, other(images).logits, rtol=1e-3, atol=1e-4)
            np.testing.assert_array_equal(one(images).exit, other(images).exit)


def test_a_new_bundle_does_not_replace_another_unless_told_to(digits: Digits, table: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.dyce"
    shutil.copytree(digits.path, taken)
    before = contents(taken)
    refused = search(digits.path, "--costs", table, "-o", taken, "--json")
    assert json.loads(refused.stdout)["error"]["code"] == "destination"
    assert contents(taken) == before
    assert search(digits.path, "--costs", table, "-o", taken, "--force").returncode == 0
    assert contents(taken) != before


def test_a_span_that_computes_something_else_is_refused(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dyce_export.writing import rewrite as module

    write = module.write_spans

    def damage(manifest: Any, configurations: Any, folder: Path) -> Any:
        spans = write(manifest, configurations, folder)
        for span in spans:
            model = onnx.load(folder / span.file)
            weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
            onnx.save(model, folder / span.file)
        return spans

    monkeypatch.setattr(module, "write_spans", damage)
    bundle = open_bundle(digits.path)
    few = dict(bundle.configurations.named)
    entry = few["fast"]
    few["fast"] = type(entry)(exits=dict(list(entry.exits.items())[-1:]))
    with pytest.raises(VerificationError, match=r"relative error of span_\d\d_\d\d against its segments"):
        rewrite(bundle, type(bundle.configurations)(named=few), tmp_path / "new.dyce")
    assert list(tmp_path.iterdir()) == []
