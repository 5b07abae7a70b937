"""The running task's questions to the controller, and the resources that it holds of its node.

Questions travel by lane and agent. A question is repeated until it is answered, so the controller may be restarted in
the meantime. It states what is wanted, so a repetition changes nothing. The lane's thread delivers answers.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from ..core import errors
from ..core.arguments import check_name, check_number, check_timeout, wrong
from ..core.messages import FromEngine, Granted, ResourceRequest
from ..core.messages.running_task import Counted, Declined, Post, ProgressReport, TaskCall, TaskQuestion, TaskReply
from ..core.messages.task_types import RunKey
from ..core.requirements import CORES, DEVICES, GPU, SIZE_MAX, THREADS, Allotment, bytes_of
from ..core.text import exactly
from ..system.farm_paths import lock_folder
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

    @property
    def is_asking(self) -> bool:
        """Return whether the task waits for an answer."""
        return bool(self._waiting)

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
                "return large data as a result, or send it in pieces"
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


class RunResources:
    """The allotment of one run, and its requests for changes."""

    def __init__(
        self, engine: str, run: RunKey, allotment: Allotment | None, send: Callable[[FromEngine], None]
    ) -> None:
        self._engine = engine
        self._run = run
        self._send = send
        self._first = self._allotment = allotment or Allotment()
        self._asked = 0
        self._changed = threading.Condition()
        self._granted: Granted | None = None
        self._pools: Any = None

    @property
    def amounts(self) -> dict[str, Any]:
        """Return the allotment in the form of `CurrentTask.allotment`."""
        held: dict[str, Any] = dict(self._allotment.amounts)
        if self._allotment.gpus:
            held["gpus"] = self._allotment.gpus
        if self._allotment.exclusive:
            held["exclusive"] = True
        return held

    def yield_resources(self, **amounts: float | str) -> dict[str, Any]:
        """Give back a part of the allotment; see `CurrentTask.yield_resources`."""
        held = dict(self._allotment.amounts)
        for name, value in _checked(amounts).items() if amounts else held.copy().items():
            if held.get(name, 0.0) < value:
                text = f"{value:g} {name} were to be given back, and {held.get(name, 0):g} are held"
                raise ValueError(f"yield_resources: {text}")
            held[name] -= value
        return self._hold(held, None)

    def reserve_resources(self, timeout: float | None = None, **amounts: float | str) -> dict[str, Any]:
        """Reserve more resources, or the original allotment again; see `CurrentTask.reserve_resources`."""
        wanted = dict(self._allotment.amounts)
        if amounts:
            for name, value in _checked(amounts).items():
                wanted[name] = wanted.get(name, 0.0) + value
        else:
            wanted.update({n: max(v, wanted.get(n, 0.0)) for n, v in self._first.amounts.items()})
        return self._hold(wanted, timeout)

    def _hold(self, amounts: dict[str, float], timeout: float | None) -> dict[str, Any]:
        before = dict(self._allotment.amounts)
        timeout = check_timeout("timeout", timeout)
        granted = self._ask(amounts, timeout)
        if granted is None:
            self._ask(before, None)  # the request may still be granted: cancel it
            raise TimeoutError(f"task {self._run[0]} has waited {timeout:g} s for {amounts}")
        if granted.error:
            raise ValueError(granted.error)
        self.apply()
        return self.amounts

    def _ask(self, amounts: dict[str, float], timeout: float | None) -> Granted | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._asked += 1
            n = self._asked
            while True:
                self._send(ResourceRequest(self._engine, self._run, n, amounts))
                again = time.monotonic() + ASK_AGAIN_S  # a restarted controller does not know the request
                until = again if deadline is None else min(again, deadline)
                while (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
                    if self._granted is not None and self._granted.n == n:
                        return self._granted
                if deadline is not None and time.monotonic() >= deadline:
                    return None

    def granted(self, answer: Granted) -> None:
        """Take the answer to `_ask`. Called by the lane's thread."""
        with self._changed:
            if answer.run == self._run:
                self._granted = answer
                self._allotment = answer.allotment
                self._changed.notify_all()

    # -- the limits that the allotment sets for libraries

    def apply(self) -> None:
        """Tell libraries how many threads and which devices they may use. The runner restores the variables."""
        cores = self._allotment.amounts.get(CORES)
        if cores:
            count = max(1, int(cores))
            os.environ.update(dict.fromkeys(THREADS, str(count)))
            self._limit_pools(count)
        if GPU in self._first.amounts:
            os.environ[DEVICES] = ",".join(self._allotment.gpus)

    def _limit_pools(self, count: int) -> None:
        if "numpy" not in sys.modules and "scipy" not in sys.modules:
            return  # there is no pool yet; it will read the variables
        import threadpoolctl

        self.end()
        self._pools = threadpoolctl.threadpool_limits(count)

    def end(self) -> None:
        """Restore the original numbers of threads in libraries."""
        if self._pools is not None:
            self._pools.restore_original_limits()
            self._pools = None


def _checked(amounts: dict[str, float | str]) -> dict[str, float]:
    return {check_name("a resource", name): _amount(name, value) for name, value in amounts.items()}


def _amount(name: str, value: float | str) -> float:
    number = bytes_of(exactly(value)) if isinstance(value, str) else check_number(name, value)
    if not 0 <= number <= SIZE_MAX:
        raise ValueError(f"{name} must be between 0 and 2**60, not {number:g}")
    return number


AGAIN_S = 0.01


def _bytes_of(name: object) -> bytes:
    if not isinstance(name, str):
        raise wrong("name", "a str", name)
    return exactly(name).encode("utf-8", "surrogatepass")


class NodeLock:
    """A file that one process has locked.

    The operating system releases the lock when the process ends, however it ends.
    """

    def __init__(self, name: str) -> None:
        self._name = sha256(_bytes_of(name)).hexdigest()[:32]
        self._handle = -1

    def acquire(self) -> None:
        """Wait for the lock. An interrupt of the task ends the wait."""
        while not self._try():
            time.sleep(AGAIN_S)

    def _try(self) -> bool:
        path = lock_folder() / self._name
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return False  # the folder was removed with another lock
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former holder removes the file: the locked file must be the one that others find.
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                self._handle, handle = handle, -1
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            if handle >= 0:
                os.close(handle)
        return False

    def release(self) -> None:
        """Release the lock. Remove the file, and the folder after the last lock."""
        path = lock_folder() / self._name
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(self._handle)
        with contextlib.suppress(OSError):
            os.rmdir(path.parent)
