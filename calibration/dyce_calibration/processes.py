"""The processes that calibrate together: one, or several that a launcher has started, connected by Accelerate.

Each process works on its share of the samples and on its own files; all communication is in this module.
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
    """The group of cooperating processes, seen from this one. This base class is a single process.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
    """

    rank = 0
    count = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; the shapes have to be equal."""
        return tensor

    def gather(self, rows: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """Return the rows of all processes, ordered by rank; processes may have different numbers of rows."""
        return rows

    def from_main(self, make: Callable[[], _Result]) -> _Result:
        """Return what ``make`` returns in the main process; the others wait for it."""
        return make()

    def together(self, module: nn.Module) -> nn.Module:
        """Return the module wrapped so that ``backward`` averages gradients over all processes."""
        return module


#: A process on its own.
ALONE = Processes()


class _Launched(Processes):
    """One of several processes; see :class:`Processes`."""

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
        except ImportError:
            raise UsageError(
                "several processes were started, and they cannot communicate: accelerate is not installed",
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
    """Return the processes of this run. Raises UsageError if there are several and Accelerate is not installed."""
    return _Launched() if process_count() > 1 else ALONE
