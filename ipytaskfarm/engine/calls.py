"""The running task's questions to the controller. They travel by lane and agent.

A question is repeated until it is answered, so the controller may be restarted in the meantime. It states what is
wanted, so a repetition changes nothing. The lane's thread delivers answers.
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
from ..transport.reliable_session import CLIENT_MESSAGE_BYTES

ASK_AGAIN_S = 5.0
"""Seconds after which a question without an answer is repeated: a restarted controller does not know it."""
WINDOW = 1000
"""The number of messages that may be on their way. Beyond it, `send` waits."""
POST_BYTES = 8 * 2**20
"""The number of bytes of messages that are sent together."""
BODY_BYTES_MAX = CLIENT_MESSAGE_BYTES - 4096
PROGRESS_S = 0.1
"""The shortest time between two reports of progress. The last one is always sent."""


class Calls:
    """The questions, messages and progress of one run."""

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
        """The number of messages that are on the controller's disk."""
        self._post: TaskCall | None = None
        self._post_at_s = 0.0
        self.progress: tuple[float, float | None, str] | None = None
        """The last report of progress."""
        self._told_s = 0.0
        self._untold = False

    def ask(self, question: TaskQuestion, timeout: float | None = None) -> Any:
        """Return the answer to a question; None if `timeout` seconds have passed.

        A refusal of the controller is raised.
        """
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
        """Take a reply. Called by the lane's thread."""
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

    # -- messages to clients

    def post(self, body: bytes) -> None:
        """Send a message. Wait while too many messages are on their way.

        Raises:
            ResultTooLarge: the message is larger than a message may be.
        """
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
        """Wait until all messages are on the controller's disk."""
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
        """Return as many of the messages, in order, as may be sent together; at least one."""
        size = 0
        for count, body in enumerate(self._posts):
            size += len(body)
            if count and size > POST_BYTES:
                return self._posts[:count]
        return list(self._posts)

    # -- progress

    def tell(self, value: float, total: float | None, message: str) -> None:
        """Report how far the run has come. The report is sent now, or soon by `watch`."""
        self.progress = value, total, message
        self._untold = True
        if time.monotonic() - self._told_s >= PROGRESS_S:
            self.watch()

    def watch(self) -> None:
        """Send a report that was not sent yet. The lane's thread calls this too, 20 times a second."""
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
