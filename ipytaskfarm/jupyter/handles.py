"""`TaskHandle`: the object that ``%%task`` shows for a task in the background."""

from __future__ import annotations

import contextlib
import contextvars
import html
import threading
import time
from collections.abc import Generator, Iterable
from typing import Any, NoReturn

from ..client import TaskClient, TaskResult
from ..client.estimate import span
from ..client.output_printer import Displays, SeenOutput, rest_of, text_html
from ..client.results import NS
from ..client.screens import Slot
from ..client.streams import Stream
from ..core.messages import Output
from ..display.ipython import notebook_shell
from .tracebacks import short_errors

EVERY_S = 0.25
ASK_EVERY_S = 1.0
ANSWER_S = 1.0
"""Seconds that a repr waits for the engine to send the output of the task."""
LINES = 10
"""Number of the last lines of output that are shown while the task runs."""
TAIL_CHARS = 4_000
TEXT_LINES = 3


class TaskHandle:
    """A submitted task: `id`, `status`, `done()`; `result()`, `ns` and ``await`` wait for its end.

    In a notebook its display follows the task: state, engine, time and last lines, figures and tables as they arrive,
    and then the result.
    """

    def __init__(self, client: TaskClient, task_id: int) -> None:
        self._client = client
        self.id = task_id

    @property
    def farm(self) -> str:
        """Return the name of the task's farm."""
        return self._client.farm

    def done(self) -> bool:
        """Return whether the task has ended, successfully or not."""
        return self._client.get_task_result(self.id, block=False, raw=False) is not None

    @property
    def status(self) -> str:
        """Return scheduled, running, succeeded or failed."""
        return self._client.status(self.id).state

    def result(self, timeout: float | None = None) -> TaskResult:
        """Wait for the task and return its `TaskResult`.  Raises TimeoutError after `timeout` seconds."""
        result: TaskResult = self._client.get_task_result(self.id, block=True, timeout=timeout, raw=False)
        return result

    @property
    def ns(self) -> NS:
        """Return the pulled names as attributes: ``h.ns.a``.  Raises the exception of a failed task."""
        with short_errors():
            return self.result().ns

    def abort(self) -> None:
        """Abort the task, see ``tc.abort``."""
        self._client.abort(self.id)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._client.result(self.id).__await__()

    def __index__(self) -> int:
        return self.id

    def __float__(self) -> NoReturn:
        raise TypeError(f"the handle of task {self.id} is no number: its result() has the task's values")

    def __repr__(self) -> str:
        try:
            output = HandleOutput(None)
            with _stream(self._client, self.id, output) as stream:
                stream.tick()
                # An engine answers at once, unless C code holds its GIL.
                deadline_s = time.monotonic() + ANSWER_S
                while not output.has_come and time.monotonic() < deadline_s and stream.asked and self._is_live():
                    time.sleep(0.01)
                    stream.show()
            lines = output.last_lines(TEXT_LINES)
            return "\n  ".join([f"<task {self.id}: {TaskState(self._client, self.id).text()}>", *lines])
        except Exception as error:  # a repr must not raise when the farm is away or the task was cleared
            return f"<task {self.id}: {type(error).__name__}>"

    def _is_live(self) -> bool:
        return self._client.session.arrivals.is_live(self.id)

    def _ipython_display_(self) -> None:
        if notebook_shell() is None:
            print(repr(self))
        else:
            self.show_live()

    def show_live(self) -> None:
        """Show the task in the present cell of a notebook; a thread updates the display until the task has ended."""
        shell = notebook_shell()
        slot, output, state = Slot(shell), HandleOutput(shell), TaskState(self._client, self.id)

        def show(text: str = "") -> None:
            text = f"task {self.id}: {text or state.text(output.has_come)}"
            lines = output.last_lines(LINES)
            plain = "\n  ".join([text, *lines])
            slot.show(
                {"text/plain": plain, "text/html": f"<div>{html.escape(text)}</div>{text_html(chr(10).join(lines))}"}
            )

        def follow() -> None:
            # What is shown last is what is saved with the notebook.
            try:
                with _stream(self._client, self.id, output) as stream:
                    while self._is_live():
                        stream.tick()
                        show()
                        time.sleep(EVERY_S)
                result = self.result()
                slot.show_last({"text/plain": repr(result), "text/html": result.html(displays=False)})
            except Exception as error:  # cleared, or the farm or the client is gone
                with contextlib.suppress(Exception):
                    show(f"{state.known()}; not followed any longer: {type(error).__name__}: {error}")

        with contextlib.suppress(Exception):
            self._client.session.watch([self.id])
        show()
        # The context determines the cell to which the output belongs.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(follow,), name=f"task {self.id}", daemon=True).start()


