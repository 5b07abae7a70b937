"""The pictures of docs/architecture.md, drawn from the code's own tables: ``python -m docs.drawings`` draws them again.

``tests/unit/test_architecture_page.py`` draws them too and compares, so a picture cannot show what the code no longer
says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import ascii_lowercase
from typing import Any, get_args

from ipytaskfarm.core.messages import agent, client, engine, evaluator
from ipytaskfarm.core.states import FINAL, MOVES, State
from tests.unit.test_architecture import LAYERS

IMAGES = Path(__file__).parent / "images"
INK, LINE, SHADE, ACCENT = "#1f2933", "#52606d", "#e4ecf4", "#b7cfe8"
LINE_HEIGHT = 15


def svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Return a whole picture.  It has a white ground, so that it can be read on a dark page."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 Z" fill="{LINE}"/></marker></defs>',
        '<rect width="100%" height="100%" fill="white"/>',
        *parts,
        "</svg>",
        "",
    ])  # fmt: skip


def text(x: float, y: float, words: str, anchor: str = "middle", **more: str) -> str:
    """Return a line of text: `anchor` says which part of it is at x."""
    styles = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{INK}"{styles}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, name: str, fill: str = SHADE) -> str:
    """Return a box with its name in the middle; (x, y) is its upper left corner."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="{LINE}"/>'
        + text(x + width / 2, y + height / 2 + 4, name, font_weight="bold")
    )


