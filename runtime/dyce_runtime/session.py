"""The session: runs segment after segment and lets every sample leave as soon as its head is confident."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dyce_runtime import targets
from dyce_runtime.bundle import Bundle, open_bundle
from dyce_runtime.configuration import FULL, Configuration
from dyce_runtime.contracts import Device, Handle, Pool, TargetSpec
from dyce_runtime.errors import ConfigurationError, DyceError, PieceError, RuntimeInputError
from dyce_runtime.manifest import UNCUT, Manifest
from dyce_runtime.plan import Plan, Step, make_plan
from dyce_runtime.preprocessing import Picture, preprocess


@dataclass(frozen=True)
class Result:
    """What a call returns, in the order of its input. It owns its memory.

    Attributes:
        logits: (N, classes) float32, of the exit that each sample took.
        label: (N,) int64.
        confidence: (N,) float32.
        exit: (N,) int64, index into the manifest's exits; the last one is the final head.
        configuration: the one that produced it.
    """

    logits: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    exit: npt.NDArray[np.int64]
    configuration: Configuration


def load(
    path: str | os.PathLike[str],
    target: str | None = None,
    *,
    threads: int | None = None,
    pool: Pool = "private",
    allow_untrained: bool = False,
) -> Session:
    """Open a bundle for running. The configuration is ``balanced`` if the bundle has one, otherwise ``full``.

    Args:
        path: the bundle.
        target: name of an installed target; None takes the first that is available.
        threads: threads per call; None lets the engine decide.
        pool: see :class:`dyce_runtime.contracts.TargetSpec`.
        allow_untrained: let configurations with untrained heads run, for measurements of speed.

    Raises:
        BundleError: see :func:`dyce_runtime.bundle.open_bundle`.
        TargetError: no such target, or it is not available here.
    """
    bundle = open_bundle(path)
    return Session(bundle, target, TargetSpec(threads=threads, pool=pool), allow_untrained=allow_untrained)


class Session:
    """An open bundle with an active configuration.

    Every call reads the active configuration once: turning the knob from another thread affects the next call.

    Attributes:
        bundle: what is open.
        target, spec: the engine, and how it was asked to open the pieces.
        device: the open pieces.
    """

    def __init__(self, bundle: Bundle, target: str | None, spec: TargetSpec, *, allow_untrained: bool = False) -> None:
        self.bundle = bundle
        self.spec = spec
        self._allow_untrained = allow_untrained
        self.target = targets.find(target)
        self.device: Device = self.target.open(bundle.piece_specs([p.id for p in bundle.manifest.pieces]), spec)
        self._closed = False
        self._budget: float | None = None
        usable = bundle.manifest.heads == "trained" and "balanced" in bundle.configurations.named
        self._plan = self._resolve("balanced" if usable else FULL)

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def configuration(self) -> Configuration:
        """The active configuration."""
        return self._plan.configuration

    def use(self, configuration: str | Configuration) -> None:
        """Turn the knob: a name from the bundle, or a configuration of your own.

        Raises:
            ConfigurationError: unknown, not of this bundle, or with untrained heads that were not allowed.
        """
        self._plan, self._budget = self._resolve(configuration), None

    @property
    def budget(self) -> float | None:
        """The share of the full model's cost that was last set as the limit; None after :meth:`use`.

        Setting it turns the knob to the most accurate configuration within it. Costs are means over the search
        split, in the unit of the search.

        Raises:
            ConfigurationError: nothing costs as little as that, or the bundle has no searched configurations.
        """
        return self._budget

    @budget.setter
    def budget(self, share: float) -> None:
        self._plan, self._budget = self._resolve(self.bundle.configurations.within(share)), share

    def preprocess(self, images: Picture | Iterable[Picture]) -> npt.NDArray[np.float32]:
        """Pictures (paths, PIL images or uint8 HWC arrays) to the float32 (N, C, H, W) that a call takes."""
        return preprocess(images, self.manifest.preprocessing)

    def __call__(self, images: npt.NDArray[np.float32]) -> Result:
        """Classify preprocessed images.

        Args:
            images: float32 (N, C, H, W), N at least 1.

        Raises:
            RuntimeInputError: wrong type, shape or values.
            PieceError: a piece failed; the session stays usable.
        """
        plan = self._plan
        self._check_input(images)
        return self._run(plan, images)

    def run_uncut(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Labels (N,) int64 of the uncut model, in one engine call and nothing else: the baseline of a benchmark."""
        self._check_input(images)
        outputs = self.device.run(UNCUT, [self.device.put(images)])
        labels: npt.NDArray[np.int64] = self.device.fetch(outputs[2])
        return labels

    def close(self) -> None:
        """Release the device."""
        self._closed = True
        self.device.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resolve(self, configuration: str | Configuration) -> Plan:
        if isinstance(configuration, str):
            configuration = self.bundle.configuration(configuration)
        plan = make_plan(self.manifest, configuration)
        if configuration.exits and self.manifest.heads == "untrained" and not self._allow_untrained:
            raise ConfigurationError(
                f"configuration {configuration.name!r} uses heads that were never trained: its answers mean nothing",
                hint="Export with --data to train them, or load with allow_untrained=True to measure speed.",
            )
        return plan

    def _check_input(self, images: npt.NDArray[np.float32]) -> None:
        if self._closed:
            raise RuntimeInputError("the session is closed", hint="Load the bundle again.")
        expected = self.manifest.input.shape[1:]
        wanted = f"expected a float32 array of shape (N, {', '.join(map(str, expected))})"
        if not isinstance(images, np.ndarray):
            raise RuntimeInputError(
                f"found {type(images).__name__}; {wanted}", hint="session.preprocess(...) makes it."
            )
        if images.dtype != np.float32 or images.shape[1:] != expected or images.ndim != len(expected) + 1:
            raise RuntimeInputError(
                f"found {images.dtype} of shape {images.shape}; {wanted}", hint="session.preprocess(...) makes it."
            )
        if len(images) == 0:
            raise RuntimeInputError(f"found an empty batch; {wanted} with N at least 1")
        if not np.isfinite(images).all():
            bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))
            raise RuntimeInputError(f"sample {bad[0]} holds NaN or infinity; expected finite numbers")

    def _run(self, plan: Plan, images: npt.NDArray[np.float32]) -> Result:
        device, count = self.device, len(images)
        result = Result(
            logits=np.empty((count, self.manifest.model.num_classes), np.float32),
            label=np.empty(count, np.int64),
            confidence=np.empty(count, np.float32),
            exit=np.empty(count, np.int64),
            configuration=plan.configuration,
        )
        rows: npt.NDArray[np.intp] = np.arange(count)
        live = [device.put(images)]
        for step in plan.steps:
            for piece in step.body:
                live = self._piece(piece, live)
            decision = live if step.head is None else self._piece(step.head, live)
            confidence = device.fetch(decision[1])
            leave = np.ones(len(rows), np.bool_) if step.head is None else confidence > step.threshold
            if leave.any():
                self._store(result, step, rows, leave, confidence, decision)
                if leave.all():
                    break
                stay = np.flatnonzero(~leave)
                rows, live = rows[stay], [device.take(handle, stay) for handle in live]
        return result

    def _store(
        self,
        result: Result,
        step: Step,
        rows: npt.NDArray[np.intp],
        leave: npt.NDArray[np.bool_],
        confidence: npt.NDArray[np.float32],
        decision: Sequence[Handle],
    ) -> None:
        leaving = rows[leave]
        result.logits[leaving] = self.device.fetch(decision[0])[leave]
        result.label[leaving] = self.device.fetch(decision[2])[leave]
        result.confidence[leaving] = confidence[leave]
        result.exit[leaving] = step.exit

    def _piece(self, piece: str, inputs: Sequence[Handle]) -> list[Any]:
        try:
            return self.device.run(piece, inputs)
        except DyceError:
            raise
        except Exception as error:  # an engine's own exception types are not ours to know
            raise PieceError(f"piece {piece} failed: {error}") from error
