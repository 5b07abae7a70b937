"""Show the output of tasks and engines in the cell or terminal of the caller, and results as HTML in notebooks.

Each line begins with a label, ``[7]`` for task 7; the text of a single task is shown unchanged.  The number of lines at
once and per second is limited; of the lines beyond the limit only their number is shown.

Figures and tables are shown as such in a notebook, and as text elsewhere.  If a task updates a display, it is updated
in place.
"""

from __future__ import annotations

import base64
import html
import itertools
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TextIO

import msgspec

from ..core.messages import Output
from ..core.messages.payload import AFTER_CHARS
from ..display.colours import ERROR_BACKGROUND
from ..display.ipython import user_shell
from ..display.text import number, redrawn
from .screens import Slot

TEXT_MAX = 20_000


def text_html(text: str, *, error: bool = False) -> str:
    """Return text as an HTML element: escaped, as a terminal shows it in the end, and shortened if it is long."""
    text = redrawn(text)
    if not text:
        return ""
    if len(text) > TEXT_MAX:
        text = f"{text[: TEXT_MAX // 2]}\n… {len(text) - TEXT_MAX:,} characters …\n{text[-TEXT_MAX // 2 :]}"
    style = f' style="background:{ERROR_BACKGROUND}"' if error else ""
    shown = f"<pre{style}>{_coloured(text)}</pre>"
    # JupyterLab's styles for these colours apply only below this class.
    return f'<div class="jp-RenderedText">{shown}</div>' if "\x1b" in text else shown


def in_order(
    text: str, end: int, displays: Iterable[tuple[int, dict[str, Any]]]
) -> Iterator[tuple[str, int, dict[str, Any] | None]]:
    """Yield the parts of standard output, and (place, display) of each display, in the order in which they came.

    text: a part of standard output.  end: how many characters the run has written up to its end.
    """
    begin, done = end - len(text), 0
    for place, display in displays:
        upto = min(max(done, display.get(AFTER_CHARS, end) - begin), len(text))
        yield text[done:upto], -1, None
        done = upto
        yield "", place, display
    yield text[done:], -1, None


_ANSI = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")


def _coloured(text: str) -> str:
    """Return text as HTML, with classes for ANSI colours that JupyterLab and nbconvert style by their theme."""
    if "\x1b" not in text:
        return html.escape(text)
    from rich.text import Text as RichText

    parsed = RichText.from_ansi(text, end="")
    edges = sorted({0, len(parsed), *(edge for span in parsed.spans for edge in (span.start, span.end))})
    parts = []
    for start, end in itertools.pairwise(edges):
        classes = []
        for span in parsed.spans:
            if span.start <= start and end <= span.end and not isinstance(span.style, str):
                number = span.style.color.number if span.style.color is not None else None
                if number is not None and number < 16:
                    classes.append(f"ansi-{_ANSI[number % 8]}{'-intense' if number > 7 else ''}-fg")
                if span.style.bold:
                    classes.append("ansi-bold")
        piece = html.escape(parsed.plain[start:end].replace("\x1b", ""))
        parts.append(f'<span class="{" ".join(classes)}">{piece}</span>' if classes else piece)
    return "".join(parts)


def output_html(output: dict[str, Any]) -> str:
    """Return a rich display of a task as HTML: pictures and HTML unchanged, any other type as text."""
    data = output.get("data", {})
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f'<img src="data:{kind};base64,{html.escape("".join(str(data[kind]).split()))}">'
    if "image/svg+xml" in data:
        # Scripts in an SVG file do not run when a page shows the file as a picture.
        packed = base64.b64encode(str(data["image/svg+xml"]).encode()).decode()
        return f'<img src="data:image/svg+xml;base64,{packed}">'
    if "text/html" in data:
        return str(data["text/html"])
    for kind in ("text/markdown", "text/latex"):
        if kind in data:
            return text_html(str(data[kind]))
    return text_html(str(data.get("text/plain", "")))


def value_html(value: object) -> str:
    """Return a value as HTML, as a notebook shows it: its own HTML, or else its repr."""
    own = getattr(type(value), "_repr_html_", None)
    if own is not None and not isinstance(value, type):
        try:
            shown = own(value)
        except Exception:  # the value's own method failed: show its repr
            shown = None
        if isinstance(shown, str):
            return shown
    return text_html(repr(value))


LINES_AT_ONCE = 1_000
LINES_PER_S = 200
LINE_CHARS = 2_000
CHARS_PER_S = 32 * 1024
"""The limit for a single task, whose text is not split into lines; at once it is `CHARS_AT_ONCE`."""
PARTIAL_S = 1.0
"""Seconds after which an unfinished line is shown."""
KEPT_CHARS = 64 * 1024
"""Characters of output beyond which a result keeps only the beginning and the end, so the rest cannot be
shown later.
"""
CHARS_AT_ONCE = 2 * KEPT_CHARS + 1024
"""As much as a result has kept of one stream, with the line that says how much was left out."""

