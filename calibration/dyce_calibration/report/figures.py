"""The plots of a report, made with Bokeh as plain JSON that its script draws in the browser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter, Range1d, TapTool
from bokeh.plotting import figure

from dyce_calibration.report.contents import Contents
from dyce_calibration.report.reliability import BINS, EDGES, Reliability
from dyce_calibration.report.views import View

# Legible on light and dark pages, and distinguishable for the colour-blind (after Okabe and Ito).
COLOURS = {
    "search": "#3b8fd0",
    "test": "#d9640a",
    "certified": "#0f9d76",
    "samethres": "#8c8c8c",
    "onepass": "#b86fa5",
    "accuracy": "#d9640a",
    "samples": "#8c8c8c",
}
# Bars for fewer samples than this are pale.
FEW = 20
_COST = "cost relative to the full model"


def front_plot(contents: Contents, views: Sequence[View]) -> Any:
    """Plot accuracy against cost: the front on both splits, the baselines and the uncut model on the split test.

    The data source ``chosen-data`` holds the configuration selected by the slider; points of the sources ``search`` and
    ``test`` can be tapped.
    """
    plot = _figure(_COST, "accuracy", 420, tools="box_zoom,zoom_out,reset", toolbar_location="above")
    plot.toolbar.logo = plot.toolbar.active_drag = None  # a finger on the plot scrolls the page
    plot.x_range, plot.y_range = _ranges(contents, views)
    plot.yaxis.formatter = NumeralTickFormatter(format="0.0%")
    for baseline, dash in zip(contents.baselines, ("dashed", "dotted"), strict=True):
        plot.line(baseline.costs, baseline.accuracies, color=COLOURS[baseline.method], line_dash=dash, width=2)
    assert contents.uncut.test is not None
    plot.hspan(contents.uncut.test.accuracy, color=COLOURS["test"], line_dash="dotdash")
    plot.scatter([1.0], [contents.uncut.test.accuracy], marker="star", size=15, color=COLOURS["test"])
    tappable = [_series(plot, views, which, split) for which, split in enumerate(("search", "test"))]
    certified = [view for view in views if view.certified]
    plot.scatter(
        *([getattr(view, axis)[1] for view in certified] for axis in ("costs", "accuracies")),
        marker="square",
        size=12,
        fill_color=None,
        line_color=COLOURS["certified"],
        line_width=1.5,
    )
    _label_named(plot, contents, views)
    chosen = ColumnDataSource({"x": [], "y": []}, name="chosen-data")
    plot.line("x", "y", source=chosen, color=COLOURS["search"], width=1.5)
    plot.scatter("x", "y", source=chosen, size=18, fill_color=None, line_color=COLOURS["search"], line_width=3)
    tips = [("", "@title"), ("split", "@split"), ("cost", "@x{0.0000}"), ("accuracy", "@y{0.00%}")]
    plot.add_tools(HoverTool(renderers=tappable, tooltips=tips), TapTool(renderers=tappable, visible=False))
    return plot


def reliability_plot(head: Reliability) -> Any:
    """Plot the accuracy per bin of confidence, and below it the share of the samples in each bin."""
    plot = _figure("confidence", "accuracy; share of samples", 240, tools="", toolbar_location=None)
    plot.x_range, plot.y_range = Range1d(start=0, end=1), Range1d(start=0, end=1)
    filled = head.counts > 0
    source = ColumnDataSource(
        {
            "left": EDGES[:-1][filled],
            "right": EDGES[1:][filled],
            "accuracy": head.accuracy[filled],
            "share": head.counts[filled] / max(head.counts.sum(), 1),
            "count": head.counts[filled],
            "confidence": head.confidence[filled],
            "alpha": np.where(head.counts[filled] < FEW, 0.1, 0.4),
        }
    )
    bars = plot.quad(
        left="left",
        right="right",
        bottom=0,
        top="accuracy",
        source=source,
        fill_color=COLOURS["accuracy"],
        fill_alpha="alpha",
        line_color=COLOURS["accuracy"],
    )
    middle, width = (EDGES[:-1] + EDGES[1:]) / 2, 0.5 / BINS
    plot.vbar(middle[filled], width, source.data["share"], color=COLOURS["samples"])
    plot.line([0, 1], [0, 1], color=COLOURS["search"], line_dash="dashed", width=1.5)
    tips = [("confidence", "@confidence{0.000}"), ("accuracy", "@accuracy{0.0%}"), ("samples", "@count")]
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    return plot


def as_json(plot: Any) -> dict[str, Any]:
    """Return a plot as JSON for Bokeh's script."""
    return dict(json_item(plot))


