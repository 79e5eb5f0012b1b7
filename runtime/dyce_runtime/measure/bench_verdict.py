"""Summarise the figures of a benchmark in sentences that weigh the time saved against the accuracy lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dyce_runtime.bundle.configuration import FULL
from dyce_runtime.bundle.manifest import Manifest
from dyce_runtime.measure.bench_loss import SURE

# The smallest change of time that is reported; a smaller one is within the noise of a shared machine.
_NOTABLE = 0.03
# The most images that are suggested for a decision.
_MOST_PICTURES = 1_000_000
# The statement about the best configuration, by its ``loss_verdict``.
_FASTER = {
    "none": "gains",
    "kept": "gains",
    "undecided": "is faster, and whether it loses too much is undecided",
    "loses": "is faster and loses accuracy",
    None: "is faster",
    "exceeded": "is faster and loses more than it may",
}

_Entry = Mapping[str, Any]


def verdict(entries: Sequence[_Entry], manifest: Manifest, batch: int, samples: int, used: int) -> str:
    """Return sentences that say what early exit gains on this machine, and what it loses.

    Args:
        entries: the configurations, as in the ``bench`` document.
        manifest: of the bundle.
        batch: samples per call.
        samples: number of samples that were classified.
        used: number of these that the heads or the thresholds were fitted on.
    """
    if not entries:
        return "Only the uncut model was measured; nothing can be said about early exit."
    rivals = [e for e in entries if e["exits"]]
    if not rivals:
        return f"Only the {FULL} model was measured; nothing can be said about early exit."
    if manifest.heads == "untrained" or manifest.model.weights == "random":
        what = "heads are" if manifest.heads == "untrained" else "model is"
        return (
            f"The {what} untrained: nothing can be said about early exit. The times are real, and where samples leave, "
            "which decides them, is not."
        )
    best = best_of(rivals)
    calls = f"With {batch} picture{'' if batch == 1 else 's'} per call early exit"
    return " ".join([f"{calls} {_of_best(best, samples)}.", *_exceeded(rivals, best), *_caveat(samples, used)])


def best_of(rivals: Sequence[_Entry]) -> _Entry:
    """Return the fastest configuration among those with the best verdict on their loss that are faster than the model.

    If no configuration is notably faster than the uncut model, return the fastest of all.
    """
    for verdicts in (("none", "kept"), ("undecided", None), ("loses",), ("exceeded",)):
        faster = [e for e in rivals if e["loss_verdict"] in verdicts and _ratio(e) <= 1 - _NOTABLE]
        if faster:
            return min(faster, key=_ratio)
    return min(rivals, key=_ratio)


def _ratio(entry: _Entry) -> float:
    return float(entry["time_ratio_to_uncut"])


def _of_best(best: _Entry, samples: int) -> str:
    name, ratio, macs = best["name"], _ratio(best), best["macs_share"]
    if ratio >= 1 + _NOTABLE:
        return (
            f"loses: the best configuration, {name}, takes {ratio:.2f} times as long as the uncut model, at {macs:.0%} "
            "of its MACs"
        )
    if ratio > 1 - _NOTABLE:
        return (
            f"gains nothing worth naming: {name} takes {ratio:.2f} of the uncut model's time, at {macs:.0%} of its MACs"
        )
    low, high = best["time_ratio_range"]
    return (
        f"{_FASTER[best['loss_verdict']]}: {name} takes {ratio:.0%} ({low:.0%} to {high:.0%}) of the uncut model's "
        f"time and {macs:.0%} of its MACs; {loss_words(best, samples)}"
    )


def loss_words(entry: _Entry, samples: int) -> str:
    """Describe the loss of a configuration; if it is undecided, with the number of images that would decide it."""
    if entry["loss"] is None:
        return (
            f"without labels its loss is unknown, {entry['same_label_as_uncut']:.1%} of its answers are those of the "
            "uncut model"
        )
    allowed, kind, lost = entry["allowed_loss"], entry["loss_verdict"], f"{loss_text(entry)} points"
    within_error = abs(entry["loss"]) <= SURE * entry["loss_error"]
    if entry["loss"] < 0 and not within_error:
        return f"it is {-100 * entry['loss']:.1f} ± {100 * entry['loss_error']:.1f} points more accurate"
    if kind == "exceeded":
        return f"it loses {lost}, more than the {points(allowed)} it may"
    if kind == "kept":
        also = f"; whether it loses anything is undecided on {samples} pictures" if within_error else ""
        return f"it loses {lost}, within the {points(allowed)} it may{also}"
    if kind == "undecided":
        what = "it loses anything" if allowed is None else f"that is within the {points(allowed)} it may lose"
        return f"it loses {lost}: on {samples} pictures it is undecided whether {what}{_would_decide(entry, samples)}"
    return f"it loses {lost}"


def _would_decide(entry: _Entry, samples: int) -> str:
    """Name the number of images that would decide, if the loss stayed the same; empty if it is above a million."""
    gap = abs(entry["loss"] - (entry["allowed_loss"] or 0.0))
    if gap * _MOST_PICTURES**0.5 <= SURE * entry["loss_error"] * samples**0.5:
        return ""
    needed = samples * (SURE * entry["loss_error"] / gap) ** 2
    return f"; about {float(f'{needed:.1e}'):,.0f} would tell"


def _exceeded(rivals: Sequence[_Entry], best: _Entry) -> list[str]:
    """Return a sentence about the configurations that lose too much; if only ``best`` does, only the advice."""
    others = [e for e in rivals if e["loss_verdict"] == "exceeded"]
    named = [f"{e['name']} loses {loss_text(e)} points instead of at most {points(e['allowed_loss'])}" for e in others]
    if not others:
        return []
    advice = "`dyce search BUNDLE --conservative` chooses with a margin."
    if others == [best]:
        return [advice]
    return [f"Not as its name says: {', '.join(named)}; {advice}"]


def _caveat(samples: int, used: int) -> list[str]:
    if not used:
        return []
    return [
        f"{used} of the {samples} pictures were used to make the bundle: on others it may lose more. Measure on "
        "pictures that it has not seen."
    ]


def loss_text(entry: _Entry) -> str:
    """Return a loss in percentage points with its standard error, such as ``0.7 ± 0.3``."""
    return f"{100 * entry['loss']:.1f} ± {100 * entry['loss_error']:.1f}"


def points(share: float) -> str:
    """Return a fraction in percentage points, such as ``0.5``."""
    return f"{100 * share:g}"
