"""Runs MultiEngine commands between tasks, in order, each once.

(session, n) identifies a command. A command that is repeated on a replacement has the identity from when a client first
did it. If a command comes again because its answer was lost, it is answered and not run again. When a command fails,
the commands of the same session waiting behind it fail with QueueCleared. The farm's own session "" (start-up code and
sticky state) is exempt, because its entries do not depend on one another.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import starmap
from typing import Any, TypeAlias

import msgspec

from ..core.errors import KernelError, QueueCleared, SessionError, UnpickleableException
from ..core.messages import CommandDone, EngineCommand, OutputQuery, OutputText
from ..core.messages.engine_commands import (
    APPLY,
    CHECKPOINT,
    LOAD_SESSION,
    REPLACES,
    ApplyBody,
    ApplyReply,
    DumpSessionBody,
    ExecuteBody,
    ExecuteReply,
    LoadSessionBody,
    MapBody,
    ProfileBody,
    PropertiesBody,
    PushBody,
    SavedCheckpoint,
    SavedSession,
    SessionSurroundings,
)
from ..core.scheduler.kept_commands import BLOB_BYTES_MAX, BYTES_MAX
from ..core.text import encoded, text_of
from ..serialization.module_names import take_names
from ..serialization.pack import pack, pack_names, unpack, unpack_function
from ..serialization.rebuild_values import NotedValues
from ..storage.blobs import BlobStore, BlobWriter
from ..system.files import read_session, write_session
from .capture import nothing_new
from .child_processes import leave_fork
from .edits import Edits
from .failures import described, forget_loss, remember_loss
from .interrupt import CommandInterrupts
from .kernel import CellPlan
from .lane import Step
from .namespace import Namespace, written_globals
from .properties import Properties
from .shared_parts import Parts
from .sinks import SINK, Sink
from .surroundings import folder_now


class Checkpoints:
    """Saves and restores checkpoints; made at the engine's start, before anything is done by hand."""

    def __init__(self, namespace: Namespace, properties: Properties, blobs: BlobStore | None) -> None:
        """Create it; `blobs` is the store for large values.

        Without a store, large values are part of the checkpoint, because other machines do not see this node's folder.
        """
        self._namespace = namespace
        self._properties = properties
        self._blobs = blobs
        self._folder = folder_now()
        self._variables = dict(os.environb)
        self._path = list(sys.path)

    def save(self) -> SavedCheckpoint:
        """Save the names and surroundings.  SessionError: they are more than a checkpoint may hold."""
        data, left_out = self._namespace.dump_session()
        names = [name for name in self._namespace.user_keys() if name not in left_out]
        writer = BlobWriter(self._blobs) if self._blobs is not None else None
        packed = pack(data, "session", writer)
        body = encoded(msgspec.msgpack.encode, LoadSessionBody(packed=packed, surroundings=self._surroundings(names)))
        blobs = writer.sizes() if writer is not None else {}
        if len(body) > BYTES_MAX or sum(blobs.values()) > BLOB_BYTES_MAX:
            largest = BYTES_MAX if len(body) > BYTES_MAX else BLOB_BYTES_MAX
            raise SessionError(
                f"the session has {len(data) / 2**20:,.0f} MiB, and a checkpoint holds at most "
                f"{largest / 2**20:,.0f} MiB: delete what can be made again, or save it with dump_session"
            )
        return SavedCheckpoint(body, blobs, len(names), left_out)

    def load(self, packed: bytes, found: SessionSurroundings) -> dict[str, str]:
        """Restore a checkpoint, and return the names that are not in it, each with the reason.

        SessionError: it cannot be restored here; or all of it is there but the working folder."""
        self._properties.replace(unpack(found.properties))
        for name, value in found.variables.items():
            if value is None:
                os.environb.pop(name, None)
            else:
                os.environb[name] = value
        known = set(sys.path)
        sys.path[:0] = [each for each in found.path_first if each not in known]
        sys.path += [each for each in found.path_last if each not in known]
        _, left_out = self._namespace.load_session(unpack(packed), "the checkpoint")
        for by in dict.fromkeys(found.placed.values()):
            self._namespace.place([name for name, how in found.placed.items() if how == by], by)
        if found.folder:
            try:
                os.chdir(found.folder)
            except OSError as error:
                raise SessionError(f"the names are there, but not the working folder: {error}") from None
        return left_out

    def _surroundings(self, names: list[str]) -> SessionSurroundings:
        folder, variables = folder_now(), dict(os.environb)
        changed: dict[bytes, bytes | None] = {n: v for n, v in variables.items() if self._variables.get(n) != v}
        changed |= dict.fromkeys(self._variables.keys() - variables.keys())
        path = [each for each in sys.path if isinstance(each, str)]
        at_start = set(self._path)
        first = next((i for i, each in enumerate(path) if each in at_start), 0)
        return SessionSurroundings(
            self._namespace.placed_of(names),
            folder if folder != self._folder else "",
            changed,
            path[:first],
            [each for each in path[first:] if each not in at_start],
            pack(dict(self._properties)),
        )


