"""Event loops of users' own, beside the kernel's.

A task that is a plain function runs inside a callback of the kernel's loop.  To its author no loop runs there:
``asyncio.run``, ``loop.run_until_complete``, ``anyio.run`` are to work as in a script.  So no loop counts as running in
the main thread meanwhile, and the policy has no loop there, but makes one for whoever asks, as in a fresh interpreter.
Coroutines and cells with a top-level await run in the kernel's loop, and find it.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from typing import Any

_events = vars(events)
set_running_loop = events._set_running_loop
"""30 ns.  None: no loop runs in this thread."""


class Loops:
    """What asyncio knows of the main thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._policy: Any = None
        self._noted: dict[str, Any] = {}
        """What the policy has noted of this thread's loop; nothing, as long as nobody has set one or asked for one."""

    def hide(self) -> None:
        """No loop counts as running, until `show`."""
        set_running_loop(None)

    def show(self) -> None:
        """The kernel's loop runs again."""
        set_running_loop(self.loop)

    def renew(self) -> None:
        """Take the policy that is there for the users' own; its loop in this thread is none."""
        if events._get_running_loop() is self.loop:  # until it runs, it is found by the policy alone
            self._fresh(asyncio.get_event_loop_policy())

    def restore(self) -> bool:
        """Forget the loop that a task has set or asked for, and the policy that it has chosen; False: there is none.

        The loop is not closed: the task may have put it where the next ones find it."""
        policy = self._policy
        if policy is None:
            return False
        if self._noted or _events["_event_loop_policy"] is not policy:
            self._fresh(policy)
            return True
        return False

    def _fresh(self, policy: Any) -> None:
        # The kernel's loop is found by whoever runs in it, whatever the policy says; so are those of other threads.
        self._policy = type(policy)()
        asyncio.set_event_loop_policy(self._policy)
        self._noted = vars(getattr(self._policy, "_local", self))
        if self._noted is vars(self):  # a policy of another make
            self._noted = {}
