"""Checks of what a client submits, and refusals of it."""

from __future__ import annotations

from ..core import errors
from ..transport.wire import MAX_MESSAGE_BYTES

PAYLOAD_BYTES_MAX = MAX_MESSAGE_BYTES // 2 - 1024 * 1024
"""Most bytes of a task with the functions that it needs: both must fit into one message."""


def check_size(what: str, size: int) -> None:
    if size > PAYLOAD_BYTES_MAX:
        raise errors.ResultTooLarge(
            f"{what} of {size:,} bytes cannot travel, the limit is {PAYLOAD_BYTES_MAX:,}: "
            "hand large data over in a file, or in pieces"
        )


def refusal_because(why: str) -> errors.TaskFarmError:
    """Return the reason why nothing is accepted now as an error."""
    if "stopping" in why:
        return errors.FarmNotRunning(why)
    return errors.StoreFull(f"{why}; what was submitted is kept here and sent again")
