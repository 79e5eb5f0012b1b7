"""Changing the documents of a bundle for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit(file: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON document of a bundle in place."""
    document = json.loads(file.read_bytes()) | {"digest": ""}
    change(document)
    file.write_text(json.dumps(document))


def piece(manifest: Any, id: str) -> Any:
    return next(piece for piece in manifest["pieces"] if piece["id"] == id)
