"""`LoadBalancedView`: calls as tasks of the farm, each on the next free engine."""

from __future__ import annotations

import concurrent.futures
import itertools
import operator
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Self

from ipytaskfarm.adapters.ipyparallel import engine_calls
from ipytaskfarm.adapters.ipyparallel.async_results import AsyncMapResult, AsyncResult
from ipytaskfarm.adapters.ipyparallel.dependencies import Dependency, ids_of_messages
from ipytaskfarm.adapters.ipyparallel.errors import (
    DependencyTimeout,
    ImpossibleDependency,
    InvalidDependency,
    TaskTimeout,
)
from ipytaskfarm.adapters.ipyparallel.interfaces import PartsCall, SendsCalls
from ipytaskfarm.adapters.ipyparallel.messages import MessageFuture, Messages, TaskMessage
from ipytaskfarm.adapters.ipyparallel.references import Reference
from ipytaskfarm.adapters.ipyparallel.remote_functions import LazyMapIterator, PartsFunction, name_of
from ipytaskfarm.adapters.ipyparallel.views import View
from ipytaskfarm.client.adapters import adapter
from ipytaskfarm.client.futures import Settler
from ipytaskfarm.client.tasks import CallTask
from ipytaskfarm.core.states import Waiting

LOST_RETRIES = 2
"""Number of repetitions of a call after the loss of its engine; `retries` counts those after an error."""
_WAITS_FOR_TASKS = {Waiting.TASKS}
_NOT_RUNNABLE = {Waiting.TASKS, Waiting.NO_ENGINE, Waiting.REJECTED}


