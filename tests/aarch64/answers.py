"""What a bundle answers on this machine: written to a file, or compared with one that another machine wrote.

``answers.py write BUNDLE DATA FILE``, then elsewhere ``answers.py compare BUNDLE FILE``. The base install is enough.
"""

from __future__ import annotations

import platform
import sys

import numpy as np

from dyce_runtime import Session, load
from dyce_runtime.bundle.reader import TEST_VECTORS
from dyce_runtime.inputs.datasets import open_dataset

SAMPLES = 100
# Of the largest logit: sums are added up in another order.
TOLERANCE = 1e-5
# What torch computed, through several engines' worth of rounding.
TORCH_TOLERANCE = 1e-3


def write(bundle: str, data: str, file: str) -> None:
    """All named configurations on some samples."""
    with load(bundle, "onnxruntime", threads=1) as session:
        dataset = open_dataset(data)
        images = session.preprocess(dataset.images(range(min(SAMPLES, len(dataset)))))
        found = {"images": images}
        for name in session.bundle.configurations.named:
            session.use(name)
            result = session(images)
            found |= {f"{name} logits": result.logits, f"{name} exit": result.exit}
    np.savez(file, **found)


def compare(bundle: str, file: str) -> None:
    """Exits have to be the same, logits nearly so; and the bundle's own test vectors what torch computed."""
    known = dict(np.load(file))
    images = known.pop("images")
    with load(bundle, "onnxruntime", threads=1) as session:
        for name in session.bundle.configurations.named:
            session.use(name)
            alone = [session(image[None]) for image in images[:20]]
            for result, count in ((session(images), len(images)), (alone, 20)):
                parts = [result] if not isinstance(result, list) else result
                exits = np.concatenate([part.exit for part in parts])
                logits = np.concatenate([part.logits for part in parts])
                assert (exits == known[f"{name} exit"][:count]).all(), f"{name}: samples leave elsewhere"
                _check(name, logits, known[f"{name} logits"][:count], TOLERANCE)
        vectors = _check_vectors(session)
    exits = np.bincount(known["balanced exit"]) if "balanced exit" in known else []
    print(
        f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}: {len(images)} samples "
        f"leave where they left before ({list(map(int, exits))} in balanced), {vectors} test vectors are torch's"
    )


def _check_vectors(session: Session) -> int:
    with np.load(session.bundle.file(TEST_VECTORS)) as vectors:
        session.use("full")
        _check("test vectors", session(vectors["images"]).logits, vectors["logits"], TORCH_TOLERANCE)
        return len(vectors["images"])


def _check(name: str, found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    off = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    assert off <= tolerance, f"{name}: logits are off by {off:.1e}; expected at most {tolerance:.0e}"


if __name__ == "__main__":
    {"write": write, "compare": compare}[sys.argv[1]](*sys.argv[2:])
