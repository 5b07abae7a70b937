"""Draw a flame graph: stacks with their counts, as one SVG picture without scripts, fonts or links."""

from __future__ import annotations

import html
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ipytaskfarm.core.messages.engine_commands import Place

WIDTH = 1200
ROW = 17
HEAD = 34
"""Pixels: the width of the picture, the height of a function, the height of the title."""
NARROWEST = 0.3
"""Pixels; a narrower function is left out, and so are its callees."""
LETTER = 6.6
"""Width in pixels of a letter in a monospaced font of 11 pixels."""


class FlameBox(NamedTuple):
    """The box of one function in the picture."""

    label: str
    depth: int
    """0 is the box of all stacks together."""
    begin: float
    width: float
    """The left edge and the width, as shares of the whole: 0 to 1."""
    samples: int


def place_label(place: Place) -> str:
    """Return a function's name with its place, ``function (module:line)``; only the name if it has no line."""
    return f"{place.function} ({place.module}:{place.line})" if place.line else place.function


class _Node:
    __slots__ = ("count", "callees")

    def __init__(self) -> None:
        self.count = 0
        self.callees: dict[str, _Node] = {}


def bars(stacks: Mapping[tuple[str, ...], int]) -> Iterator[FlameBox]:
    """Yield the boxes of all functions: callers before callees, callees sorted by name.

    Args:
        stacks: tuples of labels, the outermost function first, with the number of times that the stack was seen.
    """
    root = _Node()
    for stack, count in stacks.items():
        node = root
        node.count += count
        for label in stack:
            node = node.callees.setdefault(label, _Node())
            node.count += count
    if not root.count:
        return
    waiting = [("all", root, 0, 0)]  # a loop, because a stack may be as deep as Python's recursion limit
    while waiting:
        label, node, depth, begin = waiting.pop()
        yield FlameBox(label, depth, begin / root.count, node.count / root.count, node.count)
        for name, callee in sorted(node.callees.items()):
            waiting.append((name, callee, depth + 1, begin))
            begin += callee.count


def flamegraph(stacks: Mapping[tuple[str, ...], int], title: str, unit_s: float = 0.0) -> str:
    """Return the text of an SVG file: the width of a box is its number of samples, and callees stand above their
    caller.

    Args:
        stacks: see `bars`.
        title: is shown above the picture.
        unit_s: seconds per sample; 0: only the number of samples is shown.

    Labels and title may be any text: it is escaped, and characters that XML forbids are replaced.
    """
    drawn = [bar for bar in bars(stacks) if bar.width * WIDTH >= NARROWEST]
    height = HEAD + ROW * (1 + max((bar.depth for bar in drawn), default=0)) + 6
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="monospace" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fffdf5"/>',
        f'<text x="{WIDTH // 2}" y="22" text-anchor="middle" font-size="15">{_text(title)}</text>',
    ]
    if not drawn:
        lines.append(f'<text x="{WIDTH // 2}" y="{HEAD + 12}" text-anchor="middle">nothing was seen</text>')
    lines += [_bar(bar, height, unit_s) for bar in drawn]
    return "\n".join([*lines, "</svg>", ""])


def _bar(bar: FlameBox, height: int, unit_s: float) -> str:
    x, y, width = bar.begin * WIDTH, height - 6 - ROW * (bar.depth + 1), bar.width * WIDTH
    took = f", {bar.samples * unit_s:.2f} s" if unit_s else ""
    told = f"{_text(bar.label)}: {bar.samples:,} samples{took}, {bar.width:.1%}"
    letters = int((width - 6) / LETTER)
    label = bar.label if len(bar.label) <= letters else f"{bar.label[: letters - 1]}…"
    written = f'<text x="{x + 3:.2f}" y="{y + 12}">{_text(label)}</text>' if letters >= 3 else ""
    return (
        f'<g><title>{told}</title><rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 1}" rx="1" '
        f'fill="{_colour(bar.label)}"/>{written}</g>'
    )


def _colour(label: str) -> str:
    """Return the colour of a label; it depends on the label alone, so that two pictures can be compared."""
    chance = zlib.crc32(label.encode("utf-8", "replace"))
    return f"rgb({215 + chance % 40},{120 + chance // 64 % 100},{60 + chance // 8192 % 50})"


def _text(text: str) -> str:
    """Escape text for an XML element or attribute, and replace control characters and lone surrogates."""
    return html.escape("".join(c if c.isprintable() else " " for c in text))
