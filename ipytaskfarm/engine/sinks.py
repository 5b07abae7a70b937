"""What a run has written: texts of bounded size, and displays."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

LIMIT_CHARS = 64 * 1024
"""What is kept of a stream: this much of its beginning and this much of its end."""
DISPLAYS_MAX = 100
DISPLAYS_BYTES_MAX = 16 * 1024 * 1024

SINK: ContextVar[Sink | None] = ContextVar("ipytaskfarm_sink", default=None)
"""Where output of this context goes; None: nowhere special (a console's cell, a thread of nobody)."""
_tail_lock = threading.Lock()


class BoundedText:
    """The head and the tail of a text of any length."""

    __slots__ = ("head", "room", "append", "tail", "tail_chars", "dropped")

    def __init__(self) -> None:
        self.head: list[str] = []
        self.room = LIMIT_CHARS
        """Characters that still fit into the head; -1: it is shut.  A stream that takes of it appends by itself."""
        self.append = self.head.append
        self.tail: deque[str] | None = None
        self.tail_chars = 0
        self.dropped = 0

    def write(self, text: str) -> None:
        room = self.room - len(text)
        if room >= 0:
            self.append(text)
            self.room = room
            return
        # Only what overflows takes the lock: threads that print into one task meet here.
        with _tail_lock:
            if self.room > 0:
                self.append(text[: self.room])
                text = text[self.room :]
                self.room = 0
            self._overflow(text)

    def _overflow(self, text: str) -> None:
        tail = self.tail
        if tail is None:
            tail = self.tail = deque()
        if len(text) > LIMIT_CHARS:
            self.dropped += len(text) - LIMIT_CHARS
            text = text[-LIMIT_CHARS:]
        tail.append(text)
        self.tail_chars += len(text)
        while self.tail_chars - len(tail[0]) >= LIMIT_CHARS:
            gone = len(tail.popleft())
            self.tail_chars -= gone
            self.dropped += gone

    def skip(self, chars: int) -> None:
        """Count text that nobody kept."""
        self.dropped += chars

    def since(self, chars: int, limit: int) -> tuple[int, str]:
        """Return (characters until now, what was written beyond that many), its beginning left out if it is too
        long."""
        with _tail_lock:
            head = "".join(self.head)
            tail = "".join(self.tail or ())
        total = len(head) + self.dropped + len(tail)
        if chars > total:  # it was cleared, and written to again
            chars = 0
        if total == chars:
            return total, ""
        new = head[chars:] + tail if chars < len(head) else tail[max(0, chars - len(head) - self.dropped) :]
        missed = total - chars - len(new) + max(0, len(new) - limit)
        note = f"[... {missed} characters left out ...]\n" if missed else ""
        return total, note + new[-limit:]

    def text(self) -> str:
        if self.tail is None and not self.dropped:
            return "".join(self.head)
        with _tail_lock:
            tail = "".join(self.tail or ())
            over = max(0, len(tail) - LIMIT_CHARS)
            left_out = self.dropped + over
            between = f"\n[... {left_out} characters left out ...]\n" if left_out else ""
            return "".join([*self.head, between, tail[over:]])


class ItemText(BoundedText):
    """What the items of a map's chunk print: a text of which each part is an item's."""

    __slots__ = ("parts", "item")

    def __init__(self, values: list[Any]) -> None:
        """values: those of the items that were called; so many as there are, such is the number of the next."""
        super().__init__()
        parts: list[tuple[int, str]] = []
        item: list[int | None] = [None]
        add = self.append

        def append(text: str) -> None:
            parts.append((len(values) if item[0] is None else item[0], text))
            add(text)

        self.parts = parts
        self.item = item
        """[the item that the next parts belong to]; None: the one that is called."""
        self.append = append

    def texts(self) -> dict[int, str]:
        """Item -> its text, as far as the head of the whole goes."""
        found: dict[int, list[str]] = {}
        for item, text in self.parts:
            found.setdefault(item, []).append(text)
        return {item: "".join(texts) for item, texts in found.items()}


class Sink:
    """The output of one run: made before it, read after it.  `write` may come from any of the run's threads."""

    __slots__ = (
        "stdout",
        "stderr",
        "outputs",
        "_bytes",
        "_dropped",
        "ended",
        "keeps_history",
        "_clears",
        "settings",
        "values",
        "_child_of",
    )

    def __init__(self, keeps_history: bool = False) -> None:
        self.stdout: BoundedText | None = None
        self.stderr: BoundedText | None = None
        self.outputs: list[dict[str, Any]] | None = None
        self._bytes = 0
        self._dropped = 0
        self.ended = False
        self.keeps_history = keeps_history
        """A MultiEngine command: it counts in In and Out, a task does not."""
        self._clears = False
        self.settings: dict[str, Any] | None = None
        """What the run has reconfigured its streams to."""
        self.values: list[Any] | None = None
        self._child_of: int | None = None

    def begin_items(self, values: list[Any]) -> None:
        """Keep apart what the items of a map's chunk print, see `ItemText`."""
        self.values = values
        self.stdout, self.stderr = ItemText(values), ItemText(values)

    def child_started(self) -> None:
        """Note whose child it is: what comes to the descriptors next is that item's."""
        if self.values is not None:
            self._child_of = len(self.values)

    def write_drained(self, name: str, text: str) -> None:
        """Write what has come to a descriptor."""
        stream = self.stdout if name == "stdout" else self.stderr
        if not isinstance(stream, ItemText) or self._child_of is None:
            self.write(name, text)
            return
        stream.item[0] = self._child_of
        try:
            self.write(name, text)
        finally:
            stream.item[0] = None

    def is_half_full(self) -> bool:
        """Return whether so much was written that more may not be kept whole."""
        half = LIMIT_CHARS // 2
        return any(text is not None and text.room < half for text in (self.stdout, self.stderr))

    def item_texts(self) -> list[tuple[int, str, str]]:
        """Return what the items have printed: (index, stdout, stderr)."""
        if not isinstance(self.stdout, ItemText) or not isinstance(self.stderr, ItemText):
            return []
        out, err = self.stdout.texts(), self.stderr.texts()
        return [(item, encodable(out.get(item, "")), encodable(err.get(item, ""))) for item in sorted({*out, *err})]

    def write(self, name: str, text: str) -> None:
        if self.ended:
            if _late is not None:
                _late(text)
            return
        if self._clears:
            self.clear()
        stream = self.stdout if name == "stdout" else self.stderr
        if stream is None:
            stream = BoundedText()
            if name == "stdout":
                self.stdout = stream
            else:
                self.stderr = stream
        stream.write(text)

    def display(self, content: dict[str, Any], update: bool = False) -> None:
        """Keep ``{"data", "metadata"}``; with a display_id of an earlier one in "transient": in its place."""
        if self.ended:
            return
        if self._clears:
            self.clear()
        output = {"data": content["data"], "metadata": content.get("metadata") or {}}
        display_id = (content.get("transient") or {}).get("display_id")
        if display_id is not None:
            output["display_id"] = display_id
        outputs = self.outputs
        if outputs is None:
            outputs = self.outputs = []
        if update:
            for place, earlier in enumerate(outputs):
                if earlier.get("display_id") == display_id:
                    outputs[place] = output
            return
        size = sum(len(value) for value in output["data"].values() if isinstance(value, str | bytes))
        if len(outputs) >= DISPLAYS_MAX or self._bytes + size > DISPLAYS_BYTES_MAX:
            self._dropped += 1
            return
        self._bytes += size
        outputs.append(output)

    def clear(self, wait: bool = False) -> None:
        """What ``clear_output`` asks for: forget all so far, now or when something new comes."""
        self._clears = wait
        if wait:
            self._shut()
        else:
            self.stdout = self.stderr = self.outputs = None
            self._bytes = self._dropped = 0

    def close(self) -> None:
        """The run is over: what its threads print from now on goes to the engine's log."""
        self._shut()
        self.ended = True
        if self._dropped:
            note = f"\n[{self._dropped} displays left out: too many or too large]\n"
            self.stderr = self.stderr or BoundedText()
            self.stderr.write(note)

    def _shut(self) -> None:
        """What comes next must come by `write`, and not straight to the head of a text."""
        if self.stdout is not None:
            self.stdout.room = -1
        if self.stderr is not None:
            self.stderr.room = -1


_late: Callable[[str], None] | None = None


def send_late_output_to(log: Callable[[str], None]) -> None:
    """Say where a run's threads print to when the run is over."""
    global _late
    _late = log


def encodable(text: str) -> str:
    """Return the text with lone surrogates escaped: what can be sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text
