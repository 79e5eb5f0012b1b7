"""What a call takes: checked before anything runs."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dyce_runtime.errors import RuntimeInputError

_FLOAT32 = np.dtype(np.float32)
# Up to that many numbers BLAS starts no threads for a sum.
_SMALL = 8192


def check_images(images: npt.NDArray[np.float32], shape: tuple[int | str, ...]) -> None:
    """Raise RuntimeInputError unless ``images`` is a float32 array (N, *shape) of finite numbers, N at least 1."""
    fits = isinstance(images, np.ndarray) and images.dtype == _FLOAT32 and images.shape[1:] == shape
    if not fits or len(images) == 0:
        raise _misfit(images, shape)
    if not _finite(images):
        bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))
        raise RuntimeInputError(f"sample {bad[0]} holds NaN or infinity; expected finite numbers")


def _finite(images: npt.NDArray[np.float32]) -> bool:
    """Without allocating; of the quickest way for a small picture and for a large one, after an inference."""
    if images.size <= _SMALL:
        # A sum of squares only lacks a value where one of them does, or where they are huge.
        return math.isfinite(np.vdot(images, images)) or bool(np.isfinite(images).all())
    return bool(images.max() < np.inf and images.min() > -np.inf)  # comparisons with NaN are false


def _misfit(images: object, shape: tuple[int | str, ...]) -> RuntimeInputError:
    wanted = f"expected a float32 array of shape (N, {', '.join(map(str, shape))})"
    hint = "session.preprocess(...) makes it."
    if not isinstance(images, np.ndarray):
        return RuntimeInputError(f"found {type(images).__name__}; {wanted}", hint=hint)
    if images.shape[1:] == shape and images.size == 0:
        return RuntimeInputError(f"found an empty batch; {wanted} with N at least 1")
    return RuntimeInputError(f"found {images.dtype} of shape {images.shape}; {wanted}", hint=hint)
