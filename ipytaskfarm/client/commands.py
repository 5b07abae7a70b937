"""What a MultiEngine command brings back: `ResultList`, and `PendingResult` for those who do not wait."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from ..core import errors
from ..core.messages import CommandAnswer, Engines, EngineTable, ExecuteReply, FailureBody
from ..doors.pack import unpack, unpack_error
from .io import Asked, refused_by_controller
from .session import Session

TELL_AFTER_S = 1.0

_decode_failure = msgspec.msgpack.Decoder(FailureBody).decode
_decode_execute = msgspec.msgpack.Decoder(ExecuteReply).decode
_decode_names = msgspec.msgpack.Decoder(list[str]).decode


def executed(body: bytes) -> dict[str, Any]:
    """The dict that `mec.execute` gives for one engine."""
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
    """For commands without a value."""


def names(body: bytes) -> list[str]:
    """An encoded list of names."""
    return _decode_names(body)


def value(body: bytes) -> Any:
    """A packed value."""
    return unpack(body)


class ResultList(list[Any]):
    """One entry per engine; those of `execute` show what the engine would have shown."""

    def __repr__(self) -> str:
        if not self or not all(isinstance(entry, dict) and "input" in entry for entry in self):
            return super().__repr__()
        return "\n".join(line for entry in self for line in _shown(entry))


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


def error_of_answer(answer: CommandAnswer) -> BaseException:
    """The exception in a failed answer."""
    try:
        return unpack_error(_decode_failure(answer.body), answer.engine_id)
    except msgspec.DecodeError:
        return errors.KernelError(f"engine {answer.engine_id} answered with something that cannot be read")


class PendingResult:
    """A command under way.  `get_result` waits for it and gives the same value, or raises the same error, each time.

    As in IPython 0.10, with `done` and `add_done_callback` of PEP 3148 beside it.
    """

    def __init__(
        self, session: Session, engines: list[int] | None, verb: str, body: bytes, read: Callable[[bytes], Any]
    ) -> None:
        self._session = session
        self._engines = engines
        self._verb = verb
        self._read = read
        self._lock = threading.Lock()
        self._callbacks: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        self._done_callbacks: list[Callable[[PendingResult], Any]] = []
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._invalid = False
        self._asked: Asked = session.command(engines, verb, body, self._on_done)

    @property
    def engines(self) -> list[int]:
        """The ids of the engines that were asked; of a command to all: [] until the farm has said who they are."""
        return sorted(self._asked.expected or ()) if self._engines is None else self._engines

    def done(self) -> bool:
        """Whether every engine has answered."""
        return self._asked.event.is_set()

    def get_result(self, default: Any = None, block: bool = True, timeout: float | None = None) -> Any:
        """The list of results.  block=False gives `default` while it is not there.  Raises CompositeError."""
        if self._invalid:
            raise errors.InvalidDeferredID("this pending result was flushed")
        if not block and not self.done():
            return default
        self._wait(timeout)
        with self._lock:
            found, error = self._settle()
        if error is not None:
            raise error.with_traceback(None)
        return found

    def _wait(self, timeout: float | None) -> None:
        """Wait for all answers; after a second say which tasks the command waits for."""
        if timeout is None or timeout > TELL_AFTER_S:
            if self._session.wait_for_answer(self._asked, TELL_AFTER_S):
                return
            self._tell_what_it_waits_for()
            timeout = None if timeout is None else timeout - TELL_AFTER_S
        if not self._session.wait_for_answer(self._asked, timeout):
            raise TimeoutError(f"{self._verb} has not been answered by all engines in time")

    def _tell_what_it_waits_for(self) -> None:
        reply = self._session.ask(Engines())
        rows = reply.rows if isinstance(reply, EngineTable) else []
        waiting = set(self.engines) - self._asked.answers.keys()
        busy = [f"task {row.task} on engine {row.id}" for row in rows if row.id in waiting and row.task is not None]
        if busy and not self.done():
            print(f"ipytaskfarm: {self._verb} waits for {', '.join(busy)} to end", file=sys.stderr)

    @property
    def r(self) -> Any:
        """``get_result()``."""
        return self.get_result()

    def add_callback(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """When the result is asked for, it is ``f(result, *args, **kwargs)``; several are applied in order."""
        if not callable(f):
            raise TypeError(f"a callback must be callable, not {type(f).__name__}")
        self._callbacks.append((f, args, kwargs))

    def add_done_callback(self, f: Callable[[PendingResult], Any]) -> None:
        """Call ``f(self)`` once it is done, in a thread of its own; at once if it is done already."""
        with self._lock:
            self._done_callbacks.append(f)
        if self.done():
            self._on_done()

    def invalidate(self) -> None:
        """``mec.flush()``: the result is not wanted any more."""
        self._invalid = True
        self._session.forget(self._asked)

    def _on_done(self) -> None:
        with self._lock:
            callbacks, self._done_callbacks = self._done_callbacks, []
        if callbacks:
            # Not in the IO thread, which calls this: a callback may wait for what only that thread can bring.
            threading.Thread(target=self._call, args=(callbacks,), name="ipytaskfarm callbacks", daemon=True).start()

    def _call(self, callbacks: list[Callable[[PendingResult], Any]]) -> None:
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
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
        answers = self._asked.answers
        failed = sorted((a for a in answers.values() if not a.ok), key=lambda answer: answer.engine_id)
        for answer in failed:
            refusal = refused_by_controller(answer)
            if refusal is not None:
                raise refusal
        if failed:
            elist = [(answer.engine_id, self._verb, error_of_answer(answer)) for answer in failed]
            raise errors.CompositeError(f"one or more exceptions from call to method: {self._verb}", elist)
        return ResultList([self._read(answers[engine_id].body) for engine_id in self.engines])

    def __repr__(self) -> str:
        on = f"engines {self.engines}" if self._engines is not None else "all engines"
        return f"<PendingResult of {self._verb} on {on}: {'done' if self.done() else 'not done'}>"
