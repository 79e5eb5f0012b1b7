"""Multiply-accumulates of every node of a captured program, counted with torch's own FLOP formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.utils.flop_counter import FlopCounterMode

from dyce_export.graph.capture import EXAMPLE_BATCH, input_node


def count_macs(program: ExportedProgram) -> dict[str, int]:
    """Return the MACs of one sample by node name, without nodes that multiply nothing.

    Convolutions, linear layers and matrix products count; norms, activations and pooling do not. The program runs on
    fake tensors, so nothing is computed.
    """
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    image = input_node(program).meta["val"]
    with detect_fake_mode(values), FlopCounterMode(display=False) as counter:  # type: ignore[union-attr]
        example = torch.empty(EXAMPLE_BATCH, *image.shape[1:])
        interpreter = _CountingInterpreter(program.graph_module, counter)
        interpreter.run(*[example if value is image else value for value in values])
    return {name: flops // (2 * EXAMPLE_BATCH) for name, flops in interpreter.flops.items() if flops}


class _CountingInterpreter(Interpreter):
    def __init__(self, module: torch.fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.counter = counter
        self.flops: dict[str, int] = {}

    def run_node(self, n: Node) -> Any:
        before = self.counter.get_total_flops()
        result = super().run_node(n)
        self.flops[n.name] = self.counter.get_total_flops() - before
        return result
