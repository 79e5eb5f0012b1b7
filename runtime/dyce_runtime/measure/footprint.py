"""Measure the memory that a bundle takes, in a new process so that nothing else is counted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from dyce_runtime.bundle.reader import open_bundle
from dyce_runtime.errors import TargetError
from dyce_runtime.execution.contracts import TargetSpec
from dyce_runtime.execution.session import Session
from dyce_runtime.measure.machine_state import resident_bytes
from dyce_runtime.targets import registry
from dyce_runtime.targets.subprocess_call import ask

_KINDS = ("segment", "head", "span")


def footprint(session: Session) -> dict[str, int | None]:
    """Measure the memory of a session's bundle, opened with the same target and options.

    Returns:
        ``model_bytes``: the growth of a new process when the bundle is loaded and classifies one sample;
        ``process_bytes``: the resident memory of that process, including Python and the engine. Both are None if they
        cannot be determined. ``segments_bytes``, ``heads_bytes``, ``spans_bytes``: sizes of the open pieces on disk.
    """
    sizes = dict.fromkeys(_KINDS, 0)
    for piece in session.pieces:
        sizes[session.manifest.piece(piece).role] += session.bundle.size(piece)
    spec = {name: value for name, value in asdict(session.spec).items() if name != "engines"}
    question = {"path": str(session.bundle.path), "target": session.target.name, "spec": spec}
    try:
        found = ask(__name__, question) or {}
    except TargetError:  # the process crashed; since the session works here, only these figures are missing
        found = {}
    memory = {key: found.get(key) for key in ("model_bytes", "process_bytes")}
    return {**memory, **{f"{kind}s_bytes": size for kind, size in sizes.items()}}


def answer(question: dict[str, Any]) -> dict[str, int | None]:
    """Measure in the new process: called by :func:`dyce_runtime.targets.subprocess_call.ask`."""
    bundle = open_bundle(question["path"], check_hashes=False)
    registry.find(question["target"])  # imports the engine first, so that it does not count as part of the bundle
    before = resident_bytes()
    with Session(bundle, question["target"], TargetSpec(**question["spec"])) as session:
        inputs = bundle.manifest.specs(bundle.manifest.inputs)
        session({one.name: np.zeros((1, *map(int, one.shape[1:])), np.float32) for one in inputs})
        after = resident_bytes()
    if before is None or after is None:
        return {"model_bytes": None, "process_bytes": None}
    return {"model_bytes": max(after - before, 0), "process_bytes": after}
