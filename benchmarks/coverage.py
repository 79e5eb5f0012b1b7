"""Test which architectures work: export one small model of each of timm's families at three exits and verify it.

TensorRT-RTX then builds every piece of each bundle. ``python -m benchmarks.coverage`` runs all models of
``families.json``, each in its own process, which takes about two hours on two cores, and writes
``results/coverage.json`` and ``docs/coverage.md``. ``--only NAME,NAME`` runs some of them again. The weights are
random, so the results show structure and numerics, not accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine

if TYPE_CHECKING:
    from dyce_export.sources.source import Source

HERE = Path(__file__).parent
FAMILIES: dict[str, str] = json.loads((HERE / "families.json").read_text())
RESULTS = HERE / "results" / "coverage.json"
PAGE = HERE.parent / "docs" / "coverage.md"
SHARES = (0.25, 0.5, 0.75)
TIMEOUT_SECONDS = 3600
# RTX 30 and RTX 40 series; an engine is built for both.
GPUS = ("sm86", "sm89")


def spread(points: list[Any], shares: tuple[float, ...] = SHARES) -> list[str]:
    """Return the numbers of the exit points nearest to the given shares of the work, without repetition."""
    chosen: dict[int, None] = {}
    for share in shares:
        others = [point for point in points if point.number not in chosen]
        if others:
            chosen[min(others, key=lambda point: abs(point.share - share)).number] = None
    return [str(number) for number in sorted(chosen)]


def make_source(name: str) -> Source:
    """Load a timm model. Encoders without a classifier in timm get one with 1,000 classes."""
    import timm
    import torch

    from dyce_export.sources.source import from_module, load_source

    if timm.get_pretrained_cfg(name).num_classes:
        return load_source(f"timm:{name}")
    torch.manual_seed(0)
    return replace(from_module(timm.create_model(name, num_classes=1000), name=name), weights="random")


def measure(name: str) -> dict[str, Any]:
    """Export one model in this process and return its row of the results."""
    from dyce_export.options import Options
    from dyce_export.pipeline import write_bundle
    from dyce_export.prepare import capture_source, prepare
    from dyce_export.progress import Progress
    from dyce_runtime.errors import DyceError

    row: dict[str, Any] = {"model": name}
    start = time.perf_counter()
    try:
        source = make_source(name)
        progress = Progress()
        captured = capture_source(source, progress)
        found = captured.points
        exits = spread(list(found.points))
        row |= {"points": len(found.points), "gmacs": found.total_macs / 1e9, "exits": exits}
        row["tensors"] = max(len(p.nodes) for p in found.points if str(p.number) in exits)
        row["first"], row["last"] = found.points[0].module, found.points[-1].module
        with tempfile.TemporaryDirectory() as folder:
            prepared = prepare(captured, exits, data=None, val=None, options=Options())
            export = write_bundle(prepared, Path(folder) / "bundle.dyce", options=Options(), progress=progress)
            row["rtx"] = build_apart(export.path)
        verification = export.manifest.verification
        assert verification is not None
        row |= {
            "verdict": verification.verdict,
            "error": verification.max_relative_error,
            "control": verification.control,
            "agreement": verification.exit_agreement,
            "samples": verification.samples,
            "parameters": export.manifest.model.parameters,
        }
    except DyceError as error:
        row |= {"verdict": "failed", "reason": error.message}
    row["seconds"] = time.perf_counter() - start
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


def build_engines(path: Path) -> dict[str, Any]:
    """Build the TensorRT-RTX engine of every piece of a bundle.

    Returns:
        the number of engines, and the seconds that they took or the reason why one failed.
    """
    from dyce_runtime.bundle.reader import open_bundle
    from dyce_runtime.errors import DyceError
    from dyce_runtime.execution.contracts import TargetSpec
    from dyce_runtime.targets import registry

    bundle, rtx, spec = open_bundle(path), registry.get("rtx"), TargetSpec(devices=GPUS)
    start, built = time.perf_counter(), 0
    try:
        for piece in bundle.piece_specs([piece.id for piece in bundle.runnable(spans=rtx.spans)]):
            print(json.dumps({"built": built, "failed": piece.id, "reason": "the builder crashes"}), flush=True)
            rtx.compile(piece, spec, path.parent / "engines")
            built += 1
    except DyceError as error:
        # The path of the temporary folder is of no use to the reader.
        return {"built": built, "failed": piece.id, "reason": error.message.replace(f"{path.parent}/", "")}
    return {"built": built, "seconds": time.perf_counter() - start}


def build_apart(path: Path) -> dict[str, Any]:
    """Run :func:`build_engines` in its own process, so that the piece is known at which the builder crashes."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--engines", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=False)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_apart(name: str) -> dict[str, Any]:
    """Run :func:`measure` in its own process, to contain crashes and leaks."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--one", name]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            env=environment,
            cwd=HERE.parent,
            check=False,
        )
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        row = {"model": name, "verdict": "failed", "reason": f"no result after {TIMEOUT_SECONDS} s"}
    except (IndexError, json.JSONDecodeError):
        row = {"model": name, "verdict": "failed", "reason": (done.stderr.splitlines() or ["no output"])[-1][:300]}
    return row


def engines_cell(rtx: dict[str, Any]) -> str:
    """Format the result of building engines; empty if it was not tried."""
    if not rtx:
        return ""
    return f"**{rtx['failed']}**: {rtx['reason']}" if "failed" in rtx else f"{rtx['built']}, {rtx['seconds']:.0f} s"


def page(results: dict[str, Any]) -> str:
    """Return the text of ``docs/coverage.md``."""
    rows = results["families"]
    passed = [row for row in rows.values() if row["verdict"] == "passed"]
    lines = [
        "# Which architectures work",
        "",
        f"One small model of each of timm's {len(FAMILIES)} families, exported at three exits (nearest to a quarter, half "
        "and three quarters of the work) and verified against torch at every seam, at batch sizes 1 and 3, with a "
        "tolerance of 1e-4 relative to what depends on the input, and in the exits that the runtime takes. Weights are "
        "random (conditioned by one pass in train mode), so this shows structure and numerics, not accuracy. Encoders that "
        "timm gives no classifier (deepseek_vit, gemma4_vit, qwen3_vit) get one with 1,000 classes.",
        "",
        f"**{len(passed)} of {len(FAMILIES)} pass.** Made by `python -m benchmarks.coverage`; "
        + machine.sentence(results["environment"])
        + ".",
        "",
        f"**TensorRT-RTX builds {sum('seconds' in row.get('rtx', {}) for row in rows.values())} of the "
        f"{sum('rtx' in row for row in rows.values())} that were tried**, every piece, one engine for {' and '.join(GPUS)}; built, not run: that needs a GPU. *RTX*: the engines built and "
        "the seconds that it took, or why one failed.",
        "",
        "*points*: exit points found. *tensors*: the most that one of the three cuts carries. *error*: the largest "
        "relative error. *s*: seconds for the whole export, on a machine that was doing other things as well.",
        "",
        "| family | model | GMACs | points | first … last | exits | tensors | error | verdict | s | RTX |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for family, row in rows.items():
        lines.append(
            f"| {family} | {row['model']} | {row.get('gmacs', 0):.2f} | {row.get('points', '')} | "
            f"`{row.get('first', '')}` … `{row.get('last', '')}` | {', '.join(row.get('exits', []))} | "
            f"{row.get('tensors', '')} | {row['error']:.0e} | {row['verdict']} | "
            f"{row.get('seconds', 0):.0f} | {engines_cell(row.get('rtx', {}))} |"
            if "error" in row
            else f"| {family} | {row['model']} | | {row.get('points', '')} | | | | | **{row['verdict']}**: {row['reason']} | | |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="families or models, with commas between")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--engines", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engines:
        print(json.dumps(build_engines(arguments.engines)))
        return
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    wanted = set(arguments.only.split(",")) if arguments.only else None
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"families": {}}
    results["environment"] = machine.describe("torch", "timm", "onnx", "onnxscript", "onnxruntime", "tensorrt-rtx")
    for family, model in FAMILIES.items():
        if wanted is None or {family, model} & wanted:
            row = measure_apart(model)
            results["families"][family] = row
            print(f"{family:24s} {row['verdict']:12s} {row.get('error', 0):.1e} {row.get('reason', '')}", flush=True)
            results["families"] = dict(sorted(results["families"].items()))
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
