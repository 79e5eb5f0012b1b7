"""The types of ``manifest.json``: what a bundle holds and where it came from.

Conventions. With n exits a bundle has n + 1 segments: segment k starts at exit k - 1 (segment 0 at the
image) and ends at exit k; the last one ends in the model's own classifier. ``exits`` lists the exits in
execution order and ``"final"`` last; an index into that list is what ``Result.exit`` holds. Savers are models of their
own that stand before the base in all of these lists: the first segment of each network starts at an image. Fields that
a newer minor version added are ignored.
"""

from __future__ import annotations

from typing import Literal

import msgspec

SCHEMA_VERSION = "1.0"
FINAL = "final"
# Id of the span over all segments of the base: the model as it was.
UNCUT = "full"
# Type of the head at the end of a saver: its own classifier.
OWN = "own"
DECISION = ("logits", "confidence", "label")


class TensorSpec(msgspec.Struct, frozen=True):
    """One named tensor of a piece. ``shape`` starts with ``"batch"``; the other axes are fixed."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Piece(msgspec.Struct, frozen=True):
    """One graph of the bundle.

    Attributes:
        file: path inside the bundle, with forward slashes.
        first, last: the segments that it covers, as indices (a head: the segment that it reads from, twice).
        inputs: what is alive where it starts; of a head further tensors that pieces before it have left.
        outputs: what is alive where it ends; where it decides the decision, then what it leaves for later heads.
        macs: multiply-accumulates of one sample.
        data: further files that the graph refers to (external weights).
    """

    id: str
    kind: Literal["segment", "head", "span"]
    file: str
    first: int
    last: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    macs: int
    data: tuple[str, ...] = ()

    @property
    def left(self) -> tuple[TensorSpec, ...]:
        """What it leaves for later heads, see :func:`left_by`."""
        return left_by(self.outputs)


def left_by(outputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Of the outputs of a piece that decides those behind the decision: they stay while others run."""
    return outputs[len(DECISION) :] if outputs[0].name == DECISION[0] else ()


class Head(msgspec.Struct, frozen=True):
    """One head at an exit.

    Attributes:
        type: architecture, such as ``mlp1x1000`` (layers x hidden width); ``own`` at the end of a saver.
        piece: id of its piece; for ``own`` the segment that ends in it.
        temperature: divisor of the logits inside the graph before the softmax.
        pooled: for every tensor at the exit, the axes that are averaged and how the layout was known.
    """

    type: str
    piece: str
    trained: bool
    temperature: float
    pooled: tuple[str, ...] = ()


class Exit(msgspec.Struct, frozen=True):
    """A place where a sample can leave. ``point`` is the exit point's number, None at the end of a network."""

    id: str
    module: str
    point: int | None = None
    heads: tuple[Head, ...] = ()


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


class Network(msgspec.Struct, frozen=True):
    """The base or a saver: a whole classifier, split into segments.

    Attributes:
        id: ``saver0``, ``saver1``, ... in the order in which they run; ``final`` for the base. Its last exit's, too.
        first, last: its segments, as indices.
        input: what its first segment reads. Networks that prepare pictures alike read the same one.
    """

    id: str
    first: int
    last: int
    model: Model
    input: TensorSpec
    preprocessing: Preprocessing


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
        files: every other file but ``configurations.json`` and the report, with its sha256.
        precision: what is computed in. For ``bfloat16`` the graphs are those of float32, and the engine is told.
        lowering: how that differs from float32; None in float32.
        precisions: those in which the bundle holds another bundle of the same network, ``precisions/NAME``, with
            records, thresholds and certificates of its own.
        model, input, preprocessing: of the base.
        savers: the networks that run before it, cheapest first.
        suspicious: what speaks against the results and was allowed (``--allow-suspicious``), a sentence each.
    """

    schema_version: str
    producer: dict[str, str]
    model: Model
    input: TensorSpec
    preprocessing: Preprocessing
    exits: tuple[Exit, ...]
    pieces: tuple[Piece, ...]
    heads: Literal["trained", "untrained"]
    files: dict[str, str]
    splits: Splits | None = None
    verification: Verification | None = None
    precision: Literal["float32", "bfloat16", "float16", "int8", "uint8"] = "float32"
    lowering: Lowering | None = None
    precisions: tuple[str, ...] = ()
    savers: tuple[Network, ...] = ()
    suspicious: tuple[str, ...] = ()

    @property
    def base(self) -> Network:
        """The model itself, behind its savers."""
        first = self.savers[-1].last + 1 if self.savers else 0
        return Network(FINAL, first, len(self.exits) - 1, self.model, self.input, self.preprocessing)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The savers and the base, in the order in which they run."""
        return (*self.savers, self.base)

    @property
    def segments(self) -> tuple[Piece, ...]:
        """The segments of all networks, in execution order."""
        return tuple(piece for piece in self.pieces if piece.kind == "segment")

    @property
    def uncut(self) -> str:
        """Id of the piece that is the base as it was: its span, or its only segment if it has no exits."""
        base = self.base
        return UNCUT if base.first < base.last else self.segments[base.first].id

    def piece(self, id: str) -> Piece:
        """The piece of that id. Raises KeyError if there is none."""
        for piece in self.pieces:
            if piece.id == id:
                return piece
        raise KeyError(id)

    def exit_index(self, id: str) -> int:
        """Position of an exit in ``exits``. Raises KeyError if there is none."""
        for index, exit in enumerate(self.exits):
            if exit.id == id:
                return index
        raise KeyError(id)
