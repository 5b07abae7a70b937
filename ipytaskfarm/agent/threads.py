"""How many threads the numeric libraries of an engine may have, unless the user has said it."""

from __future__ import annotations

import os

from ..core.requirements import THREADS
from ..system.cores import usable_cores

_OPENMP = "OMP_NUM_THREADS"
_FOLLOW_OPENMP = frozenset({
    "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
})  # fmt: skip
"""Libraries that read these read OMP_NUM_THREADS where they are not set."""


def thread_limits(engines: int) -> dict[str, str]:
    """The variables for one of so many engines that share the cores; those that the user has set are not among them."""
    count = str(max(1, usable_cores() // max(1, engines)))
    openmp_is_set = bool(os.environ.get(_OPENMP))
    return {
        name: count for name in THREADS if not os.environ.get(name) and not (openmp_is_set and name in _FOLLOW_OPENMP)
    }
