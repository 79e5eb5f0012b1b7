"""Describing the user's model in messages: its attributes, and where in it something happened."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.fx import Node

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_TORCH = torch.__path__[0]
_MOST_CHARACTERS = 300


def reason_of(error: BaseException) -> str:
    """Return the type and first line of an error; torch appends whole graphs."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = re.sub(r"\s*Please (file|report|open)\b.*|\s*For more information, run with TORCH_LOGS.*", "", text)
    return shortened(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def shortened(text: str) -> str:
    """Return at most 300 characters of a text."""
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."


def attribute(module: nn.Module, *names: str) -> Any:
    """Return a nested attribute of a user's module; None if it does not exist or if reading it raises."""
    found: Any = module
    try:
        for name in names:
            found = getattr(found, name, None)
    except Exception:  # a property may do anything
        return None
    return found


def place_of_error(module: nn.Module, error: BaseException) -> tuple[str, nn.Module | None]:
    """Describe where in a model an error arose.

    Returns:
        a description of the innermost of the user's own modules that was running, empty if the error arose outside
        the model; and the innermost module of any kind.
    """
    names = {id(child): name for name, child in module.named_modules()}
    where, innermost, trace = "", None, error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        if id(owner) in names:
            innermost = owner
            if not frame.f_code.co_filename.startswith(nn.__path__[0]):
                where = _words(names[id(owner)], type(owner).__name__, frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return where, innermost


def place_of_node(node: Node) -> str:
    """Describe the module that a graph node came from and the line of user code that called it."""
    path, kind = next(reversed(list(node.meta.get("nn_module_stack", {}).values())), ("", ""))
    frames = [(found["file"], found["line"]) for found in _FRAME.finditer(node.meta.get("stack_trace") or "")]
    own = [frame for frame in frames if not frame[0].startswith(_TORCH)]
    file, line = (own or frames or [("", 0)])[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    return _words(path, kind.rsplit(".", 1)[-1], file, int(line))


def _words(name: str, kind: str, file: str, line: int) -> str:
    inside = ", ".join([*([kind] if kind else []), *([f"{file.rsplit('/', 1)[-1]}:{line}"] if file else [])])
    return f"{name or 'the model itself'} ({inside})" if inside else name or "the model itself"
