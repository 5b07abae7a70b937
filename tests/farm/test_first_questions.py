"""docs/first-questions.md: its blocks run in order, what they show is what they say, and nothing stays on disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Dirs

PAGE = Path(__file__).parents[2] / "docs" / "first-questions.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def checked(code: str) -> str:
    """Return the same code with a comparison of each value with the literal behind it."""
    lines = []
    for line in code.splitlines():
        found = re.match(r"(\w.*?)  # (True|False|\d+|'.*')$", line)
        lines.append(f"assert ({found[1]}) == {found[2]}, {found[1]}" if found else line)
    return "\n".join(lines)


@pytest.mark.farm
@pytest.mark.slow
def test_the_page_says_what_is(farm_dirs: Dirs, tmp_path: Path) -> None:
    def command(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "ipytaskfarm", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    script = tmp_path / "page.py"
    script.write_text("\n".join(map(checked, blocks("python"))))
    assert script.read_text().count("assert") == 6
    command("start", "-n", "2", "--daemonize")
    try:
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=90, check=False)
    finally:
        (shell,) = blocks("bash")
        for line in shell.splitlines():
            command(*line.partition("#")[0].split()[1:])
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in ("[2] item 2", "ZeroDivisionError", "with the frames of divide, here"))
    left = [path for path in farm_dirs.root.rglob("*") if path.is_file() and "ipytaskfarm" in str(path)]
    assert not left, "what the farm had on disk"
    assert not [name for name in os.listdir(farm_dirs.data / "ipytaskfarm") if name]
