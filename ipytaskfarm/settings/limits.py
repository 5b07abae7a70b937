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
            "accept no further tasks while this many have not ended; clients keep theirs, and submit them when there is"
            " room",
            1,
            processes=(CONTROLLER,),
            field="max_tasks",
        ),
    ]
    max_sessions: Annotated[
        int | None,
        count_setting(
            "how many clients, or agents, may be connected with one key; others are told to connect again later",
            8,
            processes=(CONTROLLER,),
            standard=_DEFAULTS.sessions,
        ),
    ]
    incoming_limit: Annotated[
        int | str | None,
        size_setting(
            "how much memory the controller uses for received messages that it has not handled, of all peers; a peer"
            " that sends more is told to connect again later; at least 512M",
            check=check_incoming,
            means="768M",
            processes=(CONTROLLER,),
            standard=_DEFAULTS.incoming,
        ),
    ]
    outgoing_limit: Annotated[
        int | str | None,
        size_setting(
            "how much memory the controller uses for messages that their receivers have not taken; beyond it the peer"
            " with most of them has to start its session again; at least 512M",
            check=check_incoming,
            means="1G",
            processes=(CONTROLLER,),
            standard=_DEFAULTS.outgoing,
        ),
    ]
