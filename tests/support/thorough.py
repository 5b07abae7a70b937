"""How much a test repeats: `make test` tries a few examples, `make worst` (THOROUGH=1) tries them all."""

from __future__ import annotations

import os

THOROUGH = bool(os.environ.get("THOROUGH"))


def some(few: int, thorough: int) -> int:
    """Return how many examples, seeds or places are tried this time."""
    return thorough if THOROUGH else few
