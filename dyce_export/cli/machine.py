"""Failures of the machine: streams that are closed or full, and resources that are exhausted."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator

_MEMORY = "the machine ran out of memory"
_DESCRIPTORS = "this process may not open more files"
_THREADS = "this process may not start more threads"
HINT = "The machine refused, not the command: free disk space or memory, or raise this process's limits (`ulimit -a`)."
# Messages, in lower case, of libraries that raise neither MemoryError nor OSError for these failures.
_SAID_BY_LIBRARIES = {
    "can't start new thread": _THREADS,
    "resource temporarily unavailable": _THREADS,
    "cannot allocate memory": _MEMORY,
    "can't allocate memory": _MEMORY,
    "not enough memory": _MEMORY,
    "failed to allocate memory": _MEMORY,
    "failed to map segment": _MEMORY,
    "out of memory": _MEMORY,
    "bad_alloc": _MEMORY,
    "bad allocation": _MEMORY,
    "too many open files": _DESCRIPTORS,
    "no space left on device": "the disk is full",
}


def problem_of(error: BaseException) -> str | None:
    """Describe the failure if the machine refused a resource; return None if the error has any other cause."""
    for cause in _causes(error):
        if isinstance(cause, MemoryError):
            return _MEMORY
        if isinstance(cause, OSError) and cause.errno is not None:
            where = f": {os.fsdecode(cause.filename)}" if isinstance(cause.filename, str | bytes) else ""
            return f"a file could not be opened, read or written: {os.strerror(cause.errno)}{where}"
        if isinstance(cause, ImportError | RuntimeError | SystemError):
            text = str(cause).lower()
            if (found := next((said for words, said in _SAID_BY_LIBRARIES.items() if words in text), None)) is not None:
                return found
    return None


def open_streams() -> None:
    """Make stdin, stdout and stderr usable.

    If the caller has closed one, the next file that is opened would get its descriptor and receive the output.
    Characters that a stream's encoding lacks are escaped instead of raising an error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115 (for good)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush_streams() -> None:
    """Write buffered output. Raises OSError if a stream is full or its reader is gone."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def drop_output() -> None:
    """Redirect failed streams to /dev/null: Python would flush them again at exit and report the failure."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its chain of causes, each once."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
