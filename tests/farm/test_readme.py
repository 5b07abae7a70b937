"""README's quick start, in order, as a reader runs it: in a shell, then typed into Python, pasted, or in IPython."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.conftest import Dirs
from tests.support.thorough import some_of

README = Path(__file__).parents[2] / "README.md"
DONE = "the end of the quick start"
SHOWN = [
    "TaskResult[ID:73]:{'a': 73}", "[0, 1, 4, 9, 16]", "1024", "1267650600228229401496703205376", "True",
    "[{'score': 0.25}, {'score': 0.75}]", "division by zero", "'failed': 1", "ZeroDivisionError", "[1, 2]",
]  # fmt: skip
"""What an interactive session shows, in this order."""


def blocks() -> list[tuple[str, str]]:
    """(language, code) of each block, in order."""
    section = README.read_text().partition("## Quick start\n")[2].partition("\n## ")[0]
    return re.findall(r"^```(\w+)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def in_shell(code: str) -> None:
    lines = [line for line in code.splitlines() if not line.startswith("pip install ")]
    folder = Path(sys.executable).parent
    script = f"export PATH={folder}:$PATH\nset -e\n" + "\n".join(lines)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def as_script(codes: list[str], folder: Path) -> str:
    path = folder / "quickstart.py"
    path.write_text("\n".join([*codes, f"print({DONE!r})"]))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _in_session(child: Any, codes: list[str], whole: bool) -> str:
    """Give a session the code, line by line or whole blocks at once; return all that it showed."""
    child.setecho(False)
    for code in codes:
        if whole:
            child.send(code + "\n")
        else:
            for line in code.splitlines():
                child.sendline(line)
            child.sendline("")
    first, second = DONE[:9], DONE[9:]
    child.sendline(f"print({first!r} + {second!r})")
    child.expect(DONE)
    shown = str(child.before)
    child.sendline("exit()")
    child.expect(pexpect.EOF)
    return shown


def typed(codes: list[str], folder: Path) -> str:
    child = pexpect.spawn(sys.executable, ["-q"], encoding="utf-8", timeout=90, cwd=folder, dimensions=(50, 200))
    return _in_session(child, codes, whole=False)


def pasted(codes: list[str], folder: Path) -> str:
    child = pexpect.spawn(sys.executable, ["-q"], encoding="utf-8", timeout=90, cwd=folder, dimensions=(50, 200))
    return _in_session(child, codes, whole=True)


def in_ipython(codes: list[str], folder: Path) -> str:
    words = ["-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor", "--no-confirm-exit"]
    child = pexpect.spawn(sys.executable, words, encoding="utf-8", timeout=90, cwd=folder, dimensions=(50, 200))
    return _in_session(child, codes, whole=False)


@pytest.mark.farm
@pytest.mark.slow
@pytest.mark.parametrize("run", some_of([as_script, typed, in_ipython, pasted], 2))
def test_the_quick_start_runs_in_order(run: Callable[[list[str], Path], str], farm_dirs: Dirs, tmp_path: Path) -> None:
    found = blocks()
    assert [language for language, _ in found] == ["bash", *["python"] * (len(found) - 2), "bash"]
    in_shell(found[0][1])
    try:
        shown = run([code for _, code in found[1:-1]], tmp_path)
    finally:
        in_shell(found[-1][1])
    assert not re.search(r"(Syntax|Indentation|Name|Attribute|Type)Error", shown), shown
    if run is not as_script:
        at = 0
        for text in SHOWN:
            assert text in shown[at:], (text, shown)
            at = shown.index(text, at)
