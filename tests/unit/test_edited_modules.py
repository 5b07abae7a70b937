"""Which modules an engine has imported that are others by now."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import machinery
from pathlib import Path
from types import ModuleType

import pytest

from ipytaskfarm.engine import edited_modules
from ipytaskfarm.engine.edited_modules import EditedModules, watch_imports


@pytest.fixture
def edits(monkeypatch: pytest.MonkeyPatch) -> Iterator[EditedModules]:
    for loader, method in (
        (machinery.SourceFileLoader, "path_stats"),
        (machinery.SourcelessFileLoader, "get_code"),
        (machinery.ExtensionFileLoader, "create_module"),
    ):
        monkeypatch.setattr(loader, method, getattr(loader, method))  # so that it is put back
    found = EditedModules()
    monkeypatch.setattr(edited_modules, "EDITED", found)
    watch_imports()
    known = {*sys.modules}
    yield found
    for name in {*sys.modules} - known:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def imported(name: str) -> ModuleType:
    importlib.invalidate_caches()
    sys.modules.pop(name, None)
    return importlib.import_module(name)


def told(edits: EditedModules) -> list[str]:
    edits.sort()
    edits._folders_due_s = 0.0  # an installation takes longer than the pause
    return [each.name for each in edits.look()]


def test_an_edit_is_told_and_a_file_that_is_written_again_is_not(edits: EditedModules, folder: Path) -> None:
    file = folder / "own_module.py"
    file.write_text("V = 1\n")
    imported("own_module")
    file.write_text("V = 1\n")
    assert told(edits) == []
    file.write_text("V = 2\n")  # of the same size, and perhaps within the same second
    assert told(edits) == ["own_module"]
    assert imported("own_module").V == 2, "the compiled form of the first edit was taken"
    assert told(edits) == []


@pytest.mark.parametrize("by", ["removed", "moved into a package"])
def test_a_module_that_is_gone(edits: EditedModules, folder: Path, by: str) -> None:
    file = folder / "gone_module.py"
    file.write_text("V = 1\n")
    imported("gone_module")
    file.unlink()
    if by != "removed":
        (folder / "gone_module").mkdir()
        (folder / "gone_module" / "__init__.py").write_text("V = 2\n")
    assert told(edits) == ["gone_module"]


def test_files_that_were_made_for_one_import_are_forgotten(edits: EditedModules, tmp_path: Path) -> None:
    for change in ("remove", "edit"):
        made = tmp_path / change
        made.mkdir()
        (made / f"made_to_{change}.py").write_text("V = 1\n")
        sys.path.insert(0, str(made))
        imported(f"made_to_{change}")
        sys.path.remove(str(made))
        if change == "edit":
            (made / f"made_to_{change}.py").write_text("V = 2\n")
        else:
            shutil.rmtree(made)
    assert (told(edits), edits.own) == ([], {})


def test_an_upgrade_is_told_and_a_module_among_distributions_is_a_persons_own(
    edits: EditedModules, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = folder / "site-packages"
    for name in ("installed_one", "loose_one"):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("V = 1\n")
    info = site / "other_name-1.dist-info"
    info.mkdir()
    (info / "RECORD").write_text("installed_one/__init__.py,,\n")
    monkeypatch.syspath_prepend(site)
    imported("installed_one")
    imported("loose_one")
    assert told(edits) == []
    assert [known.name for known in edits.own.values()] == ["loose_one"]
    (site / "loose_one" / "__init__.py").write_text("V = 2\n")
    found = edits.look()
    assert [(each.name, each.can_be_imported_again) for each in found] == [("loose_one", True)]
    edits.forget(found)
    (site / "installed_one" / "__init__.py").write_text("V = 2 \n")
    info.rename(site / "other_name-2.dist-info")
    os.utime(site, ns=(1, 1))  # times may be coarse
    assert told(edits) == ["installed_one"]


def test_what_a_zygote_had_imported_is_imported_anew(edits: EditedModules, folder: Path) -> None:
    for name in ("changed_early", "user_of_it"):
        (folder / f"{name}.py").write_text("V = 1\n")
        imported(name)
    (folder / "changed_early.py").write_text("V = 2\n")
    assert edits.begin() == []
    assert not {"changed_early", "user_of_it"} & {*sys.modules}
    assert told(edits) == []


def test_the_standard_library_and_this_package_are_left_alone(edits: EditedModules) -> None:
    imported("colorsys")
    imported("ipytaskfarm.serialization.tracebacks")
    assert (edits.own, edits.installed) == ({}, {})
