"""``dyce inspect``: show what a bundle contains, or what this machine can run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dyce_export.cli.commands import doctor
from dyce_export.cli.console import Json, Quiet, Verbose, out, print_json, print_table, set_up
from dyce_export.cli.terminal import bold

HELP = "Show what a bundle holds; without one, what this machine can run and what it lacks."


# Words for the units of costs.
UNITS = {"macs": "multiply-accumulates", "ms": "time", "joules": "energy"}


def command(
    bundle: Annotated[Path | None, typer.Argument(help="The bundle.", show_default=False)] = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Read the bundle, or examine the machine, and print the result."""
    set_up(verbose=verbose, quiet=quiet)
    if bundle is None:
        doctor.show(json=json)
        return
    import msgspec

    import dyce_runtime

    opened = dyce_runtime.open_bundle(bundle)
    if json:
        documents = {"manifest": opened.manifest, "configurations": opened.configurations}
        memory = {piece.id: opened.memory(piece.id) for piece in opened.manifest.pieces}
        facts = {key: msgspec.to_builtins(document) for key, document in documents.items()}
        print_json("inspect", {"bundle": str(bundle), **facts, "memory_bytes": memory})
    else:
        _show(opened)


def _show(bundle: Any) -> None:
    from dyce_runtime.program.structure import bodies

    manifest = bundle.manifest
    model, verification = manifest.model, manifest.verification
    facts = [
        (
            "model",
            f"{model.name} ({model.source}), {model.parameters / 1e6:.1f} M parameters, {model.macs / 1e6:.1f} MMACs",
        ),
        ("weights", model.weights),
        ("classes", model.num_classes),
        ("input", f"{manifest.input.dtype} ({', '.join(map(str, manifest.input.shape))})"),
        ("preprocessing", _preprocessing(manifest.preprocessing)),
        ("heads", manifest.heads),
        ("samples", _samples(manifest.splits)),
        ("verification", verification_line(verification)),
        ("made by", ", ".join(f"{name} {version}" for name, version in manifest.producer.items())),
    ]
    for name, value in facts:
        out.print(bold(f"{name:>14}"), f" {value}")
    for doubt in manifest.suspicious:
        out.print(bold(f"{'suspicious':>14}"), f" {doubt}")
    _show_savers(manifest)
    rows = []
    own = bodies(manifest)
    for network in manifest.networks:
        done = 0
        for exit in map(manifest.exit, network.exits):
            done += sum(piece.macs for piece in own[exit.id])
            heads = ", ".join(head.type for head in exit.heads)
            size = f"{sum(bundle.size(piece.id) for piece in own[exit.id]) / 1e6:.1f} MB"
            rows.append((exit.id, exit.module, heads, f"{done / model.macs:.1%}", size))
    print_table("exits", ("exit", "after", "heads", "MACs to here", "segment"), rows)
    _show_spans(bundle)
    show_precisions(bundle)
    _show_engines(bundle)
    show_configurations(bundle.configurations, manifest)
    _show_bench(bundle)


def _show_savers(manifest: Any) -> None:
    """Print the models that run before the base model, with their preprocessing."""
    rows = [
        (
            saver.id,
            saver.model.name,
            f"{saver.model.macs / 1e6:.1f}",
            saver.model.weights,
            _preprocessing(saver.inputs[0].preprocessing),
        )
        for saver in manifest.savers
    ]
    if rows:
        print_table("savers, which run first", ("saver", "model", "MMACs", "weights", "preprocessing"), rows)


def _show_spans(bundle: Any) -> None:
    """Print the segments that run as one graph, the configurations that use them, and the memory that they add."""
    from dyce_runtime.execution.plan import make_plan, pieces_of

    manifest, named = bundle.manifest, bundle.configurations.named
    runs = {name: pieces_of([make_plan(manifest, bundle.configuration(name))]) for name in named}
    rows = [
        (
            span.id,
            _covered(span),
            f"{bundle.size(span.id) / 1e6:.1f} MB",
            f"{bundle.memory(span.id) / 1e6:.1f} MB",
            ", ".join(name for name in named if span.id in runs[name]),
        )
        for span in manifest.spans
    ]
    print_table(
        "spans: segments that run as one graph", ("span", "segments", "on disk", "memory, about", "used by"), rows
    )


def _covered(span: Any) -> str:
    first, *_, last = (id.removeprefix("segment_") for id in span.covers)
    return f"{first} to {last}"


def show_precisions(bundle: Any) -> None:
    """Print the precisions of a bundle and what they change against float32."""
    lowered = [bundle.precision(name) for name in bundle.manifest.precisions]
    if bundle.manifest.lowering is not None:
        lowered.append(bundle)
    if not lowered:
        return
    found = lowered[-1].manifest.lowering
    print_table(
        f"precisions, against float32 on {found.samples} unseen samples",
        ("precision", "exits agree", "logits' error", "float32 is right", "this", "kept", "pieces", "elsewhere in"),
        [(other.manifest.precision, *_changes(other)) for other in lowered],
    )
    out.print(
        f"kept: segments in float32; elsewhere in: samples that leave at another exit there than recorded in "
        f"{found.target}.\nEach is a bundle, such as {lowered[-1].path}.",
    )


def _changes(bundle: Any) -> tuple[str, ...]:
    found, size = bundle.manifest.lowering, sum(bundle.size(piece.id) for piece in bundle.manifest.pieces)
    return (
        f"{found.exit_agreement:.2%}",
        f"{found.logits_error:.1e}",
        f"{found.accuracy_float32:.2%}",
        f"{found.accuracy:.2%}",
        ", ".join(id.removeprefix("segment_") for id in found.kept) or "none",
        f"{size / 1e6:.1f} MB",
        ", ".join(f"{name} {share:.1%}" for name, share in found.exit_mismatch_rate.items()) or "not measured",
    )


