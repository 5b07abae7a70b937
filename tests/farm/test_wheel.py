"""What a wheel brings: built, looked through, installed into a fresh environment, and found there by Jupyter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from ipytaskfarm.system.jupyter_extension import SOURCE
from ipytaskfarm.version import __version__

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
PACKAGE = PROJECT / "ipytaskfarm"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command; return its output."""
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the present sources; what building leaves behind lies in a copy."""
    source, built = tmp_path_factory.mktemp("source") / "ipytaskfarm", tmp_path_factory.mktemp("built")
    source.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    shutil.copytree(PACKAGE, source / "ipytaskfarm", ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", built, source)
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a fresh environment with the wheel; what it needs comes from this environment."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Behind the environment's own packages, so that ipytaskfarm is the wheel's.
    (site / "needed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python


def test_a_wheel_has_every_file_of_the_package_and_jupyters(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {
        str(path.relative_to(PROJECT))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - names == set()
    prefix = f"ipytaskfarm-{__version__}.data/data"
    assert f"{prefix}/etc/jupyter/jupyter_server_config.d/ipytaskfarm.json" in names
    lab = {str(path.relative_to(SOURCE / "labextension")) for path in (SOURCE / "labextension").rglob("*.*")}
    assert {f"{prefix}/share/jupyter/labextensions/ipytaskfarm/{name}" for name in lab} - names == set()
    assert not {name for name in names if name.startswith(("tests/", "docs/", "benchmarks/"))}


def test_jupyter_finds_an_installed_wheel_by_itself(environment: Path, tmp_path: Path) -> None:
    where = run(environment, "-c", "import ipytaskfarm; print(ipytaskfarm.__file__)", cwd=tmp_path)
    assert str(environment.parents[1]) in where
    shown = run(environment, "-m", "ipytaskfarm", "jupyter", "status", cwd=tmp_path)
    assert "server extension  enabled" in shown
    assert f"lab extension     enabled, version {__version__}" in shown
    servers = run(environment, "-m", "jupyter_server", "extension", "list", cwd=tmp_path)
    assert "ipytaskfarm.web.extension" in servers
    labs = run(environment, "-c", LABS, cwd=tmp_path)
    assert json.loads(labs)["ipytaskfarm"] == __version__


LABS = """
import json
from jupyterlab_server.config import get_federated_extensions
from jupyter_core.paths import jupyter_path
found = get_federated_extensions(jupyter_path("labextensions"))
print(json.dumps({name: entry["version"] for name, entry in found.items()}))
"""


def test_it_can_be_taken_out_and_put_back(environment: Path, tmp_path: Path) -> None:
    command = (environment, "-m", "ipytaskfarm", "jupyter")
    shown = run(*command, "disable", cwd=tmp_path)
    assert "server extension  disabled" in shown
    assert "lab extension     disabled" in shown
    assert subprocess.run([*command, "status"], capture_output=True, cwd=tmp_path, check=False).returncode == 1
    assert "lab extension     enabled" in run(*command, "enable", cwd=tmp_path)
