"""The types of ``manifest.json``: the content of a bundle, its program, and its origin.

Pieces compute named tensors from named tensors. The program says in which order pieces can run and where a sample can
exit (see :mod:`dyce_runtime.program.operations`). ``exits`` lists the exits in execution order, the final one last;
``Result.exit`` holds indices into that list. Fields that a newer minor version added are ignored; the features that a
reader must know to run a bundle are listed in ``requires``, and a bundle with an unknown one is rejected.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeVar

import msgspec

from dyce_runtime.program.operations import Operation

SCHEMA_VERSION = "2.0"
# Features that a bundle may require of its reader: smaller networks that run before the base; tensors that are kept for
# later pieces; and gates, which send samples through different branches.
SAVERS, CARRIED, CHOOSE = "savers", "carried", "choose"
KNOWN_FEATURES = (SAVERS, CARRIED, CHOOSE)
FINAL = "final"
# Id of the span over all segments of the base: the uncut model, that is the model before it was split into segments.
UNCUT = "full"
# Type of the head at the end of a model: its own classifier.
BUILTIN = "builtin"
# The tensors that a head writes. The confidence is the score that is compared with a threshold.
LOGITS, CONFIDENCE, LABEL = ANSWER = ("logits", "confidence", "label")

Lifetime = Literal["input", "activation", "carried", "answer"]


class TensorSpec(msgspec.Struct, frozen=True):
    """One named tensor.

    Attributes:
        dtype: name of a numpy type.
        shape: ``"batch"``, followed by the fixed sizes of the other axes.
        lifetime: an ``input`` is supplied by the caller; an ``activation`` is read by the next pieces; a ``carried``
            tensor is kept for later pieces in addition; an ``answer`` is written by a head and valid until the next
            head runs.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    lifetime: Lifetime = "activation"


class Piece(msgspec.Struct, frozen=True):
    """One graph of the bundle.

    Attributes:
        role: a ``segment`` is a part of a network, a ``head`` is a classifier at an exit, a ``gate`` decides which
            branch a sample takes, a ``branch`` is one of the alternatives, and a ``span`` is one graph that equals
            several consecutive segments.
        file: path of the ONNX file inside the bundle, with forward slashes.
        reads, writes: names of tensors, in the order of the graph's inputs and outputs.
        macs: multiply-accumulates of one sample.
        data: further files that the graph refers to (external weights).
        covers: for a span, the ids of the segments that it equals, in order.
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
        """Whether the piece writes an answer: it is a head, or it ends in the classifier of a model."""
        return LOGITS in self.writes


class Head(msgspec.Struct, frozen=True):
    """One head at an exit.

    Attributes:
        type: architecture, such as ``mlp1x1000`` (layers x hidden width); ``builtin`` at the end of a model.
        piece: id of the piece that computes it; for a builtin head, the segment that ends in it.
        trained: whether its weights were trained; an untrained head only serves to measure speed.
        temperature: divisor of the logits before the softmax, inside the graph.
        pooled: for every tensor at the exit, the axes that are averaged and how the layout was determined.
    """

    type: str
    piece: str
    trained: bool
    temperature: float
    pooled: tuple[str, ...] = ()


class Exit(msgspec.Struct, frozen=True):
    """A place in the program where samples can exit.

    Attributes:
        module: the module of the model at whose output the exit is.
        heads: the classifiers that can be used there.
        point: number of the exit point; None at the end of a model.
    """

    id: str
    module: str
    heads: tuple[Head, ...]
    point: int | None = None

    def head(self, type: str) -> Head:
        """Return the head of that type. Raises KeyError if there is none."""
        for head in self.heads:
            if head.type == type:
                return head
        raise KeyError(type)


#: How images can be resized: the names of Pillow's filters.
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


class Preprocessing(msgspec.Struct, frozen=True):
    """How an image is converted to an input: the parameters of timm's evaluation transform.

    Attributes:
        resize: length of the shorter edge after resizing, in pixels; or (height, width), applied as ``fit`` says.
        crop: (height, width) of the centre crop, in pixels: the model's input size.
        interpolation: ``bilinear``, ``bicubic``, ``nearest``, ``box``, ``hamming`` or ``lanczos``.
        mean, std: per channel, on the scale 0 to 1. One channel means greyscale images, three RGB.
        fit: how an image with another aspect ratio is resized to (height, width). ``stretch`` changes the aspect
            ratio; ``cover`` keeps it and fills the whole area; ``contain`` keeps it and cuts nothing off, and the crop
            is padded with the mean.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Literal["stretch", "cover", "contain"] = "stretch"


