"""Code on the pages of the documentation, as a script that checks what the page shows."""

from __future__ import annotations

import re
from pathlib import Path

_FOLDER = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str = "python") -> list[str]:
    """Return the blocks of a language on a page (`jobs.md`), in order."""
    text = (_FOLDER / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def checked(code: str) -> str:
    """Return the same code with a comparison of each value with the literal behind it."""
    lines = []
    for line in code.splitlines():
        found = re.match(r"(\w.*?)  # (True|False|\d+|'.*'|\[[\d., ]*\])$", line)
        lines.append(f"assert ({found[1]}) == {found[2]}, {found[1]}" if found else line)
    return "\n".join(lines)
