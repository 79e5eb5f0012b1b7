"""The contenders that a benchmark compares: the uncut model, the chain of all segments, and configurations."""

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

# Labels (N,) and the exits taken (N,), which are None for a contender without exits.
Answer: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64] | None]"


class Contender(NamedTuple):
    """A classifier that takes part in a benchmark.

    Attributes:
        configuration: the configuration that has to be active before it runs; None if that does not matter.
        run: classifies preprocessed images.
    """

    configuration: Configuration | None
    run: Callable[[Images], Answer]


def make_contenders(session: Session, configurations: Sequence[Configuration], *, chain: bool) -> list[Contender]:
    """Return the uncut model, the chain of all segments if ``chain``, and every configuration."""

    def uncut(images: Images) -> Answer:
        return session.run_uncut(images), None

    def routed(images: Images) -> Answer:
        result = session(images)
        return result.label, result.exit

    first = [Contender(None, uncut), Contender(None, _chain(session))][: 1 + chain]
    return [*first, *(Contender(configuration, routed) for configuration in configurations)]


def _chain(session: Session) -> Callable[[Images], Answer]:
    """Return a function that runs all segments one by one without heads, to measure the cost of splitting the model."""
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
