"""Sessions belong to their process: pickled, copied or forked they say so, and a child that loads gets answers."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dyce_runtime import Session
from dyce_runtime.control.governor import LatencyGovernor
from dyce_runtime.control.work_cap import WorkCap
from dyce_runtime.errors import UsageError
from dyce_runtime.monitoring.observation import Observation


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("made", [lambda session: session, Observation, WorkCap, lambda s: {"inside": [s]}])
def test_what_belongs_to_a_process_is_neither_pickled_nor_copied(shared_session: Session, made: Any, copied: Any):
    shared_session.use("full")
    thing = made(shared_session)
    if isinstance(thing, dict) and copied is copy.copy:
        pytest.skip("a shallow copy copies no session")
    try:
        with pytest.raises(UsageError, match="belongs to the process that made it") as caught:
            copied(thing)
    finally:
        if isinstance(thing, WorkCap):
            thing.close()
    assert "loads it" in caught.value.hint
    assert issubclass(LatencyGovernor, WorkCap.__mro__[1]), "it holds a session and a lock as well"


FORK = """
import os, sys, traceback
from dyce_runtime import DyceError, load
from tests.bundles import make_images

path, target, pool, how = sys.argv[1:]
images = make_images(16)
session = load(path, target, threads=2, pool=pool)
wanted = session(images).label.tolist()
child = os.fork()
if child:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert session(images).label.tolist() == wanted, "the parent goes on"
    sys.exit(status)
sys.excepthook = lambda *error: (traceback.print_exception(*error), os._exit(4))
try:
    session(images)
    os._exit(3)
except DyceError as error:
    assert "forked" in error.message
if how == "close":
    session.close()
elif how == "drop":
    del session
elif how == "with":
    with session:
        pass
own = load(path, target, threads=2, pool=pool)
assert own(images).label.tolist() == wanted
own.close()
# As every pool of processes ends its children: onnxruntime's own threads, too, are waited for in a normal exit.
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not fork")
@pytest.mark.parametrize("how", ["close", "drop", "with", "keep"])
@pytest.mark.parametrize(
    ("target", "pool"), [("onnxruntime", "private"), ("onnxruntime", "global"), ("openvino", "private")]
)
def test_a_forked_child_loads_for_itself_whatever_becomes_of_what_it_inherits(
    tiny_bundle: Path, target: str, pool: str, how: str
):
    if target == "openvino":
        pytest.importorskip("openvino")
    script = [sys.executable, "-c", FORK, str(tiny_bundle), target, pool, how]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
