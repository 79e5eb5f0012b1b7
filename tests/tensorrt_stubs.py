"""Types of TensorRT for mypy: ``python -m tests.tensorrt_stubs`` mends the ones of ``tensorrt-stubs`` into a folder.

As published (10.13) they are not Python in five lines: ``in`` is a parameter, and one without a default follows others
that have one. Nor do they say that they are typed.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

PACKAGE = "tensorrt-stubs"
FOLDER = Path("build/stubs")


def mend(text: str) -> str:
    """The same stubs, as Python."""
    text = re.sub(r"\bin: (?=list\[)", "in_: ", text)
    return text.replace("power: Weights = None, channel_axis: int)", "power: Weights = None, channel_axis: int = 0)")


def main() -> None:
    """Write them."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    files = [file for file in importlib.metadata.files(PACKAGE) or [] if file.suffix == ".pyi"]
    if not files:
        sys.exit(f"{PACKAGE} is not installed: pip install --no-deps 'tensorrt-stubs==10.13.*'")
    for file in files:
        (FOLDER / file).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / file).write_text(mend(file.read_text()))


if __name__ == "__main__":
    main()
