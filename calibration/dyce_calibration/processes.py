"""The processes that calibrate together: one, or as many as a launcher has started, connected by Accelerate.

Each works on its share of the samples, on its own files; what they exchange goes through here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from dyce_calibration.launcher import process_count
from dyce_runtime.errors import UsageError

_Scalar = TypeVar("_Scalar", bound=np.generic)
_Result = TypeVar("_Result")


class Processes:
    """This process and those beside it; on its own it is alone.

    Attributes:
        rank: of this process, from 0.
        count: of all processes.
    """

    rank = 0
    count = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of tensors of one shape."""
        return tensor

    def gather(self, rows: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """The rows of all processes, of which each may have a different number, in the order of the processes."""
        return rows

    def from_main(self, make: Callable[[], _Result]) -> _Result:
        """What the main process makes; the others wait for it."""
        return make()

    def together(self, module: nn.Module) -> nn.Module:
        """The module with the gradients of all processes averaged in ``backward``."""
        return module


#: A process on its own.
ALONE = Processes()


class _Launched(Processes):
    """As :class:`Processes`, among several."""

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
        except ImportError:
            raise UsageError(
                "several processes were started, and they cannot talk to each other: accelerate is not installed",
                hint="pip install 'dyce-export[distributed]', or start one process.",
            ) from None
        self._accelerator = Accelerator(cpu=True)
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes

    def sum(self, tensor: Tensor) -> Tensor:
        """See :meth:`Processes.sum`."""
        total: Tensor = self._accelerator.reduce(tensor.clone(), "sum")
        return total

    def gather(self, rows: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """See :meth:`Processes.gather`."""
        from accelerate.utils import gather_object

        return np.concatenate(gather_object([rows]))

    def from_main(self, make: Callable[[], _Result]) -> _Result:
        """See :meth:`Processes.from_main`."""
        from accelerate.utils import broadcast_object_list

        results = [make() if self.main else None]
        broadcast_object_list(results)
        assert results[0] is not None
        return results[0]

    def together(self, module: nn.Module) -> nn.Module:
        """See :meth:`Processes.together`."""
        prepared: nn.Module = self._accelerator.prepare_model(module)
        return prepared


def connect() -> Processes:
    """The processes of this run. Raises UsageError if there are several and Accelerate is not installed."""
    return _Launched() if process_count() > 1 else ALONE
