"""The second run of failed tests: what passes alone is named, what fails twice or in numbers fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import once_more

TESTS = """
def test_passes(): pass
def test_fails(): assert False
"""


def failed_before(folder: Path, names: list[str]) -> None:
    (folder / "test_few.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    cache = folder / once_more.LAST_FAILED
    cache.parent.mkdir(parents=True)
    cache.write_text(json.dumps({f"test_few.py::{name}": True for name in names}))


@pytest.mark.parametrize(
    ("names", "status", "said"),
    [
        (["test_passes"], 0, "UNSTEADY: failed once, passed alone: test_few.py::test_passes"),
        (["test_passes", "test_fails"], 1, "failed twice"),
        (["test_passes"] + [f"test_{n}" for n in range(once_more.MOST)], 1, "too many to blame the load"),
    ],
    ids=["unsteady", "fails twice", "many"],
)
def test_failed_tests_are_run_once_more(
    names: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed_before(tmp_path, names)
    monkeypatch.chdir(tmp_path)
    assert once_more.main() == status
    assert said in capsys.readouterr().out
