"""Send a MultiEngine command and read its answers: `PendingResult`, and the `ResultList` that it returns."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from ..core import errors
from ..core.messages import CommandAnswer, Keep, ListEngines
from ..core.messages.engine_commands import ApplyReply, ExecuteReply
from ..core.messages.tables import EngineTable
from ..display.ipython import show_figures, show_users_frames
from ..serialization.pack import unpack
from ..system.deadlines import end_of, left_s
from .engine_answers import EngineAnswer, command_hints, error_of_answer, output_of_answer
from .futures import Settler
from .ids import Timeout, seconds
from .old_names import OldNames
from .output_printer import OutputPrinter, SeenOutput, StepsAside, output_html, text_html
from .python2 import remedy
from .questions import PendingQuestion, refused_by_controller
from .session import TICK_S, Session
from .streams import CommandStream, PrintsLines
from .wait_notices import raise_users, say

TELL_AFTER_S = 1.0

_decode_execute = msgspec.msgpack.Decoder(ExecuteReply).decode
_decode_applied = msgspec.msgpack.Decoder(ApplyReply).decode
names = msgspec.msgpack.Decoder(list[str]).decode
"""Decode a list of names."""


def executed(body: bytes) -> dict[str, Any]:
    """Return the dict that `mec.execute` gives for one engine."""
    reply = _decode_execute(body)
    return {
        "id": reply.id,
        "number": reply.number,
        "input": {"raw": reply.raw, "translated": reply.translated},
        "stdout": reply.stdout,
        "stderr": reply.stderr,
        "display": reply.display,
    }


def nothing(body: bytes) -> None:
    """Ignore the body of an answer without a value."""


def value(body: bytes) -> Any:
    """Unpack a value."""
    found = unpack(body)
    show_figures()
    return found


def applied(body: bytes) -> Any:
    """Return the value of a call, and print the notices about its names."""
    reply = _decode_applied(body)
    for text in reply.notices:
        print(f"ipytaskfarm: {text}", file=sys.stderr)
    return value(reply.packed)


class ResultList(list[Any]):
    """A list with one entry per engine; entries of `execute` are displayed like the cells of a notebook."""

    def __repr__(self) -> str:
        if not self or not all(isinstance(entry, dict) and "input" in entry for entry in self):
            return super().__repr__()
        return "\n".join(line for entry in self for line in _shown(entry))

    def _repr_html_(self) -> str:
        if not self or not all(isinstance(entry, dict) and "input" in entry for entry in self):
            return text_html(repr(self))
        parts = []
        for entry in self:
            parts.append(
                f"<div><b>[{entry['id']}]</b> In [{entry['number']}]: {text_html(entry['input']['raw'])}</div>"
            )
            parts += [text_html(entry["stdout"]), text_html(entry["stderr"], error=True)]
            parts += [output_html(output) for output in entry["display"]]
        return "".join(parts)


def show_entries(found: ResultList) -> None:
    """Show the output and the displays of each engine, each line with the engine's id."""
    printer = OutputPrinter()
    for entry in found:
        printer.rest(str(entry["id"]), SeenOutput(), entry["stdout"], entry["stderr"], entry["display"])
    printer.show(is_over=True)


def _shown(entry: dict[str, Any]) -> list[str]:
    engine, number = entry["id"], entry["number"]
    lines = [f"[{engine}] In [{number}]: {entry['input']['raw']}"]
    out = entry["stdout"].rstrip("\n")
    shown = [out] if out else []
    shown += [d["data"]["text/plain"] for d in entry["display"] if "text/plain" in d.get("data", {})]
    if shown:
        text = "\n".join(shown)
        lines.append(f"[{engine}] Out[{number}]: {text}")
    if entry["stderr"]:
        lines.append(f"[{engine}] Err[{number}]: {entry['stderr'].rstrip()}")
    return lines


class CommandPart(NamedTuple):
    """What is sent to one engine, or to several."""

    engines: list[int] | None
    """Engine ids; None: all engines that exist when the command arrives."""
    body: bytes
    blobs: tuple[str, ...] = ()
    keep: Keep | None = None
    """How the command is kept for replacements of the engines."""


_result_ids = itertools.count()


