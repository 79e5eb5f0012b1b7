"""The parts of a report that a benchmark fills, made separately so that a device can update them by itself."""

from __future__ import annotations

from html import escape

from dyce_calibration.report.headline import headline
from dyce_calibration.report.kept import marked, part_of, with_part
from dyce_runtime.bundle.configuration import Configurations
from dyce_runtime.bundle.measured import BenchFigures, MeasuredHere

_COLUMNS = ("Median, ms", "90 % quantile, ms", "Time saved", "Loses, points", "Accuracy")


def measured_section(configurations: Configurations, measured: MeasuredHere) -> str:
    """Return the figures that a benchmark stored with configurations, one table per machine, day and kind of call.

    The tables are between two marks, which remain even if nothing was measured.
    """
    tables: dict[str, list[str]] = {}
    for name, bench in _measured(configurations, measured):
        tables.setdefault(_where(bench), []).append(_row(name, bench))
    head = "".join(f'<th scope="col" class="number">{column}</th>' for column in _COLUMNS)
    text = "".join(
        f'<div class="wide"><table>\n<caption>{escape(where)}</caption>\n<thead><tr><th scope="col">Configuration</th>'
        f"{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table></div>\n"
        for where, rows in tables.items()
    )
    if text:
        text = (
            '<section aria-labelledby="measured">\n<h2 id="measured">Measured on a machine</h2>\n<p>Milliseconds of a '
            "call without preprocessing. Time saved is against the uncut model in the same run; below zero early exit "
            f"loses.</p>\n{text}</section>\n"
        )
    return marked("measured", text)


def headline_section(configurations: Configurations, measured: MeasuredHere) -> str:
    """Return the first sentence of the report, between marks."""
    return marked("headline", headline(configurations, measured))


def with_measured(page: str, configurations: Configurations, measured: MeasuredHere) -> str:
    """Update those parts of a report; if it has no marks, append the tables at its end."""
    section = measured_section(configurations, measured)
    if part_of(page, "measured") is not None:
        page = with_part(page, "headline", headline(configurations, measured))
        return with_part(page, "measured", part_of(section, "measured") or "")
    before, main, after = page.rpartition("</main>")
    return f"{before}{section}\n{main}{after}" if main else page


def _measured(configurations: Configurations, measured: MeasuredHere) -> list[tuple[str, BenchFigures]]:
    """Return the figures of the named configurations, then those of unnamed ones on the front, named by their place."""
    known = [(entry.exits, entry.gates) for entry in configurations.named.values()]
    front = [
        (f"front {place}", entry)
        for place, entry in enumerate(configurations.front, 1)
        if (entry.exits, entry.gates) not in known
    ]
    benched = [(name, measured.figures(entry)) for name, entry in (*configurations.named.items(), *front)]
    return [(name, bench) for name, bench in benched if bench is not None]


def _where(bench: BenchFigures) -> str:
    return (
        f"{bench.cpu}, {bench.target}, threads {bench.threads}, {bench.date}: {bench.samples} pictures "
        f"({bench.unseen} unseen), {bench.batch} per call"
    )


def _row(name: str, bench: BenchFigures) -> str:
    accuracy = "" if bench.accuracy is None else f"{bench.accuracy:.1%}"
    known = bench.loss is not None and bench.loss_error is not None
    lost = f"{100 * bench.loss:.1f} ± {100 * bench.loss_error:.1f}" if known else ""  # type: ignore[operator]
    cells = (f"{bench.p50_ms:.2f}", f"{bench.p90_ms:.2f}", f"{1 - bench.time_ratio:.0%}", lost, accuracy)
    numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f'<tr><th scope="row">{escape(name)}</th>{numbers}</tr>\n'
