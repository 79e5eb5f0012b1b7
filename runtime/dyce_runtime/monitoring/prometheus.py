"""Write metrics in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from dyce_runtime.monitoring.drift import DriftReport

# Suffix of the name, labels, value.
Line: TypeAlias = tuple[str, Mapping[str, str], float]


def drift_families(reports: Mapping[str, DriftReport]) -> list[Iterator[str]]:
    """Return the drift metrics of reports, which are keyed by the name of their configuration.

    A value that is not known has no line.
    """
    shares, confidences, drifted = [], [], []
    for name, report in reports.items():
        configuration = {"configuration": name}
        if report.shares.psi is not None:
            shares.append(("", configuration, report.shares.psi))
        for exit, found in report.exits.items():
            if found.psi is not None:
                confidences.append(("", {**configuration, "exit": exit}, found.psi))
        if report.drifted is not None:
            drifted.append(("", configuration, int(report.drifted)))
    psi = "Population stability index of the {} against the records."
    return [
        family("exit_share_psi", "gauge", psi.format("exits that samples took"), shares),
        family("confidence_psi", "gauge", psi.format("confidences of the samples that took an exit"), confidences),
        family("drifted", "gauge", "Whether there is drift under a configuration: 0 or 1.", drifted),
    ]


def family(name: str, type: str, help: str, lines: Iterable[Line]) -> Iterator[str]:
    """Yield the lines of one metric: its help, its type and its values. The name is prefixed with ``dyce_``."""
    yield f"# HELP dyce_{name} {help}"
    yield f"# TYPE dyce_{name} {type}"
    for suffix, labels, value in lines:
        written = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"dyce_{name}{suffix}{{{written}}} {value!r}" if written else f"dyce_{name}{suffix} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
