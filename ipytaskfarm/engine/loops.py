"""Event loops that users' code makes beside the kernel's loop.

A plain function as a task runs inside a callback of the kernel's loop. For its author no loop runs there:
``asyncio.run``, ``loop.run_until_complete`` and ``anyio.run`` must work as in a script. Therefore no loop counts as
running in the main thread in the meantime. The policy has no loop there; before Python 3.14 it makes one on request,
as in a fresh interpreter. Coroutines and cells with a top-level await run in the kernel's loop, and find it.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from typing import Any

_events = vars(events)
# Python 3.14 warns of the names without the underscore.
_policy = _events.get("_get_event_loop_policy", asyncio.get_event_loop_policy)
_set_policy = _events.get("_set_event_loop_policy", asyncio.set_event_loop_policy)
_set_running_loop = events._set_running_loop


class Loops:
    """The event loops that asyncio knows for the main thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._policy: Any = None
        self._noted: dict[str, Any] = {}
        """The policy's record of this thread's loop. It is empty until some code sets a loop or asks for one."""

    def hide(self) -> None:
        """Make no loop count as running, until `show`."""
        _set_running_loop(None)

    def show(self) -> None:
        """Make the kernel's loop count as running again."""
        _set_running_loop(self.loop)

    def renew(self) -> None:
        """Replace the present policy with a fresh one for users' code, without a loop in this thread."""
        if events._get_running_loop() is self.loop:  # until the loop runs, only the policy can find it
            self._fresh(_policy())

    def restore(self) -> bool:
        """Forget the loop that a task has set or asked for, and the policy that it has chosen.

        Return whether there was any.

        The loop is not closed, because the task may have stored it for later tasks.
        """
        policy = self._policy
        if policy is None:
            return False
        if self._noted or _events["_event_loop_policy"] is not policy:
            self._fresh(policy)
            return True
        return False

    def _fresh(self, policy: Any) -> None:
        # Code that runs in the kernel's loop finds it whatever the policy says; so does code in the loops of other
        # threads.
        self._policy = type(policy)()
        _set_policy(self._policy)
        self._noted = vars(getattr(self._policy, "_local", self))
        if self._noted is vars(self):  # a policy from another library
            self._noted = {}
