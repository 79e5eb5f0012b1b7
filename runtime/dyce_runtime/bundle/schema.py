"""Generate the JSON Schemas of a bundle's documents from their types.

``python -m dyce_runtime.bundle.schema FOLDER`` writes them; the committed ones are in ``docs/schema``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from dyce_runtime.bundle.configuration import Configurations
from dyce_runtime.bundle.manifest import SCHEMA_VERSION, Manifest

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, dict[str, Any]]:
    """Return file name to JSON Schema, for the current schema version."""
    types = {"manifest": Manifest, "configurations": Configurations}
    major = SCHEMA_VERSION.split(".", 1)[0]
    return {
        f"{name}-{major}.schema.json": {"$schema": _DIALECT, "title": f"{name}.json of a bundle"}
        | msgspec.json.schema(type)
        for name, type in types.items()
    }


def as_text(schema: dict[str, Any]) -> str:
    """Return the text of a schema file."""
    return msgspec.json.format(msgspec.json.encode(schema, order="deterministic"), indent=2).decode() + "\n"


if __name__ == "__main__":
    for file, schema in schemas().items():
        (Path(sys.argv[1]) / file).write_text(as_text(schema))
