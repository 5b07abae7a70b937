"""What `make test` leaves to `make worst` (THOROUGH=1): more examples, and tests that take long and seldom fail."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import pytest

Case = TypeVar("Case")

THOROUGH = bool(os.environ.get("THOROUGH"))

by_hand = pytest.mark.skipif(not THOROUGH, reason="it takes long: `make worst` runs it")
"""For a test that takes ten seconds and more, and has a quicker one of the same kind beside it."""


def some(few: int, thorough: int) -> int:
    """Return how many examples, seeds or places are tried this time."""
    return thorough if THOROUGH else few


def some_of(cases: Sequence[Case], few: int) -> Sequence[Case]:
    """Return the cases that are tried this time: a few that lie far apart, or all of them."""
    return cases if THOROUGH else cases[:: -(-len(cases) // few)]
