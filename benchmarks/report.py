"""Write the table, the picture and the JSON file of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import NOTES, ROUNDS, Row

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
DATA = ROOT / "docs" / "performance.json"
PICTURE = ROOT / "docs" / "images" / "performance.png"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


def table(rows: Sequence[Row]) -> str:
    """Return the table in Markdown, which is readable in a terminal too."""
    lines = ["| what | farm | beside it | figure | floor | target | reached |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        bound = "≥" if row.more_is_better else "≤"
        cells = [
            row.question,
            row.ours,
            row.beside,
            f"{row.figure:.3g} {row.unit}",
            "" if row.floor is None else f"{bound} {row.floor:g}",
            "" if row.target is None else f"{bound} {row.target:g}",
            row.verdict(),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(rows: Sequence[Row], machine: dict[str, str], command: str) -> None:
    """Write the results to docs/: the part of the page between its marks, the figures, the picture."""
    when = time.strftime("%Y-%m-%d")
    facts = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    facts += "".join(f"\n- {text}" for text in NOTES)
    measured = f"{BEGIN}\nMeasured on {when} by `{command}`:\n\n{facts}\n\n{table(rows)}\n{END}"
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{measured}{tail}")
    figures = [row.as_dict() for row in rows]
    found = {"date": when, "command": command, "machine": machine, "notes": NOTES, "rows": figures, "rounds": ROUNDS}
    DATA.write_text(json.dumps(found, indent=1) + "\n")
    picture(rows)


def picture(rows: Sequence[Row]) -> None:
    """Draw the distance of each figure from its floor; right of the line is better."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    bounded = [row for row in rows if row.floor is not None]
    shares = [
        row.figure / (row.floor or 1.0) if row.more_is_better else (row.floor or 1.0) / max(row.figure, 1e-9)
        for row in bounded
    ]
    colours = {"target": "#228833", "floor": "#4477aa", "missed": "#ee6677"}
    figure, axes = pyplot.subplots(figsize=(9, 0.32 * len(bounded) + 1.2), layout="constrained")
    axes.barh([row.question for row in bounded], shares, color=[colours[row.verdict()] for row in bounded])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.invert_yaxis()
    ticks = (0.5, 1.0, 2.0, 4.0)
    axes.set_xticks(ticks, [f"{tick:g} ×" for tick in ticks])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.margins(y=0.01)
    axes.set_xlabel("how far from the floor (right: better)\ngreen: target reached\nblue: floor, red: missed")
    axes.tick_params(axis="y", labelsize=8)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    pyplot.close(figure)
