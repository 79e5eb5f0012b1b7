from __future__ import annotations

import io
import os
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from dyce_calibration.promises.choose import choose
from dyce_calibration.records import Records
from dyce_calibration.report import Example, choose_examples, contents, make_contents, write_report
from dyce_calibration.report.reliability import BINS, EDGES, reliability
from dyce_calibration.report.views import front_views
from dyce_calibration.search.costs import CostTable
from dyce_runtime.bundle.configuration import Configuration, Configurations, Entry, ExitSetting
from dyce_runtime.bundle.manifest import Splits
from dyce_runtime.errors import DataError, DestinationError, UsageError
from tests.unit.promises.test_choose import COSTS, QUICK, make_records
from tests.unit.test_imports import ENGINES, WORKSTATION, without

RECORDS = make_records(400)
CONFIGURATIONS = choose(RECORDS, COSTS, QUICK)
EVIL = '</script><script>window.hacked = 1</script><img src=http://127.0.0.1/ onerror="window.hacked = 1">\u2028\''


def png(colour: int = 90) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "png")
    return file.getvalue()


EXAMPLES = (Example(png(), 3, "2", 0.98, 3, "balanced"), Example(png(), 1, "final", 0.41, 2, "balanced"))


def make(**changed) -> contents.Contents:
    given = {
        "model_name": "tiny",
        "class_names": None,
        "records": RECORDS,
        "costs": COSTS,
        "configurations": CONFIGURATIONS,
        "examples": EXAMPLES,
    }
    return make_contents(**{**given, **changed})


