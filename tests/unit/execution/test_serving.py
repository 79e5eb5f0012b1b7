"""The example server, as its users call it: eight at a time."""

from __future__ import annotations

import importlib.util
import io
import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
from PIL import Image

from dyce_runtime import Session, load

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "serve.py"


def example() -> Any:
    spec = importlib.util.spec_from_file_location("serve", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def session(tiny_bundle: Path) -> Iterator[Session]:
    with load(tiny_bundle, threads=1) as session:
        session.use("fast")
        yield session


@pytest.fixture
def address(session: Session) -> Iterator[str]:
    server = example().Server(("127.0.0.1", 0), session)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def post(address: str, body: bytes) -> Any:
    with urllib.request.urlopen(f"{address}/classify", data=body, timeout=30) as answer:
        return json.load(answer)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_eight_callers_get_the_answers_of_single_calls(address: str, session: Session):
    pictures = [picture(seed) for seed in range(64)]
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda pixels: post(address, png(pixels)), pictures))
    for pixels, answer in zip(pictures, answers, strict=True):
        result = session(session.preprocess(pixels))
        assert answer["label"] == result.label[0]
        assert answer["exit"] == session.manifest.exits[result.exit[0]].id
        assert answer["confidence"] == pytest.approx(float(result.confidence[0]))
        assert answer["configuration"] == "fast"


def test_the_counters_count_the_callers(address: str):
    for seed in range(5):
        post(address, png(picture(seed)))
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    assert "dyce_calls_total 5" in lines


@pytest.mark.parametrize(
    ("path", "body", "code"), [("classify", b"not a picture", 415), ("classify", b"", 413), ("elsewhere", b"x", 404)]
)
def test_what_is_no_picture_is_refused_and_the_server_goes_on(address: str, path: str, body: bytes, code: int):
    with pytest.raises(HTTPError) as refused:
        urllib.request.urlopen(f"{address}/{path}", data=body, timeout=30)
    assert refused.value.code == code
    assert "label" in post(address, png(picture(0)))