class LoadBalancedView(View):
    """Calls that the farm balances over engines: ``rc.load_balanced_view()``.  Each call is a task.

    Attributes: those of `View`, and `retries` (repetitions of a call that fails), `after` and `follow` (calls that
    must have ended first; `follow`: the call runs where they ran), `timeout` (seconds that a call may wait for its
    dependencies), `targets` (the engines that may run it; None: all).
    """

    _flag_names = ("targets", "block", "track", "follow", "after", "timeout", "retries", "label")

    def __init__(self, client: SendsCalls, targets: Any = None, **flags: Any) -> None:
        self.follow: Any = None
        self.after: Any = None
        self.timeout: float | None = None
        self.retries = 0
        self._maps: set[LazyMapIterator] = set()
        super().__init__(client, targets, **flags)

    def set_flags(self, **flags: Any) -> Self:
        """Set attributes by name, and return the view.

        Raises KeyError for an unknown name, ValueError for something that is no dependency or for a negative timeout,
        TypeError for a timeout or a number of retries of another type.
        """
        for name in ("follow", "after"):
            if name in flags and not _is_dependency(flags[name]):
                raise ValueError(f"Invalid dependency: {flags[name]!r}")
        timeout = flags.get("timeout")
        if not isinstance(timeout, int | float | None):
            raise TypeError(f"Invalid type for timeout: {type(timeout)!r}")
        if timeout is not None and timeout < 0:
            raise ValueError(f"Invalid timeout: {timeout}")
        return super().set_flags(**flags)

    # -- submitting

    def _apply(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], block: bool | None) -> Any:
        if isinstance(function, Reference):
            function, args = operator.call, (function, *args)
        result = AsyncResult(self.client, self._submitted(function, args, kwargs), name_of(function))
        return self._finish(result, block)

    def _submitted(
        self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], label: Any = None
    ) -> MessageFuture:
        label = self.label if label is None else label
        rules, impossible = self._rules(label)
        if impossible is not None:
            return self._refused(impossible, label)
        task = CallTask(function, args=tuple(args), kwargs=kwargs, **rules)
        return self._follow(self.client.tasks.run(task), label)

    def _refused(self, error: BaseException, label: Any) -> MessageFuture:
        """Return the future of a call that is not submitted, because it can never run."""
        message = MessageFuture(f"refused-{next(_numbers)}", "apply", label)
        message.end(None, error)
        self.client.history.append(message.msg_id)
        return message

    def _follow(self, task_id: int, label: Any, is_item: bool = False) -> TaskMessage:
        message = TaskMessage(self.client.tasks, task_id, self.client.uuid_of, label, is_item)
        Messages.of(self.client.session).add(message)
        self.client.history.append(message.msg_id)
        Settler.of(self.client.session).add(message)
        if self.timeout is not None:
            self._limit(message, self.timeout)
        return message

    def _rules(self, label: Any) -> tuple[dict[str, Any], BaseException | None]:
        """Return the rules of a task, or why it can never run."""
        if not isinstance(self.retries, int):
            raise TypeError(f"retries must be int, not {type(self.retries)!r}")
        rules: dict[str, Any] = {"retries": self.retries, "lost_retries": LOST_RETRIES}
        if label is not None:
            rules["name"] = str(label)
        if self.targets is not None:
            rules["targets"] = self.client._build_targets(self.targets)[1]
        try:
            if self.after is not None:
                rules |= self._after(_dependency(self.after))
            if self.follow is not None:
                rules |= self._where(_dependency(self.follow), rules.get("targets"))
        except ImpossibleDependency as error:
            return {}, error
        return rules, None

    def _after(self, dependency: Dependency) -> dict[str, Any]:
        """Return the rules for a task that waits for others.

        Calls of direct views are waited for here, and so is what the farm's graph does not know: the first of several
        calls, or failures alone."""
        if not dependency.all or not dependency.success:
            self._await(dependency)
            return {}
        ids, others = [], []
        for msg_id in dependency:
            if not msg_id.isdigit():
                others.append(msg_id)
            elif not self._exists(msg_id):
                raise InvalidDependency(f"there is no task {msg_id}")
            else:
                ids.append(int(msg_id))
        self._await(Dependency(others, failure=dependency.failure))
        return {"after": ids, "if_failed": "run" if dependency.failure else "fail"} if ids else {}

    def _exists(self, msg_id: str) -> bool:
        known = Messages.of(self.client.session).find(msg_id)
        return known is not None or bool(self.client.tasks.tasks(ids=[int(msg_id)]).rows)

    def _message(self, msg_id: str) -> MessageFuture:
        message = Messages.of(self.client.session).find(msg_id)
        if message is None and msg_id.isdigit() and self._exists(msg_id):
            message = self._follow(int(msg_id), None)
        if message is None:
            raise InvalidDependency(f"there is no call {msg_id}")
        return message

    def _await(self, dependency: Dependency) -> set[MessageFuture]:
        """Wait until a dependency is met, and return the calls that count for it.

        Raises ImpossibleDependency as soon as it can never be met.
        """
        waiting = {self._message(msg_id) for msg_id in dependency}
        completed: dict[str, MessageFuture] = {}
        failed: dict[str, MessageFuture] = {}
        while not dependency.check(set(completed), set(failed)):
            if dependency.unreachable(set(completed), set(failed)):
                ended, how = (completed, "has not failed") if not dependency.success else (failed, "has failed")
                msg_id, message = next(iter(ended.items()))
                raise ImpossibleDependency(f"call {msg_id} {how}") from message.exception()
            concurrent.futures.wait(waiting, return_when="FIRST_COMPLETED")
            for message in [each for each in waiting if each.done()]:
                waiting.remove(message)
                (completed if message.exception() is None else failed)[message.msg_id] = message
        return {*(completed.values() if dependency.success else ()), *(failed.values() if dependency.failure else ())}

    def _where(self, dependency: Dependency, targets: list[int] | None) -> dict[str, Any]:
        """Return the engines on which the calls of a dependency have run; this waits for their ends."""
        engines = {message.metadata["engine_id"] for message in self._await(dependency)} - {None}
        if dependency.all and len(engines) > 1:
            raise ImpossibleDependency(f"the calls to follow ran on engines {sorted(engines)}: none ran all of them")
        shared = engines if targets is None else engines.intersection(targets)
        if engines and not shared:
            raise ImpossibleDependency(f"the calls to follow ran on engines {sorted(engines)}, not on {targets}")
        return {"targets": sorted(shared)} if engines else {}

    def _limit(self, message: TaskMessage, timeout_s: float) -> None:
        """Abort a task that cannot run yet after this time, because of its dependencies."""

        def look() -> None:
            if message.done():
                return
            status = self.client.tasks.status(message.id)
            if status.state != "scheduled" or status.reason not in _NOT_RUNNABLE:
                return
            kind = DependencyTimeout if status.reason in _WAITS_FOR_TASKS else TaskTimeout
            message.end_with(kind(f"task {message.id} could not run within {timeout_s:g} s: {status.reason}"))
            self.client.tasks.abort([message.id], reason=f"timeout of {timeout_s:g} s")

        timer = threading.Timer(timeout_s, look)
        timer.daemon = True
        timer.start()
        message.add_done_callback(lambda _: timer.cancel())

    # -- maps

    def map(
        self,
        function: Any,
        /,
        *sequences: Iterable[Any],
        block: bool | None = None,
        chunksize: int = 1,
        ordered: bool = True,
        return_exceptions: bool = False,
        label: Any = None,
    ) -> Any:
        """Call a function with the items of sequences, balanced.

        Args:
            function: the function.
            sequences: one or more, which are used up to the end of the shortest.
            block: whether to wait for the list of values; else an `AsyncMapResult` is returned.
            chunksize: number of items in a task.  1: the farm chooses how many quick items share a run; each item is
                a task all the same.
            ordered: whether iteration over the `AsyncMapResult` keeps the order.
            return_exceptions: return errors among the values.
            label: a name for the tasks.
        """
        made = PartsFunction(self, function, "b", block, chunksize, ordered, return_exceptions, label)
        return made.map(*sequences)

    def call_parts(self, call: PartsCall) -> Any:
        """Call a function with parts of sequences, or with their items; see `map`."""
        function, sequences, size = call.function, call.sequences, call.chunksize or 1
        sizes: dict[str, int] = {}
        messages: list[MessageFuture]
        if call.mapping and size == 1 and self.after is None and self.follow is None:
            messages = self._mapped(function, sequences, call.label)
        else:
            chunks = [[seq[at : at + size] for seq in sequences] for at in range(0, len(sequences[0]), size)]
            called, first = (engine_calls.map_part, (function,)) if call.mapping else (function, ())
            messages = [self._submitted(called, (*first, *chunk), {}, call.label) for chunk in chunks]
            counts = [len(chunk[0]) if call.mapping else 1 for chunk in chunks]
            sizes = {message.msg_id: count for message, count in zip(messages, counts, strict=True)}
        result = AsyncMapResult(
            self.client, messages, _chained, name_of(function), call.ordered, call.return_exceptions, sizes
        )
        return self._finish(result, call.block)

    def _mapped(self, function: Any, sequences: Sequence[Any], label: Any) -> list[MessageFuture]:
        """Submit the items as a map of the farm; return the future of each item."""
        if isinstance(function, Reference):
            sequences = [[function] * len(sequences[0]), *sequences]
            function = operator.call
        label = self.label if label is None else label
        rules, impossible = self._rules(label)
        if impossible is not None:
            return [self._refused(impossible, label)]
        job = self.client.tasks.map(function, *sequences, block=False, **rules)
        return [self._follow(task_id, label, is_item=True) for task_id in job.ids]

    def imap(
        self,
        function: Any,
        /,
        *sequences: Iterable[Any],
        ordered: bool = True,
        max_outstanding: int | str = "auto",
        return_exceptions: bool = False,
    ) -> LazyMapIterator:
        """Return an iterator over the values; sequences may be endless.

        Args:
            function: the function.
            sequences: are read as far as `max_outstanding` allows.
            ordered: whether the values come in order, or as they arrive.
            max_outstanding: number of calls that are submitted ahead; 0: all; "auto": the number of engines.
            return_exceptions: yield errors instead of raising them.
        """
        if not sequences:
            raise TypeError("must have some sequences to map onto!")
        most = max(1, len(self)) if max_outstanding == "auto" else int(max_outstanding)
        calls = (self.apply_async(function, *items) for items in zip(*sequences, strict=False))
        made = LazyMapIterator(calls, most or None, ordered, return_exceptions)
        self._maps.add(made)
        made.on_end(self._maps.discard)
        return made

    def wait_for_maps(self) -> None:
        """Submit the rest of unfinished `imap`s; executors wait for that."""
        for each in list(self._maps):
            each.submit_all()

    def register_joblib_backend(self, name: str = "ipyparallel", make_default: bool = False) -> None:
        """Let ``joblib.Parallel(backend=name)`` submit with this view."""
        adapter("ipyparallel.joblib_views").register(name, make_default, self)


_numbers = itertools.count()


def _chained(parts: list[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(parts))


def _dependency(found: Any) -> Dependency:
    return found if isinstance(found, Dependency) else Dependency(found)


def _is_dependency(found: Any) -> bool:
    if found is None or isinstance(found, Dependency):
        return True
    if isinstance(found, dict):
        return found.keys() <= Dependency().as_dict().keys() and _is_dependency(found.get("dependencies", []))
    try:
        ids_of_messages(found)
    except TypeError:
        return False
    return True
