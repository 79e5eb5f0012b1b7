"""The types of ``manifest.json``: what a bundle holds, what can run, and where it came from.

Pieces compute named tensors from named tensors. The program says which of them can run, in which order, and where a
sample can leave (see :mod:`dyce_runtime.program.operations`). ``exits`` lists the exits in execution order, the final
one last; an index into that list is what ``Result.exit`` holds. Fields that a newer minor version added are ignored;
what a reader must know to run a bundle is listed in ``requires``, and an unknown entry there is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeVar

import msgspec

from dyce_runtime.program.operations import Operation

SCHEMA_VERSION = "2.0"
# What a bundle may require of its reader: models that run before the base; tensors that are kept for later pieces; and
# samples that take different ways through a network.
SAVERS, CARRIED, CHOOSE = "savers", "carried", "choose"
KNOWN_FEATURES = (SAVERS, CARRIED, CHOOSE)
FINAL = "final"
# Id of the span over all segments of the base: the model as it was.
UNCUT = "full"
# Type of the head that a model came with: its own classifier.
BUILTIN = "builtin"
# The tensors in which a head answers; the score is what is compared with a threshold.
LOGITS, CONFIDENCE, LABEL = ANSWER = ("logits", "confidence", "label")

Lifetime = Literal["input", "activation", "carried", "answer"]


class TensorSpec(msgspec.Struct, frozen=True):
    """One named tensor. ``shape`` starts with ``"batch"``; the other axes are fixed.

    Attributes:
        lifetime: ``input`` is fed from outside; an ``activation`` is read by the pieces that come next; ``carried`` is
            kept for later pieces beside it; ``answer`` is what a head answers, until the next head runs.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    lifetime: Lifetime = "activation"


class Piece(msgspec.Struct, frozen=True):
    """One graph of the bundle.

    Attributes:
        role: a ``segment`` is a part of a network, a ``head`` answers at an exit, a ``gate`` says which way a sample
            takes, a ``branch`` is one of these ways, and a ``span`` equals several segments.
        file: path inside the bundle, with forward slashes.
        reads, writes: names of tensors, in the order of the graph's inputs and outputs.
        macs: multiply-accumulates of one sample.
        data: further files that the graph refers to (external weights).
        covers: of a span the ids of the segments that it equals, in order.
    """

    id: str
    role: Literal["segment", "head", "gate", "branch", "span"]
    file: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    macs: int
    data: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()

    @property
    def answers(self) -> bool:
        """Whether it computes an answer: a head, or a piece that ends in the classifier of a model."""
        return LOGITS in self.writes


class Head(msgspec.Struct, frozen=True):
    """One head at an exit.

    Attributes:
        type: architecture, such as ``mlp1x1000`` (layers x hidden width); ``builtin`` at the end of a model.
        piece: id of the piece that computes it; of a builtin head the segment that ends in it.
        temperature: divisor of the logits inside the graph before the softmax.
        pooled: for every tensor at the exit, the axes that are averaged and how the layout was known.
    """

    type: str
    piece: str
    trained: bool
    temperature: float
    pooled: tuple[str, ...] = ()


class Exit(msgspec.Struct, frozen=True):
    """A place where a sample can leave. ``point`` is the exit point's number, None at the end of a model."""

    id: str
    module: str
    heads: tuple[Head, ...]
    point: int | None = None

    def head(self, type: str) -> Head:
        """The head of that type. Raises KeyError if there is none."""
        for head in self.heads:
            if head.type == type:
                return head
        raise KeyError(type)