def _figure(x: str, y: str, height: int, **options: Any) -> Any:
    """Return an empty plot without a background; the page's script colours axes and grid."""
    plot = figure(height=height, sizing_mode="stretch_width", x_axis_label=x, y_axis_label=y, **options)
    plot.background_fill_color = plot.border_fill_color = plot.outline_line_color = None
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.minor_tick_line_color = None
    return plot


def _series(plot: Any, views: Sequence[View], which: int, split: str) -> Any:
    """Draw the points of one split along the front, joined in that order; the points can be tapped."""
    source = ColumnDataSource(
        {
            "x": [view.costs[which] for view in views],
            "y": [view.accuracies[which] for view in views],
            "title": [view.title for view in views],
            "split": [split] * len(views),
        },
        name=split,
    )
    plot.line("x", "y", source=source, color=COLOURS[split], width=1.5)
    points = plot.scatter("x", "y", source=source, marker=("circle", "square")[which], size=6, color=COLOURS[split])
    points.nonselection_glyph = None  # a tap moves the slider and fades nothing
    return points


def _label_named(plot: Any, contents: Contents, views: Sequence[View]) -> None:
    """Label the named configurations on the split test; those with equal figures share one label."""
    assert contents.uncut.test is not None
    names: dict[tuple[float, float], list[str]] = {(1.0, contents.uncut.test.accuracy): ["uncut model"]}
    for name, entry in contents.configurations.named.items():
        if entry.exits and entry.test is not None:
            names.setdefault((entry.test.cost, entry.test.accuracy), []).append(name)
    points = sorted(names)
    plot.text(
        [x for x, _ in points],
        [y for _, y in points],
        text=[", ".join(names[point]) for point in points],
        # Labels alternate above and below their points; near the right edge they are on the left, inside the plot.
        x_offset=[-8 if x > 0.8 else 8 for x, _ in points],
        y_offset=[(-8, 18)[index % 2] for index in range(len(points))],
        text_align=["right" if x > 0.8 else "left" for x, _ in points],
        text_font_size="13px",
        text_color=COLOURS["test"],
    )


def _ranges(contents: Contents, views: Sequence[View]) -> tuple[Range1d, Range1d]:
    """Return the initial axis ranges: accuracies from slightly below the worst named configuration, and their costs.

    The cheap end of a front loses far more accuracy than is acceptable and would flatten the rest of the plot;
    zooming out shows it.
    """
    named = [entry for entry in contents.configurations.named.values() if entry.search and entry.test]
    shown = [figures for entry in (contents.uncut, *named) for figures in (entry.search, entry.test) if figures]
    accuracies = [figures.accuracy for figures in shown]
    span = max(float(np.ptp(accuracies)), 0.005)
    low = min(accuracies) - 0.5 * span
    inside = [view for view in views if min(view.accuracies) >= low]
    costs = [figures.cost for figures in shown] + [cost for view in inside for cost in view.costs]
    top = max(accuracies + [accuracy for view in inside for accuracy in view.accuracies])
    margin = 0.15 * (max(costs) - min(costs)) or 0.1
    return (
        Range1d(start=max(0.0, min(costs) - margin), end=max(costs) + margin),
        Range1d(start=low, end=top + 0.25 * span),
    )
