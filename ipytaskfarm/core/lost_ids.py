"""The ids in an `InputsLost`, which a task gives, or changes afterwards."""

from __future__ import annotations

from collections.abc import Iterable

LOST_MAX = 100_000
"""The most ids in one `InputsLost`."""
LOST_SHOWN = 100
_ID_MAX = 2**63 - 1


def lost_ids(what: str, ids: Iterable[object]) -> list[int]:
    """Return the ids of an `InputsLost` as integers.

    Args:
        what: "task" or "engine", for the error.

    Raises:
        ValueError: one is no id, or there are too many.
    """
    found: list[int] = []
    for each in ids:
        if len(found) == LOST_MAX:
            raise ValueError(f"InputsLost takes at most {LOST_MAX:,} {what} ids: raise it for the first ones")
        try:
            number = int(each)  # type: ignore[call-overload]
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"InputsLost takes {what} ids, which are whole numbers, not {each!r:.100}") from None
        if not 0 <= number <= _ID_MAX:
            raise ValueError(f"InputsLost takes {what} ids from 0 to {_ID_MAX}, not {number!r:.100}")
        found.append(number)
    return found
