"""Memory of the host for the tensors of samples."""

from __future__ import annotations

import numpy as np
import pytest

from dyce_runtime.errors import TargetError
from dyce_targets.cpu import host_buffers


def test_memory_that_is_not_there_is_an_error_that_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "zeros", zeros)
    with pytest.raises(TargetError, match="64 MiB for the tensors of the samples cannot be allocated"):
        host_buffers._aligned(64 << 20)
