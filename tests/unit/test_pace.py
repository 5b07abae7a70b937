"""Test the sizes of a map's chunks."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from ipytaskfarm.core.chunk_sizes import (
    CHUNK_S,
    CHUNK_S_MAX,
    CHUNKS_PER_ENGINE,
    COST_SHARE,
    GROWTH,
    ITEMS_MAX,
    Pace,
)


def test_the_first_ones_hold_one_item() -> None:
    assert [Pace(2).size(left) for left in (1, 5, 10**6, None)] == [1, 1, 1, 1]


def test_it_grows_with_what_was_measured() -> None:
    pace = Pace(2)
    sizes = []
    for _ in range(6):
        size = pace.size(None)
        sizes.append(size)
        pace.ended(size, size * 1e-6, False)
    assert sizes[:3] == [1, GROWTH, GROWTH * GROWTH]
    assert sizes[-1] == int(CHUNK_S / 1e-6)


def test_slow_items_are_alone() -> None:
    pace = Pace(2)
    pace.ended(1, 0.1, False)
    assert pace.size(100) == 1


def test_a_slow_chunk_counts_at_once_and_a_quick_one_by_and_by() -> None:
    pace = Pace(1)
    pace.ended(1000, 0.001, False)
    before = pace.size(None)
    pace.ended(1000, 1.0, False)
    assert pace.size(None) == 15
    pace.ended(1000, 0.001, False)
    assert 15 < pace.size(None) < before


def test_one_slow_moment_is_made_up_for() -> None:
    pace = Pace(1)
    for _ in range(6):
        size = pace.size(None)
        pace.ended(size, size * 1e-6, False)
    full = pace.size(None)
    pace.ended(full, full * 1e-3, False)
    assert pace.size(None) < full // 100
    for _ in range(30):
        size = pace.size(None)
        pace.ended(size, size * 1e-6, False)
    assert pace.size(None) > full // 2


def test_large_values_make_small_chunks() -> None:
    pace = Pace(1)
    pace.ended(1000, 0.001, True)
    assert pace.size(None) == 500


def test_a_costly_chunk_takes_a_multiple_of_its_cost() -> None:
    pace = Pace(2)
    assert pace.window == 2 * CHUNKS_PER_ENGINE
    pace.costs(0.02)
    assert pace.window == 2  # it is not known yet how small these are
    for _ in range(6):
        size = pace.size(None)
        pace.ended(size, size * 1e-3, False)
    assert pace.size(None) == COST_SHARE * 20
    assert pace.window == 2 * CHUNKS_PER_ENGINE
    pace.costs(60.0)
    assert pace.chunk_s == CHUNK_S_MAX
    pace.costs(0.0)
    assert pace.chunk_s == CHUNK_S


@pytest.mark.parametrize("fixed_s", [0.0, 0.05, 0.5])
def test_what_a_costly_chunk_takes_for_itself_is_not_its_items(fixed_s: float) -> None:
    pace = Pace(2)
    pace.costs(0.02)
    for _ in range(8):
        size = pace.size(None)
        pace.ended(size, fixed_s + size * 1e-3, False)
    assert pace.is_steady
    assert 40 <= pace.size(None) <= 80


def test_slow_items_of_costly_chunks_are_alone() -> None:
    pace = Pace(2)
    pace.costs(0.02)
    sizes = []
    for _ in range(8):
        sizes.append(pace.size(None))
        pace.ended(sizes[-1], sizes[-1] * 0.1, False)
    assert max(sizes) < 5
    assert sizes[-1] == 1


@given(
    st.integers(1, 64),
    st.lists(st.tuples(st.integers(1, ITEMS_MAX), st.floats(0, 100), st.booleans())),
    st.none() | st.integers(1, 10**7),
    st.floats(0, 100),
)
def test_there_is_always_a_next_chunk_within_bounds(
    engines: int, ended: list[tuple[int, float, bool]], left: int | None, cost_s: float
) -> None:
    pace = Pace(engines)
    pace.costs(cost_s)
    for each in ended:
        pace.ended(*each)
    assert 1 <= pace.size(left) <= max(1, min(ITEMS_MAX, left if left is not None else ITEMS_MAX))
    assert pace.window >= engines
