"""The answer of one engine to a command: its value or its error, its output, its times."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from ..core import errors
from ..core.messages import CommandAnswer
from ..core.messages.engine_commands import CommandOutput
from ..core.messages.payload import FailureBody, ResultBody
from ..display.text import local_time
from ..serialization.pack import unpack_error
from .python2 import add_remedy
from .results import error_named
from .session_hints import add_hints

_decode_output = msgspec.msgpack.Decoder(CommandOutput).decode
_decode_failure = msgspec.msgpack.Decoder(FailureBody).decode


class EngineAnswer:
    """The answer of one engine to a command; ``PendingResult.add_answer_callback`` gives it to a callback.

    A value is unpickled each time it is read.
    """

    def __init__(
        self,
        engine: int,
        answer: CommandAnswer | None,
        read: Callable[[bytes], Any],
        refusal: BaseException | None = None,
    ) -> None:
        """Take an engine's message; None: it will never answer.

        read: decodes the value. refusal: why the command ran on no engine, or why the engine will never answer.
        """
        self.engine = engine
        self._answer = answer
        self._read = read
        self._refusal = refusal

    @property
    def ok(self) -> bool:
        """Return whether the command has succeeded on this engine."""
        return self._answer is not None and self._answer.ok

    @property
    def value(self) -> Any:
        """Return the value.  Raises the error of a failed command."""
        error = self.error
        if error is not None:
            raise error
        assert self._answer is not None, "an answer without an error has a message"
        return self._read(self._answer.body)

    @property
    def error(self) -> BaseException | None:
        """Return the exception of a failed command; None for one that has succeeded."""
        if self.ok:
            return None
        if self._refusal is not None:
            return self._refusal
        assert self._answer is not None, "a failed command has a message, or a reason why there is none"
        return error_of_answer(self._answer)

    @property
    def size(self) -> int:
        """Return the bytes of the answer's message; large values travel beside it."""
        return 0 if self._answer is None else len(self._answer.body)

    @property
    def output(self) -> ResultBody:
        """Return what the command has printed and displayed, also if it failed: `stdout`, `stderr`, `outputs`."""
        return ResultBody() if self._answer is None else output_of_answer(self._answer)

    @property
    def began_at(self) -> datetime | None:
        """Return when the engine began the command; None: it did not run."""
        return local_time(self._answer.began_s) if self._answer is not None and self._answer.began_s else None

    @property
    def ended_at(self) -> datetime | None:
        """Return when the command ended on the engine; None: it did not run."""
        return local_time(self._answer.ended_s) if self._answer is not None and self._answer.ended_s else None

    def __repr__(self) -> str:
        state = "ok" if self.ok else f"{type(self.error).__name__}: {self.error}"
        return f"<EngineAnswer of engine {self.engine}: {state}>"


def error_of_answer(answer: CommandAnswer) -> BaseException:
    """Return the exception in a failed answer."""
    try:
        failure = _decode_failure(answer.body)
    except msgspec.DecodeError:
        return errors.KernelError(f"engine {answer.engine_id} answered with something that cannot be read")
    if failure.pickled is None and not failure.traceback:  # an error of the controller, not of an engine
        error: BaseException = error_named(failure.etype, failure.value)
        error.engine_id = answer.engine_id  # type: ignore[attr-defined]
        return error
    error = unpack_error(failure, answer.engine_id)
    command_hints(error)
    add_remedy(error)
    return error


def command_hints(error: BaseException) -> list[str]:
    """Add what this session has and the engine has not to a command's error; return the sentences."""
    return add_hints(error, getattr(error, "remote_traceback", ""), is_command=True)


def output_of_answer(answer: CommandAnswer) -> ResultBody:
    """Return the output and the displays of an engine, also of a failed command."""
    try:
        shown = _decode_output(answer.body) if answer.ok else _decode_failure(answer.body)
    except (msgspec.MsgspecError, ValueError):
        return ResultBody()
    displays = shown.display if isinstance(shown, CommandOutput) else shown.outputs
    return ResultBody(None, None, shown.stdout, shown.stderr, displays)
