"""Through all segments of a bundle, whatever a configuration would run: to record, to measure, to compare."""

from __future__ import annotations

from collections.abc import Iterator

from dyce_runtime.bundle.manifest import Exit, Manifest
from dyce_runtime.execution.contracts import Lane
from dyce_runtime.inputs.images import Inputs


def walk(manifest: Manifest, lane: Lane, inputs: Inputs) -> Iterator[tuple[int, Exit]]:
    """Run segment after segment, of all networks; yields the index and the exit when the segment before it has run.

    Args:
        inputs: of every network.
    """
    segments = manifest.segments
    for network in manifest.networks:
        lane.put(inputs[network.input.name], network.input.name)
        for index in range(network.first, network.last + 1):
            lane.run(segments[index].id)
            yield index, manifest.exits[index]


def head_pieces(manifest: Manifest, index: int) -> list[str | None]:
    """What ``Lane.decide`` takes at that exit, head by head; None where a network ends."""
    if any(index == network.last for network in manifest.networks):
        return [None]
    return [head.piece for head in manifest.exits[index].heads]
