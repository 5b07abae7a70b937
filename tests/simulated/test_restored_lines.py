"""Tests of the lines in which tasks come back from the store."""

from __future__ import annotations

from hypothesis import given, strategies as st

from ipytaskfarm.core.scheduler.entries import TaskClass, TaskEntry
from ipytaskfarm.core.scheduler.task import NO_PAST, OPEN_CLASS

PLACES = st.lists(st.tuples(st.sampled_from([0, 0, 0, -1, 1]), st.integers(0, 30)), unique=True, max_size=12)


def entries(places: list[tuple[int, int]], first_id: int) -> list[TaskEntry]:
    """Return tasks with these keys and places in the queue."""
    return [
        TaskEntry(n, seq, 0.0, "s", None, None, None, NO_PAST, key=key)
        for n, (key, seq) in enumerate(places, start=first_id)
    ]


@given(PLACES, PLACES)
def test_a_line_is_queued_like_its_tasks_one_by_one(before: list[tuple[int, int]], line: list[tuple[int, int]]) -> None:
    task_class = TaskClass(OPEN_CLASS)
    line = [place for place in line if place not in before]
    tasks = [*entries(before, 0), *entries(line, len(before))]
    for task in tasks[: len(before)]:
        task_class.push(task)
    head = task_class.head()
    leads = bool(line) and task_class.push_line(tasks[len(before) :])
    assert leads == (task_class.head() != head)
    assert task_class.size == len(tasks) == task_class.holds()
    popped = [task_class.pop() for _ in tasks]
    assert popped == sorted(tasks, key=lambda task: (task.key, task.queue_seq))
    assert task_class.pop() is None
