"""`MultiEngineClient`: commands to all engines of a farm, or to those that you name."""

from __future__ import annotations

import contextlib
import hashlib
import html
import operator
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from typing import Any

import msgspec

from ..core import errors, messages
from ..core.arguments import check_count, check_int, check_name, check_names
from ..core.messages import engine_commands, tables
from ..core.messages.engine_commands import ExecuteBody, PropertiesBody, PushBody
from ..core.messages.payload import CellPlace
from ..core.text import escaped, shown
from ..display.farm_tables import engine_table
from ..display.tables import Table
from ..serialization.pack import pack
from ..storage.blobs import BlobStore, BlobWriter
from ..system.farm_paths import Where
from ..system.live_pages import page_link, page_path
from . import adapters, command_sender, commands, engine_maps, operate, sessions
from .command_sender import CommandSender, await_commands, engine_id
from .commands import CommandPart, PendingResult
from .engine_maps import EngineMapper, EngineParallelFunction, Targets, map_on_engines, packed_call
from .ids import Timeout, seconds
from .imports import collected
from .old_names import ClientNames, old_keywords
from .profiling import CpuProfiling, MemoryProfiling, Profilers, Sampling
from .python2 import note_names, tell_of_code, tell_of_iterators
from .rules import flag
from .session import Session
from .task_arguments import check_push

_encode = msgspec.msgpack.Encoder().encode

LOOK_S = 1.0
"""Seconds that the display of a client may wait for the farm."""
GONE_S = 15.0
"""Seconds that `kill` waits for the end of the farm's processes."""


class StickyEntries(list[tuple[str, str, str]]):
    """The (key, verb, text) of the code and names that every fresh engine gets, in that order."""

    def __repr__(self) -> str:
        return repr(Table(("key", "verb", "what"), self, nothing="nothing is sticky"))


class KeptEntries(list[tuple[int, str, str]]):
    """Commands that are kept for replacements: (engine id, text, why the command is not repeated; "": it
    is repeated).
    """

    def __repr__(self) -> str:
        return repr(Table(("engine", "what", "not done again"), self, nothing="nothing was done by hand"))


