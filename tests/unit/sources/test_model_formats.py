"""Model files of every kind, told by content and by name: what is read, and what to do with the rest."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from dyce_export.sources.checkpoints import read_checkpoint
from dyce_export.sources.source import load_source
from dyce_runtime.errors import ModelError
from tests.unit.sources.test_checkpoints import filled, value_of


def an_onnx_model(path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])
    onnx.save(helper.make_model(graph, producer_name="pytorch"), path)


def begins(*content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(b"".join(content).ljust(600, b"\0")) and None


def zipped(*names: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")

    return write


def tarred(path: Path) -> None:
    torch.save(filled(1), inner := path.with_name("inner.pt"))
    with tarfile.open(path, "w") as archive:
        archive.add(inner, "inner.pt")
    inner.unlink()


def compressed(path: Path) -> None:
    torch.save(filled(1), inner := path.with_name("inner.pt"))
    path.write_bytes(gzip.compress(inner.read_bytes()))
    inner.unlink()


# Usual name, content, what is said of it.
FOREIGN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "ONNX": ("net.onnx", an_onnx_model, "is an ONNX model"),
    "TensorFlow Lite": ("net.tflite", begins(b"\x1c\0\0\0TFL3"), "is a TensorFlow Lite model"),
    "HDF5": ("net.h5", begins(b"\x89HDF\r\n\x1a\n"), "is an HDF5 file, such as Keras writes"),
    "Keras": ("net.keras", zipped("metadata.json", "config.json", "model.weights.h5"), "is a Keras model"),
    "TensorFlow": ("net.pb", begins(b"\x08\x01\x12\x90\x01\x0a"), "is a TensorFlow graph"),
    "TensorRT": ("net.engine", begins(b"ftrt\0\0"), "is a TensorRT engine"),
    "Core ML": ("net.mlmodel", begins(b"\x08\x04\x12\x20\x0a\x08"), "is a Core ML model"),
    "OpenVINO": ("net.xml", begins(b'<?xml version="1.0"?>\n<net name="g" version="11">'), "is an OpenVINO model"),
    "ExecuTorch": ("net.pte", begins(b"\x30\0\0\0ET12"), "is an ExecuTorch program"),
    "GGUF": ("net.gguf", begins(b"GGUF\x03"), "is a GGUF file"),
    "pickle": ("net.pkl", lambda path: path.write_bytes(pickle.dumps([1])), "is a bare pickle"),
    "joblib": ("net.joblib", lambda path: path.write_bytes(pickle.dumps({"a": 1}, 4)), "is a bare pickle"),
    "arrays": ("net.npz", lambda path: np.savez(path.open("wb"), a=np.ones(3)), "is an archive of NumPy arrays"),
    "array": ("net.npy", lambda path: np.save(path.open("wb"), np.ones(3)), "is a NumPy array"),
    "zip": ("net.zip", zipped("inner.pt"), "is a zip archive without weights"),
    "tar": ("net.tar", tarred, "is a tar archive"),
    "gzip": ("net.pt.gz", compressed, "is a compressed file"),
    "page": ("net.html", begins(b"\n<!DOCTYPE html><html><body>404"), "is a web page"),
    "XML error": ("net.xml", begins(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>"), "is a web page"),
    "pointer": ("net.bin", begins(b"version https://git-lfs.github.com/spec/v1\noid"), "is a pointer of Git LFS"),
    "JSON": ("config.json", lambda path: path.write_text('{"architectures": ["X"]}'), "is a JSON document"),
    "deep JSON": ("net.json", lambda path: path.write_text('{"weight_map":' * 100_000), "is a JSON document"),
    "picture": ("net.png", begins(b"\x89PNG\r\n\x1a\n"), "is a picture"),
}


@pytest.mark.parametrize("name", [None, "net.pt", "net.safetensors", "net"], ids=["its name", "pt", "st", "none"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_says_what_it_is_and_what_to_do(tmp_path: Path, kind: str, name: str | None) -> None:
    usual, write, words = FOREIGN[kind]
    path = tmp_path / (name or usual)
    write(path)
    with pytest.raises(ModelError) as caught:
        load_source(str(path), arch="resnet18")
    assert f"{path} {words}" in caught.value.message
    assert "expected weights or a program of PyTorch" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ["net.onnx", "net.TFLite", "net.mlmodel", "net.pb", "net.plan", "net.msgpack"])
def test_a_name_tells_where_content_does_not(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x01\x02\x03")
    with pytest.raises(ModelError, match=f"{name} is .*; expected weights or a program of PyTorch"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.ckpt", "model.bin", "model.onnx", "model"])
@pytest.mark.parametrize("write", [torch.save, save_file], ids=["torch", "safetensors"])
def test_weights_are_read_whatever_their_file_is_called(
    tmp_path: Path, name: str, write: Callable[[object, Path], None]
) -> None:
    write(filled(1), tmp_path / name)
    assert value_of(read_checkpoint(tmp_path / name)) == 1


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(ModelError, match="cannot be read: it is a device, a pipe or a socket"):
        load_source(str(tmp_path / "model.pt"))


# Folders and several files


def sharded(folder: Path, write: Callable[[object, Path], None] = save_file, suffix: str = "safetensors") -> Path:
    """Weights in two files; returns the index."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    tensors = filled(7)
    names, weight_map = list(tensors), {}
    for part, own in enumerate((names[:3], names[3:]), 1):
        file = f"{stem}-{part:05d}-of-00002.{suffix}"
        write({name: tensors[name] for name in own}, folder / file)
        weight_map |= dict.fromkeys(own, file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize(("write", "suffix"), [(save_file, "safetensors"), (torch.save, "bin")])
@pytest.mark.parametrize("named", ["index", "part", "folder"])
def test_weights_in_several_files_are_one(
    tmp_path: Path, write: Callable[[object, Path], None], suffix: str, named: str
) -> None:
    index = sharded(tmp_path, write, suffix)
    part = next(path for path in tmp_path.iterdir() if "00002-of" in path.name)
    checkpoint = read_checkpoint({"index": index, "part": part, "folder": tmp_path}[named])
    assert checkpoint.state_dict.keys() == filled(7).keys()
    assert value_of(checkpoint) == 7
    before = checkpoint.sha256
    write({name: torch.ones(1) for name in checkpoint.state_dict}, part)
    assert read_checkpoint(index).sha256 != before


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    part = tmp_path / "model-00001-of-00002.safetensors"
    shutil.move(part, tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=f"there is no file {part}"):
        read_checkpoint(index)
    save_file({"other": torch.ones(1)}, part)
    with pytest.raises(ModelError, match="lack 3 of its 9 tensors, such as"):
        read_checkpoint(index)
    index.unlink()
    with pytest.raises(ModelError, match=r"is one of 2 files with the weights of a model, and model.safetensors.index"):
        read_checkpoint(part)


@pytest.mark.parametrize("file", ["../secret.pt", "/etc/passwd", "", "a/b.pt"])
def test_an_index_names_files_beside_it_only(tmp_path: Path, file: str) -> None:
    (tmp_path / "model.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(ModelError, match="names files outside its folder"):
        read_checkpoint(tmp_path / "model.index.json")


def test_a_hub_s_folder_is_read_with_its_config(tmp_path: Path) -> None:
    torch.save(filled(1), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet", "num_classes": 3}')
    checkpoint = read_checkpoint(tmp_path)
    assert (checkpoint.file, checkpoint.arch, checkpoint.hints) == (
        "pytorch_model.bin",
        "test_resnet",
        {"num_classes": 3},
    )
    (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"], "model_type": "vit"}')
    with pytest.raises(
        ModelError, match="names the architecture 'ViTForImageClassification', which timm does not have"
    ):
        load_source(str(tmp_path))


@pytest.mark.parametrize("config", ["[" * 200_000, '{"a":' * 200_000, "null", "[]", "{", '{"architecture": 5}', ""])
def test_an_odd_config_beside_weights_is_no_obstacle(tmp_path: Path, config: str) -> None:
    save_file(filled(1), tmp_path / "model.safetensors", metadata={"args": "[" * 200_000})
    (tmp_path / "config.json").write_text(config)
    checkpoint = read_checkpoint(tmp_path / "model.safetensors")
    assert (value_of(checkpoint), checkpoint.arch) == (1, None)


FOLDERS = {
    "SavedModel": (["saved_model.pb", "variables"], "is a TensorFlow SavedModel"),
    "Flax": (["config.json", "flax_model.msgpack"], "is a model folder without weights of PyTorch"),
    "bundle": (["manifest.json"], "is a bundle"),
    "several": (["a.pt", "b.pth", "log.txt"], "is a directory; expected a checkpoint file"),
    "empty": ([], "is a directory; expected a checkpoint file"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_other_folders_say_what_they_are(tmp_path: Path, kind: str) -> None:
    names, words = FOLDERS[kind]
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ModelError) as caught:
        load_source(str(tmp_path))
    assert f"{tmp_path} {words}" in caught.value.message
    if kind == "several":
        assert "a.pt, b.pth" in caught.value.hint


def test_a_core_ml_package_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "net.mlpackage").mkdir()
    with pytest.raises(ModelError, match="is a Core ML model"):
        load_source(str(tmp_path / "net.mlpackage"))
