"""The task that runs now, as it sees itself: `ipytaskfarm.engine.current_task`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NoReturn

from ..core.arguments import check_int, check_name, check_seconds, check_text, check_timeout, wrong
from ..core.messages import Granted, Run, Special
from ..core.messages.payload import Message
from ..core.messages.running_task import Await, Children, Letter, Receive, Spawn, Take, TaskReply
from ..core.messages.task_types import Deferral, Function, JobSpec, Packed
from ..core.text import text_of
from ..serialization.pack import pack, unpack
from ..storage.blobs import Blobs
from .calls import Calls
from .children import ChildJob, packed_child, submission
from .inputs import value_of
from .interrupt import Interrupts
from .node_lock import NodeLock
from .resources import RunResources

STATE_BYTES_MAX = 64 * 1024
FLUSH_S = 5.0
"""How long a failed run waits for its messages to be on disk; one that ends well waits as long as it takes."""

_NOTHING_SPECIAL = Special()


class Deferred(BaseException):
    """Ends a run that wishes to come again.  Not an Exception: a task's own ``except Exception`` lets it pass."""

    def __init__(self, word: Deferral) -> None:
        super().__init__(word.message or "deferred")
        self.word = word


class CurrentTask:
    """The running task.  Its calls are valid until it has ended.

    What it asks of the farm survives the controller's restart: it is asked again until it is answered.
    """

    def __init__(
        self,
        engine: str,
        run: Run,
        send: Callable[[Any], None],
        names: MutableMapping[str, Any],
        blobs: Blobs | None,
        interrupts: Interrupts,
        environment: Any = None,
    ) -> None:
        self._run = run
        self._special = run.special or _NOTHING_SPECIAL
        self._names = names
        self._blobs = blobs
        self._interrupts = interrupts
        self._environment = environment
        self._holding = RunResources(engine, (run.task, run.attempt), run.allotment, send)
        self.calls = Calls(engine, (run.task, run.attempt), send)
        self._state: dict[str, Any] | None = None
        self._submitted = 0
        self._inbox: deque[Letter] = deque()
        self._read = self._special.received

    # -- what it is

    @property
    def id(self) -> int:
        """Return the task's id."""
        return self._run.task

    @property
    def attempt(self) -> int:
        """Return which run of it this is, from 1."""
        return self._run.attempt

    @property
    def trial(self) -> int:
        """1 + earlier runs that ended with `defer`."""
        return self._special.trial

    @property
    def parent(self) -> int | None:
        """Id of the task that submitted it; None: a client did."""
        return self._special.parent

    @property
    def environment(self) -> Any:
        """Return the task's environment, as `setup` left it: what ``env`` is in a notebook's code; None: it has
        none."""
        return self._environment

    @property
    def is_aborting(self) -> bool:
        """Return whether it was asked to stop: `TaskCancelled` (or its time limit) was raised in it."""
        return self._interrupts.raised is not None

    @property
    def state(self) -> dict[str, Any]:
        """Return a small dict of the task's own, kept from trial to trial (64 KiB packed); `defer` saves it."""
        if self._state is None:
            self._state = unpack(self._special.state, self._names) if self._special.state else {}
        return self._state

    # -- what it holds

    @property
    def allotment(self) -> dict[str, Any]:
        """Return what it holds of its node now: ``{"cores": 2.0, "memory": 2147483648.0, "gpu": 1.0, "gpus": ("0",)}``.

        Memory is in bytes; ``gpus`` are the devices' names, there if any are held, ``exclusive`` if the node is."""
        return self._holding.amounts

    def yield_resources(self, **amounts: float | str) -> dict[str, Any]:
        """Give back so much of what it holds, ``yield_resources(cores=1)``, or all of it; others may start with it.

        Returns the allotment left.  Raises ValueError for what it does not hold."""
        return self._holding.yield_resources(**amounts)

    def reserve_resources(self, timeout: float | None = None, **amounts: float | str) -> dict[str, Any]:
        """Take so much more, ``reserve_resources(cores=2)``, or what it was allotted at first; waits until it is free.

        Its own time limit goes on meanwhile.  Returns the allotment.  Raises TimeoutError after `timeout` seconds, and
        ValueError for what its node does not have at all."""
        return self._holding.reserve_resources(timeout, **amounts)

    # -- later

    def defer(self, message: str = "", after: float | None = None) -> NoReturn:
        """End this run, to come again as the next trial after `after` seconds (None: the task's `defer_time`).

        It is not charged as a retry; `state` is kept.  When `defer_max` seconds after the first trial's begin are over,
        the task fails instead.  From core4."""
        after_s = check_seconds("after", after)
        state = pack(self._state, "state") if self._state is not None else self._special.state
        if len(state) > STATE_BYTES_MAX:
            raise ValueError(
                f"the state is {len(state):,} bytes packed, more than {STATE_BYTES_MAX:,}: keep less in it"
            )
        raise Deferred(Deferral(after_s, text_of(message), state, self._read))

    # -- progress and messages

    def progress(self, value: float, total: float | None = 1.0, message: str = "") -> None:
        """Say how far it has come, ``progress(0.3)`` or ``progress(30, 100, "reading")``; as often as one likes.

        Who looks gets the latest, within some tenths of a second, and always the last."""
        self.calls.tell(_number("value", value), None if total is None else _number("total", total), text_of(message))

    def send(self, obj: Any) -> None:
        """A message to whoever reads ``tc.messages(id)``: in order, and kept with the result.

        A run that ends well, or is deferred, ends when its messages are on the farm's disk; one that fails waits 5 s
        for that.

        Raises UnpickleableException for what cannot travel."""
        self.calls.post(pack(obj, "message"))

    def receive(self, timeout: float | None = None) -> Message:
        """Return the next message that was sent to this task (``tc.send(id, obj)``), with its sender; waits for it.

        A later trial goes on where this one stops, a repeated attempt begins with the first one again.
        Raises TimeoutError after `timeout` seconds."""
        timeout_s = check_timeout("timeout", timeout)
        if not self._inbox:
            found = self.calls.ask(Receive(self._read), timeout_s)
            if found is None:
                raise TimeoutError(f"task {self.id} was sent no message within {timeout_s:g} s")
            self._inbox.extend(found.letters)
        letter = self._inbox.popleft()
        self._read = letter.seq
        return Message(unpack(letter.body, self._names), letter.sender, letter.at_s)

    # -- children

    def submit(self, what: Any, *args: Any, **kwargs: Any) -> int:
        """Run a `Task`, or ``what(*args, **kwargs)``, as a child of this one; its id, once it is on disk.

        A repeated run of the same trial that submits the same in the same order gets the same children; another
        payload in that place raises RuntimeError."""
        return self.spawn([self.packed(what, args, kwargs)])[0]

    def submit_all(self, tasks: Iterable[Any]) -> list[int]:
        """Several at once: `Task` objects or functions without arguments; their ids."""
        made = [self.packed(task) for task in tasks]
        return self.spawn(made) if made else []

    def map(self, function: Callable[..., Any], *sequences: Iterable[Any]) -> list[int]:
        """``submit(function, …)`` for each item (or items side by side), at once; the children's ids."""
        made = [self.packed(function, args) for args in zip(*sequences, strict=True)]
        return self.spawn(made) if made else []

    def create_job(self, name: str | None = None, abort_on_failure: bool = False) -> ChildJob:
        """Return a `ChildJob`: children that clients see together, under a name."""
        name = check_text("name", name)
        return ChildJob(self, name or f"children of task {self.id}", bool(abort_on_failure))

    def packed(self, what: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Packed:
        """Return a child, ready to travel."""
        return packed_child(what, args, kwargs or {}, self._blobs)

    def spawn(self, made: list[Packed], job: str = "", abort_on_failure: bool = False) -> list[int]:
        """Submit what was packed, as a job of that name if there is one."""
        self._submitted += 1
        functions: dict[str, Function] = {f.digest: f for packed in made for f in packed.functions}
        # The same run of the same trial names the same job.
        job_id = f"{self.id}.{self.trial}.{self._submitted}" if job else None
        spec = None
        if job_id is not None:
            spec = JobSpec(job_id, job, len(made), abort_on_failure=abort_on_failure, opened_s=time.time())
        tasks = [submission(-1 - number, packed, job_id) for number, packed in enumerate(made)]
        found: list[int] = self.calls.ask(Spawn(self._submitted, tasks, list(functions.values()), spec)).ids
        return found

    def children(self, state: str | None = None) -> list[int]:
        """Ids of all that this task has submitted, in earlier trials too; only those in that state: scheduled,
        running, succeeded, failed, or unfinished."""
        rows: list[tuple[int, str]] = self.calls.ask(Children()).rows
        named = None if state is None else check_name("state", state)
        wanted = {"unfinished": ("scheduled", "running"), None: None}.get(named, (named,))
        return [child for child, found in rows if wanted is None or found in wanted]

    def wait(self, ids: Iterable[Any] | None = None, timeout: float | None = None) -> int:
        """Wait until these tasks (None: all children) have ended; how many of them failed.

        Meanwhile this task lends its place: what it holds of the node is free for others, and one engine more is
        started, so that children run even where there is only one slot.  Its own time limit goes on.
        Raises TimeoutError after `timeout` seconds."""
        wanted = self.children() if ids is None else [check_int("ids", i) for i in ids]
        timeout_s = check_timeout("timeout", timeout)
        found = self.calls.ask(Await(wanted), timeout_s)
        if found is None:
            self.calls.ask(Await([]))  # it has its place again
            raise TimeoutError(f"not all of {len(wanted)} tasks have ended within {timeout_s:g} s")
        return int(found.value)

    def results(self, ids: Iterable[Any] | None = None, return_exceptions: bool = False) -> list[Any]:
        """Wait for these tasks (None: all children) and give their values, in order; the first failure is raised, or
        stands in its place with `return_exceptions`."""
        wanted = self.children() if ids is None else [check_int("ids", i) for i in ids]
        self.wait(wanted)
        values = []
        for first in range(0, len(wanted), 256):
            some = wanted[first : first + 256]
            finals = {final.id: final for final in self.calls.ask(Take(some)).finals}
            for task in some:
                if task not in finals:
                    raise IndexError(f"task {task} has no result: it was cleared, or never was")
                final = finals[task]
                value = value_of(task, final.reason, final.body, final.failure, self._names)
                if final.reason and not return_exceptions:
                    raise value
                values.append(value)
        return values

    # -- the node

    @contextmanager
    def node_lock(self, name: str) -> Iterator[None]:
        """``with current_task().node_lock("download"):``: one at a time on this machine, among all tasks of this user.

        It is given up by the kernel when the engine ends, however it ends."""
        lock = NodeLock(name)
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    # -- for the runner

    def apply(self) -> None:
        """Libraries are to keep to the allotment."""
        self._holding.apply()

    def granted(self, answer: Granted) -> None:
        """From the lane's thread."""
        self._holding.granted(answer)

    def answered(self, reply: TaskReply) -> None:
        """From the lane's thread."""
        self.calls.answered(reply)

    def end(self, failed: bool) -> None:
        """The run has ended."""
        if failed:
            self.calls.flush(FLUSH_S)
        self._holding.end()


def _number(what: str, value: Any) -> float:
    try:
        return float(value)
    except Exception:  # a number that no float holds, or a class of the user's own
        raise wrong(what, "a number", value) from None
