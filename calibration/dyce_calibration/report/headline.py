"""The sentence that a report opens with: what the bundle saves, what it loses, and where that is known from."""

from __future__ import annotations

from html import escape

from dyce_runtime.bench_loss import SURE
from dyce_runtime.configuration import BenchFigures, Configurations, Entry, Figures

# Whose figures open the report, the first of these that turns an exit on.
_FIRST = ("balanced", "accurate", "fast", "certified")
_UNITS = {"macs": "multiply-accumulates", "ms": "time", "joules": "energy"}


def headline(configurations: Configurations) -> str:
    """A paragraph in HTML: measured times where a benchmark stored them, what the test split says otherwise."""
    early = {name: entry for name, entry in configurations.named.items() if entry.exits}
    order = [*(name for name in _FIRST if name in early), *(name for name in early if name not in _FIRST)]
    timed = [name for name in order if early[name].bench is not None]
    if not order:
        text = (
            "No configuration stops early: within the losses that were allowed nothing is cheaper than the full model."
        )
    elif timed:
        text = _measured(timed[0], early[timed[0]])
    else:
        text = _searched(order[0], early[order[0]], configurations.unit)
    return f'<p class="headline">{text}</p>\n'


def _measured(name: str, entry: Entry) -> str:
    bench = entry.bench
    assert bench is not None
    low, high = bench.time_ratio_range or (bench.time_ratio, bench.time_ratio)
    span = f" ({low:.0%} to {high:.0%})" if low < high else ""
    pictures = f"{bench.samples} pictures" + (
        f", {bench.unseen} of them unseen" if bench.unseen < bench.samples else ""
    )
    return (
        f"<b>{escape(name)}</b> answers in {bench.time_ratio:.0%}{span} of the uncut model's time"
        f"{_lost(bench, entry.allowed_loss)}. Measured on {escape(bench.cpu)} with {escape(bench.target)}, "
        f"{bench.batch} per call, {escape(bench.date)}, on {pictures}."
    )


def _lost(bench: BenchFigures, allowed: float | None) -> str:
    if bench.loss is None or bench.loss_error is None:
        return ""
    if bench.loss < -SURE * bench.loss_error:
        return f" and is {-100 * bench.loss:.1f} ± {100 * bench.loss_error:.1f} points more accurate"
    return f" and loses {100 * bench.loss:.1f} ± {100 * bench.loss_error:.1f} points of accuracy{_allowed(allowed)}"


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
