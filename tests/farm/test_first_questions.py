"""docs/first-questions.md: its blocks run in order, what they show is what they say, and nothing stays on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Dirs
from tests.support.pages import blocks, checked

PAGE = "first-questions.md"


@pytest.mark.farm
@pytest.mark.slow
def test_the_page_says_what_is(farm_dirs: Dirs, tmp_path: Path) -> None:
    def command(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "ipytaskfarm", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    script = tmp_path / "page.py"
    script.write_text("\n".join(map(checked, blocks(PAGE))))
    assert script.read_text().count("assert") == 6
    command("start", "-n", "2", "--daemonize")
    try:
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=90, check=False)
    finally:
        (shell,) = blocks(PAGE, "bash")
        for line in shell.splitlines():
            command(*line.partition("#")[0].split()[1:])
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in ("[2] item 2", "ZeroDivisionError", "with the frames of divide, here"))
    left = [path for path in farm_dirs.root.rglob("*") if path.is_file() and "ipytaskfarm" in str(path)]
    assert not left, "what the farm had on disk"
    assert not [name for name in os.listdir(farm_dirs.data / "ipytaskfarm") if name]
