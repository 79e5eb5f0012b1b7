"""Programs of bundles (of one network, or of several in sequence) and the features that a reader must support."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dyce_runtime.bundle.manifest import CARRIED, CHOOSE, FINAL, SAVERS, Exit, Network, TensorSpec
from dyce_runtime.program.operations import Case, Choose, Feed, Leave, Operation, Run


def network_program(inputs: Iterable[str], segments: Sequence[str], exits: Sequence[Exit]) -> tuple[Operation, ...]:
    """Return the program that runs each segment and then the heads of its exit; all samples exit at the last one."""
    program: list[Operation] = [Feed(name) for name in inputs]
    for segment, exit in zip(segments, exits, strict=True):
        program.append(Run(segment))
        for head in exit.heads:
            program += [] if head.piece == segment else [Run(head.piece)]
            program.append(Leave(exit.id, head.type, always=exit is exits[-1]))
    return tuple(program)


def as_saver(
    program: Iterable[Operation], pieces: Mapping[str, str], tensors: Mapping[str, str], exits: Mapping[str, str]
) -> tuple[Operation, ...]:
    """Rename the program of a network that runs before others; its last exit no longer takes all remaining samples."""

    def renamed(operation: Operation) -> Operation:
        if isinstance(operation, Feed):
            return Feed(tensors[operation.input])
        if isinstance(operation, Run):
            return Run(pieces[operation.piece])
        if isinstance(operation, Leave):
            return Leave(exits[operation.exit], operation.head)
        cases = (
            Case(
                None if case.piece is None else pieces[case.piece],
                {tensors[to]: tensors[source] for to, source in case.copies.items()},
            )
            for case in operation.cases
        )
        gate = f"{exits[FINAL]}.{operation.gate}"
        return Choose(gate, tensors[operation.by], tuple(cases), operation.cut_points)

    return tuple(map(renamed, program))


def with_head(program: Sequence[Operation], exit: Exit, type: str) -> tuple[Operation, ...]:
    """Return the program with another head of an exit, which runs before the other heads of that exit.

    Its output is therefore available to later heads even if samples exit at the others.
    """
    others = [head.piece for head in exit.heads if head.type != type]
    place = next(k for k, operation in enumerate(program) if isinstance(operation, Run) and operation.piece in others)
    return (*program[:place], Run(exit.head(type).piece), Leave(exit.id, type), *program[place:])


def requires(
    networks: Sequence[Network], tensors: Iterable[TensorSpec], program: Iterable[Operation]
) -> tuple[str, ...]:
    """Return the features that a reader must support to run such a bundle."""
    needed = {
        SAVERS: len(networks) > 1,
        CARRIED: any(spec.lifetime == "carried" for spec in tensors),
        CHOOSE: any(isinstance(operation, Choose) for operation in program),
    }
    return tuple(feature for feature, is_needed in needed.items() if is_needed)
