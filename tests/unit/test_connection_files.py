"""The connection files of a running farm: written again when they are spoiled, unless another farm needs the place."""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from ipytaskfarm.controller.access import FarmAccess
from ipytaskfarm.system import farm_paths
from ipytaskfarm.system.farm_paths import ConnectionInfo
from ipytaskfarm.system.supervision import CONTROLLER, SUPERVISOR, comes_back, own_record
from ipytaskfarm.transport.hub import Hub
from ipytaskfarm.transport.keys import make_farm_keys
from tests.conftest import isolated


@pytest.fixture
def access() -> Iterator[FarmAccess]:
    """The access to a running farm that has written its files, in a world of its own."""
    with isolated("itf-") as dirs:
        keys = make_farm_keys()
        info = ConnectionInfo(
            farm="default",
            incarnation="a" * 32,
            host="127.0.0.1",
            port=1,
            server_key=keys.server.public,
            public_key=keys.client.public,
            secret_key=keys.client.secret,
            role="client",
            controller_pid=os.getpid(),
            controller_started=farm_paths.process_started() or 0.0,
            version="1",
            protocol=1,
            node=socket.gethostname(),
        )
        access = FarmAccess(cast(Hub, None), info, dirs.data)
        access.write_files(keys)
        yield access


def client_file() -> Path:
    return farm_paths.connection_path("default")


def test_a_file_that_is_gone_is_written_again(access: FarmAccess) -> None:
    before = client_file().read_bytes()
    for path in (client_file(), farm_paths.connection_path("default", "agent")):
        path.unlink()
        access.look_after_files()
        assert path.exists()
    assert client_file().read_bytes() == before


@pytest.mark.parametrize("kind", ["removed", "a link", "another text"])
def test_a_file_that_is_spoiled_while_it_is_written_is_written_again(
    access: FarmAccess, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = client_file()
    before = path.read_bytes()

    def spoil(*_: object) -> None:
        """Stand in for what follows the writing of the files."""
        path.unlink()
        if kind == "a link":
            path.symlink_to(path.with_name("nothing"))
        elif kind == "another text":
            path.write_text("{}")
            path.chmod(0o600)
        monkeypatch.undo()

    monkeypatch.setattr("ipytaskfarm.controller.access.write_agent_files", spoil)
    farm_paths.connection_path("default", "agent").unlink()
    access.look_after_files()
    access.look_after_files()
    assert not path.is_symlink()
    assert path.read_bytes() == before


def test_the_file_of_another_farm_that_runs_is_left_alone_until_it_ends(access: FarmAccess) -> None:
    """Two farms of one name in different data folders would take the place from each other for ever."""
    ours = farm_paths.read_connection_file(client_file())
    others = msgspec.structs.replace(ours, incarnation="b" * 32)
    farm_paths.write_connection_file(others, client_file())
    for _ in range(3):
        access.look_after_files()
    assert farm_paths.read_connection_file(client_file()) == others
    client_file().unlink()
    access.look_after_files()
    assert farm_paths.read_connection_file(client_file()) == ours
    farm_paths.write_connection_file(msgspec.structs.replace(others, controller_started=1.0), client_file())
    access.look_after_files()
    assert farm_paths.read_connection_file(client_file()) == ours, "that farm has ended"


def test_a_full_disk_is_said_once_and_writing_is_tried_again(
    access: FarmAccess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(info: ConnectionInfo, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    client_file().unlink()
    with monkeypatch.context() as patch:
        patch.setattr(farm_paths, "write_connection_file", fails)
        for _ in range(3):
            access.look_after_files()
    assert len([record for record in caplog.records if "cannot be written again" in record.message]) == 1
    access.look_after_files()
    assert client_file().exists()


def no_file() -> ConnectionInfo:
    return farm_paths.read_connection_file(Path("/nonexistent/ipytaskfarm-default.json"))


def test_a_controller_that_lives_is_not_said_to_be_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    records = [own_record(SUPERVISOR, ""), own_record(CONTROLLER, "")]
    farm_paths.write_private(tmp_path / "processes.json", msgspec.json.encode(records))
    monkeypatch.setattr("ipytaskfarm.system.supervision.START_S", math.inf)  # this process may be minutes old
    assert "now" in comes_back(tmp_path, no_file), "it may still read its store"
    monkeypatch.setattr("ipytaskfarm.system.supervision.START_S", 0.0)
    assert comes_back(tmp_path, no_file) == ""
