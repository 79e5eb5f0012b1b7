"""Settings of an export other than the model, the exits and the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dyce_calibration.heads.sequence import parse_sequence
from dyce_calibration.heads.training import DEFAULT_TYPE, Recipe, parse_type
from dyce_export.precision.lower import check_precisions
from dyce_export.precision.trials import Limits
from dyce_export.sources.task import SINGLE_LABEL, check_task
from dyce_export.verification.verify import TOLERANCE
from dyce_runtime.errors import UsageError


@dataclass(frozen=True)
class Options:
    """Settings of an export other than the model, the exits and the data.

    Attributes:
        force: replace an existing bundle.
        classes_file: file that maps class folders to the model's classes.
        types: types of the heads to train at every exit.
        max_exits: largest number of exits that ``auto`` chooses.
        recipe: how the heads are trained.
        seed: seed of splits, head initialisation and training.
        tolerance: largest relative error that verification accepts.
        precisions: lower precisions that the bundle holds in addition to float32.
        limits: how much these precisions may change.
        sequence: type of the exit sequence network after the savers, such as ``esn1x64``; None for none.
        task: what the outputs of the model mean; see :func:`dyce_export.sources.task.check_task`.
        allow_suspicious: continue when labels contradict the model's predictions, and record that in the bundle.

    Raises:
        UsageError: a setting is invalid by itself, whatever the model.
    """

    force: bool = False
    classes_file: Path | None = None
    types: tuple[str, ...] = (DEFAULT_TYPE,)
    max_exits: int = 4
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    tolerance: float = TOLERANCE
    precisions: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    sequence: str | None = None
    task: str = SINGLE_LABEL
    allow_suspicious: bool = False

    def __post_init__(self) -> None:
        """Check all settings that can be checked without a model."""
        for type in self.types:
            parse_type(type)
        if self.sequence is not None:
            parse_sequence(self.sequence)
        check_precisions(self.precisions)
        check_task(self.task)
        if not self.types or len(set(self.types)) < len(self.types):
            raise UsageError(f"the head types are {list(self.types)}; expected at least one, each once")
        if self.max_exits < 1:
            raise UsageError(f"at most {self.max_exits} exits were asked for; expected at least 1")
