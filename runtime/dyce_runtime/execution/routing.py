"""Routing: run the steps of a plan until every sample has exited at the first exit that is confident enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.configuration import Configuration
from dyce_runtime.bundle.manifest import CONFIDENCE, LABEL, LOGITS
from dyce_runtime.errors import PieceError
from dyce_runtime.execution.contracts import ExecutionContext, Rows
from dyce_runtime.execution.plan import LeaveAt, Plan
from dyce_runtime.inputs.images import Inputs, some_of
from dyce_runtime.program.liveness import Choosing, Copy
from dyce_runtime.program.operations import Case, Run
from dyce_runtime.program.rule import leaves

# Operations that compute tensors and let no samples exit.
Computing: TypeAlias = Run | Copy | Choosing
# The most samples in the ``repr`` of a result.
_SHOWN = 3


class Result(msgspec.Struct, frozen=True, eq=False):
    """The result of a call, in the order of its input. It owns its memory.

    Attributes:
        logits: (N, classes) float32, from the exit that each sample took.
        label: (N,) int64, the index of the predicted class.
        confidence: (N,) float32, the score of the exit taken.
        exit: (N,) int64, index of the exit taken in the manifest's exits; the last one is the final head.
        configuration: the configuration that was active.
        exit_ids: ids of all exits of the bundle, in order, such as ``("3", "7", "final")``.
    """

    logits: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    exit: npt.NDArray[np.int64]
    configuration: Configuration
    exit_ids: tuple[str, ...]

    @property
    def exit_name(self) -> tuple[str, ...]:
        """The id of the exit that each of the N samples took, such as ``3`` or ``final``."""
        return tuple(self.exit_ids[index] for index in self.exit.tolist())

    def __repr__(self) -> str:
        """Return one line, whatever the number of samples and classes."""
        first = [values[:_SHOWN].tolist() for values in (self.label, self.confidence, self.exit)]
        shown = ", ".join(
            f"class {label} at {confidence:.3f} from exit {self.exit_ids[exit]}"
            for label, confidence, exit in zip(*first, strict=True)
        )
        more = ", ..." if len(self.label) > _SHOWN else ""
        samples = "1 sample" if len(self.label) == 1 else f"{len(self.label)} samples"
        return f"<Result of {samples} under {self.configuration.name!r}: {shown}{more}>"


def route(plan: Plan, context: ExecutionContext, inputs: Inputs, count: int, classes: int) -> Result:
    """Run a plan on ``count`` samples, in a context with room for them.

    Args:
        plan: what to run.
        context: an empty context.
        inputs: name of each input to images (count, C, H, W) float32.
        count: number of samples.
        classes: number of classes.

    Raises:
        PieceError: a piece failed, or the scores of a sample are not numbers.
    """
    return _run_one(plan, context, inputs) if count == 1 else _run_batch(plan, context, inputs, count, classes)


def _run_one(plan: Plan, context: ExecutionContext, inputs: Inputs) -> Result:
    """Run a plan on one sample: a fast path without the bookkeeping of a batch."""
    for stage in plan.stages:
        for bring in stage.inputs:
            context.set_input(bring.input, inputs[bring.input])
        leave, score = context.run_until_exit(stage.steps)
        if leave is not None and not 0 < score[0] <= leave.threshold:
            break
    assert leave is not None, "every program ends with an exit for all samples"
    if not score[0] > 0:
        raise invalid_scores(plan, leave.piece, 0)
    own = score.copy()
    logits, label = context.read(LOGITS, LABEL)
    return Result(logits.copy(), label.copy(), own, leave.exits.copy(), plan.configuration, plan.exit_ids)


def _run_batch(plan: Plan, context: ExecutionContext, inputs: Inputs, count: int, classes: int) -> Result:
    result = Result(
        np.empty((count, classes), np.float32),
        np.empty(count, np.int64),
        np.empty(count, np.float32),
        np.empty(count, np.int64),
        plan.configuration,
        plan.exit_ids,
    )
    batch = _Batch(context, np.arange(count), np.ones(count, np.bool_))
    for stage in plan.stages:
        for bring in stage.inputs:
            batch.compact(bring.live)
            images = inputs[bring.input] if len(batch.rows) == count else some_of(inputs, bring.input, batch.rows)
            context.set_input(bring.input, images)
        for step in stage.steps:
            if not isinstance(step, LeaveAt):
                run_step(context, step)
            elif not _leave(plan, step, batch, result):
                return result
    raise AssertionError("every program ends with an exit for all samples")


class _Batch:
    """The samples of a call.

    Attributes:
        context: holds their tensors.
        rows: (n,) indices in the call of the samples that the context holds, in the order of the context.
        stay: (n,) bool, which of these have not exited.
    """

    def __init__(self, context: ExecutionContext, rows: Rows, stay: npt.NDArray[np.bool_]) -> None:
        self.context, self.rows, self.stay = context, rows, stay

    def compact(self, live: Sequence[str]) -> None:
        """Remove the samples that have exited from the context, keeping the tensors in ``live``."""
        if not self.stay.all():
            order = compacting(self.stay)
            self.context.keep(order, live)
            self.rows, self.stay = self.rows[order], np.ones(len(order), np.bool_)


def _leave(plan: Plan, step: LeaveAt, batch: _Batch, result: Result) -> bool:
    """Let samples exit and store their answers; return whether some remain."""
    (score,) = batch.context.read(CONFIDENCE)
    rows, stay = batch.rows, batch.stay
    if not score.min() > 0 and len(invalid := rows[stay & ~(score > 0)]):
        raise invalid_scores(plan, step.piece, int(invalid[0]))
    leave = stay & leaves(score, step.threshold)
    gone = rows[leave]
    if len(gone) == 0:
        return True
    result.confidence[gone], result.exit[gone] = score[leave], step.exit
    logits, label = batch.context.read(LOGITS, LABEL)
    result.logits[gone], result.label[gone] = logits[leave], label[leave]
    batch.stay = stay = stay & ~leave
    remaining = int(np.count_nonzero(stay))
    # Without live tensors, the next step starts another network, whose input compacts the batch in any case.
    if remaining and step.live and len(rows) - remaining >= step.min_exited_to_compact:
        context = batch.context
        if context.computed_rows(remaining) < context.computed_rows(len(rows)):
            batch.compact(step.live)
    return remaining > 0


def run_step(context: ExecutionContext, step: Computing) -> None:
    """Run a step for all samples in a context. At a choice, each case runs for the samples that take it."""
    if isinstance(step, Run):
        context.run(step.piece)
    elif isinstance(step, Copy):
        for to, source in step.copies.items():
            context.copy(to, source)
    else:
        (value,) = context.read(step.by)
        chosen = cases_of(step, value)
        for number, case in enumerate(step.cases):
            rows = np.flatnonzero(chosen == number)
            if len(rows):
                _run_case(context, case, None if len(rows) == len(chosen) else rows)


def _run_case(context: ExecutionContext, case: Case, rows: Rows | None) -> None:
    if case.piece is not None:
        context.run(case.piece, rows)
    for to, source in case.copies.items():
        context.copy(to, source, rows)


def cases_of(step: Choosing, value: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Return (N,) the case of each sample: the number of cut points strictly below its gate value.

    Args:
        step: the choice.
        value: (N,) gate values.

    Raises:
        PieceError: a value is NaN.
    """
    if np.isnan(value).any():
        raise PieceError(
            f"gate {step.gate} gave sample {int(np.isnan(value).argmax())} a value that is not a number",
            hint="Its values are too large for the network: were they preprocessed as session.preprocess(...) does it?",
        )
    cut_points = np.array(step.cut_points, np.float32)
    return np.searchsorted(cut_points, value, side="left")


def invalid_scores(plan: Plan, piece: str, sample: int) -> PieceError:
    """Return the error for a sample whose score is NaN or not above 0, as an engine's softmax over NaN gives it."""
    return PieceError(
        f"{piece} gave scores for sample {sample} that are not numbers (configuration {plan.configuration.name!r})",
        hint="Its values are too large for the network: were they preprocessed as session.preprocess(...) does it?",
    )


def compacting(stay: npt.NDArray[np.bool_]) -> Rows:
    """Return the order for :meth:`ExecutionContext.keep` that keeps the samples in ``stay`` with the fewest copies.

    The last remaining samples move to the places of exited ones; all others stay where they are.
    """
    remaining = int(np.count_nonzero(stay))
    order = np.arange(remaining)
    order[~stay[:remaining]] = remaining + np.flatnonzero(stay[remaining:])
    return order