class Model(msgspec.Struct, frozen=True):
    """A model that was exported and the origin of its weights.

    Attributes:
        weights: ``pretrained`` (timm's own), ``checkpoint``, ``module`` (passed as a Python object) or ``random``.
        macs: multiply-accumulates of one sample through the whole model.
        parameters: number of parameters.
        sha256: hash of the checkpoint file; None without one.
        class_names: in index order; None if they are not known.
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
    """An input of a network: the name of its tensor, and how an image is converted to it."""

    tensor: str
    preprocessing: Preprocessing


class Network(msgspec.Struct, frozen=True):
    """A complete classifier: the base, or a saver, which is a smaller network that runs before the base.

    Attributes:
        id: ``saver0``, ``saver1``, ... in the order in which they run; ``final`` for the base. Also the id of the
            network's last exit.
        inputs: its inputs. Networks with the same preprocessing read the same tensor.
        exits: ids of its exits, in execution order.
    """

    id: str
    model: Model
    inputs: tuple[Input, ...]
    exits: tuple[str, ...]


class Verification(msgspec.Struct, frozen=True):
    """The result of comparing the exported pieces with torch.

    Attributes:
        tolerance: the largest error with which the verdict is ``passed``.
        max_relative_error: largest error over the seams between segments and the logits; defined in
            ``dyce_export.verification.verify``.
        seams: the same error for each seam and head, for ``logits`` of the chain of segments, for the ``full`` model
            and for what was ``routed``.
        control: relative difference between the logits of two different inputs.
        exit_agreement: fraction of the probe samples, without exempt ones, that took the exit that torch says.
        exempt: number of samples too close to a probe threshold to be compared.
        samples: number of probe samples.
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
    """How a bundle in a lower precision differs from the float32 bundle that it was made from.

    Attributes:
        kept: segments that stayed in float32, as too many samples would have taken another exit. Heads always stay in
            float32.
        calibration: number of images that determined the ranges of integers; 0 if none are needed.
        logits_error: error of the full model's logits, max |a - b| / max |a - mean of a over the samples|, where a are
            the logits in float32 and b those in the lower precision.
        exit_agreement: fraction of samples that take the same exit under the thresholds of float32; the lowest over
            its named configurations.
        accuracy, accuracy_float32: accuracy of the full model in either precision, on the same samples.
        samples: number of unseen samples, on which all figures but ``logits_error`` were measured.
        target: the target that made the records. Engines differ in how they round integers.
        exit_mismatch_rate: for each other target, the fraction of unseen samples that take another exit there than
            recorded.
    """

    kept: tuple[str, ...]
    calibration: int
    logits_error: float
    exit_agreement: float
    accuracy: float
    accuracy_float32: float
    samples: int
    target: str = "onnxruntime"
    exit_mismatch_rate: dict[str, float] = msgspec.field(default_factory=dict)


class Splits(msgspec.Struct, frozen=True):
    """How the data was divided into splits.

    Attributes:
        seed: of the random division.
        samples: number of samples in each split.
        labels: whether the labels came with the data or are predictions of the base model.
        unseen: whether search, certification and test samples come from data that the heads were not fitted on, rather
            than from a division of that data, which the model may have been trained on.
    """

    seed: int
    samples: dict[str, int]
    labels: Literal["data", "base"]
    unseen: bool


class Manifest(msgspec.Struct, frozen=True):
    """The content of ``manifest.json``.

    Attributes:
        requires: features that a reader has to know to run the bundle.
        producer: names of packages and their versions at the time of the export.
        networks: the savers, cheapest first, and then the base.
        tensors: all tensors that pieces read and write.
        exits: all exits in execution order, the final one last.
        program: everything that can run; a configuration runs the part that it needs.
        heads: whether the heads were trained.
        files: name to sha256 of every file of the bundle except the two documents and the report.
        task: the kind of answer: ``single-label``, one class per sample.
        score: name of the tensor that is compared with thresholds.
        precision: the precision of the computation. For ``bfloat16`` the graphs are in float32, and the engine is
            asked to compute in bfloat16.
        lowering: how the results differ from float32; None in float32.
        precisions: further precisions, for each of which ``precisions/NAME`` holds a bundle of the same network with
            records, thresholds and certificates of its own.
        suspicious: doubts about the results that the user accepted (``--allow-suspicious``), one sentence each.
        digest: sha256 of the document with zeros in place of the digest; see :mod:`dyce_runtime.bundle.documents`.
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
        """The network of the exported model, which runs after the savers."""
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
        """The tensor of the base's first input."""
        return self.tensor(self.base.inputs[0].tensor)

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image is converted to the base's first input."""
        return self.base.inputs[0].preprocessing

    @property
    def inputs(self) -> dict[str, Preprocessing]:
        """Name of every input tensor to the preprocessing that makes it, in the order of the program."""
        return {input.tensor: input.preprocessing for network in self.networks for input in network.inputs}

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.base.model.num_classes

    @property
    def spans(self) -> tuple[Piece, ...]:
        """The pieces that equal several consecutive segments."""
        return tuple(piece for piece in self.pieces if piece.role == "span")

    @property
    def uncut(self) -> str:
        """Id of the piece that is the uncut base: the span over it, or its only segment if it has no early exits."""
        return UNCUT if len(self.base.exits) > 1 else self.exits[-1].heads[0].piece

    def piece(self, id: str) -> Piece:
        """Return the piece of that id. Raises KeyError if there is none."""
        return _find(self.pieces, id)

    def exit(self, id: str) -> Exit:
        """Return the exit of that id. Raises KeyError if there is none."""
        return _find(self.exits, id)

    def exit_index(self, id: str) -> int:
        """Return the position of an exit in ``exits``. Raises KeyError if there is none of that id."""
        return self.exits.index(self.exit(id))

    def tensor(self, name: str) -> TensorSpec:
        """Return the tensor of that name. Raises KeyError if there is none."""
        return self.specs((name,))[0]

    def specs(self, names: Iterable[str]) -> tuple[TensorSpec, ...]:
        """Return the tensors of these names. Raises KeyError if one does not exist."""
        known = {spec.name: spec for spec in self.tensors}
        return tuple(known[name] for name in names)


_Named = TypeVar("_Named", Piece, Exit)


def _find(known: Iterable[_Named], id: str) -> _Named:
    for one in known:
        if one.id == id:
            return one
    raise KeyError(id)