def arrow(x1: float, y1: float, x2: float, y2: float, dashes: str = "") -> str:
    """Return a straight arrow."""
    style = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" fill="none" stroke="{LINE}" marker-end="url(#tip)"{style}/>'


# ------------------------------------------------------------------------------------------------------------
# States

PLACES = {
    None: (50, 150),
    State.SCHEDULED: (190, 150),
    State.PENDING: (430, 150),
    State.SUCCEEDED: (310, 40),
    State.FAILED: (310, 260),
}
"""Where the middle of each state's box stands."""

HALF_WIDTH, HALF_HEIGHT = 48, 17


def _edge(middle: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    """Return where a line from the middle of a box leaves the box."""
    dx, dy = towards[0] - middle[0], towards[1] - middle[1]
    scale = min(HALF_WIDTH / abs(dx) if dx else math.inf, HALF_HEIGHT / abs(dy) if dy else math.inf)
    return middle[0] + dx * scale, middle[1] + dy * scale


def _move(before: State | None, after: State, letter: str) -> list[str]:
    """Return an arrow with its letter, bent to the left of its direction: the move back has its own way."""
    start, end = PLACES[before], PLACES[after]
    length = math.dist(start, end)
    bend = 0.0 if before is None else 26.0
    aside = (end[1] - start[1]) / length * bend, -(end[0] - start[0]) / length * bend
    middle = (start[0] + end[0]) / 2 + aside[0], (start[1] + end[1]) / 2 + aside[1]
    (x1, y1), (x2, y2) = _edge(start, middle), _edge(end, middle)
    if before is None:
        x1, y1 = start[0] + 8, start[1]
    curve = (
        f'<path d="M{x1:.0f} {y1:.0f} Q{middle[0]:.0f} {middle[1]:.0f} {x2:.0f} {y2:.0f}" fill="none" '
        f'stroke="{LINE}" marker-end="url(#tip)"/>'
    )
    on = (x1 + 2 * middle[0] + x2) / 4, (y1 + 2 * middle[1] + y2) / 4
    return [
        curve,
        f'<circle cx="{on[0]:.0f}" cy="{on[1]:.0f}" r="9" fill="white" stroke="{LINE}"/>',
        text(round(on[0]), round(on[1]) + 4, letter),
    ]


def lettered_moves() -> list[tuple[str, State | None, State, str]]:
    """Return (letter, from, to, what happened) for each legal move of a task."""
    return [(letter, *move, what) for letter, (move, what) in zip(ascii_lowercase, MOVES.items(), strict=False)]


def states() -> str:
    """Draw the states of a task and the legal moves between them."""
    parts = [part for letter, before, after, _ in lettered_moves() for part in _move(before, after, letter)]
    parts.append(f'<circle cx="{PLACES[None][0]}" cy="{PLACES[None][1]}" r="8" fill="{INK}"/>')
    for state in State:
        x, y = PLACES[state]
        fill = ACCENT if state in FINAL else SHADE
        parts.append(box(x - HALF_WIDTH, y - HALF_HEIGHT, 2 * HALF_WIDTH, 2 * HALF_HEIGHT, state.value, fill))
    return svg(500, 300, "The states of a task", parts)


# ------------------------------------------------------------------------------------------------------------
# Layers


def layers() -> str:
    """Draw which part of the package may import which, as a matrix: all marks are below the diagonal."""
    cell, left, top = 24, 150, 130
    names = list(LAYERS)
    size = cell * len(names)
    parts = []
    for row, name in enumerate(names):
        y = top + row * cell
        if row % 2 == 0:
            parts.append(f'<rect x="0" y="{y}" width="{left + size}" height="{cell}" fill="#f5f7fa"/>')
        parts.append(text(left - 10, y + 16, name, "end"))
        x = left + row * cell + 15
        parts.append(text(x, top - 8, name, "start", transform=f"rotate(-60 {x} {top - 8})"))
        parts.append(f'<rect x="{left + row * cell}" y="{y}" width="{cell}" height="{cell}" fill="{ACCENT}"/>')
        for imported in LAYERS[name].split():
            column = names.index(imported)
            middle = left + column * cell + cell / 2, y + cell / 2
            parts.append(f'<circle cx="{middle[0]:g}" cy="{middle[1]:g}" r="5" fill="{LINE}"/>')
    parts.append(text(left - 10, top - 8, "may import →", "end", font_style="italic"))
    return svg(left + size + 80, top + size + 10, "Which part of the package may import which", parts)


# ------------------------------------------------------------------------------------------------------------
# Messages


def _names(union: Any) -> list[str]:
    return [kind.__name__ for kind in get_args(union) or (union,)]


def messages() -> str:
    """Draw the messages between the processes, one list for each direction."""
    directions = (
        (_names(client.ClientMessage), _names(client.ToClient)),
        (_names(agent.ToAgent), _names(agent.AgentMessage)),
        (_names(engine.ToEngine), _names(engine.FromEngine)),
    )
    wide, gap, top, tall = 92, 170, 20, 46
    right, left = (max(len(pair[side]) for pair in directions) for side in (0, 1))
    # Each box is as high as the lists beside it: those above lead right, those below lead left.
    height = (right + left + 2) * LINE_HEIGHT + tall
    parts = []
    for number, name in enumerate(("client", "controller", "agent", "engine")):
        parts.append(box(10 + number * (wide + gap), top, wide, height, name))
    for number, (there, back) in enumerate(directions):
        x1 = 10 + number * (wide + gap) + wide
        x2 = x1 + gap
        y = top + 18
        parts.append(arrow(x1, y, x2, y))
        parts += [text((x1 + x2) / 2, y + (k + 1) * LINE_HEIGHT, name) for k, name in enumerate(there)]
        y += (right + 1) * LINE_HEIGHT + 8
        parts.append(arrow(x2, y, x1, y))
        parts += [text((x1 + x2) / 2, y + (k + 1) * LINE_HEIGHT, name) for k, name in enumerate(back)]
    x1 = 10 + 2 * (wide + gap) + wide
    y = top + height - 14
    parts.append(arrow(x1 + gap, y, x1, y, "4 3"))
    parts.append(text(x1 + gap / 2, y - 6, "results: flight recorder", font_style="italic"))
    x = 10 + wide + gap
    below = top + height + 54
    parts.append(box(x, below, wide, 34, "evaluator"))
    parts += [arrow(x + 30, top + height, x + 30, below), arrow(x + 62, below, x + 62, top + height)]
    parts.append(text(x + 22, below - 22, evaluator.Evaluate.__name__, "end"))
    parts.append(text(x + 70, below - 22, evaluator.Evaluated.__name__, "start"))
    width = 20 + 4 * wide + 3 * gap
    return svg(width, below + 44, "The messages between the processes, by direction", parts)


PICTURES = {"states.svg": states, "layers.svg": layers, "messages.svg": messages}
"""File below docs/images/ -> what draws it."""


def main() -> None:
    """Draw all pictures again."""
    for name, draw in PICTURES.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8")
        print(IMAGES / name)


if __name__ == "__main__":
    main()
