"""The session: an open bundle and the knob that turns it."""

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
from dyce_runtime.inputs.images import Images, Inputs, as_inputs, count_of, rows_of
from dyce_runtime.inputs.pictures import Pictures
from dyce_runtime.inputs.preprocessing import listed, preprocess
from dyce_runtime.process_bound import EngineOwner
from dyce_runtime.targets import registry

# Called with what a call returned and the seconds that it took.
Observer: TypeAlias = Callable[[Result, float], None]
_FORKED = "forked"

# The most samples that run at once: buffers of that size are made when that many come.
_MOST_AT_ONCE = 1 << 16
_MOST_IN_STREAM = 1 << 12


class Session(EngineOwner):
    """An open bundle with an active configuration.

    Every call reads the active configuration once: turning the knob from another thread affects the next call. A
    session belongs to its process: a forked child, or a worker that would get it pickled, loads the bundle itself.

    Attributes:
        bundle: what is open.
        target: the engine.
        spec: how it was asked to open the pieces.
        pieces: ids of the pieces that are open.
        device: the open pieces.
        max_batch: samples that run at once; larger calls are cut into parts.
        cap: what a call of so many samples runs instead of the active plan, if that is limited.
        unchecked: whether the bundle was opened without looking at its hashes and test vectors.
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
        # Why it cannot be used any more; empty while it can.
        self._ended = ""
        self._inputs = bundle.manifest.specs(bundle.manifest.inputs)
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
        """The names that :meth:`use` knows, each with its loss and cost on the test samples; None if never measured."""
        return {name: entry.test for name, entry in self.bundle.configurations.named.items()}

    def __repr__(self) -> str:
        """One line: the bundle, the engine, and the active configuration."""
        state = (", unchecked" if self.unchecked else "") + (f", {self._ended}" if self._ended else "")
        names = ", ".join(self.bundle.configurations.named)
        return (
            f"<Session of {self.bundle.path.name} ({self.manifest.model.name}) on {self.target.name} "
            f"{self.manifest.precision}, using {self.configuration.name!r} of {names}{state}>"
        )

    def use(self, configuration: str | Configuration) -> None:
        """Turn the knob: a name from the bundle, or a configuration of your own.

        One attribute is written, so a call that runs meanwhile keeps the configuration that it has read. The first
        use of a configuration resolves it, further ones look that up.

        Raises:
            ConfigurationError: unknown, not of this bundle, with untrained heads that were not allowed, or the knob
                is somebody else's (see :meth:`take_knob`).
        """
        if self._owner is not None:
            raise self._owned()
        if type(configuration) is str and (plan := self._plans.named.get(configuration)) is not None:
            self._plan = plan
        else:
            self._plan = self.plan(configuration)

    def plan(self, configuration: str | Configuration) -> Plan:
        """What a configuration runs here; resolved once, then looked up.

        Raises:
            ConfigurationError: as in :meth:`use`.
        """
        return self._plans.of(configuration)

    def take_knob(self, owner: str) -> Callable[[Configuration], None]:
        """From now on only the returned function turns the knob; :meth:`use` and ``budget`` raise and name the owner.

        Raises:
            ConfigurationError: it is taken already.
        """
        if self._owner is not None:
            raise self._owned()
        self._owner = owner

        def turn(configuration: Configuration) -> None:
            self._plan = self.plan(configuration)

        return turn

    def release_knob(self) -> None:
        """Let everybody turn the knob again."""
        self._owner = None

    def attach(self, observer: Observer) -> None:
        """Call ``observer(result, seconds)`` after every call, in its thread. Without any, nothing is timed.

        Raises:
            RuntimeInputError: it cannot be called.
        """
        if not callable(observer):
            raise RuntimeInputError(f"the observer is {shown(observer)}; expected a function")
        self._observers = (*self._observers, observer)

    def detach(self, observer: Observer) -> None:
        """Stop that."""
        self._observers = tuple(other for other in self._observers if other is not observer)

    @property
    def budget(self) -> float | None:
        """The share of the full model's cost that was last set as the limit; None after :meth:`use`.

        Setting it turns the knob to the most accurate configuration within it. Costs are means over the search
        split, in the unit of the search.

        Raises:
            ConfigurationError: nothing costs as little as that, the bundle has no searched configurations, or it is
                no number.
        """
        return self._plan.budget

    @budget.setter
    def budget(self, share: float) -> None:
        if self._owner is not None:
            raise self._owned()
        if not is_real(share):
            raise ConfigurationError(f"the budget is {shown(share)}; expected a share of the full model's cost")
        self._plan = self._plans.within(share)

    def preprocess(self, images: Picture | Iterable[Picture]) -> Images:
        """Pictures (paths, bytes, open files, PIL images or HWC arrays) to what a call takes.

        That is float32 (N, C, H, W); where savers prepare pictures in ways of their own these by the name of the
        input, for what runs first now, for the others when a picture gets there (see
        :class:`dyce_runtime.inputs.pictures.Pictures`).

        Raises:
            RuntimeInputError, DataError: see :func:`dyce_runtime.inputs.preprocessing.preprocess`.
        """
        ways = self.manifest.inputs
        if len(ways) == 1:
            return preprocess(images, self.manifest.preprocessing)
        first = self._plan.stages[0].inputs[0].input
        return Pictures(listed(images, self.manifest.preprocessing), ways, first)

    def inputs(self, images: Images) -> Inputs:
        """What a call takes, checked, by the name of the input. Raises RuntimeInputError."""
        return as_inputs(images, self._inputs)

    def __call__(self, images: Images) -> Result:
        """Classify preprocessed images.

        Args:
            images: float32 (N, C, H, W), N at least 1; or a dictionary of these, see :meth:`preprocess`.

        Raises:
            RuntimeInputError: wrong type, shape or values, or the session is closed.
            PieceError: a piece failed; the session stays usable.
        """
        plan = self._plan
        if self._ended:
            raise self._gone()
        inputs = as_inputs(images, self._inputs)
        count = len(images) if type(images) is np.ndarray else count_of(inputs)
        if (cap := self.cap) is not None:  # read once: another thread may take it away
            plan = cap(plan, count)
        if self._observers:
            return self._observed(plan, inputs, count)
        return self._run(plan, inputs, count)

    def stream(self, images: Iterable[Images], *, batch: int = 8, in_flight: int = 32) -> Iterator[Result]:
        """Classify samples as they come, in batches that are filled up at every segment.

        Each sample runs under the configuration that is active when it is taken from ``images``.

        Args:
            images: preprocessed samples, float32 (C, H, W), one after another; or dictionaries of these, or what
                :meth:`preprocess` makes of one picture where it makes several arrays of it.
            batch: samples that run at once.
            in_flight: samples taken and not yet yielded, at most.

        Yields:
            one result (N = 1) for each sample, in the order of the input.

        Raises:
            RuntimeInputError: an argument is out of range; or a sample does not fit, then those before it are
                yielded first.
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
        """Labels (N,) int64 of the uncut model, in one engine call per chunk and nothing else: a benchmark's baseline.

        Raises:
            ConfigurationError: the uncut model was left out of memory.
            PieceError: it failed, or its scores are not numbers.
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
        """Release the device; calls that are running end. In a forked child the parent's engine is left alone."""
        ended, self._ended = self._ended, "closed"
        if ended != _FORKED:
            self.device.close()

    def inherited(self) -> Device:
        """See :class:`EngineOwner`."""
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
            f"the knob of this session belongs to {self._owner}", hint="Close that first, or let it turn the knob."
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
    """Ids of the pieces to open: all but the spans that are of no use or too much, the uncut model first of these."""
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
