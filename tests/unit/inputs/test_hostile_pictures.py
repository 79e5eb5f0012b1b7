"""Files and arrays that were not made for this: every one is answered or refused in words, with little memory."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import dyce_runtime
from dyce_runtime.bundle.manifest import Preprocessing
from dyce_runtime.errors import DataError, RuntimeInputError
from dyce_runtime.inputs.preprocessing import preprocess
from tests import hostile_pictures
from tests.hostile_pictures import saved

SPECS = [
    Preprocessing(18, (16, 16), "bilinear", (0.5,) * channels, (0.5,) * channels, "stretch")
    for channels in (1, 2, 3, 4)
] + [Preprocessing((16, 16), (16, 16), "bicubic", (0.0,) * 5, (1.0,) * 5, "contain")]


def test_every_file_is_answered_or_refused_within_2_gb(tmp_path: Path):
    expected = {}
    for name, content, allowed in hostile_pictures.files():
        (tmp_path / name).write_bytes(content)
        expected[str(tmp_path / name)] = allowed
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    ghostscript.chmod(0o755)
    above = Path(dyce_runtime.__file__).parents[1]
    environment = {
        **os.environ,
        "PATH": f"{ghostscript.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(above),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",  # whose memory would count
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", hostile_pictures.__file__, *expected],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    became = dict(json.loads(line) for line in done.stdout.splitlines())
    assert (done.returncode, list(became)) == (0, list(expected)), done.stderr
    assert {path: what for path, what in became.items() if what not in expected[path]} == {}
    assert not (tmp_path / "started").exists()


WHOLE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 14, 3), dtype=np.uint8))
ARRAY = io.BytesIO()
np.save(ARRAY, np.asarray(WHOLE))
KINDS = {
    **{kind: saved(WHOLE, kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")},
    "npy": ARRAY.getvalue(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_answered_or_refused(kind: str, data: st.DataObject, tmp_path: Path):
    content = bytearray(KINDS[kind])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6), "places"):
        content[place] = data.draw(st.integers(0, 255), "byte")
    content = content[: data.draw(st.integers(len(content) // 2, len(content)), "length")]
    (tmp_path / f"a.{kind}").write_bytes(content)
    spec = data.draw(st.sampled_from(SPECS), "spec")
    try:
        made = preprocess(tmp_path / f"a.{kind}", spec)
    except DataError as error:
        assert f"a.{kind}" in error.message  # noqa: PT017 (either is right)
    else:
        assert made.shape == (1, len(spec.mean), 16, 16)
        assert np.isfinite(made).all()


DTYPES = ["uint8", "float32", "float64", "float16", ">f4", "bool", "int64", "uint16", "complex64", "U3", "object"]
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 17, 30]), max_size=5).map(tuple)
SCALES = st.sampled_from([0.0, 1.0, 255.0, -3.0, np.nan, np.inf, 3e38])


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, scale=SCALES, spec=st.sampled_from(SPECS))
def test_any_array_is_answered_with_finite_numbers_or_refused(
    dtype: str, shape: tuple[int, ...], scale: float, spec: Preprocessing
):
    array = np.asarray(np.random.default_rng(0).random(shape) * scale).astype(dtype)
    try:
        made = preprocess(array, spec)
    except RuntimeInputError as error:
        assert error.message  # noqa: PT017 (either is right)
        return
    assert dtype in ("uint8", "float32", "float64", "float16", ">f4")
    assert made.shape[1:] == (len(spec.mean), 16, 16)
    assert np.isfinite(made).all()
    assert len(made) in (1, len(array))
