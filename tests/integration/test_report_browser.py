"""The report in a real browser: what its script does, and that it asks nobody for anything."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from dyce_calibration.promises.choose import choose
from dyce_calibration.report import choose_examples, make_contents, write_report
from tests.unit.promises.test_choose import COSTS, QUICK, make_records
from tests.unit.report.test_report import EVIL

pytest.importorskip("bokeh", reason="the report's plots need Bokeh")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed, which opens the report")

RECORDS = make_records(2000)
CONFIGURATIONS = choose(RECORDS, COSTS, QUICK)
DARK = "--blink-settings=preferredColorScheme=0"
# A page around the report that asks it things when its plots are drawn, and keeps the answers as its own text.
AROUND = """<!doctype html><meta charset="utf-8"><style>body {margin: 0} iframe {border: 0; display: block}</style>
<iframe src="report.html%(hash)s" style="width: %(width)dpx; height: 2400px"></iframe><pre id="answer"></pre><script>
const frame = document.querySelector("iframe");
const text = (id) => frame.contentDocument.getElementById(id).textContent;
const rows = (id) => [...frame.contentDocument.getElementById(id).tBodies[0].rows].map(
  (row) => [...row.cells].map((cell) => cell.textContent));
const state = () => ({
  title: text("title"), figures: rows("figures"), exits: rows("exits"), certificate: text("certificate"),
  slider: page.getElementById("slider").valueAsNumber, hash: frame.contentWindow.location.hash,
  pressed: [...page.querySelectorAll("[aria-pressed=true]")].map((button) => button.dataset.name),
});
let page;
async function ask() {
  page = frame.contentDocument;
  while (!page?.documentElement?.dataset.plots) {
    await new Promise((done) => setTimeout(done, 20));
    page = frame.contentDocument;
  }
  const window = frame.contentWindow;
  document.getElementById("answer").textContent = JSON.stringify(await (async () => { %(script)s })());
}
ask();
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with names that try to be markup."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    pictures = np.random.default_rng(0).integers(0, 255, (len(RECORDS), 28, 28), np.uint8)
    examples = choose_examples(RECORDS, CONFIGURATIONS.get("balanced"), lambda row: pictures[row])
    contents = make_contents(EVIL, (EVIL,) * 10, RECORDS, COSTS, CONFIGURATIONS, examples)
    write_report(path, contents)
    return path


def run(page: Path, *options: str, address: str = "") -> tuple[str, list[str]]:
    """Open a page and return what the browser printed, and what the page's script complained about."""
    profile = page.with_name("profile")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        f"--user-data-dir={profile}", "--allow-file-access-from-files", "--enable-logging=stderr",
        "--virtual-time-budget=20000", *options, f"{page.as_uri()}{address}",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    finally:
        shutil.rmtree(profile, ignore_errors=True)
    said = re.findall(r'CONSOLE[:(]\d+\)?\] "(.*)", source', done.stderr)
    # The library says at which level it logs; the browser that a plot changed its size while it was laid out.
    harmless = ("setting log level to", "ResizeObserver loop")
    return done.stdout, [line for line in said if not any(part in line for part in harmless)]


def ask(report: Path, script: str, *, hash: str = "", width: int = 1200) -> Any:
    """What a script that runs beside the opened report returns."""
    around = report.with_name("around.html")
    around.write_text(AROUND % {"hash": hash, "width": width, "script": script}, "utf-8")
    printed, complaints = run(around, "--dump-dom", "--window-size=1300,2500")
    assert complaints == []
    answer = re.search(r'<pre id="answer">(.*?)</pre>', printed, re.DOTALL)
    assert answer is not None
    assert answer[1], "the plots were never drawn"
    return json.loads(html.unescape(answer[1]))


def figures(entry: Any) -> list[list[str]]:
    """How the page should show what both splits say."""
    return [
        [
            split,
            f"{100 * found.accuracy:.2f} %",
            f"{100 * found.loss:.2f} points",
            f"{found.cost:.4f}",
            f"{found.samples}",
        ]
        for split, found in (("search (chosen on it)", entry.search), ("test", entry.test))
    ]


def exits(entry: Any) -> list[list[str]]:
    """How the page should show the exits."""
    heads = [
        (f"exit {exit}", on.head if on else "off", f"{on.threshold:.6g}" if on else "none")
        for exit, on in (("2", entry.exits.get("2")), ("5", entry.exits.get("5")))
    ]
    rows = [*heads, ("final head", "the model's own", "none")]
    return [[*row, f"{100 * share:.2f} %"] for row, share in zip(rows, entry.test.share_per_exit, strict=True)]


def without_costs(rows: list[list[str]]) -> list[list[str]]:
    """The rows of the exits without their last cell, the share of the cost."""
    assert sum(int(row[-1].removesuffix("%")) for row in rows) in range(98, 103)
    return [row[:-1] for row in rows]


def test_it_opens_on_the_balanced_configuration_and_draws_every_plot(report: Path) -> None:
    answer = ask(report, "return {...state(), plots: page.documentElement.dataset.plots};")
    balanced = CONFIGURATIONS.named["balanced"]
    assert answer["figures"] == figures(balanced)
    assert without_costs(answer["exits"]) == exits(balanced)
    assert "balanced" in answer["pressed"]
    assert answer["certificate"].startswith("Certified" if balanced.certified else "Not certified")
    assert answer["plots"] == "4"  # the front, and the reliability of two heads and the final one


