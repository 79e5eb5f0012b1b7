"""What a benchmark runs against each other: the uncut model, the chain of all segments, and configurations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dyce_runtime.bundle.configuration import FULL, Configuration
from dyce_runtime.execution.plan import make_plan
from dyce_runtime.execution.routing import route
from dyce_runtime.execution.session import Session
from dyce_runtime.execution.trace import chunks
from dyce_runtime.inputs.images import Images, count_of, rows_of

# Labels, and the exits that were taken, where there are exits.
Answer: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64] | None]"


class Contender(NamedTuple):
    """Something that classifies.

    Attributes:
        knob: how the session has to be set before it runs; None if that does not matter.
        run: takes preprocessed images.
    """

    knob: Configuration | None
    run: Callable[[Images], Answer]


def make_contenders(session: Session, configurations: Sequence[Configuration], *, chain: bool) -> list[Contender]:
    """The uncut model, the chain if it is wanted, and every configuration."""

    def uncut(images: Images) -> Answer:
        return session.run_uncut(images), None

    def routed(images: Images) -> Answer:
        result = session(images)
        return result.label, result.exit

    first = [Contender(None, uncut), Contender(None, _chain(session))][: 1 + chain]
    return [*first, *(Contender(configuration, routed) for configuration in configurations)]


def _chain(session: Session) -> Callable[[Images], Answer]:
    """The full model, segment after segment and without any head: what cutting costs where every seam is paid."""
    manifest = session.manifest
    plan = make_plan(manifest, Configuration(FULL), ())

    def run(images: Images) -> Answer:
        inputs, labels = session.inputs(images), []
        for rows in chunks(count_of(inputs), session.max_batch):
            count, part = rows.stop - rows.start, rows_of(inputs, rows)
            with session.device.context(count) as context:
                labels.append(route(plan, context, part, count, manifest.classes).label)
        return np.concatenate(labels), None

    return run