class MultiEngineClient(ClientNames, settable=("farm", "targets", "block", "replay")):
    """Your connection to a farm's engines, to each of them or to all at once.

    `targets` ("all", an id, or a list of ids) and `block` are the defaults of all calls with these arguments.  Every
    result is a list with one entry per target, also for a single id.  For the arguments of the constructor see
    `TaskClient`.

    The commands `push`, `scatter`, `execute`, `run`, `sync_imports`, `set_properties` and ``%px`` are kept for each
    engine. A replacement of an engine repeats them in order before it gets tasks; see `kept`.  replay=False, as an
    argument or as an attribute, is ``sticky=False`` for all calls of this client.

    Commands to one engine run in order, after the task that is running there.  An unknown id raises InvalidEngineID, a
    farm without engines raises NoEnginesRegistered, and exceptions on engines are raised as a CompositeError.  From
    IPython 0.10.
    """

    def __init__(
        self,
        where: Where = None,
        *,
        key_file: str | PathLike[str] | None = None,
        timeout: Timeout = None,
        replay: bool = True,
    ) -> None:
        self._session = sessions.connect(where, key_file, seconds(timeout))
        self._commands = CommandSender(self._session, self)
        self.farm = self._session.farm
        self.targets: Targets = "all"
        self.block = True
        self.replay = replay

    @property
    def block(self) -> bool:
        """Whether calls wait for their answers; else they return a PendingResult.  Raises TypeError for no bool."""
        return self._block

    @block.setter
    def block(self, block: bool) -> None:
        self._block = flag("block", block)

    def close(self) -> None:
        """End this client: its commands raise ConnectionError.  The engines go on."""
        if not self._commands.is_closed:
            self._commands.is_closed = True
            sessions.release(self._session)

    def __enter__(self) -> MultiEngineClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<MultiEngineClient of farm {self.farm!r}{', closed' if self._commands.is_closed else ''}>"

    def _repr_html_(self) -> str:
        link = page_link(page_path(self.farm))
        head = html.escape(repr(self)[1:-1]) + (f" · {link}" if link else "")
        try:
            rows = self._commands.engines(LOOK_S)
        except Exception as error:  # the farm is away or the client is closed: show the error
            return f"<div>{head}<br>{html.escape(f'{type(error).__name__}: {error}')}</div>"
        return f"<div>{head}</div>{engine_table(rows).html()}"

    # ----------------------------------------------------------------------------------------------
    # Engines

    def engines(self) -> list[tables.EngineRow]:
        """Return all engines by id, with their state and facts."""
        return self._commands.engines()

    def await_engines(
        self, count: int | None = None, connect_timeout: float = 5, stable_timeout: float = 60
    ) -> list[int]:
        """Wait for engines and return their ids; see ``TaskClient.await_engines``."""
        return operate.await_engines(self._session, count, connect_timeout, stable_timeout)

    def get_ids(self) -> list[int]:
        """Return the ids of the engines that take commands now."""
        return self._commands.working()

    def __len__(self) -> int:
        return len(self.get_ids())

    def __bool__(self) -> bool:
        return True  # without engines `__len__` would make the client false

    def ids_of(self, targets: Targets) -> list[int]:
        """Return the ids of the engines that `targets` selects now.  Raises NoEnginesRegistered if there are none."""
        return self._commands.ids_of(targets)

    @property
    def session(self) -> Session:
        """Return the connection, shared by all clients of this process."""
        return self._session

    @property
    def multiengine(self) -> MultiEngineClient:
        """Return this client.  In IPython 0.10 this was another object with the same calls."""
        return self

    @property
    def blobs(self) -> BlobStore | None:
        """Return the store for large values; None: large values are sent inline."""
        return self._session.blobs

    def send(self, pending: PendingResult) -> PendingResult:
        """Record a running command, so that `flush` can discard it."""
        return self._commands.record(pending)

    # ----------------------------------------------------------------------------------------------
    # Commands

    def execute(
        self, lines: str, targets: Targets = None, block: bool | None = None, *, sticky: bool | None = None
    ) -> Any:
        """Run code on engines; return a `ResultList` of dicts ``{id, number, input, stdout, stderr, display}``.

        sticky: None: a replacement of one of these engines runs the code too.  False: it does not.  True: every fresh
        engine runs it, as long as the farm exists (see `sticky`), and the names that it defines survive `reset` and
        ``clear_before``.
        """
        return self.execute_cell(lines, None, targets, block, sticky)

    def execute_cell(
        self, lines: str, cell: CellPlace | None, targets: Targets, block: bool | None, sticky: bool | None = None
    ) -> Any:
        """Run code that stands in a cell of a notebook, which tracebacks name.  See `execute`."""
        return self._execute(lines, cell, targets, block, sticky)

    def _execute(
        self,
        lines: str,
        cell: CellPlace | None,
        targets: Targets,
        block: bool | None,
        sticky: bool | None,
        text: str | None = None,
    ) -> Any:
        """Run code on engines; `text` stands for it in tables."""
        lines = check_name("lines", lines)
        tell_of_code(lines, keep=True)
        body = _encode(ExecuteBody(lines, bool(sticky), cell))
        if sticky:
            key = f"execute:{hashlib.sha256(lines.encode()).hexdigest()[:16]}"
            entries = [(key, body, lines)]
            return self._commands.send_sticky(entries, "execute", body, targets, block, commands.executed)
        shown_as = lines if text is None else text
        keep = self._commands.keep(sticky)
        return self._commands.send("execute", body, targets, block, commands.executed, shown_as, keep=keep)

    def run(
        self,
        filename: str | PathLike[str],
        targets: Targets = None,
        block: bool | None = None,
        *,
        sticky: bool | None = None,
    ) -> Any:
        """Run a local file on engines.  The client reads and compiles the file, and raises OSError or SyntaxError.

        sticky: as in `execute`.
        """
        with tokenize.open(filename) as file:
            source = file.read()
        compile(source, str(filename), "exec")
        return self._execute(source, None, targets, block, sticky, str(filename))

    @contextlib.contextmanager
    def sync_imports(self, targets: Targets = None) -> Iterator[None]:
        """Run the imports of a block here and on the engines: ``with mec.sync_imports(): import numpy as np``.

        Only the import statements of the block itself count, not those of the imported modules.
        """
        frame = sys._getframe(2)  # skip the frames of this generator and of contextlib

        def use(statements: list[str]) -> None:
            self.execute("\n".join(statements), targets, block=True)

        with collected(frame, use):
            yield

    def push(
        self,
        namespace: dict[str, Any],
        targets: Targets = None,
        block: bool | None = None,
        *,
        sticky: bool | None = None,
    ) -> Any:
        """Assign names in the engines' namespaces.

        sticky: None: in the namespace of a replacement of one of these engines too.  False: not there.  True: on every
        fresh engine.
        """
        if not isinstance(namespace, dict):
            raise TypeError(f"push takes a dict of names and values, not {type(namespace).__name__}")
        checked = check_push(namespace)
        note_names(checked)
        if sticky:
            body = _encode(PushBody(pack(checked), True))
            entries = [
                (f"push:{name}", _encode(PushBody(pack({name: value}), True)), f"{escaped(name)} = {shown(value)}")
                for name, value in checked.items()
            ]
            return self._commands.send_sticky(entries, "push", body, targets, block, commands.nothing)
        writer = BlobWriter(self.blobs) if self.blobs is not None else None
        body = _encode(PushBody(pack(checked, "value", writer)))
        keep = self._commands.keep(sticky, checked, writer)
        blobs = writer.taken() if writer is not None else ()
        return self._commands.send("push", body, targets, block, commands.nothing, ", ".join(checked), blobs, keep)

    push_function = push

    def pull(self, keys: str | Sequence[str], targets: Targets = None, block: bool | None = None) -> Any:
        """Return the values of one name, ``[v …]``, or of several names, ``[[v1 … vk] …]``.

        Raises CompositeError (of NameError) for a missing name.
        """
        names = check_names("keys", keys)

        def read(body: bytes) -> Any:
            values = commands.value(body)
            tell_of_iterators(dict(zip(names, values, strict=False)))
            return values[0] if len(names) == 1 else values

        return self._commands.send("pull", _encode(names), targets, block, read, ", ".join(names))

    pull_function = pull

    def zip_pull(self, keys: str | Sequence[str], targets: Targets = None, block: bool | None = None) -> Any:
        """Return ``[(k1 on each engine), (k2 on each) …]``; for one name ``[v on each engine]``.

        For a single engine: ``[v1, v2 …]``, or the one value.
        """
        names = check_names("keys", keys)
        chosen = self._commands.chosen(targets)
        pending: PendingResult = self.pull(names, targets, False)
        if chosen is not None and len(chosen) == 1:
            pending.add_callback(operator.itemgetter(0))
        elif len(names) > 1:
            pending.add_callback(lambda values: list(zip(*values, strict=True)))
        return self._commands.finish(pending, block)

    def get_result(self, i: int | None = None, targets: Targets = None, block: bool | None = None) -> Any:
        """Return command number `i` of each engine, by default the last.  Raises CompositeError (of IndexError)."""
        number = None if i is None else check_int("i", i)
        return self._commands.send("get_result", _encode(number), targets, block, commands.executed)

    def keys(self, targets: Targets = None, block: bool | None = None) -> Any:
        """Return the names in each engine's namespace."""
        return self._commands.send("keys", b"", targets, block, commands.names)

    def reset(self, targets: Targets = None, block: bool | None = None) -> Any:
        """Empty the engines' namespaces and forget their commands (`get_result`).

        `id`, sticky names and properties stay.
        """
        return self._commands.send("reset", b"", targets, block, commands.nothing)

    # ----------------------------------------------------------------------------------------------
    # Sessions

    def dump_session(self, path: str | PathLike[str], targets: Targets = None, block: bool | None = None) -> Any:
        """Save the engines' names to files on their nodes; restored functions use the engine's namespace as their
        globals.

        Args:
            path: the file, written atomically and readable by its owner alone.  ``{id}`` in it is the engine's id; it
                is needed for more than one engine.
            targets: the engines.
            block: False returns a `PendingResult`.

        Returns:
            For each engine a dict of the names that cannot be pickled, each with the reason; the other names are saved.

        Raises:
            ValueError: several engines would write the same file.
            CompositeError: an engine cannot write its file.
        """
        return self._commands.send_session("dump_session", command_sender.to_files(path, self.ids_of(targets)), block)

    def load_session(self, path: str | PathLike[str], targets: Targets = None, block: bool | None = None) -> Any:
        """Restore sessions that `dump_session` saved, on any engine.

        Args:
            path: the file on the engines' nodes; ``{id}`` in it is the engine's id.
            targets: the engines.
            block: False returns a `PendingResult`.

        Returns:
            For each engine a dict of the names that are not in the file, each with the reason.

        Raises:
            CompositeError: of SessionError, if a file is damaged, was saved by another version of Python or dill, or
                needs a module that the engine cannot import.  The engine's names do not change then.
        """
        command = command_sender.from_files(path, self.ids_of(targets))
        return self._commands.send_session("load_session", command, block)

    def push_session(self, targets: Targets = None) -> dict[str, str]:
        """Copy all names of this session (the notebook's, or those of ``__main__``) to the engines.

        Returns:
            A dict of the names that cannot be pickled, each with the reason.
        """
        command, left_out = command_sender.own_to_engines(self._commands.chosen(targets), self.blobs)
        self._commands.send_session("load_session", command, True)
        return left_out

    def pull_session(self, target: int) -> dict[str, str]:
        """Copy all names of an engine to this session (the notebook, or ``__main__``).

        Args:
            target: the engine's id.

        Returns:
            A dict of the engine's names that cannot be pickled, each with the reason.

        Raises:
            SessionError: the engine's session cannot be restored here; no name was changed.
        """
        (left_out,) = self._commands.send_session("dump_session", command_sender.from_engine(engine_id(target)), True)
        assert isinstance(left_out, dict)
        return left_out

    def checkpoint(self, targets: Targets = None, block: bool | None = None) -> Any:
        """Save the state of engines for their replacements.

        A checkpoint holds an engine's names and properties, and the changes to its working folder, environment
        variables and ``sys.path`` that commands have made.  It replaces the commands that were kept before it (see
        `kept`); later commands are repeated after it.  The farm keeps it, at most 1 GiB for each engine; on a node that
        does not see the farm's files, what is in it beside values of 1 MiB and more may have 64 MiB.

        Args:
            targets: the engines.
            block: False returns a `PendingResult`.

        Returns:
            For each engine a dict of the names that cannot be saved, each with the reason.

        Raises:
            CompositeError: of SessionError, if an engine has more than a checkpoint may hold.  The kept commands stay
                then.
        """
        return self._commands.send(engine_commands.CHECKPOINT, b"", targets, block, command_sender.reasons)

    # ----------------------------------------------------------------------------------------------
    # Sequences

    def scatter(
        self,
        key: str,
        seq: Any,
        dist: str = "b",
        flatten: bool = False,
        targets: Targets = None,
        block: bool | None = None,
        *,
        sticky: bool | None = None,
    ) -> Any:
        """Assign a part of a sequence to the name `key` on each engine.

        Args:
            key: the name.
            seq: a list, an array (parts are arrays), or any other iterable.
            dist: 'b' for blocks, the first ``len % n`` of them one longer; 'r' for round robin.
            flatten: replace a part of length 1 by its only item.
            targets: the engines.
            block: False returns a `PendingResult`.
            sticky: None: the replacement of an engine gets that engine's part; False: it does not.
        """
        key = check_name("key", key)
        engine_maps.check_sequence("seq", seq)
        if sticky:
            raise ValueError("each engine has a part of its own: sticky=True is for execute, push and set_properties")
        engines = self.ids_of(targets)
        sent = []
        for engine, part in zip(engines, engine_maps.parts(seq, len(engines), dist), strict=True):
            writer = BlobWriter(self.blobs) if self.blobs is not None else None
            value = engine_maps.flat(part) if flatten else part
            body = _encode(PushBody(pack({key: value}, "value", writer)))
            keep = self._commands.keep(sticky, [key], writer)
            sent.append(CommandPart([engine], body, writer.taken() if writer is not None else (), keep))
        return self._commands.send_parts("push", sent, block, commands.nothing, f"scatter({key})")

    def gather(self, key: str, dist: str = "b", targets: Targets = None, block: bool | None = None) -> Any:
        """Join the parts that `scatter` has made: lists are joined, arrays concatenated, other values returned as a
        list.
        """
        engine_maps.check_dist(dist)
        name = check_name("keys", key)

        def first(body: bytes) -> Any:
            return commands.value(body)[0]

        pending: PendingResult = self._commands.send("pull", _encode([name]), targets, False, first, name)
        pending.add_callback(engine_maps.joined, dist)
        return self._commands.finish(pending, block)

    def map(self, func: Callable[..., Any] | str, *sequences: Iterable[Any]) -> Any:
        """Return ``[func(a, b) for a, b in zip(*sequences)]`` in order; each engine computes a part.

        func: a function, or the name of a function on the engines.

        Raises CompositeError for errors on engines.  ``TaskClient.map`` balances the load and records its tasks; this
        map does neither.
        """
        return self.raw_map(func, sequences)

    @old_keywords(seq="sequences")
    def raw_map(
        self,
        func: Callable[..., Any] | str,
        sequences: Sequence[Iterable[Any]],
        dist: str = "b",
        targets: Targets = None,
        block: bool | None = None,
    ) -> Any:
        """Run `map` with explicit settings.

        Args:
            func: a function, or the name of a function on the engines.
            sequences: a list of the sequences.
            dist: how items are spread, see `scatter`.
            targets: the engines.
            block: False returns a `PendingResult`.
        """
        return map_on_engines(self, func, sequences, dist, targets, self._commands.waits(block))

    def apply(
        self,
        func: Callable[..., Any] | str,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        targets: Targets = None,
        block: bool | None = None,
    ) -> Any:
        """Call ``func(*args, **kwargs)`` once on each engine; return the list of the values.

        Args:
            func: a function, or an expression for one on the engines, such as its name.
            args: the arguments.
            kwargs: the arguments by name.
            targets: the engines.
            block: False returns a `PendingResult`.

        The function finds the names of the engine's namespace.  Commands behind a call that fails still run.  The
        changes that a call makes on an engine are not made again on a replacement.  A task, ``tc.submit``, is balanced
        and recorded; this call is neither.  Raises CompositeError for errors on engines, UnpickleableException for a
        function or arguments that cannot travel.
        """
        body, blobs, text = packed_call(func, args, kwargs, self.blobs)
        return self._commands.send(engine_commands.APPLY, body, targets, block, commands.applied, text, blobs)

    def mapper(self, dist: str = "b", targets: Targets = None, block: bool | None = None) -> EngineMapper:
        """Return an object with a `map` method that uses these settings."""
        return EngineMapper(self, dist, targets, block)

    def parallel(self, dist: str = "b", targets: Targets = None, block: bool | None = None) -> EngineParallelFunction:
        """Return a decorator for functions that then take sequences, and run over them on the engines."""
        return EngineParallelFunction(self.mapper(dist, targets, block))

    # ----------------------------------------------------------------------------------------------
    # Queues, engines and ends

    def add_engines(self, count: int = 1) -> int:
        """Start more engines, and return the number that the farm keeps from now on; see `await_engines`."""
        question = messages.SetWanted(more=check_count("count", count, least=0) or 0)
        return self._session.ask_for(question, messages.NumberReply).value

    def queue_status(self, targets: Targets = None, block: bool | None = None) -> Any:
        """Return ``[(id, {'queue': [...], 'pending': ...})]``, all as text.

        pending: the task or command that runs on the engine, or None.  queue: the commands that wait behind it.

        With block=False the result is wrapped in a `PendingResult`, which is done at once, because the controller
        answers.
        """
        return self._commands.queue_status(targets, block)

    def clear_queue(self, targets: Targets = None, block: bool | None = None) -> Any:
        """Drop commands of this client that wait on engines; their results raise QueueCleared.

        The running command goes on, and so do tasks and the commands of other clients.
        """
        return self._commands.send("clear_queue", b"", targets, block, commands.nothing)

    def interrupt(self, targets: Targets = None) -> None:
        """Raise KeyboardInterrupt in the command that each engine runs now, whoever sent it.

        It returns at once.  Tasks are ended by ``tc.abort``.
        """
        self._commands.send(engine_commands.INTERRUPT, b"", targets, True, commands.nothing)

    @old_keywords(pendingResults="pending_results")
    def barrier(self, pending_results: PendingResult | Iterable[PendingResult]) -> None:
        """Wait for pending results; only ``get_result`` raises their errors."""
        await_commands(pending_results)

    def flush(self) -> None:
        """Discard all pending results of this client: their ``get_result`` raises InvalidDeferredID."""
        self._commands.discard()

    def activate(self, suffix: str = "", force: bool = False) -> None:
        """Register ``%px``, ``%%px``, ``%autopx``, ``%pxresult``, ``%result`` for this client in IPython or Jupyter.

        Args:
            suffix: is appended to each name.
            force: replace magics of another package with the same names.

        Raises RuntimeError in plain Python, and if another package has these names.
        """
        adapters.activate_magics(self, suffix, force)

    def kill(self, controller: bool = False, targets: Targets = None, block: bool | None = None) -> None:
        """End engines at once, and reduce the wanted number of engines by theirs.

        ``ipytaskfarm start -n N`` raises the number again.

        Args:
            controller: True: end the whole farm, with all running tasks, and wait until its processes have ended; its
                store stays.
            targets: the engines.
            block: accepted for old scripts; this call always waits.
        """
        if operate.ends_farm(controller):
            self.clear_kept()
            self._session.ask(messages.StopFarm(drain_s=0.0))
            sessions.wait_gone(self._session, GONE_S)
            return
        try:
            ids = list(dict.fromkeys(self.ids_of(targets)))
        except errors.NoEnginesRegistered:
            return
        self._session.ask(messages.RemoveEngines(ids, drain=False))

    def __getitem__(self, key: str) -> Any:
        if not isinstance(key, str):
            raise TypeError(f"mec[…] takes a name, not {type(key).__name__}: targets=… of its methods chooses engines")
        return self.pull(key, block=True)

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(f"mec[…] = takes a name, not {type(key).__name__}: push(…, targets=…) chooses engines")
        self.push({key: value}, block=True)

    # ----------------------------------------------------------------------------------------------
    # Properties

    def set_properties(
        self,
        properties: dict[str, Any],
        targets: Targets = None,
        block: bool | None = None,
        *,
        sticky: bool | None = None,
    ) -> Any:
        """Set properties, which `depend` functions read.

        sticky: None: a replacement of one of these engines gets them too.  False: it does not.  True: every fresh
        engine.

        Raises InvalidProperty for a value that cannot be pickled, and for the name of a fact.
        """
        if not isinstance(properties, dict):
            raise TypeError(f"properties must be a dict, not {type(properties).__name__}")
        checked = {check_name("a property's name", name): value for name, value in properties.items()}
        try:
            packed = pack(checked)
        except errors.UnpickleableException as error:
            raise errors.InvalidProperty(f"a property that cannot travel: {error}") from None
        body = _encode(PropertiesBody("set", packed=packed))
        if sticky:
            entries = [
                (
                    f"property:{name}",
                    _encode(PropertiesBody("set", packed=pack({name: value}))),
                    f"{name} = {shown(value)}",
                )
                for name, value in checked.items()
            ]
            return self._commands.send_sticky(entries, "properties", body, targets, block, commands.nothing)
        return self._change_properties(body, targets, block, ", ".join(checked), checked, sticky)

    def _change_properties(
        self,
        body: bytes,
        targets: Targets,
        block: bool | None,
        text: str,
        names: Iterable[str],
        sticky: bool | None = None,
    ) -> Any:
        """Send a change of these properties; one of none is not kept."""
        keep = self._commands.keep(sticky, names) if names else None
        return self._commands.send("properties", body, targets, block, commands.nothing, text, keep=keep)

    def get_properties(
        self,
        keys: str | Sequence[str] | None = None,
        targets: Targets = None,
        block: bool | None = None,
        *,
        facts: bool = False,
    ) -> Any:
        """Return for each engine a dict of all properties, or of some; facts=True adds the engine's facts."""
        names = None if keys is None else check_names("keys", keys)
        body = _encode(PropertiesBody("get", names, facts=bool(facts)))
        return self._commands.send("properties", body, targets, block, commands.value)

    def has_properties(self, keys: str | Sequence[str], targets: Targets = None, block: bool | None = None) -> Any:
        """Return for each engine a list of booleans, one per key."""
        body = _encode(PropertiesBody("has", check_names("keys", keys)))
        return self._commands.send("properties", body, targets, block, commands.value)

    def del_properties(self, keys: str | Sequence[str], targets: Targets = None, block: bool | None = None) -> Any:
        """Delete properties.  Raises CompositeError (of KeyError) for a missing one."""
        names = check_names("keys", keys)
        body = _encode(PropertiesBody("del", names))
        return self._change_properties(body, targets, block, f"del {', '.join(names)}", names)

    def clear_properties(self, targets: Targets = None, block: bool | None = None) -> Any:
        """Delete all properties."""
        body, keep = _encode(PropertiesBody("clear")), self._commands.keep(None)
        return self._commands.send("properties", body, targets, block, commands.nothing, "clear", keep=keep)

    # ----------------------------------------------------------------------------------------------
    # Profiles

    @property
    def profile(self) -> Profilers:
        """Return the profilers for the engines of `targets`: ``mec.profile.cpu``, ``.memory``, ``.sampling``."""
        chosen = self._commands.chosen(None)
        return Profilers(self._session, None if chosen is None else list(dict.fromkeys(chosen)))

    @property
    def cpu_profiling(self) -> CpuProfiling:
        """Return the same as ``profile.cpu``."""
        return self.profile.cpu

    @property
    def memory_profiling(self) -> MemoryProfiling:
        """Return the same as ``profile.memory``."""
        return self.profile.memory

    @property
    def sampling(self) -> Sampling:
        """Return the same as ``profile.sampling``."""
        return self.profile.sampling

    # ----------------------------------------------------------------------------------------------
    # Sticky state

    def sticky(self) -> StickyEntries:
        """Return what every fresh engine runs after the farm's start-up code, in order: (key, verb, text)."""
        return StickyEntries(self._session.ask_for(messages.ListSticky(), tables.StickyTable).rows)

    def clear_sticky(self, keys: str | Iterable[str] | None = None) -> int:
        """Delete sticky entries, all or those with these keys, and return their number.

        Running engines keep the names.
        """
        question = messages.ClearSticky(None if keys is None else check_names("keys", keys))
        return self._session.ask_for(question, messages.NumberReply).value

    def kept(self) -> KeptEntries:
        """Return the commands that are kept for each engine: (engine id, text, why it is not repeated on a
        replacement).

        At most 256 commands and 64 MiB are kept for each engine id, and 1 GiB of large values; the oldest are dropped.
        `reset` and `kill` delete them.  A push of a name replaces an earlier push of it if no code ran in between.
        """
        return KeptEntries(self._session.ask_for(messages.ListKept(), tables.KeptTable).rows)

    def clear_kept(self, targets: Targets = "all") -> int:
        """Delete the kept commands of these engines, and return their number.  The engines keep their names."""
        question = messages.ClearKept(self._commands.chosen(targets))
        return self._session.ask_for(question, messages.NumberReply).value