class Page(HTMLParser):
    """The elements of a page with their attributes, the text of each kind of element, and the rows of all tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text += data
        if self._open in ("td", "th"):
            self.rows[-1][-1] += data

    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture
def written(tmp_path):
    """Writes a report and reads it."""
    pytest.importorskip("bokeh", reason="the report's plots need Bokeh")

    def write(**changed) -> Page:
        write_report(tmp_path / "report.html", make(**changed))
        return Page((tmp_path / "report.html").read_text("utf-8"))

    return write


# --- reliability -----------------------------------------------------------------------------------------------------

confidences = st.one_of(st.floats(0, 1, width=32), st.sampled_from(EDGES.astype(np.float32).tolist()))


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            arrays.arrays(np.float32, (n, 3), elements=confidences),
            arrays.arrays(np.bool_, (n, 3), elements=st.booleans()),
        )
    )
)
def test_reliability_is_that_of_a_plain_loop(drawn):
    sure, right = drawn
    count = len(sure)
    labels = np.zeros(count, np.int64)
    predictions = np.where(right, 0, 1).astype(np.int64)
    hashes, split = np.arange(count, dtype=np.uint64), np.full(count, "test")
    heads = reliability(Records.of_single_label((("2", "a"), ("5", "b")), predictions, sure, labels, hashes, split))
    assert [(head.exit, head.head) for head in heads] == [("2", "a"), ("5", "b"), ("final", "")]
    for column, head in enumerate(heads):
        error = 0.0
        for number in range(BINS):
            inside = [
                row
                for row in range(count)
                if EDGES[number] < sure[row, column] <= EDGES[number + 1] or (number == 0 and sure[row, column] == 0)
            ]
            assert head.counts[number] == len(inside)
            if inside:
                accuracy = sum(bool(right[row, column]) for row in inside) / len(inside)
                confidence = sum(float(sure[row, column]) for row in inside) / len(inside)
                assert head.accuracy[number] == pytest.approx(accuracy)
                assert head.confidence[number] == pytest.approx(confidence)
                error += len(inside) / count * abs(accuracy - confidence)
            else:
                assert np.isnan(head.accuracy[number])
        assert head.error == pytest.approx(error)


# --- examples --------------------------------------------------------------------------------------------------------

ON = {"2": ExitSetting("mlp1x1000", 0.75), "5": ExitSetting("mlp1x1000", 0.625)}
BOTH = Configuration("both", ON)
BACKWARDS = Configuration("both", dict(reversed(ON.items())))


@given(st.integers(0, 10**6), st.sampled_from([4, 8]), st.integers(4, 120), st.sampled_from([BOTH, BACKWARDS]))
def test_examples_are_the_surest_first_leavers_and_the_least_sure_of_the_rest(seed, grid, count, configuration):
    records = make_records(count, seed, grid)
    asked = []

    def picture(row: int) -> np.ndarray:
        asked.append(row)
        return np.full((4, 4), row % 256, np.uint8)

    found = choose_examples(records, configuration, picture)
    assert all(records.split[row] == "test" for row in asked)
    first, second, final = range(3)
    leaves = [
        first if row[first] > 0.75 else second if row[second] > 0.625 else final for row in records.scores.tolist()
    ]
    test = [row for row in range(count) if records.split[row] == "test"]
    early = [row for row in test if leaves[row] == first]
    late = [row for row in test if leaves[row] == final]
    assert len(found) == len(asked) == min(6, len(early)) + min(6, len(late))
    assert len(set(asked)) == len(asked)
    sure = records.scores[:, first]
    taken = asked[: min(6, len(early))], asked[min(6, len(early)) :]
    assert sure[taken[0]].tolist() == sorted(sure[early].tolist(), reverse=True)[:6]
    assert sure[taken[1]].tolist() == sorted(sure[late].tolist())[:6]
    for row, example in zip(asked, found, strict=True):
        column = leaves[row]
        assert example.exit == ("2", "5", "final")[column]
        assert example.label == records.labels[row]
        assert example.predicted == records.predictions[row, column]
        assert example.confidence == records.scores[row, column]
        assert example.configuration == "both"


@pytest.mark.parametrize("kind", ["path", "grey", "one channel", "colour", "pillow"])
def test_every_kind_of_picture_becomes_a_small_one(kind, tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (300, 150, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "a.jpg")
    pictures = {
        "path": tmp_path / "a.jpg",
        "grey": array[:, :, 0],
        "one channel": array[:, :, :1],
        "colour": array,
        "pillow": Image.fromarray(array),
    }
    for example in choose_examples(RECORDS, BOTH, lambda row: pictures[kind]):
        with Image.open(io.BytesIO(example.png)) as image:
            assert (image.format, image.size) == ("PNG", (48, 96))
    assert array.shape == (300, 150, 3)
    assert pictures["pillow"].size == (150, 300)  # the caller's picture keeps its size


def test_without_pictures_or_exits_there_are_no_examples():
    assert choose_examples(RECORDS, BOTH, None) == ()
    assert choose_examples(RECORDS, Configuration("full"), lambda row: np.zeros((4, 4), np.uint8)) == ()


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"picture of sample \d+ of the records cannot be read"):
        choose_examples(RECORDS, BOTH, lambda row: tmp_path / "a.png")


# --- contents --------------------------------------------------------------------------------------------------------


def test_the_uncut_model_and_the_samples_are_those_of_the_records():
    found = make()
    test = RECORDS.of_split("test")
    assert found.uncut.test.accuracy == pytest.approx((test.predictions[:, -1] == test.labels).mean())
    assert found.uncut.test.cost == 1.0
    assert found.samples == {"search": 200, "certification": 100, "test": 100}
    assert found.exits == ("2", "5", "final")


def test_the_manifest_adds_the_samples_that_are_not_in_the_records():
    splits = Splits(0, {"heads": 7, "temperature": 5, "search": 200}, "data", True)
    assert list(make(splits=splits).samples.items())[:3] == [("heads", 7), ("temperature", 5), ("search", 200)]


def test_baselines_are_chosen_on_search_and_drawn_on_test():
    pytest.importorskip("scipy", reason="the one-pass baseline needs SciPy")
    test = RECORDS.split == "test"
    wrong = np.where(test, RECORDS.predictions.max(initial=0) + 1, RECORDS.labels)
    before, after = make(), make(records=RECORDS.with_classes(labels=wrong))
    assert [baseline.method for baseline in before.baselines] == ["samethres", "onepass"]
    for baseline, spoiled in zip(before.baselines, after.baselines, strict=True):
        assert len(baseline.costs) == len(baseline.accuracies) > 1
        assert spoiled.costs == baseline.costs  # the labels of test chose nothing
        assert set(spoiled.accuracies) == {0.0}


def test_the_one_pass_search_is_left_out_where_it_cannot_run_and_the_page_says_why(monkeypatch, written):
    monkeypatch.setattr(contents, "_MOST_WORK", 10)
    assert "one-pass search: left out, too slow for 200 samples and 2 heads" in written().words()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    assert "one-pass search: left out, the published searches need SciPy" in written().words()


def test_costs_of_another_unit_and_configurations_that_were_never_searched_are_refused():
    with pytest.raises(DataError, match="searched with costs in macs, the cost table has ms"):
        make(costs=msgspec.structs.replace(COSTS, unit="ms"))
    with pytest.raises(DataError, match="no configuration has figures"):
        make(configurations=Configurations(named={"full": Entry(exits={})}))


def test_the_slider_also_stops_at_named_configurations_that_the_kept_front_leaves_out():
    few = msgspec.structs.replace(CONFIGURATIONS, front=CONFIGURATIONS.front[:1])
    views = front_views(make(configurations=few))
    assert {"accurate", "balanced", "fast"} <= {name for view in views for name in view.names}
    assert [view.place for view in views] == list(range(1, len(views) + 1))
    assert sorted(view.costs[0] for view in views) == [view.costs[0] for view in views]
    assert sorted(view.accuracies[0] for view in views) == [view.accuracies[0] for view in views]


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_drawing_shows_times_where_they_are_known(written):
    """The second piece costs a third of the multiply-accumulates, and here nearly all of the time."""
    times = CostTable(
        "ms", {"2": 1.0, "5": 9.0, "final": 10.0}, {"2": {"mlp1x1000": 0.0}, "5": {"mlp1x1000": 0.0}}, 10.0
    )
    times = msgspec.structs.replace(times, measured={"cpu": "a processor", "target": "an engine", "date": "2026-01-02"})
    by_time, by_macs = (front_views(make(times=known))[-1].network for known in (times, None))
    assert [piece[0] for piece in by_time] == pytest.approx([0.1, 0.8, 0.1])
    assert [piece[0] for piece in by_macs] == pytest.approx([0.25, 0.35, 0.4])
    assert by_time[1][2] > by_macs[1][2]
    assert (
        "share of the time spent there, measured on a processor, an engine, 2026-01-02" in written(times=times).words()
    )
    assert "share of the multiply-accumulates spent there." in written().words()


def test_nothing_on_the_page_comes_from_elsewhere(written):
    page = written(model_name=EVIL, class_names=(EVIL,) * 10)
    links = [(tag, key, value) for tag, with_ in page.elements for key, value in with_.items() if key in LOADING]
    assert {(tag, key) for tag, key, _ in links} == {("img", "src")}
    assert all(value.startswith("data:image/png;base64,") for _, _, value in links)
    assert not {tag for tag, _ in page.elements} & {"link", "iframe", "object", "embed", "base", "form", "a"}
    policy = next(with_["content"] for _, with_ in page.elements if "content-security-policy" in str(with_).lower())
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    own = page.scripts[-1]
    assert not re.search(r"https?:|fetch|XMLHttpRequest|WebSocket|import\(|eval|innerHTML", own)


LOADING = ("src", "href", "srcset", "action", "data", "poster", "background", "formaction", "ping")


def test_names_are_text_and_never_markup(written):
    evil = EVIL.replace("\u2028", "")
    head = ("2", evil), ("5", evil)
    records = replace(RECORDS, heads=head)
    costs = msgspec.structs.replace(COSTS, heads={"2": {evil: 1.0}, "5": {evil: 2.0}})
    found = choose(records, costs, QUICK)
    found = msgspec.structs.replace(found, named={**found.named, EVIL: found.named["fast"]}, note=EVIL, method=EVIL)
    page = written(
        model_name=EVIL, class_names=(EVIL,) * 10, records=records, costs=costs, configurations=found, examples=EXAMPLES
    )
    assert sum(tag == "script" for tag, _ in page.elements) == 3  # the data, the plots' library and the page's own
    assert sum(tag == "img" for tag, _ in page.elements) == len(EXAMPLES)
    assert not [with_ for _, with_ in page.elements if "onerror" in with_]
    assert page.text.count(EVIL) >= 7
    data = page.scripts[0]
    assert not set("<>&\u2028\u2029") & set(data)
    assert evil in msgspec.json.decode(data)["named"][EVIL]["exits"][0]


def test_every_table_says_what_the_search_said(written):
    page = written()
    views = front_views(make())
    assert len(views) > 5
    front = [row for row in page.rows if len(row) == 7][1:]
    assert [row[1:6] for row in front] == [
        [
            f"{entry.search.cost:.4f}",
            f"{100 * entry.search.accuracy:.2f} %",
            f"{entry.test.cost:.4f}",
            f"{100 * entry.test.accuracy:.2f} %",
            "yes" if entry.certified and entry.exits else "no",
        ]
        for entry in CONFIGURATIONS.front
    ]
    counts = [row for row in page.rows if len(row) == 4 and " to " in row[0]]
    assert len(counts) == 3 * BINS
    assert sum(int(row[1]) for row in counts) == 3 * 100
    assert ["test", "100", "reporting; nothing was chosen on it"] in page.rows


def test_the_page_says_where_its_numbers_come_from(written):
    words = written().words()
    assert CONFIGURATIONS.note
    assert CONFIGURATIONS.note in words
    for said in (
        "front on search (chosen on it)",
        "the same configurations on test",
        "chosen on search, drawn on test",
        "uncut model on test",
        "all 100 samples of the split test",
        "From the split test, under the configuration balanced",
        "in multiply-accumulates, relative to the full model: 1 is 100 per sample",
    ):
        assert said in words
    assert "is too high" not in words
    assert "agreement" not in words


def test_samples_that_the_model_may_know_and_labels_that_it_gave_are_pointed_out(written):
    words = written(splits=Splits(0, {}, "base", False)).words()
    assert "if the model was trained on them, its accuracy here is too high" in words
    assert "accuracy means agreement with it" in words


def test_examples_name_their_classes(written):
    page = written(class_names=tuple("abcdefghij"))
    assert [with_["alt"] for tag, with_ in page.elements if tag == "img"] == [
        "test picture labelled d",
        "test picture labelled b",
    ]
    assert "label b predicted c (wrong) confidence 0.4100 left at final head" in page.words()


def test_without_examples_there_is_no_section(written):
    assert "Pictures" not in written(examples=()).words()


def test_certificates_are_in_words(written):
    entry = CONFIGURATIONS.named["fast"]
    views = front_views(make())
    assert "Not certified" in next(view for view in views if "fast" in view.names).certificate
    promised = msgspec.structs.replace(entry, certified=CONFIGURATIONS.named["full"].certified)
    views = front_views(make(configurations=Configurations(named={"fast": promised})))
    assert views[0].certificate == (
        "Certified: with probability at least 95 % it loses at most 1 point of accuracy against the full model on "
        "unseen data like this (100 samples of the split certification, which took no part in the search)."
    )


def test_a_model_without_exits_has_a_report(written):
    records = RECORDS.with_columns([])
    costs = msgspec.structs.replace(COSTS, backbone={"final": 100.0}, heads={})
    found = choose(records, costs, QUICK)
    assert "Final head" in written(records=records, costs=costs, configurations=found, examples=()).words()


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("written")
def test_a_report_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", full)
        with pytest.raises(DestinationError, match="No space left"):
            write_report(path, make())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_report(path, make())
    assert path.read_text() != "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(DestinationError, match="cannot be written"):
        write_report(tmp_path / "nowhere" / "report.html", make())


@pytest.mark.parametrize("missing", ["bokeh.resources", "jinja2"])
def test_without_the_extra_it_says_what_to_install(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match="which is not installed") as caught:
        write_report(tmp_path / "report.html", make())
    assert caught.value.hint == "pip install 'dyce-export[report]'"
    assert list(tmp_path.iterdir()) == []


def test_a_device_can_import_the_report_and_compute_its_contents():
    without((*WORKSTATION, *ENGINES, "bokeh", "jinja2"), "import dyce_calibration.report")