class Preprocessing(msgspec.Struct, frozen=True):
    """How a picture becomes an input: the evaluation transform of timm, as numbers.

    Attributes:
        resize: length of the shorter edge after resizing, in pixels; or (height, width), met as ``fit`` says.
        crop: (height, width) of the centre crop, in pixels: the model's input size.
        interpolation: ``bilinear``, ``bicubic``, ``nearest``, ``box``, ``hamming`` or ``lanczos``.
        mean, std: per channel, on the scale 0 to 1. One channel means grey pictures, three RGB.
        fit: how a picture of another shape meets (height, width). ``stretch`` changes its shape; ``cover`` and
            ``contain`` keep it, so that nothing is left empty or nothing is cut off. Around a contained picture
            the crop shows the mean.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Literal["stretch", "cover", "contain"] = "stretch"


class Model(msgspec.Struct, frozen=True):
    """The model that was exported and where its weights came from.

    Attributes:
        weights: ``pretrained`` (timm's own), ``checkpoint``, ``module`` (handed over in Python) or ``random``.
        sha256: of the checkpoint file, if there was one.
        macs: multiply-accumulates of one sample through the whole model.
    """

    name: str
    source: str
    weights: Literal["pretrained", "checkpoint", "module", "random"]
    num_classes: int
    macs: int
    parameters: int
    sha256: str | None = None
    class_names: tuple[str, ...] | None = None


class Input(msgspec.Struct, frozen=True):
    """What a network reads: the name of a tensor, and how a picture becomes it."""

    tensor: str
    preprocessing: Preprocessing


class Network(msgspec.Struct, frozen=True):
    """The base or a saver: a whole classifier.

    Attributes:
        id: ``saver0``, ``saver1``, ... in the order in which they run; ``final`` for the base. Its last exit's, too.
        inputs: what it reads. Networks that prepare pictures alike read the same tensor.
        exits: ids, in execution order.
    """

    id: str
    model: Model
    inputs: tuple[Input, ...]
    exits: tuple[str, ...]


class Verification(msgspec.Struct, frozen=True):
    """What the export measured against torch.

    Attributes:
        max_relative_error: largest error over seams and logits; defined in ``dyce_export.verification.verify``.
        seams: the same for each seam and head, for ``logits`` of the chain, ``full`` and what was ``routed``.
        control: relative difference between the logits of two different inputs.
        exit_agreement: share of the probe samples, exempt ones left out, that left where torch says.
        exempt: samples too close to a probe threshold to be compared.
        reason: why the verdict is not ``passed``; empty if it is.
    """

    verdict: Literal["passed", "failed", "inconclusive"]
    tolerance: float
    max_relative_error: float
    seams: dict[str, float]
    control: float
    exit_agreement: float
    exempt: int
    samples: int
    reason: str = ""


class Lowering(msgspec.Struct, frozen=True):
    """What a lower precision changes against the float32 that it was made from.

    Attributes:
        kept: segments that stayed in float32, since samples left elsewhere otherwise. Heads always do.
        calibration: pictures that set the ranges of integers; 0 where none are needed.
        logits_error: of the full model: max |a - b| / max |a - mean of a over the samples|, a in float32.
        exit_agreement: the share of samples that leave at the same exit under the thresholds of float32; the lowest
            over its named configurations.
        accuracy, accuracy_float32: of the full model, on the same samples.
        samples: unseen ones, on which all but the error was measured.
        target: what made the records. Engines round integers each in their own way.
        elsewhere: by further target, the share of unseen samples that leave at another exit there than recorded.
    """

    kept: tuple[str, ...]
    calibration: int
    logits_error: float
    exit_agreement: float
    accuracy: float
    accuracy_float32: float
    samples: int
    target: str = "onnxruntime"
    elsewhere: dict[str, float] = msgspec.field(default_factory=dict)


class Splits(msgspec.Struct, frozen=True):
    """How the data was divided: the seed, the samples in each split, and where the labels came from."""

    seed: int
    samples: dict[str, int]
    labels: Literal["data", "base"]
    unseen: bool


class Manifest(msgspec.Struct, frozen=True):
    """``manifest.json``.

    Attributes:
        requires: what a reader has to know to run the bundle.
        task: what is answered: ``single-label``, one class per sample.
        score: name of the tensor that is compared with thresholds.
        networks: the savers, cheapest first, and then the base.
        tensors: all that pieces read and write.
        program: everything that can run; a configuration runs what it needs of it.
        files: every other file but ``configurations.json`` and the report, with its sha256.
        precision: what is computed in. For ``bfloat16`` the graphs are those of float32, and the engine is told.
        lowering: how that differs from float32; None in float32.
        precisions: those in which the bundle holds another bundle of the same network, ``precisions/NAME``, with
            records, thresholds and certificates of its own.
        suspicious: what speaks against the results and was allowed (``--allow-suspicious``), a sentence each.
        digest: sha256 of the document with zeros in its place; see :mod:`dyce_runtime.bundle.documents`.
    """

    schema_version: str
    requires: tuple[str, ...]
    producer: dict[str, str]
    networks: tuple[Network, ...]
    tensors: tuple[TensorSpec, ...]
    pieces: tuple[Piece, ...]
    exits: tuple[Exit, ...]
    program: tuple[Operation, ...]
    heads: Literal["trained", "untrained"]
    files: dict[str, str]
    task: Literal["single-label"] = "single-label"
    score: str = CONFIDENCE
    splits: Splits | None = None
    verification: Verification | None = None
    precision: Literal["float32", "bfloat16", "float16", "int8", "uint8"] = "float32"
    lowering: Lowering | None = None
    precisions: tuple[str, ...] = ()
    suspicious: tuple[str, ...] = ()
    digest: str = ""

    @property
    def base(self) -> Network:
        """The model itself, which runs after its savers."""
        return self.networks[-1]

    @property
    def savers(self) -> tuple[Network, ...]:
        """The networks that run before the base."""
        return self.networks[:-1]

    @property
    def model(self) -> Model:
        """The model that was exported: the base."""
        return self.base.model

    @property
    def input(self) -> TensorSpec:
        """What the base reads first."""
        return self.tensor(self.base.inputs[0].tensor)

    @property
    def preprocessing(self) -> Preprocessing:
        """How a picture becomes that."""
        return self.base.inputs[0].preprocessing

    @property
    def inputs(self) -> dict[str, Preprocessing]:
        """Name of every tensor that comes from outside to how a picture becomes it, in the order of the program."""
        return {input.tensor: input.preprocessing for network in self.networks for input in network.inputs}

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.base.model.num_classes

    @property
    def spans(self) -> tuple[Piece, ...]:
        """The pieces that equal several segments."""
        return tuple(piece for piece in self.pieces if piece.role == "span")

    @property
    def uncut(self) -> str:
        """Id of the piece that is the base as it was: its span, or its only segment if it has no exits."""
        return UNCUT if len(self.base.exits) > 1 else self.exits[-1].heads[0].piece

    def piece(self, id: str) -> Piece:
        """The piece of that id. Raises KeyError if there is none."""
        return _find(self.pieces, id)

    def exit(self, id: str) -> Exit:
        """The exit of that id. Raises KeyError if there is none."""
        return _find(self.exits, id)

    def exit_index(self, id: str) -> int:
        """Position of an exit in ``exits``. Raises KeyError if there is none."""
        return self.exits.index(self.exit(id))

    def tensor(self, name: str) -> TensorSpec:
        """The tensor of that name. Raises KeyError if there is none."""
        return self.specs((name,))[0]

    def specs(self, names: Iterable[str]) -> tuple[TensorSpec, ...]:
        """The tensors of these names. Raises KeyError if one does not exist."""
        known = {spec.name: spec for spec in self.tensors}
        return tuple(known[name] for name in names)


_Named = TypeVar("_Named", Piece, Exit)


def _find(known: Iterable[_Named], id: str) -> _Named:
    for one in known:
        if one.id == id:
            return one
    raise KeyError(id)
