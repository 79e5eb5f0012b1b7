"""The report of a bundle: one HTML file that opens anywhere, offline.

:func:`make_contents` says what stands in it, as data (numpy only); :func:`write_report` makes the page.
"""

from dyce_calibration.report.contents import Contents, make_contents
from dyce_calibration.report.examples import Example, choose_examples
from dyce_calibration.report.page import write_report

__all__ = ["Contents", "Example", "choose_examples", "make_contents", "write_report"]
