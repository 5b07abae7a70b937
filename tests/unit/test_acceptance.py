"""The order of acceptance, against a plain list."""

from __future__ import annotations

from hypothesis import given, strategies as st

from ipytaskfarm.core.scheduler.acceptance import AcceptanceOrder


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)), st.integers(1, 12))
def test_the_latest_are_those_of_a_list(accepted: list[int], cleared: set[int], unwanted: set[int], count: int) -> None:
    order, again = AcceptanceOrder(), AcceptanceOrder()
    for task_id in accepted:
        order.add(task_id)
    again.restore((place, task_id, 0) for place, task_id in enumerate(accepted) if task_id not in cleared)
    expected = [i for i in reversed(accepted) if i not in cleared and i not in unwanted][:count]
    for found in (order, order, again):  # a second time without the runs that were dropped
        assert found.latest(count, lambda i: i not in cleared, lambda i: i not in unwanted)[0] == expected


def test_cleared_ids_are_looked_at_once() -> None:
    order = AcceptanceOrder()
    for task_id in range(1000):
        order.add(task_id)
    looked: list[int] = []

    def is_known(task_id: int) -> bool:
        looked.append(task_id)
        return task_id < 3

    assert order.latest(2, is_known, lambda _: True)[0] == [2, 1]
    assert len(looked) >= 997
    looked.clear()
    assert order.latest(2, is_known, lambda _: True)[0] == [2, 1]
    assert len(looked) <= 4
    order.add(1000)
    assert order.latest(2, lambda _: True, lambda _: True)[0] == [1000, 2]


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)), st.integers(1, 4), st.integers(1, 5))
def test_the_order_can_be_read_in_pages(accepted: list[int], cleared: set[int], count: int, looked_at: int) -> None:
    order = AcceptanceOrder()
    for task_id in accepted:
        order.add(task_id)
    found: list[int] = []
    before: int | None = -1
    pages = 0
    while before is not None:
        page, before = order.latest(count, lambda i: i not in cleared, lambda _: True, before, looked_at)
        assert len(page) <= min(count, looked_at)
        found += page
        pages += 1
        assert pages <= 13
    assert found == [i for i in reversed(accepted) if i not in cleared]
    assert order.latest_first(set(accepted) - cleared) == found