@functools.total_ordering
class PendingResult(OldNames):
    """A command under way.  `get_result` waits for it, and returns the same value or raises the same error each time.

    The interface is IPython 0.10's, with `done` and `add_done_callback` from PEP 3148.
    """

    def __init__(
        self,
        session: Session,
        verb: str,
        parts: Sequence[CommandPart],
        read: Callable[[bytes], Any],
        text: str = "",
        at_once: bool = False,
    ) -> None:
        """Send the command.

        Args:
            parts: what is sent to which engines.
            read: decodes the answer of an engine.
            text: what `queue_status` shows of the command ("": the verb).
            at_once: whether the command is answered without waiting for a running task.
        """
        self._session = session
        self._verb = verb
        self._at_once = at_once
        self._text = text or verb
        self._read = read
        self._lock = threading.Lock()
        """Guards the callbacks; the IO thread takes it, so its holder must not wait for messages."""
        self._settling = threading.Lock()
        self._callbacks: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        self._done_callbacks: list[Callable[[PendingResult], Any]] = []
        self._answer_callbacks: list[Callable[[EngineAnswer], Any]] = []
        self._answers: list[EngineAnswer] = []
        self._all_answered = False
        self._outcome: tuple[Any, BaseException | None] | None = None
        self.result_id = next(_result_ids)
        """A number that is unique in this process; later commands have higher numbers."""
        self._invalid = False
        self._parts: list[tuple[list[int] | None, PendingQuestion]] = []
        # Answers may arrive before all parts are sent; no callback may run before then.
        self._sent = False
        self._parts += [
            (
                part.engines,
                session.command(
                    part.engines, verb, part.body, self._on_done, self._text, part.blobs, part.keep, self._on_answer
                ),
            )
            for part in parts
        ]
        self._sent = True
        self._on_done()

    @property
    def engines(self) -> list[int]:
        """Return the ids of the engines that were asked.

        For a command to all engines the list is empty until the controller has told which engines there are.
        """
        return [engine_id for engines, asked in self._parts for engine_id in _engines_of(engines, asked)]

    def done(self) -> bool:
        """Return whether every engine has answered, or the result was flushed."""
        return self._sent and all(asked.event.is_set() for _, asked in self._parts)

    def get_result(self, default: Any = None, block: bool = True, timeout: Timeout = None) -> Any:
        """Wait for the list of results, and return it.

        Args:
            default: what is returned for an unfinished command with block=False.
            block: wait for the answers.
            timeout: seconds, then TimeoutError.

        Raises CompositeError for errors on engines, and InvalidDeferredID after ``mec.flush()``.
        """
        if not block and not self.done():
            return default
        self._wait(seconds(timeout))
        if self._invalid:
            raise errors.InvalidDeferredID(f"this pending result of {self._verb} was flushed: mec.flush()")
        with self._settling:
            found, error = self._settle()
        if error is not None:
            show_users_frames(error)
            raise error.with_traceback(None)
        return found

    def _wait(self, timeout: float | None) -> None:
        """Wait for all answers.  After a second, print which tasks the command waits for."""
        with self._telling_of_interrupts():
            self._wait_for_all(timeout)

    @contextlib.contextmanager
    def _telling_of_interrupts(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt as interrupt:
            show_users_frames(interrupt)
            say(
                f"{self._text} continues on engines {self.engines}: ask for its result again; mec.interrupt() "
                "interrupts it, mec.clear_queue() removes it where it has not begun"
            )
            raise

    def _wait_for_all(self, timeout: float | None) -> None:
        end_s = end_of(timeout)
        tell_s = math.inf if self._at_once else time.monotonic() + TELL_AFTER_S
        for _, asked in self._parts:
            told = min(tell_s, end_s) if end_s is not None else tell_s
            if self._session.wait_for_answer(asked, max(0.0, told - time.monotonic())):
                continue
            if time.monotonic() >= tell_s < math.inf:
                tell_s = math.inf
                self._tell_what_it_waits_for()
            if not self._session.wait_for_answer(asked, left_s(end_s)):
                raise TimeoutError(
                    f"{self._verb} was not answered by engines {sorted(self._unanswered())} in time: it continues"
                    " there; ask for its result again, or mec.interrupt()"
                )

    def _unanswered(self) -> set[int]:
        return set(self.engines) - {engine_id for _, asked in self._parts for engine_id in asked.answers}

    def _tell_what_it_waits_for(self) -> None:
        try:
            table = self._session.ask_for(ListEngines(), EngineTable, TELL_AFTER_S)
        except (TimeoutError, ConnectionError) as error:  # the session itself reports that the farm does not answer
            return raise_users(error)
        waiting = self._unanswered()
        rows = [row for row in table.rows if row.id in waiting]
        busy = [f"task {row.task} on engine {row.id}" for row in rows if row.task is not None]
        replaced = sorted(waiting & {*table.commanded} - {row.id for row in rows if row.state in ("idle", "busy")})
        if busy and not self.done():
            say(f"{self._verb} waits for {', '.join(busy)} to end")
        if replaced and not self.done():
            notes = {row.id: f" ({row.note})" for row in rows if row.note}
            said = (f"engine {engine_id}{notes.get(engine_id, '')}" for engine_id in replaced)
            say(f"{self._verb} waits for the replacement of {', '.join(said)}")

    def stream(self, bar: StepsAside | None = None, printer: PrintsLines | None = None) -> None:
        """Wait for all answers, and show the output of the engines meanwhile, each line with the engine's id.

        printer: shows the output; None: an `OutputPrinter`, for which `bar` moves aside.

        When the answers have arrived, the rest of the output is shown, also that of engines where the command failed.
        Only KeyboardInterrupt and errors of the connection are raised here; `get_result` raises the errors of the
        command.
        """
        stream = CommandStream(
            self._session, [asked.message.n for _, asked in self._parts], printer or OutputPrinter(bar)
        )
        listeners = self._session.io.output_listeners
        listeners.append(stream.take)
        finished: set[tuple[int, int]] = set()

        def finish() -> None:
            for engines, asked in self._parts:
                for engine in _engines_of(engines, asked):
                    key = asked.message.n, engine
                    if engine in asked.answers and key not in finished:
                        finished.add(key)
                        stream.finish(*key, output_of_answer(asked.answers[engine]))

        tell_s = math.inf if self._at_once else time.monotonic() + TELL_AFTER_S
        try:
            with self._telling_of_interrupts():
                while not self.done():
                    with contextlib.suppress(TimeoutError):
                        self._wait_for_all(TICK_S)
                    finish()
                    if not self.done():
                        stream.tick()
                    if time.monotonic() > tell_s:
                        tell_s = math.inf
                        self._tell_what_it_waits_for()
                finish()
        finally:
            listeners.remove(stream.take)
            stream.close()

    @property
    def called(self) -> bool:
        """Return whether the result has been read."""
        return self._outcome is not None

    @property
    def raised(self) -> bool:
        """Return whether the result has been read and was an error.  From IPython 0.10."""
        return self._outcome is not None and self._outcome[1] is not None

    @property
    def result(self) -> Any:
        """Return ``get_result()``; it was the result once it had been read, in IPython 0.10."""
        return self.get_result()

    def __lt__(self, other: object) -> bool:
        return self.result_id < other.result_id if isinstance(other, PendingResult) else NotImplemented

    @property
    def r(self) -> Any:
        """Return ``get_result()``."""
        return self.get_result()

    def add_callback(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Let `get_result` return ``f(result, *args, **kwargs)``; several callbacks are applied in order."""
        if not callable(f):
            raise TypeError(f"a callback must be callable, not {type(f).__name__}")
        self._callbacks.append((f, args, kwargs))

    def add_done_callback(self, f: Callable[[PendingResult], Any]) -> None:
        """Call ``f(self)`` in a thread of its own when the command is done, or at once if it is done already."""
        with self._lock:
            self._done_callbacks.append(f)
        if self.done():
            self._on_done()

    def add_answer_callback(self, f: Callable[[EngineAnswer], Any]) -> None:
        """Call ``f(answer)`` for each engine, as soon as it has answered; see `EngineAnswer`.

        Each engine has one answer.  If the command is refused, or the engine is lost, the answer has the error.  The
        thread that resolves the futures of this process calls `f`; a callback must not wait for other results.
        """
        with self._lock:
            self._answer_callbacks.append(f)
            settler = Settler.of(self._session)
            for answer in self._answers:
                settler.call(f, answer)

    def cancel(self) -> None:
        """Drop the command on the engines that have not begun it; their answer is the error QueueCleared.

        Engines that run it go on.  Returns when the engines have dropped it.
        """
        cancel_together([self])

    def invalidate(self) -> None:
        """Discard the result, for ``mec.flush()``: `get_result` raises InvalidDeferredID, also in threads that wait
        already.
        """
        self._invalid = True
        for _, asked in self._parts:
            self._session.forget(asked)
            asked.event.set()
        self._on_done()

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait in any asyncio loop, and return what `get_result` returns."""
        yield from self._ended().__await__()
        return self.get_result()

    async def _ended(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def tell(_: PendingResult) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed while it waited
                loop.call_soon_threadsafe(ended.set)

        self.add_done_callback(tell)
        if not self.done():
            self._session.io.check()  # in a forked child nobody would tell
        await ended.wait()

    def _on_answer(self, message: CommandAnswer) -> None:
        self._note_answer(EngineAnswer(message.engine_id, message, self._read))

    def _note_answer(self, answer: EngineAnswer) -> None:
        with self._lock:
            self._answers.append(answer)
            settler = Settler.of(self._session) if self._answer_callbacks else None
            for f in self._answer_callbacks:
                assert settler is not None
                settler.call(f, answer)

    def _note_refusals(self) -> None:
        """Answer for the engines that will never answer: the command was refused, or the connection was lost."""
        with self._lock:
            missing = [
                (engine, asked)
                for engines, asked in self._parts
                for engine in _engines_of(engines, asked)
                if not self._all_answered and engine not in asked.answers
            ]
            self._all_answered = True
        for engine, asked in missing:
            refusals = (refused_by_controller(each) for each in asked.answers.values() if not each.ok)
            error = asked.error or next((each for each in refusals if each is not None), None)
            flushed = errors.InvalidDeferredID(f"this pending result of {self._verb} was flushed")
            why = error or self._session.fatal or flushed
            self._note_answer(EngineAnswer(engine, None, self._read, why))

    def _on_done(self) -> None:
        if not self.done():
            return
        self._note_refusals()
        with self._lock:
            callbacks, self._done_callbacks = self._done_callbacks, []
        if callbacks:
            # The IO thread calls this method. A callback may wait for something that only the IO thread can bring, so
            # callbacks run in another thread.
            threading.Thread(target=self._call, args=(callbacks,), name="ipytaskfarm callbacks", daemon=True).start()

    def _call(self, callbacks: list[Callable[[PendingResult], Any]]) -> None:
        for callback in callbacks:
            try:
                callback(self)
            except BaseException:  # `sys.exit()` in one must not keep the others from being called
                traceback.print_exc(file=sys.stderr)

    def _settle(self) -> tuple[Any, BaseException | None]:
        if self._outcome is None:
            try:
                found: Any = self._collect()
                for f, args, kwargs in self._callbacks:
                    found = f(found, *args, **kwargs)
                self._outcome = found, None
            except Exception as error:
                self._outcome = None, error
        return self._outcome

    def _collect(self) -> ResultList:
        for _, asked in self._parts:
            if asked.error is not None:
                raise asked.error
        answers = [answer for _, asked in self._parts for answer in asked.answers.values()]
        failed = sorted((answer for answer in answers if not answer.ok), key=lambda answer: answer.engine_id)
        for answer in failed:
            refusal = refused_by_controller(answer)
            if refusal is not None:
                raise refusal
        if failed:
            elist = [(answer.engine_id, self._verb, error_of_answer(answer)) for answer in failed]
            together = errors.CompositeError(f"one or more exceptions from call to method: {self._verb}", elist)
            for text in dict.fromkeys(text for _, _, error in elist for text in (*command_hints(error), remedy(error))):
                if text:
                    together.add_note(text)
            raise together
        return ResultList(
            [
                self._read(asked.answers[engine_id].body)
                for engines, asked in self._parts
                for engine_id in _engines_of(engines, asked)
            ]
        )

    def __repr__(self) -> str:
        everyone = any(engines is None for engines, _ in self._parts)
        on = "all engines" if everyone else f"engines {self.engines}"
        return f"<PendingResult of {self._verb} on {on}: {'done' if self.done() else 'not done'}>"


def cancel_together(commands: Sequence[PendingResult]) -> None:
    """Do what `PendingResult.cancel` does for several commands of one session.

    An engine drops all of them at once.  Otherwise it would begin the next one as soon as the first is dropped.
    """
    numbers: dict[int | None, list[int]] = {}
    for command in commands:
        for engines, asked in command._parts:
            if not asked.event.is_set():
                for engine in (None,) if engines is None else engines:
                    numbers.setdefault(engine, []).append(asked.message.n)
    parts = [
        CommandPart(None if engine is None else [engine], msgspec.msgpack.encode(found))
        for engine, found in numbers.items()
    ]
    if parts:
        PendingResult(commands[0]._session, "clear_queue", parts, nothing, at_once=True)._wait(None)


def _engines_of(engines: list[int] | None, asked: PendingQuestion) -> list[int]:
    return sorted(asked.expected or ()) if engines is None else engines
