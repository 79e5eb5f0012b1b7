"""Write the README's chart and its table of results from the figures that other benchmarks have stored.

``python -m benchmarks.readme`` writes ``docs/pictures/results.svg`` and the part of ``README.md`` between two markers.
The configurations were chosen without the test images; losses were measured on these.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
PICTURE = HERE.parent / "docs" / "pictures" / "results.svg"
START, END = "<!-- results -->", "<!-- end of results -->"
CHOSEN = "loses at most 0.5 points on the search samples"
_WIDTH, _LEFT, _ROW, _TOP = 760, 230, 44, 56


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        what: what makes the model faster.
        model: its size.
        ms, uncut_ms: mean milliseconds of a call with one image, and those of the uncut model in the same run.
        loss: loss of accuracy on test images, a fraction.
        page: the page that has all figures.
        script: the script that made them.
    """

    what: str
    model: str
    ms: float
    uncut_ms: float
    loss: float
    page: str
    script: str


def rows() -> list[Row]:
    """Return the rows of the table, which include the best and the worst results."""
    savers = _read("fashion_savers")["bundles"]
    found = []
    for name, what in (("exits alone", "exits"), ("saver", "a saver"), ("saver and exits", "a saver and exits")):
        uncut = savers[name]["uncut"]
        found.append(
            _row(
                what, "495 MMACs", _entry(savers[name], f"{name}, {CHOSEN}"), uncut, "savers", "examples.fashion_savers"
            )
        )
    one = _read("savings")["threads"]["1 thread"]
    found.append(_row("exits", "124 MMACs", _entry(one, f"milliseconds, {CHOSEN}"), one["uncut"], "savings", "savings"))
    small = _read("fashion_mnist")["bench"]["2 threads"]
    entry = next(e for e in small["configurations"] if e["name"] == "accurate")
    found.append(_row("exits, 2 threads", "20 MMACs", entry, small["uncut"], "fashion-mnist", "examples.fashion_mnist"))
    return found


def _read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _entry(part: dict, name: str) -> dict:
    return next(entry for entry in part["configurations"] if entry["name"] == name)


def _row(what: str, model: str, entry: dict, uncut: dict, page: str, script: str) -> Row:
    loss = uncut["accuracy"] - entry["accuracy"]
    return Row(what, model, entry["mean_ms"], uncut["mean_ms"], loss, page, script)


def table(found: list[Row]) -> str:
    facts = _read("fashion_savers")["environment"]
    lines = [
        "| Fashion-MNIST, 10,000 test pictures | model | ms, uncut | ms | time | accuracy lost | script |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| [{row.what}](docs/{row.page}.md) | {row.model} | {row.uncut_ms:.2f} | {row.ms:.2f} | "
            f"{row.ms / row.uncut_ms:.0%} | {100 * row.loss:.1f} points | `benchmarks.{row.script}` |"
            for row in found
        ),
        "",
        f"One picture per call on {facts['CPU']} with {facts['cores']} cores, onnxruntime {facts['onnxruntime']}, "
        f"{facts['date']}; one thread unless said otherwise. Thresholds were chosen on other pictures, to lose at most half a "
        "point *there*: on new pictures that is 0.7 to 1.0 points. The last row loses: the model is so small that every "
        "call counts.",
    ]
    return "\n".join(lines)


def picture(found: list[Row]) -> str:
    """Return an SVG with a bar for each row, whose length is the time relative to the uncut model."""
    scale = (_WIDTH - _LEFT - 190) / max(1.0, *(row.ms / row.uncut_ms for row in found))
    height = _TOP + _ROW * len(found) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="15">',
        "<title>Time of a picture relative to the uncut model</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="30" font-size="17" font-weight="bold" fill="#1d2125">Time of a picture, relative to the uncut model</text>',
    ]
    end = _LEFT + scale
    for index, row in enumerate(found):
        top, ratio = _TOP + _ROW * index, row.ms / row.uncut_ms
        colour = "#1f6fae" if ratio < 1 else "#d9640a"
        parts += [
            f'<text x="16" y="{top + 20}" fill="#1d2125">{escape(row.what)}, {escape(row.model)}</text>',
            f'<rect x="{_LEFT}" y="{top + 3}" width="{scale * ratio:.1f}" height="26" fill="{colour}"/>',
            f'<text x="{_LEFT + scale * ratio + 8:.1f}" y="{top + 21}" fill="#1d2125" stroke="#ffffff" stroke-width="4" '
            f'paint-order="stroke">{ratio:.0%}, loses {100 * row.loss:.1f} points</text>',
        ]
    bottom = _TOP + _ROW * len(found)
    parts += [
        f'<line x1="{end:.1f}" y1="{_TOP - 8}" x2="{end:.1f}" y2="{bottom}" stroke="#5a6168" stroke-dasharray="4 4"/>',
        f'<text x="{end:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#5a6168" font-size="13">uncut model</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def renewed(readme: str, text: str) -> str:
    """Return the README with another text between the markers."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{text}\n{END}{after}"


def main() -> None:
    found = rows()
    PICTURE.write_text(picture(found))
    README.write_text(renewed(README.read_text(), table(found)))


if __name__ == "__main__":
    main()
