"""Test that text in notebooks is readable: its contrast with the background, in both themes and without a theme.

The themes are those of the installed JupyterLab.  The formula is that of the Web Content Accessibility Guidelines,
https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import pytest

from ipytaskfarm.client.estimate import Tally
from ipytaskfarm.client.output_printer import text_html
from ipytaskfarm.client.screens import ProgressView
from ipytaskfarm.client.tables import TaskTable
from ipytaskfarm.core.messages.tables import TaskRow
from ipytaskfarm.display.colours import BARS, ERROR_BACKGROUND, MUTED, TRACK
from ipytaskfarm.display.flamegraph import flamegraph
from tests.unit.test_architecture import PACKAGE, PROJECT

Colour: TypeAlias = tuple[float, float, float, float]
Theme: TypeAlias = dict[str, str]

READABLE = 4.5
VISIBLE = 3.0
"""Of a part of a bar, beside which the number stands."""
TEXT, BACKGROUND = "var(--jp-content-font-color1)", "var(--jp-layout-color0)"
PLAIN: dict[str, Theme] = {
    "white page": {"--jp-content-font-color1": "#000", "--jp-layout-color0": "#fff"},
    "dark page": {"--jp-content-font-color1": "#ccc", "--jp-layout-color0": "#1e1e1e"},
}
"""Places that know nothing of JupyterLab: an exported page, other editors."""


def theme(name: str) -> Theme:
    """The variables of one of JupyterLab's themes."""
    spec = find_spec("jupyterlab")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "themes" / "@jupyterlab" / f"theme-{name}-extension"
    return dict(re.findall(r"(--[\w-]+):\s*([^;{}]+)", (folder / "index.css").read_text(encoding="utf-8")))


THEMES = {"light": theme("light"), "dark": theme("dark"), **PLAIN}


def colour(text: str, known: Theme) -> Colour:
    """Read a colour of CSS: a variable with its fallback, rgb, rgba, or # and digits."""
    text = text.strip()
    if match := re.fullmatch(r"var\((--[\w-]+)(?:,\s*(.*))?\)", text, re.DOTALL):
        value = known.get(match[1], match[2])
        assert value is not None, f"{match[1]} is not known, and nothing stands in for it"
        return colour(known["--jp-content-font-color1"] if value == "inherit" else value, known)
    if match := re.fullmatch(r"rgba?\(([^)]*)\)", text):
        parts = [float(part) for part in match[1].split(",")]
        return (parts[0] / 255, parts[1] / 255, parts[2] / 255, parts[3] if len(parts) == 4 else 1.0)
    digits = {"white": "#fff", "black": "#000"}.get(text, text).removeprefix("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    red, green, blue = (int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4))
    return red, green, blue, 1.0


def over(front: Colour, back: Colour) -> Colour:
    """The colour that is seen where one that is not opaque lies on another."""
    share = front[3]
    red, green, blue = (f * share + b * (1 - share) for f, b in zip(front[:3], back[:3], strict=True))
    return red, green, blue, 1.0


def luminance(seen: Colour) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in seen[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(front: str, layers: list[str], known: Theme) -> float:
    """Return the contrast of a colour with the layers behind it, the page first."""
    behind = (1.0, 1.0, 1.0, 1.0)
    for layer in layers:
        behind = over(colour(layer, known), behind)
    one, other = luminance(over(colour(front, known), behind)), luminance(behind)
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_the_formula_is_right() -> None:
    assert contrast("#000", ["#fff"], {}) == pytest.approx(21)
    assert contrast("#777", ["#fff"], {}) == pytest.approx(4.48, abs=0.01)
    assert contrast("#b00", ["#111"], {}) < READABLE, "the red that stood here before could not be read"


@pytest.mark.parametrize("name", THEMES)
@pytest.mark.parametrize(("front", "layers"), [
    (TEXT, [BACKGROUND]),
    (TEXT, [BACKGROUND, ERROR_BACKGROUND]),
    (MUTED, [BACKGROUND]),
])  # fmt: skip
def test_text_can_be_read(name: str, front: str, layers: list[str]) -> None:
    assert contrast(front, layers, THEMES[name]) >= READABLE


@pytest.mark.parametrize("name", THEMES)
def test_a_failed_row_differs_from_others(name: str) -> None:
    assert contrast(ERROR_BACKGROUND, [BACKGROUND], THEMES[name]) > 1.1


@pytest.mark.parametrize("name", THEMES)
@pytest.mark.parametrize("state", BARS)
def test_a_bar_is_seen_on_its_page(name: str, state: str) -> None:
    assert contrast(BARS[state], [BACKGROUND], THEMES[name]) >= VISIBLE - 0.25, "the number stands beside it"


def test_a_flamegraph_is_read_on_its_own_ground() -> None:
    picture = flamegraph({("main", f"f{n}"): 1 for n in range(300)}, "title")
    fills = set(re.findall(r'fill="([^"]+)"', picture))
    assert len(fills) > 100
    assert min(contrast("#000", [fill], {}) for fill in fills) >= READABLE


def test_what_is_shown_has_no_other_colours() -> None:
    known = {ERROR_BACKGROUND, MUTED, TRACK, *BARS.values()}
    shown = [
        text_html("no", error=True),
        TaskTable([TaskRow(1, "failed", "error", None, 0, 1, 0.0), TaskRow(2, "failed", "error", None, 0, 1, 0.0)], 5)
        ._repr_html_(),
        ProgressView("tasks", Tally(9, 3, 1, running_count=2), 1.0, notes=("it waits",)).html(),
    ]  # fmt: skip
    for html in shown:
        styles = ";".join(re.findall(r'style="([^"]*)"', html))
        found = re.findall(r"(?:^|;)(?:background|color):([^;]+)", styles)
        assert found
        assert not set(found) - known


def test_the_package_names_no_colour_elsewhere() -> None:
    places = [PROJECT / PACKAGE / folder for folder in ("client", "jupyter", "deployment", "core")]
    for path in (path for folder in places for path in folder.rglob("*.py")):
        if path.name == "flamegraph.py":  # a picture with a ground of its own
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?:color|background)\s*:\s*(?:#|rgb|[a-z]+[;\"'])|var\(--jp-[a-z]+-color", text), path