@pytest.mark.parametrize("name", ["fast", "full"])
def test_an_address_names_a_configuration(report: Path, name: str) -> None:
    answer = ask(report, "return state();", hash=f"#name={name}")
    assert answer["figures"] == figures(CONFIGURATIONS.named[name])
    assert without_costs(answer["exits"]) == exits(CONFIGURATIONS.named[name])
    assert name in answer["pressed"]


def test_the_drawing_of_the_network_moves_with_the_configuration(report: Path) -> None:
    script = """
    return [...page.querySelectorAll("#river .piece")].map((piece) => [
      parseFloat(piece.style.getPropertyValue("--reach")), piece.querySelector("span").textContent]);
    """
    full, fast = (ask(report, script, hash=f"#name={name}") for name in ("full", "fast"))
    assert [reach for reach, _ in full] == [100, 100, 100]
    left = CONFIGURATIONS.named["fast"].test.share_per_exit
    assert [reach for reach, _ in fast] == pytest.approx([100, 100 * (1 - left[0]), 100 * left[2]])
    assert fast[0][1] == f"exit 2: {round(100 * left[0])} % leave"


def test_the_slider_moves_along_the_front_and_the_address_with_it(report: Path) -> None:
    answer = ask(
        report,
        """
        const slider = page.getElementById("slider");
        const before = state(), seen = [];
        for (let place = 1; place <= Number(slider.max); place++) {
          slider.value = place;
          slider.dispatchEvent(new window.Event("input"));
          seen.push(state());
        }
        return {before, seen};
        """,
        hash="#front=5",
    )
    assert answer["before"] == {**answer["seen"][4]}
    on_page = [state["figures"] for state in answer["seen"]]
    assert all(figures(entry) in on_page for entry in CONFIGURATIONS.front)
    costs = [float(state["figures"][0][3]) for state in answer["seen"]]
    assert costs == sorted(costs)
    assert [state["hash"] for state in answer["seen"]] == [f"#front={n}" for n in range(1, len(costs) + 1)]
    assert answer["before"]["title"].startswith(f"Configuration 5 of {len(costs)}")


def test_buttons_and_taps_on_the_plot_choose_a_configuration(report: Path) -> None:
    answer = ask(
        report,
        """
        page.querySelector("[data-name=accurate]").click();
        const button = state();
        const points = window.Bokeh.documents[0].get_model_by_name("test");
        points.selected.indices = [0];
        const tap = state();
        const chosen = window.Bokeh.documents[0].get_model_by_name("chosen-data").data;
        return {button, tap, chosen: [...chosen.x, ...chosen.y]};
        """,
    )
    assert answer["button"]["figures"] == figures(CONFIGURATIONS.named["accurate"])
    assert answer["button"]["hash"] == "#name=accurate"
    cheapest = CONFIGURATIONS.front[0]
    assert answer["tap"]["figures"] == figures(cheapest)
    assert answer["tap"]["slider"] == 1
    ring = [cheapest.search.cost, cheapest.test.cost, cheapest.search.accuracy, cheapest.test.accuracy]
    assert answer["chosen"] == pytest.approx(ring)


@pytest.mark.parametrize("hash", ["#name=constructor", "#front=0", "#front=9999", "#front=x", "#name=%zz"])
def test_an_address_that_means_nothing_shows_the_balanced_configuration(report: Path, hash: str) -> None:
    assert ask(report, "return state();", hash=hash)["figures"] == figures(CONFIGURATIONS.named["balanced"])


def test_names_stay_text_and_nothing_is_asked_for(report: Path) -> None:
    answer = ask(
        report,
        """
        return {
          heading: page.querySelector("h1").textContent,
          hacked: window.hacked ?? null,
          requests: window.performance.getEntriesByType("resource").map((entry) => entry.name)
            .filter((name) => !name.startsWith("data:")),
        };
        """,
    )
    assert answer == {"heading": EVIL, "hacked": None, "requests": []}


@pytest.mark.parametrize("width", [320, 400, 1200])
def test_the_page_does_not_scroll_sideways(report: Path, width: int) -> None:
    script = """
        for (const details of page.querySelectorAll("details")) details.open = true;
        await new Promise((done) => setTimeout(done, 200));
        return [page.documentElement.scrollWidth, page.documentElement.clientWidth];
    """
    assert ask(report, script, width=width) == [width, width]


@pytest.mark.parametrize("options", [(), (DARK,)], ids=["light", "dark"])
def test_a_picture_of_the_page_shows_the_plots_and_readable_ink(report: Path, options: tuple[str, ...]) -> None:
    """The colours of both splits are on the page, and the axes' ink stands out from the background."""
    shot = report.with_name("shot.png")
    _, complaints = run(report, f"--screenshot={shot}", "--window-size=1000,1200", *options, address="#front=3")
    assert complaints == []
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    background = pixels[2, 2]
    assert (background.mean() < 60) == bool(options)
    for colour in ((0x3B, 0x8F, 0xD0), (0xD9, 0x64, 0x0A)):
        assert (np.abs(pixels - colour).max(axis=2) < 8).sum() > 100
    dark = np.abs(pixels - background).max(axis=2) > 180
    columns = dark.sum(axis=0)
    assert columns.max() > 250  # the upright axis of the front


def test_a_front_of_one_configuration_opens_too(report: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    alone = msgspec.structs.replace(CONFIGURATIONS, front=(), named={"full": CONFIGURATIONS.named["full"]})
    write_report(path, make_contents("tiny", None, RECORDS, COSTS, alone))
    answer = ask(path, "return {...state(), disabled: page.getElementById('slider').disabled};")
    assert answer["figures"] == figures(CONFIGURATIONS.named["full"])
    assert answer["disabled"]
