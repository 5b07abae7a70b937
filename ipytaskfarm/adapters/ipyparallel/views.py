"""`DirectView`: calls on chosen engines, each call on all of them.

Everything that a direct view does is a command of a `MultiEngineClient`, so one engine does it in the order of the
calls, whether or not a call waits.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Self

from ipytaskfarm.adapters.ipyparallel import engine_calls
from ipytaskfarm.adapters.ipyparallel.async_results import AsyncMapResult, AsyncResult
from ipytaskfarm.adapters.ipyparallel.display import executed
from ipytaskfarm.adapters.ipyparallel.interfaces import Later, PartsCall, SendsCalls
from ipytaskfarm.adapters.ipyparallel.kept_globals import keeping
from ipytaskfarm.adapters.ipyparallel.messages import CommandMessage, Messages, Metadata
from ipytaskfarm.adapters.ipyparallel.references import Reference
from ipytaskfarm.adapters.ipyparallel.remote_functions import PartsFunction, ViewExecutor, name_of, parallel, remote
from ipytaskfarm.client.adapters import adapter
from ipytaskfarm.client.commands import PendingResult
from ipytaskfarm.client.engine_answers import EngineAnswer
from ipytaskfarm.client.engine_maps import joined, parts
from ipytaskfarm.client.imports import collected

_numbers = itertools.count()

Targets = int | list[int] | str | None


def value_of(answer: EngineAnswer, metadata: Metadata) -> Any:
    """Return the value of an answer."""
    return answer.value


class View:
    """What direct and load-balanced views have in common.

    Attributes: `client`, `targets`, `block` (whether calls wait), `label` (a name for calls), `track` (whether results
    tell when values may be changed: at once, since they are copied before a call returns), `history` (message ids),
    `outstanding` (those that have not ended).
    """

    _flag_names: Sequence[str] = ("targets", "block", "track", "label")
    map: Any
    """Calls a function with the items of sequences; see the subclasses."""
    imap: Any

    def __init__(self, client: SendsCalls, targets: Any = None, **flags: Any) -> None:
        self.client = client
        self.block = client.block
        self.track = False
        self.label: Any = None
        self.targets: Any = targets
        self.history: list[str] = []
        self.set_flags(**flags)
        self.executor: ViewExecutor = ViewExecutor(self)

    def __repr__(self) -> str:
        targets = str(self.targets)
        return f"<{type(self).__name__} {targets if len(targets) <= 16 else targets[:12] + '...]'}>"

    def __len__(self) -> int:
        if isinstance(self.targets, list):
            return len(self.targets)
        return 1 if isinstance(self.targets, int) else len(self.client)

    def __bool__(self) -> bool:
        return True  # without engines `__len__` would make the view false

    @property
    def outstanding(self) -> set[str]:
        """Return the message ids of this view's calls that have not ended."""
        return self.client.outstanding & set(self.history)

    @property
    def results(self) -> dict[str, Any]:
        """Return the client's results by message id."""
        return self.client.results

    # -- flags

    def set_flags(self, **flags: Any) -> Self:
        """Set attributes by name, and return the view.  Raises KeyError for an unknown name."""
        for name, value in flags.items():
            if name not in self._flag_names:
                raise KeyError(f"Invalid name: {name!r}")
            setattr(self, name, value)
        return self

    @contextlib.contextmanager
    def temp_flags(self, **flags: Any) -> Iterator[None]:
        """Set attributes for the calls of a ``with`` block."""
        saved = {name: getattr(self, name) for name in self._flag_names}
        try:
            self.set_flags(**flags)
            yield
        finally:
            for name, value in saved.items():
                setattr(self, name, value)

    # -- calls

    def _apply(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], block: bool | None) -> Any:
        raise NotImplementedError

    def apply(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call ``function(*args, **kwargs)`` on the engines; return the value if `block`, else an `AsyncResult`."""
        return self._apply(function, args, kwargs, None)

    def apply_async(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call ``function(*args, **kwargs)`` on the engines; return an `AsyncResult` at once."""
        return self._apply(function, args, kwargs, False)

    def apply_sync(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call ``function(*args, **kwargs)`` on the engines; return the value."""
        return self._apply(function, args, kwargs, True)

    def call_parts(self, call: PartsCall) -> Any:
        """Call a function with parts of sequences; mapping: with the items of the parts."""
        raise NotImplementedError

    def map_async(self, function: Any, /, *sequences: Iterable[Any], **options: Any) -> Any:
        """Run `map`, and return an `AsyncMapResult` at once."""
        if "block" in options:
            raise TypeError("map_async doesn't take a `block` keyword argument.")
        return self.map(function, *sequences, block=False, **options)

    def map_sync(self, function: Any, /, *sequences: Iterable[Any], **options: Any) -> Any:
        """Run `map`, and return the list of values."""
        if "block" in options:
            raise TypeError("map_sync doesn't take a `block` keyword argument.")
        return self.map(function, *sequences, block=True, **options)

    def remote(self, block: bool | None = None, **flags: Any) -> Any:
        """Return a decorator that makes a function run on the engines of this view."""
        return remote(self, self.block if block is None else block, **flags)

    def parallel(self, dist: str = "b", block: bool | None = None, **flags: Any) -> Any:
        """Return a decorator that makes a function run on parts of sequences."""
        return parallel(self, dist, self.block if block is None else block, **flags)

    def _finish(self, result: AsyncResult, block: bool | None) -> Any:
        self.history += result.msg_ids
        if not (self.block if block is None else block):
            return result
        try:
            return result.get()
        except KeyboardInterrupt:
            return result

    # -- the client's calls for this view

    def wait(self, jobs: Any = None, timeout: float | None = -1) -> bool:
        """Wait for results (None: all calls of this view); return whether all have ended."""
        return self.client.wait(self.history if jobs is None else jobs, timeout)

    def abort(self, jobs: Any = None, targets: Any = None, block: bool | None = None) -> Later:
        """Abort calls (None: all of this view); see ``Client.abort``."""
        return self.client.abort(list(self.outstanding) if jobs is None else jobs, targets, block)

    def abort_waiting(self) -> None:
        """Abort the calls that have not begun, and let running ones go on."""
        ids = [msg_id for msg_id in self.outstanding if msg_id.isdigit()]
        waiting = self.client.tasks.tasks(ids=[int(each) for each in ids], state="scheduled").ids if ids else []
        self.client.abort([*map(str, waiting), *self.outstanding.difference(ids)])

    def get_result(self, indices_or_msg_ids: Any = None, block: bool | None = None, owner: bool = True) -> Any:
        """Return the result of an earlier call of this view, by message id or by its place in `history`."""
        wanted = -1 if indices_or_msg_ids is None else indices_or_msg_ids
        several = wanted if isinstance(wanted, list | tuple | set) else [wanted]
        ids = [self.history[each] if isinstance(each, int) else each for each in several]
        return self.client.get_result(ids if several is wanted else ids[0], block=block, owner=owner)

    def queue_status(self, targets: Any = None, verbose: bool = False) -> Any:
        """Return what waits on the engines of this view."""
        return self.client.queue_status(self.targets if targets is None else targets, verbose)

    def purge_results(self, jobs: Any = (), targets: Any = ()) -> None:
        """Delete results; see ``Client.purge_results``."""
        self.client.purge_results(jobs, targets)

    def shutdown(
        self, targets: Any = None, restart: bool = False, hub: bool = False, block: bool | None = None
    ) -> Later:
        """End engines; see ``Client.shutdown``."""
        return self.client.shutdown(self.targets if targets in (None, "all") else targets, restart, hub, block)

    def spin(self) -> None:
        """Do nothing: results arrive by themselves."""

    def wait_for_maps(self) -> None:
        """Submit the rest of unfinished `imap`s; a direct view has none."""


class DirectView(View):
    """Calls on one engine (``rc[0]``), on some (``rc[::2]``), or on all (``rc[:]``); a dict of the engines' names.

    Calls for one engine return a value, and calls for a list of engines a list of values.
    """

    def __init__(self, client: SendsCalls, targets: Any = "all", **flags: Any) -> None:
        super().__init__(client, targets, **flags)

    # -- sending

    def _ids(self, targets: Any) -> tuple[list[int], bool]:
        """Return the ids of engines, and whether they are a single engine and not a list."""
        wanted = self.targets if targets is None else targets
        ids = self.client._build_targets(wanted)[1]
        return ids, isinstance(wanted, int)

    def _send(
        self,
        method: str,
        ids: list[int],
        pending: PendingResult,
        read: Callable[[EngineAnswer, Metadata], Any] = value_of,
        label: Any = None,
    ) -> list[CommandMessage]:
        """Make the future of each engine for a command."""
        number = next(_numbers)
        names = self.client._engines
        made = {
            engine: CommandMessage(
                f"command-{number}@{engine}", method, engine, names.get(engine, ""), read,
                self.label if label is None else label,
            )
            for engine in ids
        }  # fmt: skip
        calls = Messages.of(self.client.session)
        for message in made.values():
            message.pending = pending
            calls.add(message)
        self.client.history += [message.msg_id for message in made.values()]
        pending.add_answer_callback(lambda answer: made[answer.engine].settle(answer))
        return list(made.values())

    def _result(
        self, messages: list[CommandMessage], ids: list[int], single: bool, name: str, block: bool | None
    ) -> Any:
        result = AsyncResult(self.client, messages[0] if single else messages, name, ids)
        return self._finish(result, block)

    def _call(
        self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], ids: list[int], label: Any = None
    ) -> list[CommandMessage]:
        called = function.name if isinstance(function, Reference) else keeping(function)
        pending = self.client.multiengine.apply(called, tuple(args), kwargs, targets=ids, block=False)
        return self._send("apply", ids, pending, label=label)

    def _apply(
        self,
        function: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        block: bool | None,
        targets: Any = None,
    ) -> Any:
        ids, single = self._ids(targets)
        messages = self._call(function, args, kwargs, ids)
        return self._result(messages, ids, single, name_of(function), block)

    # -- code and names

    def execute(
        self, code: str, silent: bool = True, targets: Any = None, block: bool | None = None, label: Any = None
    ) -> AsyncResult:
        """Run code on the engines; return an `AsyncResult`, also when it waits.

        Args:
            code: the code, with IPython's syntax.
            silent: False: the value of the last expression is a part of the result.
            targets: the engines.
            block: whether to wait, and raise errors.
            label: a name for the call.
        """
        ids, single = self._ids(targets)
        pending = self.client.multiengine.execute(code, targets=ids, block=False)
        messages = self._send("execute", ids, pending, executed(silent), label)
        result = AsyncResult(self.client, messages[0] if single else messages, "execute", ids)
        self._finish(result, block)
        return result

    def run(self, filename: str, targets: Any = None, block: bool | None = None, label: Any = None) -> AsyncResult:
        """Run a local file on the engines; see `execute`."""
        with open(filename, encoding="utf-8") as file:
            code = file.read()
        return self.execute(f"{code}\n", targets=targets, block=block, label=label)

    def push(
        self, ns: dict[str, Any], targets: Any = None, block: bool | None = None, track: bool | None = None
    ) -> Any:
        """Assign names on the engines: a dict of names, or of targets such as ``a.b``, and values."""
        if not isinstance(ns, dict):
            raise TypeError(f"Must be a dict, not {type(ns)}")
        ids, single = self._ids(targets)
        if all(name.isidentifier() for name in ns):
            pending = self.client.multiengine.push(ns, targets=ids, block=False)
            messages = self._send("push", ids, pending)
        else:
            messages = self._call(engine_calls.assign, (ns,), {}, ids)
        return self._result(messages, ids, single, "push", block)

    def update(self, ns: dict[str, Any]) -> Any:
        """Do the same as `push`."""
        return self.push(ns)

    def pull(self, names: str | Sequence[str], targets: Any = None, block: bool | None = None) -> Any:
        """Return the value of a name on the engines, or the list of the values of several names."""
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            if not isinstance(name, str):
                raise TypeError(f"keys must be str, not type {type(name)!r}")
        ids, single = self._ids(targets)
        pending = self.client.multiengine.apply(engine_calls.values_of, (wanted,), targets=ids, block=False)
        if isinstance(names, str):
            messages = self._send("apply", ids, pending, lambda answer, _: answer.value[0])
        else:
            messages = self._send("apply", ids, pending)
        return self._result(messages, ids, single, "pull", block)

    def get(self, key_s: str | Sequence[str]) -> Any:
        """Return the values of names; it waits."""
        return self.pull(key_s, block=True)

    def __getitem__(self, key: str) -> Any:
        return self.get(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def clear(self, targets: Any = None, block: bool | None = None) -> Any:
        """Empty the namespaces of the engines."""
        return self.client.clear(self.targets if targets is None else targets, self.block if block is None else block)

    def kill(self, targets: Any = None, block: bool = True) -> Later:
        """End the engines of this view at once; see ``Client.shutdown``."""
        return self.client.shutdown(self.targets if targets is None else targets, block=block)

    # -- sequences

    def scatter(
        self,
        key: str,
        seq: Any,
        dist: str = "b",
        flatten: bool = False,
        targets: Any = None,
        block: bool | None = None,
        track: bool | None = None,
    ) -> Any:
        """Assign a part of a sequence to a name on each engine; flatten: the item itself for parts of length 1.

        Returns None if it waits, so that a cell shows nothing.
        """
        ids, _ = self._ids(targets)
        pending = self.client.multiengine.scatter(key, seq, dist, flatten, targets=ids, block=False)
        found = self._result(self._send("push", ids, pending), ids, False, "scatter", block)
        return found if isinstance(found, AsyncResult) else None

    def gather(
        self, key: str, dist: str = "b", targets: Any = None, track: bool | None = None, block: bool | None = None
    ) -> Any:
        """Join the parts of a sequence that `scatter` has made."""
        ids, _ = self._ids(targets)
        pending = self.client.multiengine.apply(engine_calls.values_of, ([key],), targets=ids, block=False)
        messages = self._send("apply", ids, pending, lambda answer, _: answer.value[0])
        return self._finish(AsyncMapResult(self.client, messages, partial(joined, dist=dist), "gather"), block)

    def map(
        self,
        function: Any,
        /,
        *sequences: Iterable[Any],
        block: bool | None = None,
        track: bool = False,
        return_exceptions: bool = False,
        label: Any = None,
    ) -> Any:
        """Call a function with the items of sequences, a part of them on each engine.

        Args:
            function: the function.
            sequences: one or more, which are used up to the end of the shortest.
            block: whether to wait for the list of values; else an `AsyncMapResult` is returned.
            track: whether the result tells when values may be changed: they are copied before this returns.
            return_exceptions: return errors among the values; the error of an item stands for its engine's part.
            label: a name for the call.
        """
        made = PartsFunction(self, function, block=block, return_exceptions=return_exceptions, label=label)
        return made.map(*sequences)

    def call_parts(self, call: PartsCall) -> Any:
        """Call a function with a part of each sequence on each engine; mapping: with the items of the parts."""
        if call.chunksize:
            warnings.warn("`chunksize` is ignored unless load balancing", UserWarning, stacklevel=3)
        ids, _ = self._ids(None)
        split = [parts(sequence, len(ids), call.dist) for sequence in call.sequences]
        messages: list[CommandMessage] = []
        sizes: dict[str, int] = {}
        for engine, own in zip(ids, zip(*split, strict=True), strict=True):
            size = min(len(part) for part in own)
            if not any(len(part) for part in own):
                continue
            called = keeping(call.function, mapping=True) if call.mapping else call.function
            (message,) = self._call(called, own, {}, [engine], call.label)
            sizes[message.msg_id] = size if call.mapping else 1
            messages.append(message)
        join, name = partial(joined, dist=call.dist), name_of(call.function)
        result = AsyncMapResult(
            self.client, messages, join, name, call.ordered, call.return_exceptions, chunk_sizes=sizes
        )
        return self._finish(result, call.block)

    def imap(self, function: Any, /, *sequences: Iterable[Any], **options: Any) -> Iterator[Any]:
        """Return an iterator over the values of `map`, each as soon as it is there."""
        return iter(self.map_async(function, *sequences, **options))

    # -- modules

    @contextlib.contextmanager
    def sync_imports(self, local: bool = True, quiet: bool = False) -> Iterator[None]:
        """Run the imports of a ``with`` block here and on the engines.

        Args:
            local: only True is possible.
            quiet: do not print what is imported.
        """
        if not local:
            raise NotImplementedError("remote-only imports not yet implemented")
        frame = sys._getframe(2)  # skip the frames of this generator and of contextlib

        def use(statements: list[str]) -> None:
            for statement in statements if not quiet else ():
                print(f"{_in_words(statement)} on engine(s)")
            self.execute("\n".join(statements), block=True)

        with collected(frame, use):
            yield

    @property
    def importer(self) -> contextlib.AbstractContextManager[None]:
        """Return ``sync_imports()``."""
        return self.sync_imports()

    def use_dill(self) -> Any:
        """Call nothing on the engines: closures, lambdas and classes are sent anyway."""
        return self.apply(engine_calls.nothing)

    use_cloudpickle = use_pickle = use_dill

    def activate(self, suffix: str = "") -> None:
        """Register ``%px``, ``%%px``, ``%autopx``, ``%pxresult`` and ``%pxconfig`` for this view in IPython."""
        adapter("ipyparallel.magics").activate(self, suffix)


def _in_words(statement: str) -> str:
    words = statement.split()
    if words[0] == "from":
        names = [part.split()[0] for part in " ".join(words[3:]).split(",")]  # without "as …"
        return f"importing {','.join(names)} from {words[1]}"
    return f"importing {words[1]}"


class BroadcastView(DirectView):
    """A direct view, under the name that ipyparallel has for views of very many engines."""

    def __init__(self, client: SendsCalls, targets: Any = "all", is_coalescing: bool = False, **flags: Any) -> None:
        """Create the view.

        is_coalescing: whether the answers of several engines may come in one message; here they may in either case.
        """
        self.is_coalescing = is_coalescing
        super().__init__(client, targets, **flags)
