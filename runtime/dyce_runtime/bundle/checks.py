"""Check that a manifest is consistent: every name, number and operation of the program, before any of it is used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import isfinite

from dyce_runtime.arguments import shown
from dyce_runtime.bundle.configuration import ascending
from dyce_runtime.bundle.manifest import (
    ANSWER,
    CARRIED,
    CHOOSE,
    CONFIDENCE,
    INTERPOLATIONS,
    KNOWN_FEATURES,
    LABEL,
    LOGITS,
    SAVERS,
    UNCUT,
    Manifest,
    Network,
    TensorSpec,
)
from dyce_runtime.errors import BundleError
from dyce_runtime.program.liveness import effect_of
from dyce_runtime.program.operations import Choose, Feed, Leave, Run

# Ids and types are used as file names and as labels of metrics.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_TYPES = frozenset(
    ["bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
)
# The most elements in one sample of a tensor.
_LARGEST = 1 << 27
_LONGEST_EDGE = 1 << 17
# The most multiply-accumulates of one sample.
_MOST_WORK = 10**15


def check_manifest(manifest: Manifest) -> None:
    """Raise BundleError if a manifest is inconsistent, or requires a feature that this reader does not know."""
    check_features(manifest.requires)
    _check_names(manifest)
    _check_tensors(manifest)
    _check_pieces(manifest)
    _check_networks(manifest)
    _check_heads(manifest)
    _check_program(manifest)
    _check_spans(manifest)


def check_features(requires: Iterable[str]) -> None:
    """Raise BundleError if a bundle requires a feature that this reader does not know."""
    unknown = [name for name in requires if name not in KNOWN_FEATURES]
    if unknown:
        raise BundleError(
            f"the bundle requires {', '.join(map(repr, unknown))}, which this runtime does not know; it knows "
            f"{', '.join(KNOWN_FEATURES)}",
            hint="Upgrade dyce-export on this machine, or export again with the version installed here.",
        )


def _check_names(manifest: Manifest) -> None:
    names = {
        "tensor": [spec.name for spec in manifest.tensors],
        "piece": [piece.id for piece in manifest.pieces],
        "exit": [exit.id for exit in manifest.exits],
        "network": [network.id for network in manifest.networks],
    }
    names |= {f"head of exit {exit.id}": [head.type for head in exit.heads] for exit in manifest.exits}
    names |= {"precision": [manifest.precision, *manifest.precisions]}
    for what, known in names.items():
        for name in known:
            if not _NAME.fullmatch(name):
                raise BundleError(
                    f"the manifest has a {what} called {shown(name)}; expected letters, digits, '.', '_' and '-'"
                )
        if not known:
            raise BundleError(f"the manifest has no {what}")
        if len(set(known)) < len(known):
            twice = next(name for name in known if known.count(name) > 1)
            raise BundleError(f"the manifest has two of the {what} {twice!r}; expected each once")


def _check_tensors(manifest: Manifest) -> None:
    for spec in manifest.tensors:
        axes = spec.shape[1:]
        whole = all(type(axis) is int and axis > 0 for axis in axes)
        size = 1
        for axis in axes if whole else ():
            size *= int(axis)
        if spec.dtype not in _TYPES or spec.shape[:1] != ("batch",) or not whole or size > _LARGEST:
            raise BundleError(
                f"tensor {spec.name} is {shown(spec.dtype)} of shape {shown(list(spec.shape))}; expected a type of "
                f"numbers, and 'batch' followed by the sizes of the other axes, at most {_LARGEST:,} elements in all"
            )
        if (spec.lifetime == "answer") != (spec.name in ANSWER):
            raise BundleError(f"tensor {spec.name} has the lifetime {spec.lifetime!r}; answers are {list(ANSWER)}")
    known = {spec.name: spec for spec in manifest.tensors}
    for wanted in (
        TensorSpec(LOGITS, "float32", ("batch", manifest.classes), "answer"),
        TensorSpec(CONFIDENCE, "float32", ("batch",), "answer"),
        TensorSpec(LABEL, "int64", ("batch",), "answer"),
    ):
        if known.get(wanted.name) != wanted:
            raise BundleError(
                f"tensor {wanted.name} is {shown(known.get(wanted.name))}; expected {wanted.dtype} of shape "
                f"{list(wanted.shape)}"
            )
    if manifest.score != CONFIDENCE:
        raise BundleError(f"the score is {shown(manifest.score)}; expected {CONFIDENCE!r}")


def _check_pieces(manifest: Manifest) -> None:
    known = {spec.name: spec for spec in manifest.tensors}
    for piece in manifest.pieces:
        for name in (piece.file, *piece.data):
            if name not in manifest.files:
                raise BundleError(f"piece {piece.id} names the file {name!r}, which the manifest does not list")
        for names in (piece.reads, piece.writes):
            if not names or len(set(names)) < len(names) or not known.keys() >= set(names):
                raise BundleError(f"piece {piece.id} uses {list(names)}; expected tensors of the manifest, each once")
        if piece.answers and piece.writes[: len(ANSWER)] != ANSWER:
            raise BundleError(f"piece {piece.id} writes {list(piece.writes)}; expected {list(ANSWER)} first")
        carried = [name for name in piece.writes if known[name].lifetime == "carried"]
        ends = [*(ANSWER if piece.answers else ()), *carried]
        if (piece.answers or carried) and [*piece.writes] != ends:
            raise BundleError(f"piece {piece.id} writes {list(piece.writes)}; expected an answer and what is carried")
        _check_work(f"piece {piece.id}", piece.macs, least=0)


def _check_work(what: str, number: int, *, least: int) -> None:
    if not least <= number <= _MOST_WORK:
        raise BundleError(
            f"{what} has {shown(number)} multiply-accumulates or parameters; expected {least} to {_MOST_WORK:.0e}"
        )


def _check_networks(manifest: Manifest) -> None:
    """Check that the networks divide the exits among them, in order, and have the same classes as the base."""
    fed = [operation.input for operation in manifest.program if isinstance(operation, Feed)]
    if fed != [input.tensor for network in manifest.networks for input in network.inputs]:
        raise BundleError(f"the program feeds {fed}; expected the inputs of the networks, in that order")
    if [exit for network in manifest.networks for exit in network.exits] != [exit.id for exit in manifest.exits]:
        raise BundleError("the exits of the networks are not those of the manifest, in that order")
    known = {spec.name: spec for spec in manifest.tensors}
    for network in manifest.networks:
        if network.exits[-1:] != (network.id,) or network.model.num_classes != manifest.classes:
            raise BundleError(f"network {network.id} does not end in an exit of its name with the classes of the base")
        for input in network.inputs:
            spec = known.get(input.tensor)
            if spec is None or spec.lifetime != "input":
                raise BundleError(f"network {network.id} reads {input.tensor!r}, which is no input of the manifest")
            _check_preprocessing(network, spec)
    for network in manifest.networks:
        _check_work("the model", network.model.macs, least=1)
        _check_work("the model", network.model.parameters, least=0)
    if len(manifest.networks) > 1 and SAVERS not in manifest.requires:
        raise BundleError(f"the bundle has several networks; expected {SAVERS!r} in what it requires")
    if any(spec.lifetime == "carried" for spec in manifest.tensors) and CARRIED not in manifest.requires:
        raise BundleError(f"the bundle carries tensors; expected {CARRIED!r} in what it requires")


def _check_preprocessing(network: Network, spec: TensorSpec) -> None:
    for way in (input.preprocessing for input in network.inputs if input.tensor == spec.name):
        expected = (len(way.mean), *way.crop)
        if spec.shape[1:] != expected or len(way.std) != len(way.mean):
            raise BundleError(
                f"tensor {spec.name} has the shape {list(spec.shape)}; its preprocessing makes {['batch', *expected]}"
            )
        edges = way.resize if isinstance(way.resize, tuple) else (way.resize,)
        if not all(0 < edge <= _LONGEST_EDGE for edge in (*edges, *way.crop)):
            raise BundleError(
                f"the preprocessing of {spec.name} resizes to {way.resize} and crops to {list(way.crop)}; expected "
                f"edges of 1 to {_LONGEST_EDGE} pixels"
            )
        if not all(isfinite(value) for value in way.mean) or not all(isfinite(s) and s > 0 for s in way.std):
            raise BundleError(
                f"the preprocessing of {spec.name} has the mean {list(way.mean)} and the std {list(way.std)}; expected "
                "finite numbers, the std over 0"
            )
        if way.interpolation not in INTERPOLATIONS:
            raise BundleError(
                f"the preprocessing of {spec.name} has the interpolation {way.interpolation!r}; expected one of "
                f"{', '.join(INTERPOLATIONS)}"
            )


def _check_heads(manifest: Manifest) -> None:
    pieces = {piece.id: piece for piece in manifest.pieces}
    used: set[str] = set()
    for exit in manifest.exits:
        for head in exit.heads:
            piece = pieces.get(head.piece)
            if piece is None or not piece.answers or piece.role == "span" or piece.id in used:
                raise BundleError(f"exit {exit.id} names the head {head.piece!r}, which is no head of that exit alone")
            used.add(piece.id)


def _check_program(manifest: Manifest) -> None:
    """Check that every piece except spans runs once, on tensors that exist, and that exits directly follow heads."""
    pieces = {piece.id: piece for piece in manifest.pieces}
    known: set[str] = set()
    ran: list[str] = []
    seen: list[tuple[str, str]] = []
    for operation in manifest.program:
        if isinstance(operation, Leave):
            _check_leave(manifest, operation, ran)
            seen.append((operation.exit, operation.head))
            continue
        runs = _pieces_of(operation)
        for id in runs:
            if id not in pieces or pieces[id].role == "span" or id in ran or runs.count(id) > 1:
                raise BundleError(f"the program runs {id!r}, which is no piece or runs twice")
        if isinstance(operation, Choose):
            _check_choose(manifest, operation)
        reads, writes = effect_of(operation, pieces)
        if not known >= reads:
            raise BundleError(f"the program runs {runs}, which reads {sorted(reads - known)}; nothing has made it")
        known |= writes
        ran += runs
    if sorted(ran) != sorted(piece.id for piece in manifest.pieces if piece.role != "span"):
        raise BundleError("the program does not run every segment and every head")
    wanted = [(exit.id, head.type) for exit in manifest.exits for head in exit.heads]
    places = [manifest.exit_index(exit) for exit, _ in seen]
    last = manifest.program[-1]
    if sorted(seen) != sorted(wanted) or places != sorted(places) or not (isinstance(last, Leave) and last.always):
        raise BundleError("the program does not let samples leave at every head, exit by exit, and always at the last")


def _pieces_of(operation: Feed | Run | Choose) -> list[str]:
    if isinstance(operation, Choose):
        return [case.piece for case in operation.cases if case.piece is not None]
    return [operation.piece] if isinstance(operation, Run) else []


def _check_choose(manifest: Manifest, choose: Choose) -> None:
    """Check that a gate chooses once, by one number per sample, among cases that write the same tensors."""
    known = {spec.name: spec for spec in manifest.tensors}
    if CHOOSE not in manifest.requires:
        raise BundleError(f"the program chooses; expected {CHOOSE!r} in what the bundle requires")
    same = [op for op in manifest.program if isinstance(op, Choose) and op.gate == choose.gate]
    if not _NAME.fullmatch(choose.gate) or len(same) > 1:
        raise BundleError(f"the program has a gate called {shown(choose.gate)}; expected a name, each once")
    if choose.by not in known or (known[choose.by].dtype, known[choose.by].shape) != ("float32", ("batch",)):
        raise BundleError(f"gate {choose.gate} chooses by {shown(choose.by)}; expected a float32 number of each sample")
    if len(choose.cases) < 2 or not ascending(choose.cut_points, len(choose.cases) - 1):
        raise BundleError(
            f"gate {choose.gate} has {len(choose.cases)} cases and the cut points {list(choose.cut_points)}; expected "
            "two or more, and one cut point fewer, in ascending order"
        )
    makes = []
    for case in choose.cases:
        if (case.piece is None) == (not case.copies):
            raise BundleError(f"a case of gate {choose.gate} runs a piece or copies tensors; expected one of them")
        for to, source in case.copies.items():
            alike = [(known[name].dtype, known[name].shape) for name in (to, source) if name in known]
            if len(alike) < 2 or alike[0] != alike[1]:
                raise BundleError(f"gate {choose.gate} copies {source!r} to {to!r}; expected tensors of one kind")
        makes.append({*case.copies} if case.piece is None else {*manifest.piece(case.piece).writes})
    if any(made != makes[0] for made in makes) or makes[0] & {*ANSWER}:
        raise BundleError(f"the cases of gate {choose.gate} make different tensors, or an answer")


def _check_leave(manifest: Manifest, operation: Leave, ran: Sequence[str]) -> None:
    of_exit = [exit.heads for exit in manifest.exits if exit.id == operation.exit]
    pieces = [head.piece for heads in of_exit for head in heads if head.type == operation.head]
    if not pieces or ran[-1:] != pieces:
        raise BundleError(
            f"the program lets samples leave at exit {operation.exit!r} with head {operation.head!r}, which did not "
            "run right before"
        )
    if operation.always != (operation.exit == manifest.exits[-1].id):
        raise BundleError(
            f"the program lets all samples leave at exit {operation.exit}; expected that of the last alone"
        )


def _check_spans(manifest: Manifest) -> None:
    """Check that every span equals consecutive segments, and reads and writes what they do."""
    pieces = {piece.id: piece for piece in manifest.pieces}
    # An empty string stands for a choice or an input, which no span may cross.
    ran = [op.piece if isinstance(op, Run) else "" for op in manifest.program if isinstance(op, Run | Choose | Feed)]
    segments = [id for id in ran if not id or pieces[id].role == "segment"]
    covered: dict[tuple[str, ...], str] = {}
    for piece in manifest.pieces:
        if piece.role != "span":
            if piece.covers:
                raise BundleError(f"piece {piece.id} covers segments; expected that of spans alone")
            continue
        start = segments.index(piece.covers[0]) if piece.covers and piece.covers[0] in segments else -1
        if start < 0 or len(piece.covers) < 2 or tuple(segments[start : start + len(piece.covers)]) != piece.covers:
            raise BundleError(f"span {piece.id} covers {list(piece.covers)}; expected segments that follow each other")
        first, last = pieces[piece.covers[0]], pieces[piece.covers[-1]]
        if piece.reads != first.reads or piece.writes != last.writes:
            raise BundleError(f"span {piece.id} does not read and write what {first.id} and {last.id} do")
        if (other := covered.setdefault(piece.covers, piece.id)) != piece.id:
            raise BundleError(f"the spans {other} and {piece.id} cover the same segments; expected one")
    chooses = any(isinstance(operation, Choose) for operation in manifest.program)
    if manifest.uncut == UNCUT and not chooses and UNCUT not in [span.id for span in manifest.spans]:
        raise BundleError(f"the manifest has no span {UNCUT!r}, the uncut model; every bundle with exits has one")
