"""Build a serialized TensorRT engine from the ONNX file of a piece."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyce_runtime.atomic_write import write_atomically
from dyce_runtime.errors import BundleError, TargetError
from dyce_runtime.execution.contracts import DEFAULT_MAX_BATCH, PieceSpec, TargetSpec
from dyce_runtime.json_files import check_regular
from dyce_targets.nvidia.products import Product

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger("dyce_targets")


TIMING = "timing.cache"


def build(product: Product, piece: PieceSpec, spec: TargetSpec, folder: Path) -> bytes:
    """Build a serialized engine with two optimization profiles: exactly one sample, and one to ``spec.max_batch``.

    Networks are strongly typed: the ONNX file determines the precision of every operation. TensorFloat-32 is off, since
    with ten bits of mantissa samples would take other exits than those for which the thresholds were chosen.

    Args:
        product: the product that builds the engine.
        piece: the piece.
        spec: options of the engine.
        folder: the folder of the engines, in which the timing cache is kept for the next piece.

    Returns:
        the serialized engine.

    Raises:
        BundleError: the product does not support an operator, which is named; or the graph cannot be read.
        TargetError: the product is not installed, does not build for a device, or the build failed.
    """
    if spec.precision != "float32":
        raise TargetError(
            f"{product.title} computes in the precision of the graphs; found a request for {spec.precision}",
            hint="`dyce lower BUNDLE --precision float16` writes it into them.",
        )
    trt = product.load()
    builder = trt.Builder(logger(trt))
    network = builder.create_network(_strongly_typed(trt))
    _parse(product, trt, network, piece)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if spec.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_mib << 20)
    product.target_devices(trt, config, spec.devices)
    for most in dict.fromkeys((1, spec.max_batch or DEFAULT_MAX_BATCH)):
        config.add_optimization_profile(_profile(trt, builder, piece, most))
    cache = _timing_cache(config, folder / TIMING) if product.times else None
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise TargetError(
            f"{product.title} {trt.__version__} could not build {piece.id}: {last_error(trt)}",
            hint="If memory ran out: close other programs, or compile with a smaller --max-batch.",
        )
    if cache is not None:
        _keep(cache, folder / TIMING)
    return bytes(engine)


def _timing_cache(config: tensorrt.IBuilderConfig, path: Path) -> tensorrt.ITimingCache:
    """Load the timing cache; an empty one if it is missing or damaged, or from another version or GPU."""
    with suppress(OSError):
        check_regular(path)
        stored = config.create_timing_cache(path.read_bytes())
        if stored is not None and config.set_timing_cache(stored, ignore_mismatch=False):
            return stored
        log.info("%s was made by another version or for another GPU; tactics are timed again", path)
    empty = config.create_timing_cache(b"")
    config.set_timing_cache(empty, ignore_mismatch=False)
    return empty


def _keep(cache: tensorrt.ITimingCache, path: Path) -> None:
    """Store the timing cache; if that fails, log a warning: the next build then takes longer."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, bytes(cache.serialize()))
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error.strerror)


def _strongly_typed(trt: Any) -> int:
    """Return the flag for strongly typed networks; 0 if there is none, as in TensorRT 11, where all networks are."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(product: Product, trt: Any, network: tensorrt.INetworkDefinition, piece: PieceSpec) -> None:
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, logger(trt))
    if parser.parse_from_file(str(piece.path)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = "; ".join(_described(error) for error in errors) or "no reason given"
    raise BundleError(
        f"{piece.path} does not load in {product.title} {trt.__version__}: {said}",
        hint="The bundle still runs on its other targets, such as onnxruntime.",
    )


def _described(error: tensorrt.ParserError) -> str:
    operator, said = error.node_operator(), error.desc()
    if not operator:
        return said
    return f"the operator {operator} (node {error.node_name()}) is not supported" + (
        "" if said == "false" else f": {said}"
    )


def _profile(trt: Any, builder: tensorrt.Builder, piece: PieceSpec, most: int) -> tensorrt.IOptimizationProfile:
    """Return a profile for 1 to ``most`` samples that is optimized for ``most``."""
    profile = builder.create_optimization_profile()
    for tensor in piece.inputs:
        one = tuple(map(int, tensor.shape[1:]))
        least, largest = trt.Dims((1, *one)), trt.Dims((most, *one))
        profile.set_shape(tensor.name, least, largest, largest)
    return profile


_loggers: dict[str, Any] = {}


def logger(trt: Any) -> Any:
    """Return the logger for a product, which requires the same one everywhere.

    It forwards to Python's logging and keeps the last error.
    """
    if trt.__name__ not in _loggers:

        class Logger(trt.ILogger):  # type: ignore[misc]  # the base class is known at run time only
            last = ""

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    self.last = message
                log.debug("%s: %s", trt.__name__, message)

            def __init__(self) -> None:
                trt.ILogger.__init__(self)

        _loggers[trt.__name__] = Logger()
    return _loggers[trt.__name__]


def last_error(trt: Any) -> str:
    """Return the last error message that the product logged."""
    return logger(trt).last or "no reason given"
