"""Rendering the contents into one self-contained HTML file: it needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import time
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from dyce_calibration.report.contents import Contents
from dyce_calibration.report.examples import Example
from dyce_calibration.report.kept import marked_outdated, with_kept_pictures
from dyce_calibration.report.measured import headline_section, measured_section, with_measured
from dyce_calibration.report.reliability import EDGES
from dyce_calibration.report.views import UNITS, exit_name, front_views, named_views, percent, spent_in, timed_where
from dyce_runtime.atomic_write import write_atomically
from dyce_runtime.bundle.configuration import FULL, Configurations
from dyce_runtime.bundle.manifest import FINAL
from dyce_runtime.bundle.measured import MeasuredHere
from dyce_runtime.errors import DestinationError, UsageError
from dyce_runtime.names import encoded

_START = "balanced"


def write_report(path: Path, contents: Contents) -> None:
    """Write the report of a bundle; without new example images it keeps those of the existing report.

    Raises:
        UsageError: Bokeh, which draws the plots, is not installed.
        DestinationError: the file cannot be written.
    """
    page = render(contents)
    if path.is_file():
        page = with_kept_pictures(page, path.read_text("utf-8", "replace"))
    _write(path, page)


def mark_outdated(path: Path, reason: str) -> None:
    """Mark a report as outdated because configurations were chosen again since; do nothing if there is no report.

    Args:
        reason: why the report was not drawn again.

    Raises:
        DestinationError: the file cannot be written.
    """
    if path.is_file():
        _write(path, marked_outdated(path.read_text("utf-8", "replace"), time.strftime("%Y-%m-%d"), reason))


def renew_measured(path: Path, configurations: Configurations, measured: MeasuredHere) -> None:
    """Update the parts of a report that show what a benchmark measured; do nothing if there is no report.

    This needs only the base install.

    Raises:
        DestinationError: the file cannot be written.
    """
    if path.is_file():
        _write(path, with_measured(path.read_text("utf-8", "replace"), configurations, measured))


def _write(path: Path, text: str) -> None:
    """Write a file atomically."""
    try:
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise DestinationError(f"{path} cannot be written: {error.strerror}") from error


def check_drawable() -> None:
    """Raise UsageError if Bokeh or Jinja2 is missing or broken."""
    try:
        for module in ("bokeh.resources", "jinja2", f"{__package__}.figures"):
            import_module(module)
    except Exception as error:  # a broken installation raises anything
        raise UsageError(
            f"the report needs Bokeh, which is not installed or does not load ({type(error).__name__}: {error})",
            hint="pip install 'dyce-export[report]'",
        ) from None


def render(contents: Contents) -> str:
    """Return the page. Raises UsageError if Bokeh or Jinja2 is missing or broken."""
    check_drawable()
    from bokeh.resources import Resources
    from jinja2 import Environment, StrictUndefined

    from dyce_calibration.report import figures

    front = front_views(contents)
    scripts = [Resources(mode="inline", components=["bokeh"], minified=True).js_raw[0], _file("report.js")]
    data = {
        "front": front,
        "named": named_views(contents, front),
        "spent": spent_in(contents),
        "start": _START if _START in contents.configurations.named else FULL,
        "plots": {
            "front-plot": figures.as_json(figures.front_plot(contents, front)),
            **{
                f"head-{number}": figures.as_json(figures.reliability_plot(head))
                for number, head in enumerate(contents.reliability)
            },
        },
    }
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(_file("template.html")).render(
        contents=contents,
        front=front,
        data=_embedded(data),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        style=_file("report.css"),
        colours=figures.COLOURS,
        few=figures.FEW,
        spent=spent_in(contents),
        where=timed_where(contents),
        unit=UNITS.get(contents.costs.unit, contents.costs.unit),
        edges=EDGES.tolist(),
        early=[example for example in contents.examples if example.exit != FINAL],
        late=[example for example in contents.examples if example.exit == FINAL],
        measured=measured_section(contents.configurations, contents.measured),
        headline=headline_section(contents.configurations, contents.measured),
        class_name=lambda index: _class_name(contents, index),
        picture=_picture,
        percent=percent,
        exit_name=exit_name,
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _embedded(data: Any) -> str:
    """Return JSON that is safe inside a script element and readable by every JavaScript engine."""
    text = encoded(data).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(script: str) -> str:
    """Return the source expression by which the page's Content-Security-Policy allows a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _picture(example: Example) -> str:
    return "data:image/png;base64," + base64.b64encode(example.png).decode()


def _class_name(contents: Contents, index: int) -> str:
    names = contents.class_names
    return names[index] if names is not None and 0 <= index < len(names) else f"class {index}"
