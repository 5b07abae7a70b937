"""Test that a store, an event log and a connection file of an earlier version can be opened, and that their tasks
continue.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm
from ipytaskfarm.controller.replay import play
from ipytaskfarm.system.farm_paths import read_connection_file
from tests.conftest import Dirs
from tests.support.browser import free_port

STORED = Path(__file__).parents[1] / "data" / "stored"
IDS: dict[str, list[int]] = json.loads((STORED / "ids.json").read_text())


@pytest.fixture
def stored(farm_dirs: Dirs) -> Path:
    """The farm's folder, as if it had always been on this machine."""
    folder = farm_dirs.data / "ipytaskfarm" / "old"
    shutil.copytree(STORED / "farm", folder)
    for path in (folder.parent, folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    record = json.loads((folder / "farm.json").read_text())
    record.update(store=str(folder / "store.sqlite"), node=platform.node(), port=free_port())
    (folder / "farm.json").write_text(json.dumps(record))
    return folder


@pytest.mark.farm
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="functions that travel by value are of one minor version")
def test_a_stored_farm_keeps_its_results_and_goes_on(stored: Path) -> None:
    with Farm(1, name="old") as farm, farm.task_client() as tc:
        results: dict[str, list[Any]] = {
            kind: [tc.get_task_result(i) for i in IDS[kind]] for kind in IDS if "waiting" not in kind
        }
        assert [each.ns.a for each in results["strings"]] == [0, 1, 2, 3, 4]
        assert [each.result for each in results["functions"]] == [0, 3, 6]
        assert results["objects"][0].result.norm() == 13**0.5
        assert isinstance(results["failed"][0].failure.value, ValueError)
        assert results["large"][0].result == bytes(200_000)
        assert results["pushed"][0].ns.c == 42
        assert [each.result for each in results["graph"]] == [21, 63]
        assert tc.job("nightly").results() == [0, 3, 6]
        tc.resume()
        tc.barrier([*IDS["waiting"], *IDS["waiting_graph"]])
        assert [tc.get_task_result(i).result for i in IDS["waiting"]] == [0, 3, 6, 9]
        assert tc.get_task_result(IDS["waiting_graph"][0]).result == 0
        assert [list(tc.tasks(name=f"later-{n}")) for n in range(4)] == [[i] for i in IDS["waiting"]]
        assert farm.multiengine_client().pull("placed") == [5]
        with pytest.raises(IndexError):
            tc.get_task_result(10_000)


def test_a_stored_event_log_is_replayed() -> None:
    assert len(list(play(STORED / "events.log"))) > 20


def test_a_stored_connection_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ipytaskfarm-old.json"
    shutil.copy(STORED / "connection.json", path)
    os.chmod(path, 0o600)
    os.chmod(tmp_path, 0o700)
    info = read_connection_file(path)
    assert (info.farm, info.port, info.role) == ("old", 10113, "client")