ANSWERS_KEPT = 512
ANSWERS_BYTES_MAX = 16 * 1024 * 1024
NAMES_KEPT = 8192
"""The number of commands that are known as done, with or without their answer."""
REPLIES_KEPT = 1000
"""The number of replies that are kept for `get_result`."""
OWN_SESSION = ""

Finish: TypeAlias = Callable[[Sink], bytes]
"""Makes the answer once the output is complete."""
Verb: TypeAlias = Callable[[EngineCommand], Finish | Coroutine[Any, Any, Finish]]
TakeWaiting: TypeAlias = Callable[[str, Collection[int] | None], list[EngineCommand]]


class Commands:
    """Does the verbs of `core.messages.engine_commands` in the main thread."""

    def __init__(self, parts: Parts, take_waiting: TakeWaiting, edits: Edits) -> None:
        """Create it; `take_waiting` removes queued commands of a session, all or those with some numbers."""
        self._engine = parts.engine
        self._engine_id = parts.engine_id
        self._pid = os.getpid()
        self._recorder = parts.recorder
        self._namespace = parts.namespace
        self._properties = parts.properties
        self._facts = parts.facts
        self._cells = parts.cells
        self._capture = parts.capture
        self._baseline = parts.baseline
        self._loops = parts.loops
        self._send = parts.send
        self._edits = edits
        self._profiling = parts.profiling
        self._profiling.sampler.mark(Commands._begin.__code__, _caught.__code__)
        # Its thread starts with its first command.
        self._profiling_thread = ThreadPoolExecutor(1, thread_name_prefix="Profiling")
        self._take_waiting = take_waiting
        self._running: tuple[EngineCommand, Sink] | None = None
        self._interrupts = CommandInterrupts()
        self._began_s = 0.0
        self._answers: OrderedDict[tuple[str, int], CommandDone | None] = OrderedDict()
        self._answers_bytes = 0
        self._answers_whole = 0
        self._lock = threading.Lock()
        """Guards the answers: the lane's thread clears queues."""
        self._checkpoints = Checkpoints(parts.namespace, parts.properties, parts.blobs)
        self._writer = BlobWriter(parts.blobs) if parts.blobs is not None else None
        self._replies: OrderedDict[int, bytes] = OrderedDict()
        self._verbs: dict[str, Verb] = {
            "execute": self._execute,
            "push": self._push,
            "pull": self._pull,
            "keys": self._keys,
            "get_result": self._get_result,
            "reset": self._reset,
            "map": self._map,
            APPLY: self._apply,
            "properties": self._property,
            "dump_session": self._dump_session,
            LOAD_SESSION: self._load_session,
            CHECKPOINT: self._checkpoint,
            REPLACES: self._replaces,
        }

    def run(self, command: EngineCommand) -> Step:
        """Run a command to its end, or to its first await."""
        if _name_of(command) in self._answers:
            self._answer_again(command)
            return None
        return self._baseline.by_hand(self._run, command)

    def _run(self, command: EngineCommand) -> Step:
        self._recorder.begin_command()
        self._recorder.words.begin(None)
        sink = Sink(keeps_history=True)
        self._running = command, sink
        self._began_s = time.time()
        token = SINK.set(sink)
        try:
            verb = self._verbs.get(command.verb)
            if verb is None:
                raise KernelError(f"an engine has no command {command.verb!r}: client and engine differ in version")
            self._edits.before_command()
            if command.verb not in (APPLY, "map"):
                self._edits.tell()
            if self._profiling.cpu.on:
                self._profiling.cpu.begin()
            finish = self._begin(verb, command)
            if isinstance(finish, Coroutine):
                task = asyncio.get_running_loop().create_task(_caught(finish))
                task.add_done_callback(partial(self._ended_in_loop, command, sink))
                self._interrupts.begin_awaiting(command, task)
                return task
            self._end(command, sink, finish, None)
        except BaseException as error:  # SystemExit too: the user cannot end the engine
            self._end(command, sink, None, error)
        finally:
            SINK.reset(token)
        return None

    def output(self, query: OutputQuery) -> OutputText:
        """Return what a command in progress has printed and displayed. The lane's thread calls this."""
        running = self._running
        if running is None or (running[0].session, running[0].n) != (query.session, query.run[1]):
            return nothing_new(query)
        return self._capture.look(running[1], query)

    def _begin(self, verb: Verb, command: EngineCommand) -> Finish | Coroutine[Any, Any, Finish]:
        """Call a verb. The sampler recognises this frame and counts the frames above it as the user's."""
        with self._interrupts.during(command):
            return verb(command)

    def interrupt(self, command: EngineCommand) -> None:
        """Interrupt the command that runs. Called by the lane's thread."""
        self._interrupts.request()
        self._answer(command, True, b"")

    def watch(self) -> None:
        """Interrupt the command again if the interrupt came between two of its parts. Called by the lane's thread."""
        self._interrupts.again()

    def profile(self, command: EngineCommand) -> None:
        """Start, stop or read a profiler while anything runs.

        Called by the lane's thread; a repetition does no harm.
        """
        self._profiling_thread.submit(self._profile, command)

    def _profile(self, command: EngineCommand) -> None:
        try:
            found = self._profiling.do(msgspec.msgpack.decode(command.body, type=ProfileBody), self._engine_id)
            answer = True, encoded(msgspec.msgpack.encode, found)
        except Exception as error:
            answer = False, _encode_failure(error)
        self._answer(command, *answer)

    def clear_queue(self, command: EngineCommand) -> None:
        """Drop waiting commands of the session, all or those that the body names. Called by the lane's thread."""
        try:
            numbers = msgspec.msgpack.decode(command.body, type=list[int]) if command.body else None
        except msgspec.MsgspecError as error:
            self._answer(command, False, _encode_failure(error))
            return
        for dropped in self._take_waiting(command.session, numbers):
            self._answer(dropped, False, _encode_failure(QueueCleared("the queue was cleared")))
        self._answer(command, True, b"")

    def _ended_in_loop(self, command: EngineCommand, sink: Sink, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._end(command, sink, None, asyncio.CancelledError("the command was cancelled"))
        else:
            self._end(command, sink, *task.result())

    def _end(self, command: EngineCommand, sink: Sink, finish: Finish | None, error: BaseException | None) -> None:
        if os.getpid() != self._pid:
            leave_fork(error)
        if self._profiling.cpu.running:
            self._profiling.cpu.end()
        self._running = None
        self._capture.end(sink)
        self._baseline.renew()
        self._recorder.end_command()
        body = b""
        if error is None and finish is not None:
            try:
                body = finish(sink)
            except Exception as failure:  # a value cannot be pickled, or its pickling raises
                error = failure
        times = self._began_s, time.time()
        if error is None:
            self._answer(command, True, body, times)
            return
        # Taken before the answer is sent: commands that the client sends after the answer are not behind this one.
        stands_alone = command.session == OWN_SESSION or command.verb == APPLY
        waiting = [] if stands_alone else self._take_waiting(command.session, None)
        self._answer(command, False, _encode_failure(error, sink), times)
        text = f"an earlier command failed: {type(error).__name__}: {text_of(error)}"[:500] if waiting else ""
        for dropped in waiting:
            self._answer(dropped, False, _encode_failure(QueueCleared(text)))

    def _answer(self, command: EngineCommand, ok: bool, body: bytes, times: tuple[float, float] = (0.0, 0.0)) -> None:
        answer = CommandDone(self._engine, command.session, command.n, ok, body, *times)
        with self._lock:
            self._keep(_name_of(command), answer)
        self._send(answer)

    def _keep(self, name: tuple[str, int], answer: CommandDone) -> None:
        answers, body = self._answers, answer.body
        answers[name] = answer
        self._answers_bytes += len(body)
        self._answers_whole += 1
        for each, kept in answers.items():
            if self._answers_whole <= ANSWERS_KEPT and self._answers_bytes <= ANSWERS_BYTES_MAX:
                break
            if kept is not None:
                answers[each] = None
                self._answers_bytes -= len(kept.body)
                self._answers_whole -= 1
        if len(answers) > NAMES_KEPT:
            answers.popitem(last=False)

    def _answer_again(self, command: EngineCommand) -> None:
        answer = self._answers[_name_of(command)]
        if answer is None:
            lost = KernelError(f"the command ({command.verb}) was run; its answer is not kept any more")
            answer = CommandDone(self._engine, command.session, command.n, False, _encode_failure(lost))
        self._send(msgspec.structs.replace(answer, session=command.session, n=command.n))

    # -- the verbs

    def _execute(self, command: EngineCommand) -> Finish | Coroutine[Any, Any, Finish]:
        body = msgspec.msgpack.decode(command.body, type=ExecuteBody)
        sticky = body.sticky or _is_of_farm(command)
        number = self._namespace.execution_count
        plan = self._cells.plan(body.lines, body.cell)
        take_names(tell=True)
        by = _placed_by(command, "execute")
        if plan.is_async:
            return self._execute_in_loop(plan, number, by, sticky)
        with self._binding(plan, by, sticky):
            self._cells.run(plan, store_history=True)
        return self._executed(plan, number)

    async def _execute_in_loop(self, plan: CellPlan, number: int, by: str, sticky: bool) -> Finish:
        with self._binding(plan, by, sticky):
            await self._cells.run_in_loop(plan, store_history=True)
        return self._executed(plan, number)

    @contextlib.contextmanager
    def _binding(self, plan: CellPlan, by: str, sticky: bool) -> Iterator[None]:
        """Record the names that a cell binds, up to its error if it fails."""
        before = self._namespace.snapshot()
        done = False
        try:
            with written_globals.by_hand():
                yield
            done = True
        finally:
            names = self._namespace.bound_since(before, plan.transformed)
            self._namespace.place(names, by)
            if sticky and done:
                self._namespace.keep(names)

    def _executed(self, plan: CellPlan, number: int) -> Finish:
        def finish(sink: Sink) -> bytes:
            shown = ExecuteReply(self._engine_id, number, plan.code, plan.transformed, *sink.written())
            reply = encoded(msgspec.msgpack.encode, shown)
            self._replies[number] = reply
            self._replies.move_to_end(number)
            if len(self._replies) > REPLIES_KEPT:
                self._replies.popitem(last=False)
            return reply

        return finish

    def _push(self, command: EngineCommand) -> Finish:
        body = msgspec.msgpack.decode(command.body, type=PushBody)
        names = self._namespace.push(body.packed)
        self._namespace.place(names, _placed_by(command, "push"))
        if body.sticky or _is_of_farm(command):
            self._namespace.keep(names)
        return _nothing

    def _pull(self, command: EngineCommand) -> Finish:
        names = msgspec.msgpack.decode(command.body, type=list[str])
        values = {name: self._namespace.pull(name) for name in names}
        try:
            packed = self._packed([values[name] for name in names])
        except UnpickleableException:
            pack_names(values, self._namespace.names)  # raises an error that names the variable
            raise
        return lambda sink: packed

    def _keys(self, command: EngineCommand) -> Finish:
        keys = encoded(msgspec.msgpack.encode, self._namespace.user_keys())
        return lambda sink: keys

    def _get_result(self, command: EngineCommand) -> Finish:
        number = msgspec.msgpack.decode(command.body, type=int | None)
        if number is None and self._replies:
            number = next(reversed(self._replies))
        if number is None or number not in self._replies:
            what = "no command" if number is None else f"no command {number}"
            raise IndexError(f"{what} was executed on engine {self._engine_id}")
        reply = self._replies[number]
        return lambda sink: reply

    def _replaces(self, command: EngineCommand) -> Finish:
        remember_loss(msgspec.msgpack.decode(command.body, type=str))
        return _nothing

    def _reset(self, command: EngineCommand) -> Finish:
        self._namespace.clear()
        forget_loss()
        self._replies.clear()
        return _nothing

    def _map(self, command: EngineCommand) -> Finish:
        body = msgspec.msgpack.decode(command.body, type=MapBody)
        names = self._namespace.names
        if body.function is not None:
            function = unpack_function(body.function.code, names)
        else:
            function = eval(body.name or "", names)
        self._loops.hide()
        try:
            with self._namespace.notices.gathered() as notices, written_globals.by_hand():
                notices += self._edits.take_notices()
                take_names(tell=True)
                values: Any = list(starmap(function, unpack(body.packed, names)))
        finally:
            self._loops.show()
        packed = self._packed(NotedValues(values, notices) if notices else values)
        return lambda sink: packed

    def _apply(self, command: EngineCommand) -> Finish | Coroutine[Any, Any, Finish]:
        body = msgspec.msgpack.decode(command.body, type=ApplyBody)
        names = self._namespace.names
        if body.function is not None:
            function = unpack_function(body.function.code, names)
        else:
            function = eval(body.name or "", names)
        args, kwargs = unpack(body.packed, names)
        self._loops.hide()
        try:
            with self._namespace.notices.gathered() as notices, written_globals.by_hand():
                notices += self._edits.take_notices()
                take_names(tell=True)
                value = function(*args, **kwargs)
        finally:
            self._loops.show()
        if inspect.iscoroutine(value):
            return self._apply_in_loop(value, notices)
        return self._applied(value, notices)

    async def _apply_in_loop(self, coroutine: Coroutine[Any, Any, Any], notices: list[str]) -> Finish:
        return self._applied(await coroutine, notices)

    def _applied(self, value: Any, notices: list[str]) -> Finish:
        packed = self._packed(value)

        def finish(sink: Sink) -> bytes:
            return encoded(msgspec.msgpack.encode, ApplyReply(packed, list(notices), *sink.written()))

        return finish

    def _dump_session(self, command: EngineCommand) -> Finish:
        path = msgspec.msgpack.decode(command.body, type=DumpSessionBody).path
        data, left_out = self._namespace.dump_session()
        if path is None:
            saved = SavedSession(left_out, self._packed(data))
        else:
            write_session(path, data)
            saved = SavedSession(left_out)
        reply = encoded(msgspec.msgpack.encode, saved)
        return lambda sink: reply

    def _load_session(self, command: EngineCommand) -> Finish:
        body = msgspec.msgpack.decode(command.body, type=LoadSessionBody)
        if body.surroundings is not None and body.packed is not None:
            restored = encoded(msgspec.msgpack.encode, self._checkpoints.load(body.packed, body.surroundings))
            return lambda sink: restored
        if body.path is not None:
            names, left_out = self._namespace.load_session(read_session(body.path), body.path)
        else:
            assert body.packed is not None, "a session comes from a file or with the command"
            names, left_out = self._namespace.load_session(unpack(body.packed), "the session")
        self._namespace.place(names, _placed_by(command, "load_session"))
        reply = encoded(msgspec.msgpack.encode, left_out)
        return lambda sink: reply

    def _checkpoint(self, command: EngineCommand) -> Finish:
        reply = encoded(msgspec.msgpack.encode, self._checkpoints.save())
        return lambda sink: reply

    def _packed(self, value: Any) -> bytes:
        """Pack a value. Its large parts are kept for a while for the client that asked, see `storage.blobs`."""
        try:
            return pack(value, "value", self._writer)
        finally:
            if self._writer is not None:
                self._writer.taken()

    def _property(self, command: EngineCommand) -> Finish:
        body = msgspec.msgpack.decode(command.body, type=PropertiesBody)
        mine = self._properties
        known = {**self._facts, **mine} if body.facts else mine
        value: Any = None
        if body.op == "set":
            mine.update(unpack(body.packed) if body.packed is not None else {})
        elif body.op == "get":
            value = dict(known) if body.keys is None else {key: known[key] for key in body.keys}
        elif body.op == "has":
            value = [key in known for key in body.keys or ()]
        elif body.op == "del":
            keys = body.keys or ()
            if command.replays is not None:  # a task may have set what the client deleted
                keys = [key for key in keys if key in mine]
            mine.remove(keys)
        elif body.op == "clear":
            mine.clear()
        else:
            raise KernelError(f"properties have no operation {body.op!r}")
        packed = pack(value)
        return lambda sink: packed


def _name_of(command: EngineCommand) -> tuple[str, int]:
    """Return the identity under which a command is done once, by a client or again on a replacement."""
    return command.replays or (command.session, command.n)


def _is_of_farm(command: EngineCommand) -> bool:
    """Return whether a command is start-up code or a sticky entry, and not a repeated command of a client."""
    return command.session == OWN_SESSION and command.replays is None


def _placed_by(command: EngineCommand, verb: str) -> str:
    """Return the words for how a command's names were placed."""
    return "start-up code or a sticky command" if _is_of_farm(command) else verb


def _nothing(sink: Sink) -> bytes:
    return b""


async def _caught(coroutine: Coroutine[Any, Any, Finish]) -> tuple[Finish | None, BaseException | None]:
    """Return the result of a coroutine or its error. An uncaught KeyboardInterrupt or SystemExit would end the loop."""
    try:
        return await coroutine, None
    except BaseException as error:
        return None, error


def _encode_failure(error: BaseException, sink: Sink | None = None) -> bytes:
    """Encode an error as an answer, with the output and the displays of the command."""
    body = described(error)[1]
    if sink is None:
        return encoded(msgspec.msgpack.encode, body)
    shown = msgspec.structs.replace(body, **sink.written()._asdict())
    try:
        return encoded(msgspec.msgpack.encode, shown)
    except Exception:  # a display that cannot be sent must not hide the error
        return encoded(msgspec.msgpack.encode, msgspec.structs.replace(shown, outputs=[]))
