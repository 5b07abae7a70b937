"""Follow the output of running tasks and commands during a wait: ``tc.barrier(ids, stream=True)``, ``%%px``.

The controller is asked a few times a second, and each answer is bounded, so the cost does not grow with the output.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from ..core.messages import CommandOutputs, NumberReply, Output, Outputs
from ..core.messages.pages import IDS_MAX
from ..core.messages.payload import ItemOutput, ResultBody
from ..core.messages.task_types import Final, RunKey
from .output_printer import SeenOutput
from .results import decode_body
from .wait_notices import raise_users

if TYPE_CHECKING:
    from .arrivals import Arrivals
    from .questions import AsksController

_decode_items = msgspec.msgpack.Decoder(list[ItemOutput]).decode


class TakesOutput(Protocol):
    """Shows or stores output, as an `OutputPrinter`, or a handle."""

    def take(self, label: str, seen: SeenOutput, output: Output) -> None: ...
    def rest(
        self, label: str, seen: SeenOutput, stdout: str, stderr: str, outputs: Iterable[dict[str, Any]]
    ) -> None: ...
    def end_old_lines(self, label: str, seen: SeenOutput) -> None: ...
    def show(self, is_over: bool = False) -> None: ...


class PrintsLines(TakesOutput, Protocol):
    """Shows the output of a command."""

    def end_lines(self, label: str, seen: SeenOutput) -> None: ...


class Stream:
    """Follows the output of running tasks during one wait.

    Args:
        fetch: returns the full result of a task whose end arrived without a body; None: such output is not shown.
        empty: also ask for answers of engines that have nothing new.
        label: returns the label of a task's lines.
        held: returns further tasks to follow: items of a map become tasks of their own.
    """

    def __init__(
        self,
        session: AsksController,
        arrivals: Arrivals,
        ids: set[int],
        printer: TakesOutput,
        fetch: Callable[[int], Final | None] | None = None,
        empty: bool = False,
        label: Callable[[int], str] = str,
        held: Callable[[], set[int]] = set,
    ) -> None:
        self._session = session
        self._arrivals = arrivals
        self._open = set(ids)
        self._label = label
        self._held = held
        self._finished: set[int] = set()
        self._printer = printer
        self._fetch = fetch
        self._empty = empty
        self.asked = 0
        """Number of engines that were asked at the last tick."""
        self._seen: dict[int, SeenOutput] = {}
        self._arrived: list[Output] = []
        self._lock = threading.Lock()

    def take(self, output: Output) -> None:
        """Store output; the IO thread calls this."""
        if output.run[0] in self._open:
            with self._lock:
                self._arrived.append(output)

    def tick(self) -> None:
        """Show the output that has arrived, and ask for more; the wait calls this a few times a second."""
        self.show()
        self._ask()

    def show(self, is_over: bool = False) -> None:
        """Show the output that has arrived."""
        with self._lock:
            arrived, self._arrived = self._arrived, []
        for output in arrived:
            if output.run[0] in self._open:  # else its task has ended since, and the result had all of it
                self._take(output)
        self._follow()
        while ended := self._open - self._arrivals.live(self._open):
            self._open -= ended
            self._finished |= ended
            for task_id in sorted(ended):
                self._finish(task_id, self._arrivals.finals.get(task_id))
            self._follow()
        for task_id, seen in self._seen.items():
            self._printer.end_old_lines(self._label(task_id), seen)
        self._printer.show(is_over or not self._open)

    def _ask(self) -> None:
        if not self._open:
            return
        # Of more tasks than a question may name, all of the session are asked for.
        ids = sorted(self._open) if len(self._open) <= IDS_MAX[Outputs] else None
        seen = [(task_id, s.attempt, *s.chars, s.serial) for task_id, s in self._seen.items()]
        try:
            reply = self._session.ask(Outputs(ids, seen, self._empty), timeout_s=1.0)
            self.asked = reply.value if isinstance(reply, NumberReply) else 0
        except (TimeoutError, ConnectionError) as error:
            raise_users(error)
            return  # the session itself reports that the farm does not answer

    def _follow(self) -> None:
        held = self._held()
        self._finished &= held  # what is not held any more does not come back
        self._open |= held - self._finished

    def _take(self, output: Output) -> None:
        task_id, attempt = output.run
        seen = self._of(output.run)
        known = self._arrivals.chunks.items.get(task_id)
        if not known:
            self._printer.take(self._label(task_id), seen, fresh_part(output, seen))
            return
        parts = item_outputs(output)
        if _overlaps(output, parts.values(), seen):
            return  # the next question brings what is new in it
        for index, part in parts.items():
            run = task_id + 1 + index, attempt
            own = self._of(run)
            chars = own.chars[0] + part.seen[0], own.chars[1] + part.seen[1]
            self._printer.take(self._label(run[0]), own, msgspec.structs.replace(part, run=run, seen=chars))
        seen.note(output)

    def _of(self, run: RunKey) -> SeenOutput:
        seen = self._seen.get(run[0])
        if seen is None or seen.attempt != run[1]:
            seen = self._seen[run[0]] = SeenOutput(run[1])
        return seen

    def _finish(self, task_id: int, final: Final | None) -> None:
        """Show the rest of an ended task's output, from its result."""
        seen = self._seen.pop(task_id, None) or SeenOutput()
        if final is not None and final.items:
            return  # what its items have written and displayed is theirs
        if final is not None and final.body is None and self._fetch is not None:
            final = self._fetch(task_id)
        body = decode_body(final) if final is not None and final.body else ResultBody()
        if final is not None and final.body and final.attempts != seen.attempt:
            seen = SeenOutput(final.attempts)
        self._printer.rest(self._label(task_id), seen, body.stdout, body.stderr, body.outputs)

    def close(self) -> None:
        """Show the rest of the output at the end of the wait."""
        self.show(is_over=True)


