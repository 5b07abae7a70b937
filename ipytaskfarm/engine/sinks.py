"""The output of a run: texts of bounded size, and displays."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from ..core.messages.payload import AFTER_CHARS, ItemOutput
from ..system.last_words import LastWords

LIMIT_CHARS = 64 * 1024
"""The number of characters of a stream that are kept at its beginning, and the number kept at its end."""
DISPLAYS_MAX = 100
DISPLAYS_BYTES_MAX = 16 * 1024 * 1024

SINK: ContextVar[Sink | None] = ContextVar("ipytaskfarm_sink", default=None)
"""The sink for output of this context; None for a console's cell, and for a thread that belongs to no run."""
_tail_lock = threading.RLock()


class BoundedText:
    """The beginning and the end of a text of any length."""

    __slots__ = ("head", "room", "append", "tail", "tail_chars", "dropped")

    def __init__(self) -> None:
        self.head: list[str] = []
        self.room = LIMIT_CHARS
        """Characters that still fit into the head; -1 if the head is closed. Streams with room append by themselves."""
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
        # Only overflowing text needs the lock, which threads that print into one task share.
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

    def chars(self) -> int:
        """Return how many characters were written."""
        return sum(map(len, self.head)) + self.dropped + self.tail_chars

    def skip(self, chars: int) -> None:
        """Count characters that were not kept.  What follows belongs to the end."""
        with _tail_lock:
            self.dropped += chars
            self.room = min(self.room, 0)

    def since(self, chars: int, limit: int) -> tuple[int, str]:
        """Return (number of characters so far, text after the first `chars` characters).

        If the text has more than `limit` characters, its beginning is left out.
        """
        with _tail_lock:
            head = "".join(self.head)
            tail = "".join(self.tail or ())
        total = len(head) + self.dropped + len(tail)
        if chars > total:  # the text was cleared and written to again
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
    """The output of a map's chunk, in which each part belongs to an item."""

    __slots__ = ("parts", "item", "_cleared", "_kept_room")

    def __init__(self, values: list[Any], count: int) -> None:
        """Create the text.

        Args:
            values: the values of the finished items. Their number is the number of the running item.
            count: the number of items of the chunk.
        """
        super().__init__()
        last = count - 1
        parts: list[tuple[int, str]] = []
        item: list[int | None] = [None]
        add = self.append

        def append(text: str) -> None:
            parts.append((min(len(values), last) if item[0] is None else item[0], text))
            add(text)

        self.parts = parts
        self.item = item
        """[the item that the next parts belong to]. None: the running item, or the last item of the chunk."""
        self._cleared: dict[int, int] = {}
        """Item -> the number of the part from which on its text counts, since it has cleared what was before."""
        self._kept_room: int | None = None
        self.append = append

    def shut(self) -> None:
        """Close the head, until `forget` opens it again."""
        if self._kept_room is None:
            self._kept_room = self.room
        self.room = -1

    def forget(self, item: int) -> None:
        """Forget what an item has written so far."""
        if self._kept_room is not None:
            self.room, self._kept_room = self._kept_room, None
        self._cleared[item] = len(self.parts)

    def chars_of(self, item: int) -> int:
        """Return how many characters an item has written since it has cleared its output."""
        since = self._cleared.get(item, 0)
        return sum(len(text) for writer, text in self.parts[since:] if writer == item)

    def texts(self) -> dict[int, str]:
        """Return item -> its text."""
        found: dict[int, list[str]] = {}
        for number, (item, text) in enumerate(parts := list(self.parts)):
            if number >= self._cleared.get(item, 0):
                found.setdefault(item, []).append(text)
        if parts and (self.tail is not None or self.dropped):
            # The chunk ends with the item that has filled the head: all behind the head is the text of that item.
            head_chars = sum(len(text) for _, text in parts)
            found.setdefault(parts[-1][0], []).append(self.text()[head_chars:])
        return {item: "".join(texts) for item, texts in found.items()}

    def texts_since(self, chars: int, limit: int) -> tuple[int, dict[int, tuple[str, int]]]:
        """Return (number of characters so far, item -> (its new text, the number of its new characters)).

        chars: how many characters of the whole text are known.  limit: the number of characters to return.
        """
        found: dict[int, tuple[str, int]] = {}
        end = 0
        parts = list(self.parts)
        for item, text in parts:
            begin, end = end, end + len(text)
            if end <= chars:
                continue
            fresh = text[max(0, chars - begin) :][:limit]
            limit -= len(fresh)
            chars = max(chars, begin) + len(fresh)
            known, count = found.get(item, ("", 0))
            found[item] = known + fresh, count + len(fresh)
            if not limit:
                return chars, found
        if chars >= end and parts and (self.tail is not None or self.dropped):
            total, fresh = self.since(chars, limit)
            known, count = found.get(parts[-1][0], ("", 0))
            found[parts[-1][0]] = known + fresh, count + total - chars
            chars = total
        return chars, found


