"""Check ids and durations that users pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from operator import index
from typing import Any, TypeAlias

from ..core.arguments import INT_MAX, INT_MIN, check_timeout
from ..core.text import exactly, shown

Ids: TypeAlias = Any
"""An id, a future, or a sequence of them."""
Timeout: TypeAlias = float | timedelta | None
LISTED = 10
"""How many ids an error names."""


def seconds(timeout: Timeout, what: str = "timeout") -> float | None:
    """Return a duration in seconds; None means no limit."""
    return None if timeout is None else check_timeout(what, timeout)


def task_id(value: object, farm: str = "") -> int:
    """Return an id as an int.

    Integers of numpy and futures are ids; True is not.

    Args:
        value: what the user passed.
        farm: the name of the farm that is asked.

    Raises:
        TypeError: the value is no id.
        ValueError: it is a future of another farm.
        IndexError: the number is too large to be an id.
    """
    if farm:
        check_farm(value, farm)
    if isinstance(value, bool):
        raise _no_id(value)
    try:
        found = index(value)  # type: ignore[arg-type]
    except Exception:  # an __index__ of the user's own may raise anything
        raise _no_id(value) from None
    if not INT_MIN <= found <= INT_MAX:
        raise _never_issued(found)
    return found


def check_farm(value: object, farm: str) -> None:
    """Raise ValueError for a future of another farm: the same id is another task here."""
    own = getattr(value, "farm", None) if hasattr(value, "__index__") else None
    if isinstance(own, str) and own != farm:
        raise ValueError(
            f"task {index(value)} belongs to farm {own!r}, not to {farm!r}: give its value, future.result()"  # type: ignore[arg-type]
        )


def id_list(ids: Ids, farm: str = "") -> list[int]:
    """Return one id, or several, as a list; see `task_id`."""
    if isinstance(ids, Iterable) and not isinstance(ids, (str, bytes)):
        found = [i if i.__class__ is int else task_id(i, farm) for i in ids]
        if found and not (min(found) >= INT_MIN and max(found) <= INT_MAX):
            raise _never_issued(max(found, key=abs))
        return found
    return [task_id(ids, farm)]


def listed(ids: Sequence[int]) -> str:
    """Return the first ids of a list, and the number of the others, for a sentence."""
    more = len(ids) - LISTED
    return ", ".join(map(str, ids[:LISTED])) + (f" and {more:,} more" if more > 0 else "")


def not_registered(ids: Sequence[int], more: str = "") -> IndexError:
    """Return the error for ids that the farm does not know.  more: the end of the sentence."""
    return IndexError(f"task ID not registered: {listed(ids)} (never issued, or cleared){more}")


def _no_id(value: object) -> TypeError:
    """Return the error for a value that is no id, with advice where to find the id."""
    if hasattr(value, "_payload"):
        remedy = "; a Task has no id: tc.run(task) returns one"
    elif hasattr(value, "taskid"):
        remedy = "; the id of a TaskResult is its .taskid"
    elif hasattr(value, "add_task"):
        remedy = "; the ids of a Job's tasks are its .ids"
    elif isinstance(value, str) and exactly(value).strip().isdecimal():
        remedy = f"; int({shown(value)}) is one"
    elif isinstance(value, str):
        remedy = "; tc.tasks(name=…) finds tasks by their name, tc.job(name).ids those of a job"
    elif isinstance(value, Iterable):
        remedy = "; this call takes one id at a time"
    else:
        remedy = ""
    return TypeError(f"an integer task id expected: {shown(value)}{remedy}")


def _never_issued(value: int) -> IndexError:
    return IndexError(f"task ID not registered: a number of {value.bit_length()} bits (never issued)")
