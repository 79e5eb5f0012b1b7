"""The report of a bundle: one HTML file that can be opened anywhere, offline.

:func:`make_contents` computes the contents as data (with numpy only); :func:`write_report` makes the page;
:func:`renew_measured` updates the parts of it that a benchmark fills.
"""

from dyce_calibration.report.contents import Contents, make_contents
from dyce_calibration.report.examples import Example, choose_examples
from dyce_calibration.report.page import check_drawable, mark_outdated, renew_measured, write_report

__all__ = [
    "Contents",
    "Example",
    "check_drawable",
    "choose_examples",
    "make_contents",
    "mark_outdated",
    "renew_measured",
    "write_report",
]
