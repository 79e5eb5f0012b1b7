"""Routing: piece after piece, until every sample has left at the first exit that is confident enough."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.errors import PieceError
from dyce_runtime.execution.contracts import Lane
from dyce_runtime.execution.plan import Plan, Step
from dyce_runtime.inputs.images import Inputs, some_of

# Samples that a result names when it is printed.
_SHOWN = 3


class Result(msgspec.Struct, frozen=True, eq=False):
    """What a call returns, in the order of its input. It owns its memory.

    Attributes:
        logits: (N, classes) float32, of the exit that each sample took.
        label: (N,) int64.
        confidence: (N,) float32.
        exit: (N,) int64, index into the manifest's exits; the last one is the final head.
        configuration: the one that produced it.
        exit_ids: of all exits of the bundle, in order, such as ``("3", "7", "final")``.
    """

    logits: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    exit: npt.NDArray[np.int64]
    configuration: Configuration
    exit_ids: tuple[str, ...]

    @property
    def exit_name(self) -> tuple[str, ...]:
        """(N,) id of the exit that each sample took, such as ``3`` or ``final``."""
        return tuple(self.exit_ids[index] for index in self.exit.tolist())

    def __repr__(self) -> str:
        """A line, whatever the number of samples and classes."""
        first = [values[:_SHOWN].tolist() for values in (self.label, self.confidence, self.exit)]
        shown = ", ".join(
            f"class {label} at {confidence:.3f} from exit {self.exit_ids[exit]}"
            for label, confidence, exit in zip(*first, strict=True)
        )
        more = ", ..." if len(self.label) > _SHOWN else ""
        samples = "1 sample" if len(self.label) == 1 else f"{len(self.label)} samples"
        return f"<Result of {samples} under {self.configuration.name!r}: {shown}{more}>"


def route(plan: Plan, lane: Lane, inputs: Inputs, count: int, classes: int) -> Result:
    """Run a plan on so many images, in a lane that is large enough.

    Raises:
        PieceError: a piece failed, or the scores of a sample are not numbers.
    """
    return _run_one(plan, lane, inputs) if count == 1 else _run_batch(plan, lane, inputs, count, classes)


def _run_one(plan: Plan, lane: Lane, inputs: Inputs) -> Result:
    """Nothing to keep apart: the hot path of a camera or a server that answers at once."""
    for name, steps in plan.stages:
        lane.put(inputs[name], name)
        step, confidence = lane.until_confident(steps)
        if not 0 < confidence[0] <= step.threshold:
            break
    if not confidence[0] > 0:
        raise invalid_scores(plan, step, 0)
    logits, label = lane.answers()
    return Result(logits.copy(), label.copy(), confidence.copy(), step.exits.copy(), plan.configuration, plan.exit_ids)


def _run_batch(plan: Plan, lane: Lane, inputs: Inputs, count: int, classes: int) -> Result:
    result = Result(
        np.empty((count, classes), np.float32),
        np.empty(count, np.int64),
        np.empty(count, np.float32),
        np.empty(count, np.int64),
        plan.configuration,
        plan.exit_ids,
    )
    # Which samples of the input the lane holds, in its order, and which of these have not left.
    rows: npt.NDArray[np.intp] = np.arange(count)
    stay = np.ones(count, np.bool_)
    for step, behind in zip(plan.steps, [*plan.steps[1:], None], strict=True):
        if step.image is not None:
            if not stay.all():
                rows, stay = _move_together(lane, rows, stay, int(np.count_nonzero(stay)))
            lane.put(inputs[step.image] if len(rows) == count else some_of(inputs, step.image, rows), step.image)
        for piece in step.body:
            lane.run(piece)
        confidence = lane.decide(step.head)
        if not confidence.min() > 0 and len(invalid := rows[stay & ~(confidence > 0)]):
            raise invalid_scores(plan, step, int(invalid[0]))
        leave = stay if step is plan.steps[-1] else stay & (confidence > step.threshold)
        gone = rows[leave]
        if len(gone) == 0:
            continue
        logits, label = lane.answers()
        result.logits[gone], result.label[gone] = logits[leave], label[leave]
        result.confidence[gone], result.exit[gone] = confidence[leave], step.exit
        stay = stay & ~leave
        left = int(np.count_nonzero(stay))
        if left == 0:
            break
        # Where another network starts those that stay are moved together in any case.
        if behind is not None and behind.image is None and len(rows) - left >= step.worth_moving:
            rows, stay = _move_together(lane, rows, stay, left)
    return result


def invalid_scores(plan: Plan, step: Step, sample: int) -> PieceError:
    """The error of a sample whose confidence at a step is NaN or not above 0: an engine's softmax over NaN."""
    where = step.head or ["a head", *step.body][-1]
    return PieceError(
        f"{where} gave scores for sample {sample} that are not numbers (configuration {plan.configuration.name!r})",
        hint="Its values are too large for the network: were they preprocessed as session.preprocess(...) does it?",
    )


def _move_together(
    lane: Lane, rows: npt.NDArray[np.intp], stay: npt.NDArray[np.bool_], left: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """The last samples that stay move into the gaps before them: the fewest copies."""
    places, sources = np.flatnonzero(~stay[:left]), left + np.flatnonzero(stay[left:])
    rows[places] = rows[sources]
    lane.compact(sources, places, left)
    return rows[:left], np.ones(left, np.bool_)