class TaskState:
    """State, engine and time of one task; the controller is asked at most once a second."""

    def __init__(self, client: TaskClient, task_id: int) -> None:
        self._client = client
        self._id = task_id
        self._asked_s = -ASK_EVERY_S
        self._text = "submitted"
        self._since_s: float | None = None

    def known(self) -> str:
        """Return the state as it was when the controller was asked last."""
        return self._text

    def text(self, has_output: bool = False) -> str:
        """Return the state in words, such as ``running on engine 1, 3 s``.

        has_output: the task has written something, so that it does not wait any longer.
        """
        now_s = time.monotonic()
        is_late = has_output and self._since_s is None
        if now_s - self._asked_s >= (EVERY_S if is_late else ASK_EVERY_S):
            self._asked_s = now_s
            row = self._client.status(self._id)
            state = row.state
            reason = f" ({row.reason})" if row.reason and row.reason != state else ""
            where = f" on engine {row.engineid}" if row.engineid is not None and row.engineid >= 0 else ""
            self._text = f"{state}{reason}{where}"
            begun = row.started_at.timestamp() if state == "running" and row.started_at is not None else None
            self._since_s = now_s - max(0.0, time.time() - begun) if begun is not None else None
            if row.duration is not None and state in ("succeeded", "failed"):
                self._text += f" in {span(row.duration)}"
        if self._since_s is None:
            return self._text
        return f"{self._text}, {int(now_s - self._since_s)} s"


class HandleOutput:
    """Keeps the last lines that a task prints, and shows its figures and tables as they arrive.

    Args:
        shell: the notebook's shell; None: figures and tables are not shown.
    """

    def __init__(self, shell: Any) -> None:
        self._displays = Displays(shell) if shell is not None else None
        self._text = ""
        self.has_come = False

    def take(self, label: str, seen: SeenOutput, output: Output) -> None:
        """Store new output of the run."""
        seen.note(output)
        self.has_come = True
        self._add(output.stdout + output.stderr)
        if self._displays is not None:
            for place, display in seen.decoded(output):
                self._displays.show(seen, place, display)

    def rest(self, label: str, seen: SeenOutput, stdout: str, stderr: str, outputs: Iterable[dict[str, Any]]) -> None:
        """Store the part of a result's output that has not arrived before."""
        self._add(rest_of(stdout, seen.chars[0]) + rest_of(stderr, seen.chars[1]))
        if self._displays is not None:
            for place, display in enumerate(outputs):
                self._displays.show(seen, place, display)

    def end_old_lines(self, label: str, seen: SeenOutput) -> None:
        """Do nothing: unfinished lines are shown like others."""

    def show(self, is_over: bool = False) -> None:
        """Do nothing: the handle shows the lines."""

    def _add(self, text: str) -> None:
        self._text = (self._text + text)[-TAIL_CHARS:]

    def last_lines(self, count: int) -> list[str]:
        r"""Return the last lines; for lines that were redrawn with \r their last state."""
        lines = self._text.removesuffix("\n").split("\n")[-count:]
        return [line.removesuffix("\r").rpartition("\r")[2] for line in lines] if self._text else []


@contextlib.contextmanager
def _stream(client: TaskClient, task_id: int, output: HandleOutput) -> Generator[Stream]:
    session = client.session
    stream = Stream(session, session.arrivals, {task_id}, output, session.fetch, empty=True)
    session.io.output_listeners.append(stream.take)
    try:
        yield stream
    finally:
        session.io.output_listeners.remove(stream.take)
        stream.close()
