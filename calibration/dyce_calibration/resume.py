"""Work that outlives an interruption: a folder that belongs to one computation, and files replaced in one go."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

_FINGERPRINT = "fingerprint"


def fingerprint(parts: Iterable[object]) -> str:
    """Of everything a result depends on: arrays by their bytes, all else by its ``repr``."""
    digest = hashlib.sha256(torch.__version__.encode())
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def folder_for(folder: Path, fingerprint: str) -> Path:
    """The folder with what an earlier run with that fingerprint left in it; emptied if it was of another."""
    path = folder / _FINGERPRINT
    if not (path.is_file() and path.read_text() == fingerprint):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        path.write_text(fingerprint)
    return folder


def save(state: dict[str, Any], path: Path) -> None:
    """Store tensors and plain values; a reader sees the old file or the new one."""
    beside = path.with_suffix(".new")
    torch.save(state, beside)
    os.replace(beside, path)


def load(path: Path) -> dict[str, Any] | None:
    """What :func:`save` has stored last, if anything."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state
