"""``dyce run``: classify images with a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dyce_export.cli import bounds
from dyce_export.cli.console import Json, Quiet, Threads, Verbose, print_json, print_table, progress_bar, set_up

HELP = "Classify pictures with a bundle."


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle.", show_default=False)],
    inputs: Annotated[
        list[str], typer.Argument(help="Pictures, folders of pictures or data sets.", show_default=False)
    ],
    config: Annotated[
        str | None, typer.Option(help="Configuration. Default: `balanced`, or `full` where there is none.")
    ] = None,
    batch: Annotated[int, typer.Option(callback=bounds.batch, help="Pictures per call.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="At most that many pictures of each input.")] = None,
    target: Annotated[str | None, typer.Option(help="Engine. Default: the fastest on this machine.")] = None,
    threads: Threads = None,
    allow_untrained: Annotated[bool, typer.Option(help="Run untrained heads; their answers mean nothing.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Classify the images and print the results."""
    set_up(verbose=verbose, quiet=quiet)
    import dyce_runtime

    with dyce_runtime.load(bundle, target, threads=threads, pool="global", allow_untrained=allow_untrained) as session:
        if config is not None:
            session.use(config)
        with progress_bar(quiet=quiet) as track:
            results = [row for place in inputs for row in _classify(session, place, batch, limit, track)]
    if json:
        print_json("run", {"results": results})
        return
    print_table(
        f"{bundle.name}, configuration {session.configuration.name}, in {session.target.name} "
        f"{session.manifest.precision}",
        ("picture", "class", "label", "confidence", "exit"),
        [(r["input"], r["class"], r["label"], f"{r['confidence']:.3f}", r["exit"]) for r in results],
    )


def _classify(session: Any, place: str, batch: int, limit: int | None, track: Any) -> list[dict[str, Any]]:
    from dyce_runtime.inputs.datasets import open_dataset

    manifest = session.manifest
    data = open_dataset(place)
    if len(data) > 1:  # a collection may contain unreadable images; a single one that was named may not be
        data = data.check(manifest.preprocessing)
    names, rows = manifest.model.class_names, []
    count = min(limit or len(data), len(data))
    for start in track(range(0, count, batch), place):
        members = range(start, min(start + batch, count))
        result = session(session.preprocess(data.images(members)))
        for i, member in enumerate(members):
            label = int(result.label[i])
            rows.append(
                {
                    "input": str(data.items[member]) if isinstance(data.items[member], Path) else f"{place}[{member}]",
                    "label": label,
                    "class": names[label] if names else str(label),
                    "confidence": float(result.confidence[i]),
                    "exit": manifest.exits[int(result.exit[i])].id,
                    "configuration": result.configuration.name,
                }
            )
    return rows
