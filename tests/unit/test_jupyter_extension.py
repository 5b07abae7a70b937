"""The files by which Jupyter finds ipytaskfarm: put there, taken away, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipytaskfarm.doctor import Level, machine
from ipytaskfarm.system.jupyter_extension import SOURCE, ExtensionState, JupyterFiles
from ipytaskfarm.version import __version__

LAB = SOURCE / "labextension"


def test_an_editable_install_is_enabled_by_a_link_and_leaves_nothing(tmp_path: Path) -> None:
    files = JupyterFiles(tmp_path)
    assert (files.state().server, files.state().lab, files.state().works) == ("absent", "absent", False)
    files.enable()
    files.enable()
    state = files.state()
    assert state.works
    assert state.linked
    assert state.lab_version == __version__
    files.disable()
    assert (files.state().server, files.state().lab) == ("absent", "absent")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    files.disable()


def test_a_link_to_a_checkout_that_is_gone_is_replaced(tmp_path: Path) -> None:
    files = JupyterFiles(tmp_path)
    files.enable()
    files.lab_folder.unlink()
    files.lab_folder.symlink_to(tmp_path / "gone")
    assert files.state().lab == "absent"
    files.enable()
    assert files.state().works


def test_other_settings_of_jupyter_stay(tmp_path: Path) -> None:
    files = JupyterFiles(tmp_path)
    files.lab_folder.mkdir(parents=True)  # as a wheel brings it
    (files.lab_folder / "package.json").write_text('{"version": "1"}')
    files.lab_config.parent.mkdir(parents=True)
    files.lab_config.write_text('{"disabledExtensions": ["other"], "news": 1}')
    files.enable()
    files.disable()
    assert json.loads(files.lab_config.read_text()) == {
        "disabledExtensions": {"other": True, "ipytaskfarm": True}, "news": 1,
    }  # fmt: skip
    assert (files.state().server, files.state().lab) == ("disabled", "disabled")
    files.enable()
    assert json.loads(files.lab_config.read_text()) == {"disabledExtensions": {"other": True}, "news": 1}
    assert files.state().works
    assert not files.state().linked


@pytest.mark.parametrize(
    "content",
    [
        b"[1]",
        b'{"ServerApp": [1]}',
        b'{"ServerApp": {"jpserver_extensions": {"ipytaskfarm.web.extension": "yes"}}}',
        b'{"disabledExtensions": "ipytaskfarm"}',
        b'{"caf\xe9": 1}',
    ],
)
def test_a_broken_config_file_is_named(tmp_path: Path, content: bytes) -> None:
    files = JupyterFiles(tmp_path)
    files.server_config.parent.mkdir(parents=True)
    files.server_config.write_bytes(content)
    for look in (files.state, files.enable):
        with pytest.raises(ValueError, match=r"ipytaskfarm\.json is not what Jupyter reads"):
            look()
    assert files.server_config.read_bytes() == content


def test_the_doctor_says_what_is_missing() -> None:
    def look(server: str, lab: str, version: str, jupyter: dict[str, str]) -> tuple[Level, str]:
        found = machine.jupyter(ExtensionState(Path("/x"), server, lab, version, False, jupyter))
        return found.level, found.found + found.remedy

    there = {"jupyter_server": "2"}
    assert look("absent", "absent", "", {})[0] is Level.OK
    assert look("enabled", "enabled", __version__, there)[0] is Level.OK
    level, text = look("enabled", "absent", "", there)
    assert level is Level.WARNING
    assert "ipytaskfarm jupyter enable" in text
    assert "0.0.0" in look("enabled", "enabled", "0.0.0", there)[1]


def test_the_extension_has_the_packages_version_and_files() -> None:
    package = json.loads((LAB / "package.json").read_text())
    assert package["version"] == __version__
    assert package["name"] == "ipytaskfarm"
    build = package["jupyterlab"]["_build"]
    entry = (LAB / build["load"]).read_text()
    assert f'"{build["extension"]}"' in entry
    assert "window._JUPYTERLAB.ipytaskfarm" in entry
    schema = json.loads((LAB / "schemas" / "ipytaskfarm" / "plugin.json").read_text())
    (item,) = schema["jupyter.lab.toolbars"]["Cell"]
    assert f'"{item["command"]}"' in (LAB / "static" / "extension.js").read_text()