class WrittenByItem(NamedTuple):
    """The output of a run, or of an item of a map's chunk."""

    stdout: str
    stderr: str
    outputs: list[dict[str, Any]]


class Sink:
    """The output of one run. It exists before the run and is read after it. Any thread of the run may call `write`."""

    __slots__ = (
        "stdout",
        "stderr",
        "outputs",
        "_serials",
        "_serial",
        "_bytes",
        "_dropped",
        "ended",
        "keeps_history",
        "_clears",
        "settings",
        "values",
        "writer",
    )

    def __init__(self, keeps_history: bool = False) -> None:
        self.stdout: BoundedText | None = None
        self.stderr: BoundedText | None = None
        self.outputs: list[dict[str, Any]] | None = None
        self._serials: list[int] = []
        """By place of a display: the number under which it came or was changed last.  Numbers only grow."""
        self._serial = 0
        self._bytes = 0
        self._dropped = 0
        self.ended = False
        self.keeps_history = keeps_history
        """A MultiEngine command: it counts in In and Out, a task does not."""
        self._clears = False
        self.settings: dict[str, Any] | None = None
        """What the run has reconfigured its streams to."""
        self.values: list[Any] | None = None
        self.writer: int | None = None
        """The item that writes to the descriptors, or has started a child that does; None: not known."""

    def begin_items(self, values: list[Any], count: int) -> None:
        """Record the output of each item of a map's chunk separately, see `ItemText`."""
        self.values = values
        self.stdout, self.stderr = ItemText(values, count), ItemText(values, count)

    def note_writer(self) -> None:
        """Record the running item as the one that writes: later output on the descriptors belongs to that item."""
        if self.values is not None:
            self.writer = len(self.values)

    def write_drained(self, name: str, text: BoundedText) -> None:
        """Write text that was read from a descriptor."""
        stream = self.stdout if name == "stdout" else self.stderr
        if not isinstance(stream, ItemText) or self.writer is None:
            self._write_bounded(name, text)
            return
        stream.item[0] = self.writer
        try:
            self._write_bounded(name, text)
        finally:
            stream.item[0] = None

    def _write_bounded(self, name: str, text: BoundedText) -> None:
        self.write(name, "".join(text.head))
        stream = self.stdout if name == "stdout" else self.stderr
        if text.dropped and stream is not None:
            stream.skip(text.dropped)
        if text.tail:
            self.write(name, "".join(text.tail))

    def written(self) -> WrittenByItem:
        """Return all that the run has written and displayed."""
        out, err = (text.text() if text is not None else "" for text in (self.stdout, self.stderr))
        return WrittenByItem(out, err, self.outputs or [])

    def is_half_full(self) -> bool:
        """Return whether so much was written that more may not be kept whole."""
        half = LIMIT_CHARS // 2
        return any(text is not None and text.room < half for text in (self.stdout, self.stderr))

    def item_outputs(self) -> dict[int, WrittenByItem]:
        """Return item -> all that it has written and displayed."""
        if not isinstance(self.stdout, ItemText) or not isinstance(self.stderr, ItemText):
            return {}
        out, err = self.stdout.texts(), self.stderr.texts()
        displays: dict[int, list[dict[str, Any]]] = {}
        for output in self.outputs or ():
            if output["item"] < 0:
                continue  # it was cleared
            shown = {key: value for key, value in output.items() if key != "item"}
            displays.setdefault(output["item"], []).append(shown)
        return {
            item: WrittenByItem(encodable(out.get(item, "")), encodable(err.get(item, "")), displays.get(item, []))
            for item in sorted({*out, *err, *displays})
        }

    def item_texts_since(self, stdout: int, stderr: int, limit: int) -> tuple[tuple[int, int], list[ItemOutput]]:
        """Return how many characters there are, and what the items have written after the given numbers of characters.

        The numbers count the characters of the whole chunk.  limit: the number of characters of each stream to return.
        """
        if not isinstance(self.stdout, ItemText) or not isinstance(self.stderr, ItemText):
            return (stdout, stderr), []
        (stdout, out), (stderr, err) = self.stdout.texts_since(stdout, limit), self.stderr.texts_since(stderr, limit)
        found = []
        for item in sorted({*out, *err}):
            (text, chars), (error_text, error_chars) = out.get(item, ("", 0)), err.get(item, ("", 0))
            found.append(ItemOutput(item, encodable(text), encodable(error_text), (chars, error_chars)))
        return (stdout, stderr), found

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
        if _words is not None:
            _words.write(text)

    def display(self, content: dict[str, Any], update: bool = False) -> None:
        """Keep a display, ``{"data", "metadata"}``; the value of a command's expression has "execution_count" too.

        If "transient" has the display_id of an earlier one, replace that one.
        """
        if self.ended:
            return
        if self._clears:
            self.clear()
        output = {"data": content["data"], "metadata": content.get("metadata") or {}}
        if self.values is not None:
            output["item"] = len(self.values)
        display_id = (content.get("transient") or {}).get("display_id")
        if display_id is not None:
            output["display_id"] = display_id
        if "execution_count" in content:
            output["execution_count"] = content["execution_count"]
        output[AFTER_CHARS] = self._stdout_chars()
        outputs = self.outputs
        if outputs is None:
            outputs = self.outputs = []
        if update:
            for place, earlier in enumerate(outputs):
                if earlier.get("display_id") == display_id:
                    outputs[place] = output
                    self._serial += 1
                    self._serials[place] = self._serial
            return
        size = sum(len(value) for value in output["data"].values() if isinstance(value, str | bytes))
        if len(outputs) >= DISPLAYS_MAX or self._bytes + size > DISPLAYS_BYTES_MAX:
            self._dropped += 1
            return
        self._bytes += size
        self._serial += 1
        self._serials.append(self._serial)
        outputs.append(output)

    def _stdout_chars(self) -> int:
        """Return how many characters were written before what is displayed now, by the item that displays it."""
        if isinstance(self.stdout, ItemText) and self.values is not None:
            return self.stdout.chars_of(len(self.values))
        return 0 if self.stdout is None else self.stdout.chars()

    def displays_since(self, serial: int, most_bytes: int) -> tuple[int, list[tuple[int, dict[str, Any]]]]:
        """Return the last number, and the displays that came or were changed after the number `serial`, with their
        places; for a chunk of a map, a display's place among those of its item.

        Other threads may call this.  If there are many displays, the first ones are returned, up to `most_bytes` bytes.
        """
        outputs, serials = self.outputs, self._serials
        fresh = sorted((number, place) for place, number in enumerate(list(serials)) if number > serial)
        found: list[tuple[int, dict[str, Any]]] = []
        size = 0
        for number, place in fresh:
            if outputs is None or place >= len(outputs):
                break
            output = outputs[place]
            if self.values is not None:
                if output["item"] < 0:
                    continue  # it was cleared
                place = sum(each["item"] == output["item"] for each in outputs[:place])
            own = sum(len(value) for value in output["data"].values() if isinstance(value, str | bytes))
            if found and size + own > most_bytes:
                break
            size += own
            serial = number
            if own <= most_bytes:  # a larger display comes with the result
                found.append((place, output))
        return serial, found

    def clear(self, wait: bool = False) -> None:
        """Forget all output so far, as ``clear_output`` asks: now, or with `wait` when something new comes."""
        self._clears = wait
        if wait:
            self._shut()
        elif self.values is not None:
            self._clear_item(len(self.values))
        else:
            self.stdout = self.stderr = self.outputs = None
            self._serials = []
            self._bytes = self._dropped = 0

    def _clear_item(self, item: int) -> None:
        """Forget all output of an item of a chunk."""
        for stream in (self.stdout, self.stderr):
            if isinstance(stream, ItemText):
                stream.forget(item)
        for output in self.outputs or ():
            if output["item"] == item:
                output.update(item=-1, data={}, metadata={})

    def close(self) -> None:
        """End the run's output: text that its threads print later goes to the engine's log."""
        self._shut()
        self.ended = True
        if self.stdout is None or not self.stdout.chars():
            for output in self.outputs or ():
                output.pop(AFTER_CHARS, None)  # there is no text among which it might stand
        if self._dropped:
            note = f"\n[{self._dropped} displays left out: too many or too large]\n"
            self.stderr = self.stderr or BoundedText()
            self.stderr.write(note)

    def _shut(self) -> None:
        """Close the heads of the texts, so that streams must use `write` and cannot append by themselves."""
        for stream in (self.stdout, self.stderr):
            if isinstance(stream, ItemText) and not self.ended:
                stream.shut()
            elif stream is not None:
                stream.room = -1


_late: Callable[[str], None] | None = None
_words: LastWords | None = None


def keep_words(words: LastWords | None) -> None:
    """Set where the end of what runs write is kept for the agent; None: nowhere (in a forked child)."""
    global _words
    _words = words


def send_late_output_to(log: Callable[[str], None]) -> None:
    """Set the function that takes what a run's threads print after the run."""
    global _late
    _late = log


def encodable(text: str) -> str:
    """Return the text with lone surrogates escaped, so that it can be sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text