def _show_engines(bundle: Any) -> None:
    """Print the engines that ``dyce compile`` has built, with their GPUs and folders."""
    from dyce_runtime.bundle.cache import engine_folders
    from dyce_runtime.targets import registry
    from dyce_targets.nvidia import engines

    rows = []
    for target in registry.names():
        for folder in engine_folders(bundle, target):
            builds: dict[tuple[str, ...], list[str]] = {}
            for piece, note in engines.notes(folder).items():
                made = note.fingerprint
                gpus = ", ".join(made.devices) or "the product's choice"
                builds.setdefault((target, made.version, gpus, str(made.max_batch)), []).append(piece)
            rows += [(*build, str(len(pieces)), str(folder)) for build, pieces in builds.items()]
    if rows:
        print_table("engines", ("target", "version", "GPUs", "samples, at most", "pieces", "in"), rows)


def show_configurations(configurations: Any, manifest: Any) -> None:
    """Print the named configurations: their figures, and the thresholds at which samples exit."""
    exits = [exit.id for exit in manifest.exits]
    # Without labels, the full model's answers serve as labels, so the full model is always right.
    labelled = manifest.splits is None or manifest.splits.labels == "data"
    searched = {name: entry for name, entry in configurations.named.items() if entry.search and entry.test}
    rows = []
    for name, entry in searched.items():
        losses = [(f"{100 * split.loss:+.2f}", f"{split.cost:.0%}") for split in (entry.search, entry.test)]
        shares = [f"{share:.0%}" for share in entry.test.share_per_exit]
        rows.append((name, *losses[0], *losses[1], f"{entry.test.accuracy:.1%}", _promise(entry.certified), *shares))
    if rows:
        print_table(
            "configurations, on the samples that they were chosen on | on test samples, with the share per exit\n"
            f"(loss: points of accuracy less than full; cost: share of its {UNITS[configurations.unit]};\n"
            "a loss below 0 is a gain; certified: largest loss promised on unseen samples, and its probability)",
            ("name", "loss", "cost", "| loss", "cost", "accuracy" if labelled else "agreement", "certified", *exits),
            rows,
        )
        unused = [name for name, entry in searched.items() if entry.exits and not _reaches_the_end(entry)]
        if unused:
            out.print(f"Under {', '.join(unused)} every sample leaves before the model's own classifier.")
        if not labelled:
            out.print("The pictures had no labels: agreement is with the answers of the whole model.")
    several = len({on.head for entry in configurations.named.values() for on in entry.exits.values()}) > 1
    thresholds = [
        (name, *(_setting(entry.exits.get(id), several) for id in exits[:-1]))
        for name, entry in configurations.named.items()
    ]
    print_table("a sample leaves if its confidence is above", ("name", *exits[:-1]), thresholds)
    if configurations.note:
        out.print(configurations.note)


def _reaches_the_end(entry: Any) -> bool:
    return bool(entry.search.share_per_exit[-1] or entry.test.share_per_exit[-1])


def _show_bench(bundle: Any) -> None:
    """Print the figures that ``dyce bench --save`` stored, one table per day and kind of call."""
    from dyce_runtime.bundle.measured import read_measured

    measured, named = read_measured(bundle), bundle.configurations.named
    tables: dict[str, list[tuple[str, ...]]] = {}
    for name, bench in ((name, measured.figures(entry)) for name, entry in named.items()):
        if bench is None:
            continue
        where = (
            f"measured on {bench.cpu}, {bench.target}, threads {bench.threads}, {bench.date},\nwith {bench.samples} "
            f"pictures ({bench.unseen} unseen), {bench.batch} per call; time relative to the uncut model"
        )
        accuracy = "" if bench.accuracy is None else f"{bench.accuracy:.1%}"
        known = bench.loss is not None and bench.loss_error is not None
        lost = f"{100 * bench.loss:.1f} ± {100 * bench.loss_error:.1f}" if known else ""  # type: ignore[operator]
        row = (name, f"{bench.p50_ms:.2f}", f"{bench.p90_ms:.2f}", f"{bench.time_ratio:.2f}", lost, accuracy)
        tables.setdefault(where, []).append(row)
    for where, rows in tables.items():
        print_table(where, ("name", "p50 ms", "p90 ms", "time", "loses", "accuracy"), rows)


def _setting(on: Any, name_head: bool) -> str:
    if on is None:
        return "off"
    return f"{on.head} {on.threshold:.4f}" if name_head else f"{on.threshold:.4f}"


def _promise(certificate: Any) -> str:
    return "" if certificate is None else f"{100 * certificate.epsilon:g}, {1 - certificate.delta:.4g}"


def _preprocessing(p: Any) -> str:
    resize = f"{p.resize[0]}x{p.resize[1]} ({p.fit})" if isinstance(p.resize, tuple) else p.resize
    return f"resize {resize} {p.interpolation}, crop {p.crop[0]}x{p.crop[1]}, mean {list(p.mean)}, std {list(p.std)}"


def _samples(splits: Any) -> str:
    if splits is None:
        return "none"
    counts = ", ".join(f"{count} {name}" for name, count in splits.samples.items())
    return f"{counts}; labels from {'the data' if splits.labels == 'data' else 'the model itself'}" + (
        "" if splits.unseen else "; cut from the data that the heads were fitted on, which the model may have seen"
    )


def verification_line(v: Any) -> str:
    """Summarise a verification in one line."""
    if v is None:
        return "none"
    return (
        f"{v.verdict}: largest relative error {v.max_relative_error:.1e} (at most {v.tolerance:.0e}), exits agree on "
        f"{v.exit_agreement:.1%} of {v.samples} samples ({v.exempt} exempt)"
    )
