"""``dyce compile``: build a bundle's pieces for another target."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyce_export.cli import bounds
from dyce_export.cli.console import Json, Quiet, Verbose, out, print_json, print_table, progress_bar, set_up
from dyce_runtime.errors import TargetError, UsageError

if TYPE_CHECKING:
    from dyce_runtime.bundle.reader import Bundle
    from dyce_runtime.execution.contracts import Target, TargetSpec

HELP = "Build the engines of a target: for this machine, or with -o into a copy of the bundle that travels."


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle.", show_default=False)],
    target: Annotated[
        str,
        typer.Option(
            help="Target to build for; `rtx:sm86,sm89` names the compute capabilities of GPUs. Or a device that "
            "`dyce inspect` lists, such as rtx-40.",
            show_default=False,
        ),
    ],
    max_batch: Annotated[
        int | None,
        typer.Option(
            callback=bounds.batch,
            help="Most pictures in one call of an engine. Default: what suits the device, or 8.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write a copy of the bundle with the engines in it, instead of keeping them on this machine.",
            show_default=False,
        ),
    ] = None,
    strip: Annotated[
        bool,
        typer.Option(
            "--strip",
            help="With -o: leave out what a device does not need, such as records, other precisions and the report.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle at -o.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Build engines and print what was built."""
    set_up(verbose=verbose, quiet=quiet)
    import dyce_runtime
    from dyce_runtime.bundle.cache import cache_folder
    from dyce_runtime.bundle.reader import ENGINES
    from dyce_runtime.targets import registry

    if output is None and (strip or force):
        raise UsageError("--strip and --force are about the copy that -o names", hint="Give -o DEVICE.dyce.")
    name, spec = parse_target(target)
    if max_batch is not None:
        spec = replace(spec, max_batch=max_batch)
    wanted = registry.get(name)
    if reason := wanted.compiles():
        raise TargetError(f"{name}: {reason}")
    opened = dyce_runtime.open_bundle(bundle)
    if opened.manifest.precision == "bfloat16":
        spec = replace(spec, precision="bfloat16")
    folder = cache_folder(opened, name)
    compiled: list[Compiled] = []
    if output is None:
        compiled = _compile(opened, wanted, spec, folder, quiet=quiet)
    else:
        from dyce_export.writing.bundle_writer import write_for_device

        def build(copy: Bundle) -> None:
            compiled.extend(_compile(copy, wanted, spec, copy.path / ENGINES / name, quiet=quiet))

        write_for_device(opened, output, build, stripped=strip, force=force)
        folder = output / ENGINES / name
    if json:
        pieces = [asdict(piece) for piece in compiled]
        where = str(folder) if compiled else None
        facts = {"bundle": str(bundle), "target": name, "folder": where, "pieces": pieces}
        copied = (
            {} if output is None else {"output": str(output), "bytes": _bytes(output), "bytes_before": _bytes(bundle)}
        )
        print_json("compile", {**facts, **copied})
        return
    if output is not None:
        out.print(f"{output} written: {_bytes(output) / 1e6:.1f} MB; {bundle} has {_bytes(bundle) / 1e6:.1f} MB.")
    if not compiled:
        out.print(f"{name} reads the ONNX files of {bundle.name} as they are: there is nothing to build.")
    else:
        rows = [
            (p.piece, f"{p.bytes / 1e6:.1f} MB", f"{p.seconds:.1f} s" if p.built else "was there") for p in compiled
        ]
        print_table(
            f"{folder}: for {', '.join(spec.devices) or 'every GPU that it can be for'}",
            ("piece", "size", "built in"),
            rows,
        )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Compiled:
    """A piece after compilation.

    Attributes:
        piece: id of the piece.
        bytes: size of the engine.
        seconds: build time; 0 if the engine existed already.
        built: whether the engine was built now.
    """

    piece: str
    bytes: int
    seconds: float
    built: bool


def parse_target(text: str) -> tuple[str, TargetSpec]:
    """Parse ``rtx:sm86,sm89`` into a name and compute capabilities, sorted without repetition, or look up a device.

    Raises:
        UsageError: the text after the colon is not a list of compute capabilities.
    """
    from dyce_runtime.execution.contracts import TargetSpec
    from dyce_targets.profiles import profiles

    if (profile := profiles().get(text)) is not None:
        devices = profile.capabilities if profile.target == "rtx" else ()  # other targets build for the GPU present
        spec = TargetSpec(devices=devices, max_batch=profile.max_batch, workspace_mib=profile.workspace_mib)
        return profile.target, spec
    name, colon, rest = text.partition(":")
    devices = tuple(sorted({device.strip().lower() for device in rest.split(",")})) if colon else ()
    if not all(re.fullmatch(r"sm\d{2,3}", device) for device in devices):
        raise UsageError(
            f"--target {text}: found {rest!r} after the colon; expected compute capabilities such as sm86,sm89",
            hint="An RTX 30 is sm86, an RTX 40 sm89, an RTX 50 sm120.",
        )
    return name, TargetSpec(devices=devices)


def _compile(bundle: Bundle, target: Target, spec: TargetSpec, folder: Path, *, quiet: bool) -> list[Compiled]:
    """Compile the pieces one after another, since a builder uses all cores."""
    compiled = []
    pieces = bundle.piece_specs([piece.id for piece in bundle.runnable(spans=target.spans)])
    with progress_bar(quiet=quiet) as track:
        for piece in track(pieces, "building"):
            start = time.perf_counter()
            path, built = target.compile(piece, spec, folder)
            seconds = time.perf_counter() - start if built else 0.0
            if path != piece.path:
                compiled.append(Compiled(piece.id, path.stat().st_size, seconds, built))
    return compiled
