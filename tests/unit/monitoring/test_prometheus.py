"""What a monitor reads."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from dyce_runtime import Bundle, Configuration
from dyce_runtime.monitoring.observation import BUCKETS, Observation
from tests.bundles import on
from tests.unit.monitoring.observed import (
    FAST,
    FULL,
    answer,
    drawn,
    left,
    seconds,
    seeds,
    with_records,
)

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"


_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^\\"\n]|\\[\\"n])*)"(?:,|$)')


_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? (\S+)", re.DOTALL)


_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


Series = tuple[str, frozenset[tuple[str, str]]]


def parse(text: str) -> tuple[dict[str, str], dict[Series, float]]:
    """Types of the families and values of the series, by the rules of the text format."""
    assert text.endswith("\n")
    helped, types, found, family = set(), {}, {}, ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            assert family not in helped
            assert line.split(" ", 3)[3]
            helped.add(family)
        elif line.startswith("# TYPE "):
            _, _, name, type = line.split(" ")
            assert (name, name in types) == (family, False)
            types[name] = type
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            name, labels, value = sample[1], sample[2] or "", float(sample[3])
            suffix = name.removeprefix(family)
            assert suffix in (("_bucket", "_sum", "_count") if types[family] == "histogram" else ("",))
            pairs = _LABEL.findall(labels)
            assert len("".join(f'{label}="{text}",' for label, text in pairs)) in (0, len(labels) + 1), line
            unescaped = {label: re.sub(r"\\.", lambda match: _ESCAPES[match[0]], text) for label, text in pairs}
            series = name, frozenset(unescaped.items())
            assert len(unescaped) == len(pairs)
            assert series not in found
            found[series] = value
    assert helped == types.keys()
    return types, found


def values(found: dict[Series, float], name: str, *labels: str) -> dict[object, float]:
    """The values of one metric by the values of its labels."""
    return {
        tuple(dict(pairs)[label] for label in labels) if len(labels) != 1 else dict(pairs)[labels[0]]: value
        for (own, pairs), value in found.items()
        if own == name
    }


@given(st.lists(st.tuples(st.text(max_size=8), seeds, seconds), max_size=6))
@settings(max_examples=40)
def test_prometheus_reads_what_as_dict_says(tiny: Bundle, uses):
    with TemporaryDirectory() as folder:
        watch = Observation(with_records(tiny, Path(folder), drawn(1000, 0)))
    for name, seed, duration in uses:
        watch(answer(Configuration(name, on(exit7=0.25 + seed % 3 / 4)), drawn(300, seed)), duration)
    types, found = parse(watch.prometheus())
    said = watch.as_dict()
    assert types == {
        "dyce_calls_total": "counter",
        "dyce_samples_total": "counter",
        "dyce_call_duration_seconds": "histogram",
        "dyce_exit_share_psi": "gauge",
        "dyce_confidence_psi": "gauge",
        "dyce_drifted": "gauge",
    }
    assert values(found, "dyce_calls_total") == {(): said["calls"]}
    per_exit, per_name = Counter(), Counter()
    for (name, exit), count in values(found, "dyce_samples_total", "configuration", "exit").items():
        per_exit[exit] += count
        per_name[name] += count
    assert per_name == said["samples_per_configuration"]
    assert per_exit == (said["samples_per_exit"] if uses else {})
    latency = "dyce_call_duration_seconds"
    assert values(found, f"{latency}_bucket", "le") == said["latency_seconds"]["buckets"]
    assert values(found, f"{latency}_count") == {(): said["latency_seconds"]["buckets"]["+Inf"]}
    assert values(found, f"{latency}_sum") == {(): said["latency_seconds"]["sum"]}
    latest: dict[str, dict] = {}
    for report in said["drift"]["configurations"]:
        latest.setdefault(report["configuration"]["name"], report)
    assert values(found, "dyce_drifted", "configuration") == {
        name: report["drifted"] for name, report in latest.items() if report["drifted"] is not None
    }
    assert values(found, "dyce_exit_share_psi", "configuration") == {
        name: report["shares"]["psi"] for name, report in latest.items() if report["shares"]["psi"] is not None
    }
    assert values(found, "dyce_confidence_psi", "configuration", "exit") == {
        (name, exit): stability["psi"]
        for name, report in latest.items()
        for exit, stability in report["exits"].items()
        if stability["psi"] is not None
    }


def test_a_name_with_every_special_character_comes_back(tiny: Bundle):
    name = 'say "\\n"\nor } le="1" # TYPE'
    watch = Observation(tiny)
    watch(left(Configuration(name, FAST.exits), 0), 0.01)
    text = watch.prometheus()
    assert r'{configuration="say \"\\n\"\nor } le=\"1\" # TYPE",exit="3"} 1' in text
    assert values(parse(text)[1], "dyce_samples_total", "configuration", "exit")[name, "3"] == 1


def test_the_buckets_are_cumulative_and_end_in_infinity(tiny: Bundle):
    watch = Observation(tiny)
    for duration in (0.00005, 0.0001, 0.003, 3600):
        watch(left(FAST, 0), duration)
    buckets = values(parse(watch.prometheus())[1], "dyce_call_duration_seconds_bucket", "le")
    assert list(map(float, buckets)) == [*BUCKETS, math.inf]
    assert list(buckets)[-1] == "+Inf"
    assert (buckets["0.0001"], buckets["0.0025"], buckets["0.005"], buckets["10.0"], buckets["+Inf"]) == (2, 2, 3, 3, 4)


def test_the_document_is_plain_json(recorded):
    watch = Observation(recorded(drawn(1000, 0)))
    assert json.loads(json.dumps(watch.as_dict(), allow_nan=False)) == watch.as_dict()
    for configuration in (FAST, FULL):
        watch(answer(configuration, drawn(500, 1)), 0.01)
    assert json.loads(json.dumps(watch.as_dict(), allow_nan=False)) == watch.as_dict()
    json.dumps(Observation(recorded(drawn(1000, 0))).as_dict(), allow_nan=False)
