"""A flame graph: stacks and how often each was seen, as one SVG picture without scripts, fonts or links."""

from __future__ import annotations

import html
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

WIDTH = 1200
ROW = 17
HEAD = 34
"""Pixels: the picture's width, one function's height, the title's."""
NARROWEST = 0.3
"""Pixels: what would be narrower is not drawn, nor what it called."""
LETTER = 6.6
"""Pixels of one letter of a 11 pixel monospaced font."""


class FlameBox(NamedTuple):
    """One function in one place of the picture."""

    label: str
    depth: int
    """0: all stacks together."""
    begin: float
    width: float
    """As shares of the whole: 0 … 1."""
    samples: int


class _Node:
    __slots__ = ("count", "callees")

    def __init__(self) -> None:
        self.count = 0
        self.callees: dict[str, _Node] = {}


def bars(stacks: Mapping[tuple[str, ...], int]) -> Iterator[FlameBox]:
    """Yield where each function of each stack stands, callers before what they call, callees by name.

    Args:
        stacks: labels, the outermost function first, and how often that stack was seen.
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
    waiting = [("all", root, 0, 0)]  # not recursive: a stack may be as deep as Python allows
    while waiting:
        label, node, depth, begin = waiting.pop()
        yield FlameBox(label, depth, begin / root.count, node.count / root.count, node.count)
        for name, callee in sorted(node.callees.items()):
            waiting.append((name, callee, depth + 1, begin))
            begin += callee.count


def flamegraph(stacks: Mapping[tuple[str, ...], int], title: str, unit_s: float = 0.0) -> str:
    """Return the picture as the text of an SVG file; wide is often, and above a function stands what it called.

    Args:
        stacks: see `bars`.
        title: stands above the picture.
        unit_s: seconds that a sample stands for; 0: only their number is told.

    Labels and title may hold anything: they are escaped, and what XML forbids is left out.
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
    """Always the same for the same label, so that two pictures can be compared."""
    chance = zlib.crc32(label.encode("utf-8", "replace"))
    return f"rgb({215 + chance % 40},{120 + chance // 64 % 100},{60 + chance // 8192 % 50})"


def _text(text: str) -> str:
    """Text for XML, between tags or in an attribute: without control characters and halves of surrogate pairs."""
    return html.escape("".join(c if c.isprintable() else " " for c in text))
