"""Detect the type of a model file from its content, or else its name; explain which types are not supported and why."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from dyce_runtime.bundle.reader import is_bundle
from dyce_runtime.errors import ModelError
from dyce_runtime.json_files import check_regular
from dyce_runtime.names import is_text


class Kind(Enum):
    """Types of model files that can be read."""

    PICKLED = "a file written by torch.save"
    SAFETENSORS = "a safetensors file"
    SHARDED = "the index of weights in several files"
    PROGRAM = "an exported program"


class _Unsupported(NamedTuple):
    """A type that is not supported.

    Attributes:
        what: what the file is, in words.
        hint: what the user can do instead.
        suffixes: usual suffixes of such files.
    """

    what: str
    hint: str
    suffixes: tuple[str, ...] = ()


# The first pickled number of files written by torch.save before PyTorch 1.6.
_LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
_HEAD = 1024

_EXPECTED = "expected weights or a program of PyTorch"
_TORCH = "Give the PyTorch model that it was made from: its weights (.pt, .pth, .safetensors), or timm:NAME."
_OTHER_LIBRARY = "Only PyTorch models are supported: build it in PyTorch, load its weights, and name it with --model."
_UNPACK = "Unpack it, and name the checkpoint inside."
_SAVE = "Save the weights with torch.save(model.state_dict(), FILE), and name that file."
_AGAIN = "Copy or download it again; a link to a file often leads to a page about it."

_ONNX = _Unsupported("an ONNX model", f"{_TORCH} A later version is to accept ONNX files.", (".onnx", ".ort"))
_TFLITE = _Unsupported("a TensorFlow Lite model", _OTHER_LIBRARY, (".tflite", ".lite"))
_KERAS = _Unsupported("a Keras model", _OTHER_LIBRARY, (".keras",))
_HDF5 = _Unsupported("an HDF5 file, such as Keras writes", _OTHER_LIBRARY, (".h5", ".hdf5"))
_TENSORFLOW = _Unsupported("a TensorFlow graph", _OTHER_LIBRARY, (".pb", ".pbtxt", ".meta"))
_COREML = _Unsupported("a Core ML model", _TORCH, (".mlmodel", ".mlpackage", ".mlmodelc"))
_ENGINE = _Unsupported(
    "a TensorRT engine", f"{_TORCH} `dyce compile` builds engines from a bundle.", (".engine", ".plan", ".trt")
)
_OPENVINO = _Unsupported("an OpenVINO model", f"{_TORCH} OpenVINO runs bundles as they are.", (".xml",))
_TORCHSCRIPT = _Unsupported(
    "a TorchScript archive, which torch.export cannot capture",
    "Save model.state_dict() of the Python model and name its architecture with --arch or --model.",
    (".torchscript", ".ptl"),
)
_EXECUTORCH = _Unsupported("an ExecuTorch program", _TORCH, (".pte",))
_PICKLE = _Unsupported("a bare pickle", _SAVE, (".pkl", ".pickle", ".joblib", ".sav"))
_ARRAYS = _Unsupported("an archive of NumPy arrays", _SAVE, (".npz",))
_ARRAY = _Unsupported("a NumPy array", _SAVE, (".npy",))
_ZIP = _Unsupported("a zip archive without weights", _UNPACK, (".zip",))
_TAR = _Unsupported("a tar archive", f"{_UNPACK} If torch.save wrote it before 2017, load it there and save it again.")
_PACKED = _Unsupported("a compressed file", _UNPACK, (".gz", ".tgz", ".xz", ".bz2", ".zst", ".7z", ".rar"))
_GGUF = _Unsupported("a GGUF file", _OTHER_LIBRARY, (".gguf",))
_FLAX = _Unsupported("weights of Flax", _OTHER_LIBRARY, (".msgpack",))
_PADDLE = _Unsupported("weights of PaddlePaddle", _OTHER_LIBRARY, (".pdparams", ".pdmodel", ".pdiparams"))
_PAGE = _Unsupported("a web page, saved in place of a file", _AGAIN)
_POINTER = _Unsupported("a pointer of Git LFS, which stands for a file", "Fetch the file itself: git lfs pull.")
_JSON = _Unsupported("a JSON document", "Name the file with the weights beside it.", (".json",))
_PICTURE = _Unsupported("a picture", "Pictures go with --data.")
_NAMED = (
    *(_ONNX, _TFLITE, _KERAS, _HDF5, _TENSORFLOW, _COREML, _ENGINE, _OPENVINO, _TORCHSCRIPT, _EXECUTORCH, _PICKLE),
    *(_ARRAYS, _ARRAY, _ZIP, _PACKED, _GGUF, _FLAX, _PADDLE, _JSON),
)


def _text(head: bytes) -> str:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").decode("utf-8", "replace").lower()


# Order matters: each test assumes that all tests before it have failed.
_BY_CONTENT: tuple[tuple[_Unsupported, Callable[[bytes], bool]], ...] = (
    (_POINTER, lambda head: head.startswith(b"version https://git-lfs")),
    (_PAGE, lambda head: _text(head).startswith(("<!doctype html", "<html", "<head", "<!--"))),
    (_OPENVINO, lambda head: _text(head).startswith(("<?xml", "<net")) and "<net" in _text(head)),
    (_PAGE, lambda head: _text(head).startswith("<?xml")),
    (_JSON, lambda head: _text(head).startswith(("{", "["))),
    (_TFLITE, lambda head: head[4:8] == b"TFL3"),
    (_EXECUTORCH, lambda head: head[4:6] == b"ET"),
    (_HDF5, lambda head: head.startswith(b"\x89HDF\r\n\x1a\n")),
    (_ENGINE, lambda head: head.startswith((b"ftrt", b"ptrt"))),
    (_GGUF, lambda head: head.startswith(b"GGUF")),
    (_ARRAY, lambda head: head.startswith(b"\x93NUMPY")),
    (_PICTURE, lambda head: head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM"))),
    (_TAR, lambda head: head[257:262] == b"ustar"),
    (
        _PACKED,
        lambda head: head.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd", b"7z\xbc", b"Rar!")),
    ),
    # Protocol buffers have no magic number: the version comes first, then a name as text (ONNX) or a message (others).
    (_TENSORFLOW, lambda head: head.startswith(b"\x08\x01\x12")),
    (_COREML, lambda head: re.match(rb"\x08[\x01-\x10]\x12..?\x0a", head, re.DOTALL) is not None),
    (_ONNX, lambda head: re.match(rb"\x08[\x03-\x14][\x12\x1a\x22\x28\x32\x3a\x42]", head) is not None),
    (_PICKLE, lambda head: re.match(rb"\x80[\x02-\x05]", head) is not None),
)


def kind_of(path: Path) -> Kind:
    """Return the type of a file that can be read.

    Raises:
        ModelError: the file does not exist, is empty or truncated, or has an unsupported type; the hint tells a remedy.
    """
    head = _head_of(path)
    if head.startswith(b"PK"):
        return _kind_of_archive(path)
    if _LEGACY_MAGIC in head[:32]:
        return Kind.PICKLED
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return Kind.SAFETENSORS
    if _text(head).startswith("{") and weight_map(path):
        return Kind.SHARDED
    found = next((other for other, is_it in _BY_CONTENT if is_it(head)), None) or _by_name(path)
    if found is not None:
        raise ModelError(f"{path} is {found.what}; {_EXPECTED}", hint=found.hint)
    if path.suffix in (".safetensors", ".pt2"):
        kind = "a safetensors file" if path.suffix == ".safetensors" else "an exported program"
        raise ModelError(f"{path} is truncated or not {kind}", hint="Write, copy or download it again.")
    raise ModelError(
        f"{path} is not a checkpoint: it begins with {head[:6]!r}; expected a file written by torch.save",
        hint="Checkpoints end in .pt, .pth, .tar or .safetensors.",
    )


def _head_of(path: Path) -> bytes:
    if not is_text(path):
        raise ModelError(f"{path} is a name in another encoding than UTF-8; expected text", hint="Rename the file.")
    try:
        check_regular(path)
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise ModelError(f"{path} is empty; expected a checkpoint")
    return head


def _kind_of_archive(path: Path) -> Kind:
    """Return the type of a zip archive, a format that torch.save and many other programs write."""
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path} is truncated: the end of the archive is missing", hint="Copy or download it again.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:  # the last: unknown compression
        raise ModelError(f"{path} is damaged: {error}", hint="Copy or download it again.") from error
    members = {name.partition("/")[2] for name in names}
    found: _Unsupported | None = None
    if "constants.pkl" in members:
        found = _TORCHSCRIPT
    elif "archive_format" in members:
        return Kind.PROGRAM
    elif "data.pkl" in members:
        return Kind.PICKLED
    elif "model.weights.h5" in names:
        found = _KERAS
    elif names and all(name.endswith(".npy") for name in names):
        found = _ARRAYS
    raise ModelError(f"{path} is {(found or _ZIP).what}; {_EXPECTED}", hint=(found or _ZIP).hint)


def _by_name(path: Path) -> _Unsupported | None:
    return next((other for other in _NAMED if path.suffix.lower() in other.suffixes), None)


# Files in a model hub's folder, best first.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def file_in(folder: Path) -> Path:
    """Return the file with the weights in a folder that a model hub or a library wrote.

    Raises:
        ModelError: the weights belong to another library, or the folder is something else; the hint names candidates.
    """
    if is_bundle(folder):
        raise ModelError(f"{folder} is a bundle; {_EXPECTED}", hint="`dyce inspect` shows it, `dyce run` runs it.")
    try:
        inside = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror}") from error
    for name in _WEIGHTS:
        if name in inside:
            return folder / name
    found = None
    if {"saved_model.pb", "saved_model.pbtxt", "keras_metadata.pb"} & set(inside):
        found = _TENSORFLOW._replace(what="a TensorFlow SavedModel")
    elif folder.suffix in _COREML.suffixes or "com.apple.CoreML" in inside:
        found = _COREML
    elif {"flax_model.msgpack", "tf_model.h5"} & set(inside):
        found = _FLAX._replace(what="a model folder without weights of PyTorch")
    if found is not None:
        raise ModelError(f"{folder} is {found.what}; {_EXPECTED}", hint=found.hint)
    files = [
        name for name in inside if Path(name).suffix in (".pt", ".pth", ".tar", ".ckpt", ".bin", ".safetensors", ".pt2")
    ]
    hint = f"Name the file inside it: {', '.join(files[:3])}{', ...' if len(files) > 3 else ''}." if files else ""
    raise ModelError(f"{folder} is a directory; expected a checkpoint file", hint=hint or "Name the file inside it.")


def weight_map(path: Path) -> dict[str, Path] | None:
    """Map tensor names to the files that hold them if the file is an index of weights in several files; else None."""
    try:
        found = json.loads(path.read_text("utf-8"))
        files = found["weight_map"]
        names = {str(name): str(file) for name, file in files.items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    if any(not file or Path(file).name != file for file in names.values()):
        raise ModelError(f"{path} names files outside its folder; expected the names of files beside it")
    return {name: path.with_name(file) for name, file in names.items()} or None


def index_of(path: Path) -> Path | None:
    """Return the index of the weights that a file is one part of; None if the file is complete by itself.

    Raises:
        ModelError: the file is a part according to its name, but there is no index beside it.
    """
    part = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.(safetensors|bin)", path.name)
    if part is None:
        return None
    index = path.with_name(f"{part[1]}.{part[3]}.index.json")
    if not index.is_file():
        raise ModelError(
            f"{path} is one of {int(part[2])} files with the weights of a model, and {index.name} is not beside it",
            hint="Copy or download the whole folder.",
        )
    return index
