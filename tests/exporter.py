"""What torch makes of a program, which it is asked for once: the same in fewer operations, and ONNX.

Most of an export's time goes into that. Tests that look at what comes before or after share what it returned: for the
same graph with the same weights under the same names. Tests of the graphs, of torch's settings, of repeatable files
and of models that people bring ask it every time.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from dyce_export.graph.capture import DECOMPOSITIONS


def decomposed_once(decompose: Callable[..., ExportedProgram]) -> Callable[..., ExportedProgram]:
    """``ExportedProgram.run_decompositions`` that remembers what it made with our table; everyone gets a copy."""
    known: dict[str, ExportedProgram] = {}

    def decomposed(program: ExportedProgram, table: dict[Any, Any] | None = None, **options: Any) -> ExportedProgram:
        if table is not DECOMPOSITIONS:
            return decompose(program, table, **options)
        key = fingerprint(program, (), options)
        if key in known:
            return copy.deepcopy(known[key])
        made = decompose(program, table, **options)
        copied = copy.deepcopy(made)
        if names(copied) == names(made):  # a node that is called "input" gets another name in a copy
            known[key] = copied
        return made

    return decomposed


def names(program: ExportedProgram) -> list[str]:
    return [node.name for node in program.graph.nodes]


def asked_once(export: Callable[..., Any]) -> Callable[..., Any]:
    """An exporter that remembers, as bytes: who gets a model may change it."""
    known: dict[str, bytes] = {}

    def exported(program: ExportedProgram, examples: tuple[torch.Tensor, ...], **options: Any) -> SimpleNamespace:
        key = fingerprint(program, examples, options)
        if key not in known:
            known[key] = ir.to_proto(export(program, examples, **options).model).SerializeToString()
        return SimpleNamespace(model=ir.from_proto(onnx.load_from_string(known[key])))

    return exported


def fingerprint(program: ExportedProgram, examples: tuple[torch.Tensor, ...], options: dict[str, Any]) -> str:
    """Of all that the exporter reads: nodes and where they come from, weights, names, sizes."""
    found = hashlib.sha256(repr(options).encode())
    for node in program.graph.nodes:
        about = {name: node.meta.get(name) for name in ("val", "nn_module_stack", "stack_trace")}
        found.update(repr((node.op, node.name, str(node.target), node.args, node.kwargs, about)).encode())
    found.update(repr((program.graph_signature, program.range_constraints)).encode())
    for name, tensor in {**program.state_dict, **program.constants}.items():
        found.update(repr((name, tensor.dtype, tensor.shape)).encode())
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for example in examples:
        found.update(repr((example.dtype, example.shape)).encode())
    return found.hexdigest()
