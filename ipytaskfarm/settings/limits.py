"""The settings that keep one peer from taking what belongs to all, see `core.limits` and ``docs/limits.md``."""

from __future__ import annotations

from typing import Annotated, TypedDict

from ..core.limits import PeerLimits
from .checks import check_incoming
from .setting import CONTROLLER, count_setting, size_setting

_DEFAULTS = PeerLimits()


class LimitArguments(TypedDict, total=False):
    """The limits among the keyword arguments of `Farm`."""

    max_tasks: Annotated[
        int | None,
        count_setting(
            "accept no task while so many have not ended; clients keep theirs, and hand them in when there is room",
            1,
            processes=(CONTROLLER,),
            field="max_tasks",
        ),
    ]
    max_sessions: Annotated[
        int | None,
        count_setting(
            "how many clients, or agents, may be connected under one key; more are told to come again later",
            8,
            processes=(CONTROLLER,),
            standard=_DEFAULTS.sessions,
        ),
    ]
    incoming_limit: Annotated[
        int | str | None,
        size_setting(
            "how much memory the controller has for messages that it has received and not handled, of all peers;"
            " whoever sends more is told to come again later; at least 512M",
            check=check_incoming,
            means="768M",
            processes=(CONTROLLER,),
            standard=_DEFAULTS.incoming,
        ),
    ]
    outgoing_limit: Annotated[
        int | str | None,
        size_setting(
            "how much memory the controller has for messages that their receivers have not taken; the peer with most"
            " of them begins its session anew; at least 512M",
            check=check_incoming,
            means="1G",
            processes=(CONTROLLER,),
            standard=_DEFAULTS.outgoing,
        ),
    ]
