"""The pages for people who come from other libraries: what stands before prints what stands after."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Dirs
from tests.support.thorough import some_of

PAGES = sorted((Path(__file__).parents[2] / "docs" / "from").glob("*.md"))


def output_of(code: str, folder: Path, name: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(code)
    # Some leave files where they run.
    done = subprocess.run(
        [sys.executable, str(path)], cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.farm
@pytest.mark.slow
@pytest.mark.parametrize("page", some_of(PAGES, 3), ids=lambda page: page.stem)
def test_each_version_prints_the_same(page: Path, farm_dirs: Dirs, tmp_path: Path) -> None:
    before, *after = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert after
    wanted = output_of(before, tmp_path, "before")
    assert wanted.strip()
    assert [output_of(code, tmp_path, f"after_{n}") for n, code in enumerate(after)] == [wanted] * len(after)


def test_there_is_a_page_for_each() -> None:
    assert [page.stem for page in PAGES] == [
        "asyncio", "concurrent-futures", "dask", "executorlib", "ipyparallel", "joblib", "multiprocessing", "submitit",
    ]  # fmt: skip