_LEFT_OUT = re.compile(r"^\[\.\.\. (\d+) characters left out \.\.\.\]$", re.MULTILINE)
_GAP = re.compile(r"\n\[\.\.\. (\d+) characters left out \.\.\.\]\n")
_decode_displays = msgspec.msgpack.Decoder(list[tuple[int, dict[str, Any]]]).decode


@dataclass
class SeenOutput:
    """How much of the output of one run was shown."""

    attempt: int = 1
    chars: tuple[int, int] = (0, 0)
    serial: int = 0
    """The number of the last display that has arrived."""
    partial: list[str] = field(default_factory=lambda: ["", ""])
    since_s: float = 0.0
    displays: dict[int, tuple[dict[str, Any], Slot | None]] = field(default_factory=dict)
    """Place -> (display, the slot that shows it)."""

    def note(self, output: Output) -> None:
        """Count an output as shown."""
        self.chars = output.seen
        self.serial = max(self.serial, output.serial)
        self.since_s = time.monotonic()

    @staticmethod
    def decoded(output: Output) -> list[tuple[int, dict[str, Any]]]:
        """Return the displays of an output, with their places."""
        return _decode_displays(output.displays) if output.displays else []


class Displays:
    """Shows figures and tables: in a notebook each in its own slot, in a terminal as text."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell

    def show(self, seen: SeenOutput, place: int, output: dict[str, Any]) -> None:
        """Show a display, in the slot of an earlier display at the same place if there is one."""
        known = seen.displays.get(place)
        if known is not None and known[0] == output and known[1] is not None:
            return
        slot = known[1] if known is not None and known[1] is not None else Slot(self._shell)
        seen.displays[place] = output, slot
        slot.show(output["data"], output.get("metadata"))


class OutputItem(NamedTuple):
    """One line (or, without labels, a text), or one display."""

    label: str
    is_error: bool
    text: str
    place: int = -1
    output: dict[str, Any] | None = None


def rest_of(text: str, seen: int) -> str:
    """Return the rest of a result's text after the first `seen` characters of what the run has written.

    A result keeps the beginning and the end of a long text, and between them a remark with the number of missing
    characters.
    """
    gap = _GAP.search(text, min(seen, KEPT_CHARS)) if len(text) > KEPT_CHARS else None
    if gap is None or seen <= gap.start():
        return text[seen:]
    end = text[gap.end() :]
    missed = gap.start() + int(gap[1]) + len(end) - seen
    return end[-missed:] if 0 < missed <= len(end) else f"{gap[0]}{end}" if missed > 0 else ""


class StepsAside(Protocol):
    """A bar that moves aside while other text is written."""

    def beside(self, write: Any) -> None:
        """Call the function `write` while the bar is out of the way."""


class OutputPrinter:
    """Shows output during one wait.

    Args:
        bar: moves aside for the lines.
        labelled: whether each line begins with its label.
    """

    def __init__(self, bar: StepsAside | None = None, labelled: bool = True) -> None:
        self._bar = bar
        self._labelled = labelled
        self._items: list[tuple[SeenOutput, OutputItem]] = []
        self._room = float(LINES_AT_ONCE if labelled else CHARS_AT_ONCE)
        self._room_s = time.monotonic()
        self._left_out: dict[str, int] = {}
        """Label -> how many lines were not shown."""
        self._gaps: dict[str, int] = {}
        """Label -> how many characters were left out between these lines before they came here."""

    # -- input

    def take(self, label: str, seen: SeenOutput, output: Output) -> None:
        """Store new output of a run that goes on."""
        seen.note(output)
        self._mixed(label, seen, output.stdout, output.seen[0], seen.decoded(output))
        self._split(label, seen, 1, output.stderr)

    def rest(self, label: str, seen: SeenOutput, stdout: str, stderr: str, outputs: Iterable[dict[str, Any]]) -> None:
        """Store the part of a result's output that was not shown yet."""
        if not self._labelled:
            self._room = float(CHARS_AT_ONCE)  # a result has kept no more, and its end is what counts
        text = rest_of(stdout, seen.chars[0])
        # Of a text with a gap nobody knows which character is where, and the displays follow it.
        self._mixed(label, seen, text, len(stdout) if len(stdout) <= KEPT_CHARS else len(text), enumerate(outputs))
        self._split(label, seen, 1, rest_of(stderr, seen.chars[1]))
        self.end_lines(label, seen)

    def end_lines(self, label: str, seen: SeenOutput) -> None:
        """Store lines that have no end yet: no more text follows, or it takes long."""
        for which, text in enumerate(seen.partial):
            if text:
                self._items.append((seen, OutputItem(label, which == 1, text)))
        seen.partial = ["", ""]

    def end_old_lines(self, label: str, seen: SeenOutput) -> None:
        """Store unfinished lines that are old: a prompt, or a bar that is redrawn."""
        if any(seen.partial) and time.monotonic() - seen.since_s > PARTIAL_S:
            self.end_lines(label, seen)

    def _mixed(
        self, label: str, seen: SeenOutput, text: str, end: int, displays: Iterable[tuple[int, dict[str, Any]]]
    ) -> None:
        """Store standard output and displays in the order in which they came.

        end: how many characters the run has written up to the end of the text.
        """
        for part, place, display in in_order(text, end, displays):
            if display is None:
                self._split(label, seen, 0, part)
            else:
                self._display(label, seen, place, display)

    def _split(self, label: str, seen: SeenOutput, which: int, text: str) -> None:
        if not self._labelled:
            if text:
                self._items.append((seen, OutputItem(label, which == 1, text)))
            return
        *lines, seen.partial[which] = (seen.partial[which] + text).split("\n")
        self._items += [(seen, OutputItem(label, which == 1, line)) for line in lines]

    def _display(self, label: str, seen: SeenOutput, place: int, display: dict[str, Any]) -> None:
        known = seen.displays.get(place)
        if known is None or known[0] != display:
            seen.displays[place] = display, known[1] if known is not None else None
            if seen.partial[0]:  # a line that goes on below the display
                self._items.append((seen, OutputItem(label, False, seen.partial[0])))
                seen.partial[0] = ""
            self._items.append((seen, OutputItem(label, False, "", place, display)))

    # -- display

    def show(self, is_over: bool = False) -> None:
        """Show stored output, up to the limits; is_over: also show how much was left out."""
        items, self._items = self._items, []
        now_s = time.monotonic()
        most, per_s = (LINES_AT_ONCE, LINES_PER_S) if self._labelled else (CHARS_AT_ONCE, CHARS_PER_S)
        self._room = min(most, self._room + (now_s - self._room_s) * per_s)
        self._room_s = now_s
        fits = []
        missed = False
        for seen, item in items:
            fitting, left_out = self._fitting(item)
            if fitting is not None:
                fits.append((seen, fitting))
            if left_out:
                missed = True
                self._left_out[item.label] = self._left_out.get(item.label, 0) + left_out
                for gap in _LEFT_OUT.findall(item.text[len(fitting.text) if fitting is not None else 0 :]):
                    self._gaps[item.label] = self._gaps.get(item.label, 0) + int(gap)
        remarks: list[str] = []
        if self._left_out and (is_over or (not missed and self._room > 1)):
            remarks = [self._remark(label, count) for label, count in list(self._left_out.items())[:100]]
            self._left_out.clear()
            self._gaps.clear()
        if not fits and not remarks:
            return
        if self._bar is not None:
            self._bar.beside(lambda: self._write(fits, remarks))
        else:
            self._write(fits, remarks)

    def _fitting(self, item: OutputItem) -> tuple[OutputItem | None, int]:
        """Return what may be shown of an item, and how many lines may not. It is taken from the room."""
        if self._labelled or item.output is not None:
            if self._room < 1:
                return None, 1
            self._room -= 1
            return item, 0
        if len(item.text) <= self._room:
            self._room -= len(item.text)
            return item, 0
        end = item.text.rfind("\n", 0, int(self._room)) + 1  # whole lines only
        self._room -= end
        left_out = item.text.count("\n", end) or 1
        return (item._replace(text=item.text[:end]) if end else None), left_out

    def _remark(self, label: str, count: int) -> str:
        gap = self._gaps.get(label)
        between = f" and {gap:,} characters between them" if gap else ""
        return self._line(label, f"… {number(count, 'line')}{between} not shown")

    def _write(self, items: list[tuple[SeenOutput, OutputItem]], remarks: list[str]) -> None:
        streams: dict[int, TextIO] = {}

        def write(is_error: bool, text: str) -> None:
            stream = sys.stderr if is_error else sys.stdout
            streams[id(stream)] = stream
            stream.write(text)

        for seen, item in items:
            if item.output is None:
                write(item.is_error, f"{self._line(item.label, item.text)}\n" if self._labelled else item.text)
                continue
            data = item.output["data"]
            shell = user_shell()
            if shell is None or (self._labelled and data.keys() <= {"text/plain"}):
                text = str(data.get("text/plain", ", ".join(data)))
                lines = text.split("\n") if self._labelled else [text]
                write(False, "".join(f"{self._line(item.label, line)}\n" for line in lines))
                continue
            if self._labelled and seen.displays[item.place][1] is None:
                write(False, f"[{item.label}]\n")
            for stream in streams.values():  # earlier text must appear above the display
                stream.flush()
            Displays(shell).show(seen, item.place, item.output)
        if remarks:
            write(True, "".join(f"{remark}\n" for remark in remarks))
        for stream in streams.values():
            stream.flush()

    def _line(self, label: str, text: str) -> str:
        text = text.removesuffix("\r").rpartition("\r")[2]  # the last state of a line that was redrawn
        if len(text) > LINE_CHARS:
            text = f"{text[:LINE_CHARS]} … {len(text) - LINE_CHARS:,} characters"
        return f"[{label}] {text}" if self._labelled else text
