"""A writer that dies at any instant leaves the old bundle or the new one, and the next writer is not in its way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# A child dies before the n-th line of ours that replaces a bundle, or a document in it, for every n there is. All this
# is in a process of its own, since forking one with threads is not safe.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from dyce_export.writing.staging import staged
from dyce_runtime.atomic_write import write_atomically

place, what, number = Path(sys.argv[1]), sys.argv[2], getattr(signal, sys.argv[3])
FILES = {"manifest.json", "pieces/a.onnx", "pieces/b.onnx"}

def write(text):
    if what == "document":
        write_atomically(place / "manifest.json", text.encode())
        return
    with staged(place, force=True) as folder:
        (folder / "pieces").mkdir()
        for name in sorted(FILES):
            (folder / name).write_text(text)

def dying(wanted):
    seen = 0
    def trace(frame, event, argument):
        nonlocal seen
        if not frame.f_code.co_filename.endswith(("staging.py", "exchange.py", "atomic_write.py")):
            return None
        if event == "line":
            seen += 1
            if seen == wanted:
                sys.settrace(None)
                os.kill(os.getpid(), number)
        return trace
    return trace

def content():
    texts = {(place / name).read_text() for name in FILES}
    assert {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} == FILES, "half a bundle"
    (text,) = texts if what == "bundle" else {(place / "manifest.json").read_text()}
    return text

what, kept = "bundle", what
write("old")
what, instant, seen, stale = kept, 0, set(), 0
while True:
    instant += 1
    child = os.fork()
    if child == 0:
        sys.settrace(dying(instant))
        try:
            write("new")
        except KeyboardInterrupt:
            os._exit(1)
        os._exit(0)
    finished = os.waitpid(child, 0)[1] == 0
    around = sorted(path.name for path in place.parent.iterdir())
    if number == signal.SIGINT or finished:
        stale += around != [place.name]
    if what == "bundle":
        seen.add(content())
    else:
        assert (place / "manifest.json").read_text() in ("old", "new")
    write("old")
    assert content() == "old", f"the next writer failed after line {instant}"
    assert sorted(path.name for path in place.parent.iterdir()) == [place.name], f"left after line {instant}"
    if finished:
        break
print(instant, stale, sorted(seen))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the exchange of two folders is Linux's")
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGINT"])
@pytest.mark.parametrize("what", ["bundle", "document"])
def test_a_writer_may_die_before_any_line(tmp_path: Path, what: str, signal: str):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model.dyce"), what, signal]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    instants, stale, seen = done.stdout.split(maxsplit=2)
    assert int(instants) > 10
    assert int(stale) <= 6, "only an interruption of the cleaning up itself leaves something to the next writer"
    if what == "bundle":
        assert seen.strip() == "['new', 'old']", "there is an instant before the exchange, and one after it"
