"""Resuming interrupted work: a folder that belongs to one computation, and files that are replaced atomically."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

log = logging.getLogger("dyce_calibration")

_FINGERPRINT = "fingerprint"


def fingerprint(parts: Iterable[object]) -> str:
    """Hash everything that a result depends on: arrays by their bytes, all other values by their ``repr``."""
    digest = hashlib.sha256(torch.__version__.encode())
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def folder_for(folder: Path, fingerprint: str) -> Path:
    """Return the folder with the results of an earlier run, emptied unless that run had the same fingerprint."""
    path = folder / _FINGERPRINT
    if not (path.is_file() and path.read_bytes() == fingerprint.encode()):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        path.write_text(fingerprint)
    return folder


def save(state: dict[str, Any], path: Path) -> None:
    """Store tensors and plain values atomically: a reader sees the old file or the new one."""
    beside = path.with_suffix(".new")
    torch.save(state, beside)
    os.replace(beside, path)


def load(path: Path, parts: Collection[str]) -> dict[str, Any] | None:
    """Return what :func:`save` stored last if its keys are ``parts``; None, with a warning if the file is unusable."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        say_damaged(path, error)
        return None
    if isinstance(state, dict) and set(state) == set(parts):
        return state
    say_damaged(path, "it holds something else")
    return None


def say_damaged(path: Path, why: object) -> None:
    """Log a warning that results of an earlier run cannot be used and are computed again."""
    reason = next(iter(str(why).splitlines()), "")
    log.warning("%s cannot be read (%s): what it held is computed again", path, reason)
