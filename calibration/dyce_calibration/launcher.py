"""What a launcher (``torchrun``, ``accelerate launch``, ``mpirun``) tells the processes it starts."""

from __future__ import annotations

import os

# The names that torchrun, MPICH and Intel MPI, Open MPI and MVAPICH give, which Accelerate reads, too.
_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def process_count() -> int:
    """How many processes were started together."""
    return _first(_COUNT, 1)


def is_main() -> bool:
    """Whether this is the one of them that prints and writes."""
    return _first(_RANK, 0) == 0


def _first(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)
