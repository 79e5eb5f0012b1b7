"""The session: an open bundle with an active configuration that can be changed at any time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dyce_runtime.arguments import is_real, number, shown, whole
from dyce_runtime.bundle.cache import engine_folders
from dyce_runtime.bundle.configuration import FULL, Configuration, Figures
from dyce_runtime.bundle.manifest import CONFIDENCE, LABEL, Manifest
from dyce_runtime.bundle.measured import tuning_of
from dyce_runtime.bundle.reader import Bundle
from dyce_runtime.errors import ConfigurationError, DyceError, PieceError, RuntimeInputError, TargetError
from dyce_runtime.execution.contracts import Device, TargetSpec
from dyce_runtime.execution.plan import Plan
from dyce_runtime.execution.plan_cache import PlanCache
from dyce_runtime.execution.routing import Result, route
from dyce_runtime.execution.stream import Stream
from dyce_runtime.execution.trace import chunks
from dyce_runtime.inputs.decoding import Picture
from dyce_runtime.inputs.images import ExpectedInput, Images, Inputs, as_inputs, count_of, rows_of
from dyce_runtime.inputs.pictures import Pictures
from dyce_runtime.inputs.preprocessing import listed, preprocess
from dyce_runtime.process_bound import EngineOwner
from dyce_runtime.targets import registry

# Called with the result of a call and its duration in seconds.
Observer: TypeAlias = Callable[[Result, float], None]
_FORKED = "forked"

# The highest ``max_batch``: buffers of that size are allocated when a call has that many samples.
_MOST_AT_ONCE = 1 << 16
# Nothing costs that many times what the full model costs: it is a percentage, or milliseconds.
_LARGEST_BUDGET = 10
_MOST_IN_STREAM = 1 << 12


class Session(EngineOwner):
    """An open bundle with an active configuration.

    Any number of threads may call it. Every call reads the active configuration once, so a change from another thread
    affects the next call. A session belongs to its process: a forked child or a worker process has to load the bundle
    itself.

    Args:
        bundle: the bundle to open.
        target: name of the target; None as in :func:`dyce_runtime.targets.registry.find`.
        spec: how the pieces are opened.
        max_batch, max_memory, allow_untrained: as in :func:`dyce_runtime.load`.

    Attributes:
        bundle: what is open.
        target: the engine.
        spec: how it was asked to open the pieces.
        pieces: ids of the pieces that are open.
        device: the open pieces.
        max_batch: the most samples that run at once; larger calls are cut into chunks.
        cap: called with the active plan and the number of samples of a call; returns the plan to run instead. None if
            the work is not capped.
        unchecked: whether the bundle was opened without checking its hashes and test vectors.

    Raises:
        RuntimeInputError: an argument is out of range.
        TargetError: the target is not available, or the pieces need more memory than allowed.
    """

    cap: Callable[[Plan, int], Plan] | None = None
    unchecked = False

    def __init__(
        self,
        bundle: Bundle,
        target: str | None,
        spec: TargetSpec,
        *,
        max_batch: int | None = None,
        max_memory: float | None = None,
        allow_untrained: bool = False,
    ) -> None:
        if max_batch is not None:
            max_batch = whole("max_batch", max_batch, 1, _MOST_AT_ONCE)
        if max_memory is not None:
            max_memory = number("max_memory", max_memory, 0)
        self.bundle = bundle
        self.target = registry.find(target)
        if bundle.manifest.precision == "bfloat16":
            spec = replace(spec, precision="bfloat16")
        if self.target.engines:
            spec = replace(spec, engines=engine_folders(bundle, self.target.name))
        spec = replace(spec, max_batch=max_batch or spec.max_batch)
        self.spec = spec
        self.pieces = _fitting(bundle, self.target.spans, max_memory)
        self.device = self._opened()
        tuning = tuning_of(bundle, self.target.name, spec.threads)
        best = tuning.best_batch or self.target.best_batch(spec, bundle.manifest.model.macs)
        self.max_batch = min(max_batch or best, self.device.max_rows)
        # Why the session cannot be used any more; empty while it can.
        self._ended = ""
        ways = bundle.manifest.inputs
        self._inputs = [ExpectedInput.of(spec, ways[spec.name]) for spec in bundle.manifest.specs(ways)]
        self._classes = bundle.manifest.classes
        self._uncut = bundle.manifest.uncut
        self._of_base = tuple(input.tensor for input in bundle.manifest.base.inputs)
        self._plans = PlanCache(bundle, self.pieces, tuning.min_exited_to_compact, allow_untrained=allow_untrained)
        self._owner: str | None = None
        self._observers: tuple[Observer, ...] = ()
        usable = bundle.manifest.heads == "trained" and "balanced" in bundle.configurations.named
        self.use("balanced" if usable else FULL)
        super().__init__()

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def configuration(self) -> Configuration:
        """The active configuration."""
        return self._plan.configuration

    @property
    def configurations(self) -> dict[str, Figures | None]:
        """The named configurations, each with its figures on the test split; None if they were not measured."""
        return {name: entry.test for name, entry in self.bundle.configurations.named.items()}

    def __repr__(self) -> str:
        """Return one line: the bundle, the engine, and the active configuration."""
        state = (", unchecked" if self.unchecked else "") + (f", {self._ended}" if self._ended else "")
        names = ", ".join(self.bundle.configurations.named)
        return (
            f"<Session of {self.bundle.path.name} ({self.manifest.model.name}) on {self.target.name} "
            f"{self.manifest.precision}, using {self.configuration.name!r} of {names}{state}>"
        )

    def use(self, configuration: str | Configuration) -> None:
        """Make a configuration active: one of the bundle by its name, or a configuration of your own.

        Calls that are running keep the configuration that they started with. The first use of a configuration resolves
        it, later ones are a look-up.

        Raises:
            ConfigurationError: the configuration does not exist or fit the bundle, its heads are untrained and not
                allowed, or another object controls the active configuration (see :meth:`take_control`).
        """
        if self._owner is not None:
            raise self._owned()
        if type(configuration) is str and (plan := self._plans.named.get(configuration)) is not None:
            self._plan = plan
        else:
            self._plan = self.plan(configuration)

    def plan(self, configuration: str | Configuration) -> Plan:
        """Return the plan that a configuration runs in this session; resolved once, then cached.

        Raises:
            ConfigurationError: as in :meth:`use`, whoever controls the active configuration.
        """
        return self._plans.of(configuration)

    def take_control(self, owner: str) -> Callable[[Configuration], None]:
        """Take exclusive control of the active configuration, until :meth:`release_control`.

        Until then :meth:`use` and setting :attr:`budget` raise ConfigurationError.

        Args:
            owner: name of the object that takes control, for the message.

        Returns:
            a function that makes a configuration active.

        Raises:
            ConfigurationError: another object has taken control.
        """
        if self._owner is not None:
            raise self._owned()
        self._owner = owner

        def turn(configuration: Configuration) -> None:
            self._plan = self.plan(configuration)

        return turn

    def release_control(self) -> None:
        """End the exclusive control of the active configuration."""
        self._owner = None

    def attach(self, observer: Observer) -> None:
        """Call ``observer(result, seconds)`` after every call, in the thread of the call.

        Calls are timed only while there are observers. An exception from one propagates to the caller.

        Raises:
            RuntimeInputError: the observer is not callable.
        """
        if not callable(observer):
            raise RuntimeInputError(f"the observer is {shown(observer)}; expected a function")
        self._observers = (*self._observers, observer)

    def detach(self, observer: Observer) -> None:
        """Stop calling an observer. An object that is not attached is ignored."""
        self._observers = tuple(other for other in self._observers if other is not observer)

    @property
    def budget(self) -> float | None:
        """The cost limit that was last set, as a fraction of the full model's cost; None after :meth:`use`.

        Setting it activates the most accurate configuration within the limit. Costs are means over the search split,
        in the unit of the search.

        Raises:
            ConfigurationError: when set: no configuration is that cheap, the bundle has no searched configurations, the
                value is not a number, or another object controls the active configuration.
        """
        return self._plan.budget

    @budget.setter
    def budget(self, share: float) -> None:
        if self._owner is not None:
            raise self._owned()
        if not is_real(share) or share > _LARGEST_BUDGET:
            raise ConfigurationError(
                f"the budget is {shown(share)}; expected a share of the full model's cost, such as 0.6",
                hint="For a limit in milliseconds there is LatencyGovernor(session, p95_ms=...).",
            )
        self._plan = self._plans.within(share)

    def preprocess(self, images: Picture | Iterable[Picture]) -> Images:
        """Convert images (paths, bytes, open files, PIL images or HWC arrays) to the argument of a call.

        Returns:
            float32 (N, C, H, W). If the networks of the bundle differ in their preprocessing, a mapping of the name of
            each input to such an array. It is computed at once for the network that runs first, and for the others when
            a sample reaches them: see :class:`dyce_runtime.inputs.pictures.Pictures`.

        Raises:
            RuntimeInputError, DataError: see :func:`dyce_runtime.inputs.preprocessing.preprocess`.
        """
        ways = self.manifest.inputs
        if len(ways) == 1:
            return preprocess(images, self.manifest.preprocessing)
        first = self._plan.stages[0].inputs[0].input
        return Pictures(listed(images, self.manifest.preprocessing), ways, first)

    def inputs(self, images: Images) -> Inputs:
        """Check the argument of a call; return name of each input to images. Raises RuntimeInputError."""
        return as_inputs(images, self._inputs)

    def __call__(self, images: Images) -> Result:
        """Classify preprocessed images.

        Args:
            images: float32 (N, C, H, W), N at least 1; or a mapping of input names to these, see :meth:`preprocess`.

        Raises:
            RuntimeInputError: type, shape or values are wrong, or the session is closed.
            PieceError: a piece failed; the session stays usable.
        """
        plan = self._plan
        if self._ended:
            raise self._gone()
        inputs = as_inputs(images, self._inputs)
        count = len(images) if type(images) is np.ndarray else count_of(inputs)
        if (cap := self.cap) is not None:  # read once: another thread may remove it
            plan = cap(plan, count)
        if self._observers:
            return self._observed(plan, inputs, count)
        return self._run(plan, inputs, count)

    def stream(self, images: Iterable[Images], *, batch: int = 8, in_flight: int = 32) -> Iterator[Result]:
        """Classify a stream of samples, in batches that are filled up again after every exit.

        Each sample runs under the configuration that is active when it is taken from ``images``.

        Args:
            images: an iterable of preprocessed samples: float32 (C, H, W), or a mapping of input names to such arrays,
                or the mapping that :meth:`preprocess` returns for one image.
            batch: the most samples that run at once.
            in_flight: the most samples that are taken and not yet yielded.

        Yields:
            one result (N = 1) for each sample, in the order of the input.

        Raises:
            RuntimeInputError: an argument is out of range; or a sample is invalid, after the results of the samples
                before it were yielded.
            PieceError: a piece failed.
        """

        def admit(image: Images) -> tuple[Plan, Inputs]:
            plan = self._plan
            if self._ended:
                raise self._gone()
            if isinstance(image, Mapping) and not isinstance(image, Pictures):
                image = {name: np.asanyarray(one)[None] for name, one in image.items()}
            inputs = as_inputs(image if isinstance(image, Mapping) else np.asanyarray(image)[None], self._inputs)
            if count_of(inputs) > 1:
                raise RuntimeInputError(f"found {count_of(inputs)} pictures in one sample of a stream; expected one")
            cap = self.cap
            return (plan if cap is None else cap(plan, 1)), inputs

        def done(result: Result, seconds: float) -> None:
            for observer in self._observers:
                observer(result, seconds)

        batch, in_flight = whole("batch", batch, 1, _MOST_IN_STREAM), whole("in_flight", in_flight, 1)
        if not isinstance(images, Iterable):
            raise RuntimeInputError(f"found {shown(images)}; expected images, one after another")
        return Stream(self.device, admit, done, batch, in_flight).run(images)

    def run_uncut(self, images: Images) -> npt.NDArray[np.int64]:
        """Return the labels (N,) int64 of the uncut model, by one engine call per chunk: the baseline of benchmarks.

        Args:
            images: as in :meth:`__call__`.

        Raises:
            ConfigurationError: the uncut model was not opened, because of ``max_memory``.
            RuntimeInputError: type, shape or values are wrong, or the session is closed.
            PieceError: the model failed, or its scores are not numbers.
        """
        if self._uncut not in self.pieces:
            raise ConfigurationError("the uncut model is not loaded", hint="Load without max_memory.")
        if self._ended:
            raise self._gone()
        inputs = as_inputs(images, self._inputs)
        count = count_of(inputs)
        if count <= self.max_batch:
            return self._uncut_labels(inputs, count)
        parts = [(rows_of(inputs, rows), rows.stop - rows.start) for rows in chunks(count, self.max_batch)]
        return np.concatenate([self._uncut_labels(*part) for part in parts])

    def _uncut_labels(self, inputs: Inputs, count: int) -> npt.NDArray[np.int64]:
        with self.device.context(count) as context:
            for name in self._of_base:
                context.set_input(name, inputs[name])
            context.run(self._uncut)
            score, label = context.read(CONFIDENCE, LABEL)
            if not score.min() > 0:
                raise PieceError(f"{self._uncut} gave scores that are not numbers")
            return label.copy()

    def close(self) -> None:
        """Release the device, after running calls have finished. In a forked child, the engine is not released."""
        ended, self._ended = self._ended, "closed"
        if ended != _FORKED:
            self.device.close()

    def inherited(self) -> Device:
        """Mark the session as unusable in a forked child, and return its device: see :class:`EngineOwner`."""
        self._ended = self._ended or _FORKED
        return self.device

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> Device:
        try:
            return self.target.open(
                self.bundle.piece_specs(self.pieces), self.bundle.tensor_lives(self.pieces), self.spec
            )
        except (DyceError, MemoryError):
            raise
        except Exception as error:  # engines' exceptions share no base class
            raise TargetError(
                f"{self.target.name} could not open {self.bundle.path}: {type(error).__name__}: {error}",
                hint="`dyce inspect` shows which targets work here.",
            ) from error

    def _owned(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self._owner} controls the active configuration of this session",
            hint="Close that first, or let it choose the configuration.",
        )

    def _observed(self, plan: Plan, inputs: Inputs, count: int) -> Result:
        start = time.perf_counter()
        result = self._run(plan, inputs, count)
        seconds = time.perf_counter() - start
        for observer in self._observers:
            observer(result, seconds)
        return result

    def _run(self, plan: Plan, inputs: Inputs, count: int) -> Result:
        if count > self.max_batch:
            parts = [(rows_of(inputs, rows), rows.stop - rows.start) for rows in chunks(count, self.max_batch)]
            return _joined([self._run(plan, *part) for part in parts])
        with self.device.context(count) as context:
            return route(plan, context, inputs, count, self._classes)

    def _gone(self) -> RuntimeInputError:
        if self._ended != _FORKED:
            return RuntimeInputError("the session is closed", hint="Load the bundle again.")
        return RuntimeInputError(
            "the session was loaded before this process was forked, and an engine's threads are not copied",
            hint="Load the bundle in every process, or start processes with 'spawn'.",
        )


def _fitting(bundle: Bundle, spans: bool, max_memory: float | None) -> list[str]:
    """Return the ids of the pieces to open: without spans that are not used or do not fit into ``max_memory``.

    The uncut model is the last one to be included.
    """
    wanted = bundle.runnable(spans=spans)
    if max_memory is None:
        return [piece.id for piece in wanted]
    left = max_memory - sum(bundle.memory(piece.id) for piece in wanted if piece.role != "span")
    if left < 0:
        raise TargetError(
            f"the segments and heads take about {(max_memory - left) / 1e6:.1f} MB; found a limit of "
            f"{max_memory / 1e6:.1f} MB",
            hint="Raise max_memory, or export with fewer heads.",
        )
    chosen = []
    uncut = bundle.manifest.uncut
    for piece in sorted(wanted, key=lambda piece: (piece.role == "span", piece.id == uncut)):
        size = bundle.memory(piece.id) if piece.role == "span" else 0
        if size <= left:
            left -= size
            chosen.append(piece.id)
    return chosen


def _joined(parts: Sequence[Result]) -> Result:
    return Result(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.confidence for part in parts]),
        np.concatenate([part.exit for part in parts]),
        parts[0].configuration,
        parts[0].exit_ids,
    )
