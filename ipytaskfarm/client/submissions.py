"""Checks of what a client hands in, and refusals of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..core import errors
from ..core.messages.dependencies import Needs
from ..transport.wire import MAX_MESSAGE_BYTES

PAYLOAD_BYTES_MAX = MAX_MESSAGE_BYTES // 2 - 1024 * 1024
"""Most bytes of a task with the functions that it needs: both must fit into one message."""


def resolved(needs: Needs, ids: Sequence[int]) -> Needs:
    """Replace positions in a job, which are -1, -2, …, by ids."""
    after = tuple(i if i >= 0 else ids[-1 - i] for i in needs.after)
    inputs = tuple((name, i if i >= 0 else ids[-1 - i]) for name, i in needs.inputs)
    return msgspec.structs.replace(needs, after=after, inputs=inputs)


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
    return errors.StoreFull(f"{why}; what was handed in is kept here and sent again")
