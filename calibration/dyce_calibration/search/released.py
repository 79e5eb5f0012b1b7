"""Read and write the file formats of the DyCE release: recorded predictions (``.npz``) and costs (``.json``)."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from dyce_calibration.records import Records
from dyce_calibration.search.costs import CostTable
from dyce_runtime.bundle.arrays import read_arrays
from dyce_runtime.bundle.manifest import FINAL
from dyce_runtime.errors import DataError
from dyce_runtime.json_files import read_json


class _HeadCosts(msgspec.Struct):
    name: str
    macs: list[float]


class _BackboneCosts(msgspec.Struct):
    macs: list[float]
    ori_macs: float | None = None


class _ReleasedCosts(msgspec.Struct):
    head: list[_HeadCosts]
    backbone: _BackboneCosts


def read_released_costs(path: Path) -> CostTable:
    """Read ``{"head": [{"name", "macs": per position}], "backbone": {"macs": cumulative, whole model last}}``.

    Positions become the exits "1", "2", and so on. A head may have a further cost for the base model, which is ignored.

    Raises:
        DataError: the file has another format, or its numbers cannot be costs.
    """
    try:
        found = read_json(path, _ReleasedCosts)
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{path} does not hold costs of the DyCE release: {error}") from error
    if not found.backbone.macs:
        raise DataError(f"{path} gives no costs of the backbone; expected one for each position and the whole model")
    positions = len(found.backbone.macs) - 1
    for head in found.head:
        if len(head.macs) not in (positions, positions + 1):
            raise DataError(
                f"{path}: head {head.name} has {len(head.macs)} costs; expected one for each of {positions} positions"
            )
    exits = [str(position + 1) for position in range(positions)]
    return CostTable(
        "macs",
        backbone=dict(zip([*exits, FINAL], found.backbone.macs, strict=True)),
        heads={exit: {h.name: h.macs[index] for h in found.head} for index, exit in enumerate(exits)},
        full=found.backbone.macs[-1],
    ).check()


def read_released_records(path: Path, costs: CostTable, split: str) -> Records:
    """Read ``label`` (N, 1), ``preds`` and ``confs`` (positions * heads + 1, N, k); only the first of k is used.

    Samples are identified by their index and ``split``, since the files do not contain their content: those of two
    files with different splits are taken to be different.

    Args:
        costs: has the heads of each position in the order of the rows.
        split: name of the split of all samples.

    Raises:
        DataError: the file has another format, or its shapes do not match each other or the costs.
    """
    file = read_arrays(path, "records of the DyCE release", error=DataError)
    if missing := [name for name in ("label", "preds", "confs") if name not in file]:
        raise DataError(f"{path} does not hold records of the DyCE release: {', '.join(missing)} missing")
    labels, predictions, confidences = file["label"], file["preds"], file["confs"]
    heads = tuple((exit, type) for exit, types in costs.heads.items() for type in types)
    labels = labels.reshape(-1)
    for name, array in (("preds", predictions), ("confs", confidences)):
        if array.shape[:2] != (len(heads) + 1, len(labels)):
            raise DataError(
                f"{path}: {name} has shape {array.shape}; expected ({len(heads) + 1}, {len(labels)}, k): a row for "
                f"each of the {len(heads)} heads in the costs, one for the base, and a column for each of the labels"
            )
    top = [array.reshape(*array.shape[:2], -1)[:, :, 0].T for array in (predictions, confidences)]
    salt = np.uint64(int.from_bytes(split.encode()[:4], "little") << 32)
    return Records.of_single_label(
        heads,
        top[0].astype(np.int64),
        top[1].astype(np.float32),
        labels.astype(np.int64),
        np.arange(len(labels), dtype=np.uint64) + salt,
        np.full(len(labels), split),
    ).check()


def write_released(records: Records, costs: CostTable, records_path: Path, costs_path: Path) -> None:
    """Write records and costs in the formats of the release.

    Raises:
        DataError: the heads differ between positions, which the formats do not allow.
    """
    types = list(dict.fromkeys(type for _, type in records.heads))
    exits = [exit for exit in costs.backbone if exit != FINAL]
    if records.heads != tuple((exit, type) for exit in exits for type in types):
        raise DataError(
            "the heads differ from exit to exit; the DyCE release's files hold the same heads, in the same order, "
            "at every position"
        )
    np.savez_compressed(
        records_path,
        label=records.labels[:, None],
        preds=records.predictions.T[:, :, None],
        confs=records.scores.T[:, :, None],
    )
    heads = [_HeadCosts(type, [costs.heads[exit][type] for exit in exits]) for type in types]
    backbone = _BackboneCosts(list(costs.backbone.values()), costs.full)
    costs_path.write_bytes(msgspec.json.encode(_ReleasedCosts(heads, backbone)))
