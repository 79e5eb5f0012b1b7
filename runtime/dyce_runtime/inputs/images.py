"""Check the argument of a call before anything runs, and select samples from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dyce_runtime.bundle.manifest import Preprocessing, TensorSpec
from dyce_runtime.errors import RuntimeInputError
from dyce_runtime.inputs.pictures import Pictures

# Name of each input of a bundle to images (N, C, H, W).
Inputs: TypeAlias = Mapping[str, npt.NDArray[np.float32]]
# The argument of a call: for a bundle with one input, a single array is enough.
Images: TypeAlias = "npt.NDArray[np.float32] | Inputs"

_FLOAT32 = np.dtype(np.float32)
# The most values for which BLAS computes a dot product without starting threads.
_SMALL = 8192
# Values may be that many times as large as the largest that preprocessing makes: more is no scaled image, but one whose
# pixels still are numbers from 0 to 255, for example, and would get an answer that means nothing.
_TIMES = 10


class ExpectedInput(NamedTuple):
    """What an input of a bundle has to be like.

    Attributes:
        name: of the tensor.
        shape: of one image, (C, H, W).
        lowest, highest: the bounds of what preprocessing makes.
        limit: the largest absolute value that is accepted.
    """

    name: str
    shape: tuple[int | str, ...]
    lowest: float
    highest: float
    limit: float

    @staticmethod
    def of(spec: TensorSpec, way: Preprocessing) -> ExpectedInput:
        """Return what preprocessing makes of pixels from 0 to 1."""
        lowest = min(-mean / std for mean, std in zip(way.mean, way.std, strict=True))
        highest = max((1 - mean) / std for mean, std in zip(way.mean, way.std, strict=True))
        return ExpectedInput(spec.name, spec.shape[1:], lowest, highest, _TIMES * max(abs(lowest), abs(highest)))


def as_inputs(images: Images, expected: Sequence[ExpectedInput]) -> Inputs:
    """Check the argument of a call and return name of each input to images. Arrays are not copied.

    Args:
        images: the argument.
        expected: the inputs of the bundle.

    Raises:
        RuntimeInputError: an input is missing, or an array does not fit; see :func:`check_images`.
    """
    # The type is tested first, since isinstance(array, Mapping) takes as long as checking a small array.
    if len(expected) == 1 and (type(images) is np.ndarray or not isinstance(images, Mapping)):
        check_images(images, expected[0])
        return {expected[0].name: images}
    names = [one.name for one in expected]
    if isinstance(images, Pictures) and {n: images.shape(n) for n in images} == {e.name: e.shape for e in expected}:
        return images
    if not isinstance(images, Mapping) or sorted(images) != sorted(names):
        found = f"images for {', '.join(images)}" if isinstance(images, Mapping) else type(images).__name__
        raise RuntimeInputError(
            f"found {found}; expected a dictionary with images for {', '.join(names)}, since the networks of this "
            "bundle prepare pictures in different ways",
            hint="session.preprocess(...) makes it.",
        )
    for one in expected:
        check_images(images[one.name], one)
    if len({len(images[name]) for name in names}) > 1:
        counts = ", ".join(f"{len(images[name])} for {name}" for name in names)
        raise RuntimeInputError(f"found different numbers of images: {counts}; expected the same pictures in all")
    return images


def count_of(inputs: Inputs) -> int:
    """Return the number of samples."""
    if type(inputs) is not dict and isinstance(inputs, Pictures):
        return inputs.count
    return len(next(iter(inputs.values())))


def rows_of(inputs: Inputs, rows: slice) -> Inputs:
    """Return a range of the samples, for all inputs."""
    if isinstance(inputs, Pictures):
        return inputs.part(rows)
    return {name: images[rows] for name, images in inputs.items()}


def some_of(inputs: Inputs, name: str, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    """Return the samples at indices ``rows``, for one input."""
    return inputs.some(name, rows) if isinstance(inputs, Pictures) else inputs[name][rows]


def all_of(images: Images) -> Images:
    """Return the same with the preprocessing of all inputs done, so that it is not measured."""
    return dict(images) if isinstance(images, Mapping) else images


def check_images(images: npt.NDArray[np.float32], expected: ExpectedInput) -> None:
    """Raise RuntimeInputError unless this is a float32 array (N, C, H, W), N at least 1, of values that can be."""
    fits = isinstance(images, np.ndarray) and images.dtype == _FLOAT32 and images.shape[1:] == expected.shape
    if not fits or len(images) == 0 or (type(images) is not np.ndarray and np.ma.is_masked(images)):
        raise _misfit(images, expected.shape)
    if not _within(images, expected.limit):
        raise _outside(images, expected)


def _within(images: npt.NDArray[np.float32], limit: float) -> bool:
    """Return whether all absolute values are within the limit, without allocating, as fast as the size allows."""
    # A sum of squares bounds each of them, and comparisons with NaN are false.
    if images.size <= _SMALL and np.vdot(images, images) <= limit**2:
        return True
    return bool(images.max() <= limit and images.min() >= -limit)


def _outside(images: npt.NDArray[np.float32], expected: ExpectedInput) -> RuntimeInputError:
    fits = (np.abs(images) <= expected.limit).reshape(len(images), -1)
    bad = np.flatnonzero(~fits.all(axis=1))[0]
    if not np.isfinite(images[bad]).all():
        return RuntimeInputError(f"sample {bad} holds NaN or infinity; expected finite numbers")
    value = images[bad].reshape(-1)[fits[bad].argmin()]
    return RuntimeInputError(
        f"sample {bad} holds {value:g}, and the preprocessing of this bundle makes numbers from {expected.lowest:.3g} "
        f"to {expected.highest:.3g}; expected no more than {_TIMES} times as much",
        hint="session.preprocess(...) scales images as the network expects them.",
    )


def _misfit(images: object, shape: tuple[int | str, ...]) -> RuntimeInputError:
    wanted = f"expected a float32 array of shape (N, {', '.join(map(str, shape))})"
    hint = "session.preprocess(...) makes it."
    if not isinstance(images, np.ndarray):
        return RuntimeInputError(f"found {type(images).__name__}; {wanted}", hint=hint)
    if np.ma.is_masked(images):
        return RuntimeInputError(
            f"found a masked array that hides values; {wanted}", hint="images.filled(...) fills them."
        )
    if images.shape[1:] == shape and images.size == 0:
        return RuntimeInputError(f"found an empty batch; {wanted} with N at least 1")
    return RuntimeInputError(f"found {images.dtype} of shape {images.shape}; {wanted}", hint=hint)
