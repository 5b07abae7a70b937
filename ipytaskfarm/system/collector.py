"""Garbage collection in a process that holds the scheduler's state."""

from __future__ import annotations

import gc


def spare_the_collector() -> None:
    """Limit garbage collection.

    The state consists of long-lived containers without cycles: full collections would only examine a million tasks
    again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    gc.enable()
