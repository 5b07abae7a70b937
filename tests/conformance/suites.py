"""Which public suites are run, how they are prepared, and which of their tests cannot pass.

A suite comes from the source package of its project (``pip download --no-deps --no-binary :all: joblib``, unpacked), or
from the folder of a Python's standard library.  It is copied into a temporary folder; nothing of it is kept here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Suite:
    """One public suite.

    source: what `--source` names, for people.
    prepare: copies the suite from the source into an empty folder; returns the files to run, relative to the folder.
    select: pytest's ``-k``.  "": all tests.
    expected: a part of a test's name -> the reason why tests of such names cannot pass.
    """

    source: str
    prepare: Callable[[Path, Path], list[str]]
    select: str = ""
    expected: Mapping[str, str] = field(default_factory=dict)


def _joblib(source: Path, folder: Path) -> list[str]:
    """Copy joblib's tests, with the one line that a user adds: it puts our backend among joblib's."""
    shutil.copytree(source / "joblib" / "test", folder / "joblib_tests")
    file = folder / "joblib_tests" / "test_parallel.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(
        text.replace("\nimport joblib\n", "\nimport ipytaskfarm.joblib\nimport joblib\n", 1), encoding="utf-8"
    )
    return ["joblib_tests/test_parallel.py"]


SUITES: dict[str, Suite] = {
    "joblib": Suite("joblib's source package, unpacked", _joblib, select="ipytaskfarm"),
}
