"""The first sentence of a report: what the bundle saves, what it loses, and on what evidence."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from dyce_runtime.bundle.configuration import Configurations, Entry, Figures
from dyce_runtime.bundle.measured import BenchFigures, MeasuredHere
from dyce_runtime.measure.bench_loss import judge
from dyce_runtime.measure.bench_verdict import best_of, loss_words

# Without measurements, the report opens with the first of these configurations that enables an exit.
_FIRST = ("balanced", "accurate", "fast", "certified")
_UNITS = {"macs": "multiply-accumulates", "ms": "time", "joules": "energy"}


def headline(configurations: Configurations, measured: MeasuredHere) -> str:
    """Return a paragraph of HTML: measured times if a benchmark stored them, otherwise figures of the test split."""
    early = {name: entry for name, entry in configurations.named.items() if entry.exits}
    order = [*(name for name in _FIRST if name in early), *(name for name in early if name not in _FIRST)]
    benched = {name: found for name, entry in early.items() if (found := measured.figures(entry)) is not None}
    timed = [_as_measured(name, early[name], bench) for name, bench in benched.items()]
    if not order:
        text = (
            "No configuration stops early: within the losses that were allowed nothing is cheaper than the full model."
        )
    elif timed:
        best = best_of(timed)  # the same choice as the benchmark's verdict
        text = _measured(best, benched[best["name"]])
    else:
        text = _searched(order[0], early[order[0]], configurations.unit)
    return f'<p class="headline">{text}</p>\n'


def _as_measured(name: str, entry: Entry, bench: BenchFigures) -> dict[str, Any]:
    """Describe a configuration in the format of the ``bench`` document."""
    known = bench.loss is not None and bench.loss_error is not None
    return {
        "name": name,
        "time_ratio_to_uncut": bench.time_ratio,
        "loss": bench.loss,
        "loss_error": bench.loss_error,
        "allowed_loss": entry.allowed_loss,
        "loss_verdict": judge(bench.loss, bench.loss_error, entry.allowed_loss) if known else None,  # type: ignore[arg-type]
    }


def _measured(best: Mapping[str, Any], bench: BenchFigures) -> str:
    lost = f"; {loss_words(best, bench.samples)}" if best["loss_verdict"] else ""
    low, high = bench.time_ratio_range or (bench.time_ratio, bench.time_ratio)
    span = f" ({low:.0%} to {high:.0%})" if low < high else ""
    pictures = f"{bench.samples} pictures" + (
        f", {bench.unseen} of them unseen" if bench.unseen < bench.samples else ""
    )
    return (
        f"<b>{escape(best['name'])}</b> answers in {bench.time_ratio:.0%}{span} of the uncut model's time"
        f"{lost}. Measured on {escape(bench.cpu)} with {escape(bench.target)}, "
        f"{bench.batch} per call, {escape(bench.date)}, on {pictures}."
    )


def _searched(name: str, entry: Entry, unit: str) -> str:
    test = entry.test
    if test is None:
        return f"<b>{escape(name)}</b> has no figures on the test samples yet."
    return (
        f"<b>{escape(name)}</b> needs {test.cost:.0%} of the full model's {_UNITS.get(unit, unit)} and loses "
        f"{100 * test.loss:.1f}{_error(test)} points of accuracy{_allowed(entry.allowed_loss)}, on {test.samples} test "
        "samples, which were not used to choose it. How fast it is here, <code>dyce bench BUNDLE --data PICTURES "
        "--save</code> writes into this page."
    )


def _error(test: Figures) -> str:
    return "" if test.loss_error is None else f" ± {100 * test.loss_error:.1f}"


def _allowed(allowed: float | None) -> str:
    return "" if allowed is None else f" (it was chosen to lose at most {100 * allowed:g})"
