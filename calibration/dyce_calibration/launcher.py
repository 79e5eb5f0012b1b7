"""What a launcher (``torchrun``, ``accelerate launch``, ``mpirun``) tells the processes that it starts."""

from __future__ import annotations

import os

# Variables set by torchrun, MPICH and Intel MPI, Open MPI and MVAPICH; Accelerate reads them, too.
_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def process_count() -> int:
    """Return the number of processes that were started together."""
    return _first(_COUNT, 1)


def is_main() -> bool:
    """Return whether this is the process that prints and writes."""
    return _first(_RANK, 0) == 0


def _first(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)
