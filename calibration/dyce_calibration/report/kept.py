"""Parts of a page between two marks: updated separately, or carried over to the next page."""

from __future__ import annotations

import re

_OUTDATED = '<p class="note" id="outdated">'


def marked(name: str, text: str) -> str:
    """Return a part with marks around it; the marks remain even if the part is empty."""
    return f"<!-- {name} -->\n{text}<!-- end of {name} -->"


def part_of(page: str, name: str) -> str | None:
    """Return the text between the marks of a part; None if there are no marks."""
    _, start, rest = page.partition(f"<!-- {name} -->\n")
    text, end, _ = rest.partition(f"<!-- end of {name} -->")
    return text if start and end else None


def with_part(page: str, name: str, text: str) -> str:
    """Replace the text between the marks of a part; the page is returned unchanged if there are no marks."""
    known = part_of(page, name)
    return page if known is None else page.replace(marked(name, known), marked(name, text), 1)


def with_kept_pictures(page: str, before: str) -> str:
    """Add the example images of the previous page, with a note on their age, to a page that has none."""
    old = part_of(before, "pictures")
    if not old or part_of(page, "pictures"):
        return page
    note = "<p>Taken before configurations were chosen again: thresholds may have changed since.</p>\n"
    if note not in old:
        old = re.sub(r"(<h2 id=\"pictures\">.*?</h2>\n)", lambda found: found[1] + note, old, count=1)
    return with_part(page, "pictures", old)


def marked_outdated(page: str, date: str, reason: str) -> str:
    """Add a note to a page that configurations were chosen again since, and why the page was not drawn again."""
    note = (
        f"{_OUTDATED}<b>Outdated:</b> configurations were chosen again on {date}, and {reason}. <code>dyce inspect"
        "</code> shows those of today; <code>dyce search</code> where the report can be drawn renews this page.</p>\n"
    )
    start = page.find(_OUTDATED)
    if start >= 0:
        end = page.index("</p>\n", start) + len("</p>\n")
        page = page[:start] + page[end:]
    return page.replace("<body>\n", f"<body>\n{note}", 1)
