"""The part of a report that a benchmark fills."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from dyce_calibration.report import Example, mark_outdated, renew_measured, write_report
from dyce_calibration.report.headline import headline
from dyce_calibration.report.measured import measured_section, with_measured
from dyce_runtime.bundle.configuration import Configurations, Entry, Figures
from dyce_runtime.bundle.measured import Benched, BenchFigures, MeasuredHere
from tests.bundles import on
from tests.unit.report import test_report

BENCH = BenchFigures(4.0, 8.0, 0.75, 0.5, 20, 12, 2, "onnxruntime", "1", "A <fast> CPU", "2026-01-31")
BENCH = msgspec.structs.replace(BENCH, loss=0.015, loss_error=0.005, time_ratio_range=(0.7, 0.8))
SLOWER = msgspec.structs.replace(BENCH, p50_ms=9.0, time_ratio=1.25, accuracy=None, loss=None)
KNOWN = Configurations(
    named={"full": Entry({}), "fast": Entry(on(exit3=0.5))}, front=(Entry(on(exit3=0.5)), Entry(on(exit7=0.5)))
)


def here(*pairs: tuple[Entry, BenchFigures]) -> MeasuredHere:
    """What was measured of these configurations."""
    return MeasuredHere(benched=tuple(Benched(entry.exits, entry.gates, figures) for entry, figures in pairs))


NOTHING = MeasuredHere()
MEASURED = here((KNOWN.named["fast"], BENCH), (KNOWN.front[1], SLOWER))


def test_a_table_shows_what_was_measured_and_where():
    page = test_report.Page(measured_section(KNOWN, MEASURED))
    assert page.rows[1:] == [
        ["fast", "4.00", "8.00", "25%", "1.5 ± 0.5", "50.0%"],
        ["front 2", "9.00", "8.00", "-25%", "", ""],
    ]
    assert "A <fast> CPU, onnxruntime, threads 1, 2026-01-31: 20 pictures (12 unseen), 2 per call" in page.words()


def test_the_report_opens_with_time_and_loss_machine_and_date_once_they_are_measured():
    entry = msgspec.structs.replace(KNOWN.named["fast"], allowed_loss=0.01)
    said = test_report.Page(headline(Configurations(named={"fast": entry}), MEASURED)).words()
    assert said == (
        "fast answers in 75% (70% to 80%) of the uncut model's time; it loses 1.5 ± 0.5 points: on 20 pictures it is "
        "undecided whether that is within the 1 it may lose; about 80 would tell. Measured on A <fast> CPU with "
        "onnxruntime, 2 per call, 2026-01-31, on 20 pictures, 12 of them unseen."
    )
    better = here((entry, msgspec.structs.replace(BENCH, loss=-0.02, loss_error=0.005)))
    assert "; it is 2.0 ± 0.5 points more accurate. Measured" in headline(Configurations(named={"fast": entry}), better)


def test_the_report_names_the_configuration_that_the_benchmark_named():
    """The fastest of those that are known to lose no more than they may, not the one with the first name."""
    lossy = msgspec.structs.replace(BENCH, time_ratio=0.2, loss=0.05, loss_error=0.005)
    exact = msgspec.structs.replace(BENCH, time_ratio=0.6, loss=0.001, loss_error=0.002)
    named = {
        "balanced": Entry(on(exit3=0.5), allowed_loss=0.01),
        "certified": Entry(on(exit3=0.9), allowed_loss=0.01),
    }
    measured = here((named["balanced"], lossy), (named["certified"], exact))
    said = test_report.Page(headline(Configurations(named=named), measured)).words()
    assert said.startswith("certified answers in 60%")
    assert "it loses 0.1 ± 0.2 points, within the 1 it may" in said


def test_before_that_it_opens_with_what_the_test_samples_say():
    figures = Figures(0.9, 0.004, 0.4, 500, (0.7, 0.3), 0.002)
    said = test_report.Page(
        headline(Configurations(named={"mine": Entry(on(exit3=0.5), test=figures)}), NOTHING)
    ).words()
    assert said.startswith(
        "mine needs 40% of the full model's multiply-accumulates and loses 0.4 ± 0.2 points of accuracy, on 500 test"
    )
    assert "No configuration stops early" in headline(Configurations(named={"full": Entry({})}), NOTHING)


def test_every_machine_has_a_table_of_its_own():
    other = msgspec.structs.replace(BENCH, cpu="another")
    section = measured_section(KNOWN, here((KNOWN.named["fast"], BENCH), (KNOWN.named["full"], other)))
    assert section.count("<table>") == section.count("<caption>") == 2


def test_without_figures_there_is_no_section():
    assert "<" not in measured_section(KNOWN, NOTHING).replace("<!--", "")


def test_figures_are_renewed_and_nothing_else_changes():
    page = f"<main>a{measured_section(KNOWN, NOTHING)}b</main>c"
    once = with_measured(page, KNOWN, MEASURED)
    assert once == f"<main>a{measured_section(KNOWN, MEASURED)}b</main>c"
    assert with_measured(with_measured(once, KNOWN, MEASURED), KNOWN, NOTHING) == page


def test_a_report_of_before_gets_them_at_its_end_and_once():
    once = with_measured("<main>a</main>b", KNOWN, MEASURED)
    assert once == f"<main>a{measured_section(KNOWN, MEASURED)}\n</main>b"
    assert with_measured(once, KNOWN, MEASURED) == once


def test_where_there_is_no_report_none_is_made(tmp_path: Path):
    renew_measured(tmp_path / "report.html", KNOWN, MEASURED)
    assert list(tmp_path.iterdir()) == []


def test_a_report_keeps_its_pictures_and_shows_the_figures(tmp_path: Path):
    pytest.importorskip("bokeh", reason="the report's plots need Bokeh")
    path = tmp_path / "report.html"
    example = Example(png=test_report.png(), label=0, exit="3", confidence=0.9, predicted=0)
    write_report(path, test_report.make(examples=(example,)))
    before = path.read_text("utf-8")
    renew_measured(path, KNOWN, MEASURED)
    after = path.read_text("utf-8")
    assert before == with_measured(after, test_report.make().configurations, NOTHING)
    assert "data:image/png" in after
    assert "A &lt;fast&gt; CPU" in after
    known = test_report.make()
    measured = here(*((entry, BENCH) for entry in known.configurations.named.values()))
    write_report(path, dataclasses.replace(known, measured=measured))
    assert "A &lt;fast&gt; CPU" in path.read_text("utf-8")


def test_pictures_stay_when_configurations_are_chosen_again_and_say_that_they_are_older(tmp_path: Path):
    pytest.importorskip("bokeh", reason="the report's plots need Bokeh")
    path = tmp_path / "report.html"
    write_report(path, test_report.make())
    assert "Taken before" not in path.read_text("utf-8")
    for _ in range(2):
        write_report(path, test_report.make(examples=()))
        page = path.read_text("utf-8")
        assert page.count('src="data:image/png') == len(test_report.EXAMPLES)
        assert page.count("Taken before configurations were chosen again") == 1
    write_report(path, test_report.make())
    assert "Taken before" not in path.read_text("utf-8")


def test_a_report_that_cannot_be_drawn_again_says_that_it_is_outdated_and_why(tmp_path: Path):
    path = tmp_path / "report.html"
    mark_outdated(path, "Bokeh is missing")
    assert not path.exists()
    path.write_text("<html>\n<body>\n<p>kept</p>\n</body>")
    for reason in ("Bokeh is missing", "something else"):
        mark_outdated(path, reason)
    page = path.read_text("utf-8")
    assert page.count("Outdated:") == 1
    assert "something else" in page
    assert "<p>kept</p>" in page
