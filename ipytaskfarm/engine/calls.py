"""The running task's questions to the controller, by way of lane and agent.

A question is asked again until it is answered, so the controller may be restarted meanwhile; it says what is wanted,
so a second asking changes nothing.  Answers come from the lane's thread.
"""

from __future__ import annotations

import builtins
import threading
import time
from collections.abc import Callable
from typing import Any

from ..core import errors
from ..core.messages import FromEngine
from ..core.messages.running_task import Counted, Declined, Post, ProgressReport, TaskCall, TaskQuestion, TaskReply
from ..core.messages.task_types import RunKey
from ..transport.reliable_session import MAX_MESSAGE_BYTES

ASK_AGAIN_S = 5.0
WINDOW = 1000
"""Messages that are on their way at most; `send` waits for room."""
POST_BYTES = 16 * 2**20
"""Of those that are sent together."""
BODY_BYTES_MAX = MAX_MESSAGE_BYTES - 4096
PROGRESS_S = 0.1
"""Progress is told at most so often; the last one always."""


class Calls:
    """One run's questions, messages and progress."""

    def __init__(self, engine: str, run: RunKey, send: Callable[[FromEngine], None]) -> None:
        self._engine = engine
        self._run = run
        self._send = send
        self._changed = threading.Condition()
        self._n = 0
        self._replies: dict[int, TaskReply] = {}
        self._waiting: set[int] = set()
        self._posts: list[bytes] = []
        self._posted = 0
        """So many are on the controller's disk."""
        self._post: TaskCall | None = None
        self._post_at_s = 0.0
        self.progress: tuple[float, float | None, str] | None = None
        """What was said last."""
        self._told_s = 0.0
        self._untold = False

    def ask(self, question: TaskQuestion, timeout: float | None = None) -> Any:
        """Return the answer; None when `timeout` seconds are over.  Raises what the controller refuses with."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._n += 1
            n = self._n
            self._waiting.add(n)
            try:
                while True:
                    self._send(TaskCall(self._engine, self._run, n, question))
                    again = time.monotonic() + ASK_AGAIN_S
                    until = again if deadline is None else min(again, deadline)
                    while (left := until - time.monotonic()) > 0:
                        if n in self._replies:
                            return _value(self._replies.pop(n))
                        self._changed.wait(left)
                    if n in self._replies:
                        return _value(self._replies.pop(n))
                    if deadline is not None and time.monotonic() >= deadline:
                        return None
            finally:
                self._waiting.discard(n)
                self._replies.pop(n, None)

    def answered(self, reply: TaskReply) -> None:
        """From the lane's thread."""
        with self._changed:
            if reply.run != self._run:
                return
            if self._post is not None and reply.n == self._post.n:
                if isinstance(reply.reply, Counted):
                    gone = reply.reply.value - self._posted
                    del self._posts[: max(0, gone)]
                    self._posted += max(0, gone)
                self._post = None
                self._post_more()
                self._changed.notify_all()
            elif reply.n in self._waiting:
                self._replies[reply.n] = reply
                self._changed.notify_all()

    # -- messages to whoever reads them

    def post(self, body: bytes) -> None:
        """Send one on its way; waits while too many are.  ResultTooLarge: it is more than one message may be."""
        if len(body) > BODY_BYTES_MAX:
            raise errors.ResultTooLarge(
                f"a message of {len(body):,} bytes cannot be sent, the limit is {BODY_BYTES_MAX:,}: "
                "hand large data over as a result, or in pieces"
            )
        with self._changed:
            while len(self._posts) >= WINDOW:
                self._await_posts()
            self._posts.append(body)
            self._post_more()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all are on the controller's disk."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._posts and (deadline is None or time.monotonic() < deadline):
                self._await_posts()

    def _await_posts(self) -> None:
        self._changed.wait(ASK_AGAIN_S / 10)
        if self._post is not None and time.monotonic() - self._post_at_s > ASK_AGAIN_S:
            self._post_at_s = time.monotonic()
            self._send(self._post)

    def _post_more(self) -> None:
        if self._post is None and self._posts:
            self._n += 1
            self._post = TaskCall(self._engine, self._run, self._n, Post(self._posted + 1, self._next_posts()))
            self._post_at_s = time.monotonic()
            self._send(self._post)

    def _next_posts(self) -> list[bytes]:
        """As many of them, in order, as are not too much together; at least one."""
        size = 0
        for count, body in enumerate(self._posts):
            size += len(body)
            if count and size > POST_BYTES:
                return self._posts[:count]
        return list(self._posts)

    # -- progress

    def tell(self, value: float, total: float | None, message: str) -> None:
        """How far the run has come; told now, or soon by `watch`."""
        self.progress = value, total, message
        self._untold = True
        if time.monotonic() - self._told_s >= PROGRESS_S:
            self.watch()

    def watch(self) -> None:
        """In the lane's thread too, 20 times a second: tell what has not been told."""
        said = self.progress
        if self._untold and said is not None and time.monotonic() - self._told_s >= PROGRESS_S:
            self._untold = False
            self._told_s = time.monotonic()
            self._send(ProgressReport(self._engine, self._run, *said))


def _value(reply: TaskReply) -> Any:
    if not isinstance(reply.reply, Declined):
        return reply.reply
    found = getattr(errors, reply.reply.etype, None) or getattr(builtins, reply.reply.etype, None)
    raise (found or errors.TaskError)(reply.reply.text)