def item_outputs(output: Output) -> dict[int, Output]:
    """Return index of an item -> its part of the output of a running chunk of a map.

    `seen` of a part is the number of its new characters.
    """
    parts: dict[int, Output] = {}
    for each in _decode_items(output.items) if output.items else ():
        parts[each.index] = Output(output.run, output.engine_id, each.stdout, each.stderr, each.chars)
    displays: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for place, display in SeenOutput.decoded(output):
        displays.setdefault(display.pop("item", 0), []).append((place, display))
    for index, some in displays.items():
        part = parts.get(index) or Output(output.run, output.engine_id, "", "", (0, 0))
        parts[index] = msgspec.structs.replace(part, displays=msgspec.msgpack.encode(some))
    return parts


def fresh_part(output: Output, seen: SeenOutput) -> Output:
    """Return an output without what was shown of it.

    An engine that is busy may answer after the next question was asked. Both answers begin at the same place then.
    """
    texts = []
    for text, chars, known in zip((output.stdout, output.stderr), output.seen, seen.chars, strict=True):
        new = chars - known if chars >= known else len(text)  # fewer than before: it was cleared, and this is all
        texts.append(text[-new:] if new else "")
    return msgspec.structs.replace(output, stdout=texts[0], stderr=texts[1])


def _overlaps(output: Output, parts: Iterable[Output], seen: SeenOutput) -> bool:
    """Return whether a part of a chunk's output was shown: it answers an older question, see `fresh_part`."""
    new = [sum(chars) for chars in zip(*(part.seen for part in parts), strict=True)] or [0, 0]
    return any(chars - fresh < known <= chars for chars, fresh, known in zip(output.seen, new, seen.chars, strict=True))


class CommandStream:
    """Follows the output of a MultiEngine command while its engines run it.

    numbers: those of the command's messages. printer: shows the output, each line with the engine's id.
    """

    def __init__(self, session: AsksController, numbers: list[int], printer: PrintsLines) -> None:
        self._session = session
        self._numbers = numbers
        self._printer = printer
        self._seen: dict[tuple[int, int], SeenOutput] = {}
        self._arrived: list[Output] = []
        self._lock = threading.Lock()

    def take(self, output: Output) -> None:
        """Store output; the IO thread calls this."""
        if output.run[0] == -1 and output.run[1] in self._numbers:
            with self._lock:
                self._arrived.append(output)

    def tick(self) -> None:
        """Show the output that has arrived, and ask for more; the wait calls this a few times a second."""
        self._show()
        for number in self._numbers:
            seen = [(engine, *s.chars, s.serial) for (n, engine), s in self._seen.items() if n == number]
            try:
                self._session.ask(CommandOutputs(number, seen), timeout_s=1.0)
            except (TimeoutError, ConnectionError) as error:
                raise_users(error)
                return  # the session itself reports that the farm does not answer

    def _show(self) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, []
        for output in arrived:
            seen = self._seen.setdefault((output.run[1], output.engine_id), SeenOutput())
            self._printer.take(str(output.engine_id), seen, fresh_part(output, seen))
        for (_, engine), seen in self._seen.items():
            self._printer.end_old_lines(str(engine), seen)
        self._printer.show()

    def finish(self, number: int, engine: int, body: ResultBody) -> None:
        """Show the rest of an engine's output, from its answer."""
        self._show()
        seen = self._seen.pop((number, engine), None) or SeenOutput()
        self._printer.rest(str(engine), seen, body.stdout, body.stderr, body.outputs)
        self._printer.show()

    def close(self) -> None:
        """Show the rest of the output at the end of the wait."""
        self._show()
        for (_, engine), seen in self._seen.items():
            self._printer.end_lines(str(engine), seen)
        self._printer.show(is_over=True)
