"""Test the farm's keys: they are kept across restarts, and never revealed."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from pathlib import Path

import msgspec
import pytest

from ipytaskfarm.core import errors
from ipytaskfarm.system import farm_paths
from ipytaskfarm.transport import keys as keys_module
from ipytaskfarm.transport.keys import (
    KEYS_FILE,
    FarmKeys,
    agent_file,
    farm_keys,
    info_for,
    keys_lock,
    load_keys,
    make_farm_keys,
    make_keypair,
    rotated,
    save_keys,
    with_agents,
    without_agents,
    write_agent_files,
)
from tests.unit.test_runtime import info


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "farm"
    folder.mkdir(mode=0o700)
    return folder


def test_each_role_has_a_pair_of_its_own() -> None:
    keys = make_farm_keys()
    pairs = [keys.server, keys.client, keys.agent, keys.reader]
    assert len({key for pair in pairs for key in (pair.public, pair.secret)}) == 8
    assert all(len(key) == 40 for pair in pairs for key in (pair.public, pair.secret))
    assert keys.peers() == {"client": keys.client, "agent": keys.agent, "reader": keys.reader}


def test_keys_are_made_once_and_kept(folder: Path) -> None:
    assert load_keys(folder) is None
    keys = farm_keys(folder)
    assert farm_keys(folder) == load_keys(folder) == keys
    assert (folder / KEYS_FILE).stat().st_mode & 0o777 == 0o600


def test_a_file_system_without_locks_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fails)
    with (
        pytest.raises(OSError, match=r"its file system has no locks.* set JUPYTER_DATA_DIR .*keys\.lock"),
        keys_lock(folder),
    ):
        pass
    monkeypatch.setattr(fcntl, "lockf", fails)
    with pytest.raises(OSError, match=r"its file system has no locks.* set JUPYTER_DATA_DIR .*own\.lock"):
        farm_paths.Lock(folder / "own.lock")


def test_a_file_system_that_cannot_sync_folders_keeps_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = os.fsync

    def of_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        usual(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    save_keys(keys := make_farm_keys(), folder)
    assert load_keys(folder) == keys


def test_no_secret_is_shown() -> None:
    keys = make_farm_keys()
    shown = f"{keys!r} {keys} {keys.client!r} {keys.client.__rich_repr__()}"
    assert keys.client.public in shown
    for pair in (keys.server, keys.client, keys.agent, keys.reader):
        assert pair.secret not in shown


def test_keys_that_others_can_read_are_refused(folder: Path) -> None:
    save_keys(make_farm_keys(), folder)
    (folder / KEYS_FILE).chmod(0o640)
    with pytest.raises(errors.SecurityError, match=rf"others can use .*{KEYS_FILE}.*640.*chmod 600"):
        load_keys(folder)


def test_damaged_keys_are_refused_and_not_replaced(folder: Path) -> None:
    save_keys(make_farm_keys(), folder)
    os.truncate(folder / KEYS_FILE, 30)
    with pytest.raises(errors.SecurityError, match="is damaged"):
        farm_keys(folder)
    assert (folder / KEYS_FILE).stat().st_size == 30


def test_keys_compare_by_value() -> None:
    pair = make_keypair()
    assert FarmKeys(pair, pair, pair, pair) == FarmKeys(pair, pair, pair, pair)


# ------------------------------------------------------------------------------------------------ enrolled agents


@pytest.mark.parametrize(
    "name", ["", "a/b", "../a", ".a", "-a", "a b", "a:b", "a\n", "ä", "x" * 65, "agent", "agent.x", "client", "server"]
)
def test_names_that_agents_cannot_have(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be an agent's name"):
        with_agents(make_farm_keys(), [name])


def test_an_enrolled_agent_keeps_its_key() -> None:
    keys = with_agents(make_farm_keys(), ["slurm-1.0", "slurm-1.1"])
    again = with_agents(keys, ["slurm-1.1", "slurm-1.2"])
    assert again.agents["slurm-1.1"] == keys.agents["slurm-1.1"]
    assert list(again.peers()) == ["client", "agent", "reader", "agent:slurm-1.0", "agent:slurm-1.1", "agent:slurm-1.2"]
    assert time.time() - keys.agents["slurm-1.0"].made_s < 60


@pytest.mark.parametrize("name", ["slurm-1", "slurm-1.0.gpu"])
def test_one_agents_name_does_not_begin_with_anothers(name: str) -> None:
    keys = with_agents(make_farm_keys(), ["slurm-1.0"])
    with pytest.raises(ValueError, match="choose another name"):
        with_agents(keys, [name])


def test_rotating_and_revoking() -> None:
    keys = with_agents(make_farm_keys(), ["a", "b"])
    other = rotated(keys, ["a", "reader", "server"])
    changed = {name for name, pair in other.peers().items() if pair != keys.peers()[name]}
    assert changed == {"agent:a", "reader"}
    assert other.server != keys.server
    assert list(without_agents(keys, ["a"]).agents) == ["b"]
    for change in (rotated, without_agents):
        with pytest.raises(KeyError, match="no agent 'c' with a key of its own: agents with one are a, b"):
            change(keys, ["c"])


def test_keys_of_a_farm_that_knew_no_agents_are_read(folder: Path) -> None:
    pair = {"public": "P" * 40, "secret": "S" * 40}
    text = msgspec.json.encode({"server": pair, "client": pair, "agent": pair, "reader": pair})
    farm_paths.write_private(folder / KEYS_FILE, text)
    keys = load_keys(folder)
    assert keys is not None
    assert keys.agents == {}
    assert keys.client.made_s == 0.0


def test_who_changes_keys_waits_for_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def change(number: int) -> None:
        for _ in range(10):
            with keys_lock(folder):
                before = list(done)
                done.append(number)
                assert done == [*before, number]

    threads = [threading.Thread(target=change, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0] * 10 + [1] * 10 + [2] * 10
    monkeypatch.setattr(keys_module, "LOCKED_S", 0.05)
    with keys_lock(folder), pytest.raises(errors.FarmExists, match=r"has held .*keys\.lock"), keys_lock(folder):
        pass


def test_the_files_of_enrolled_agents_follow_their_keys(folder: Path) -> None:
    keys = with_agents(make_farm_keys(), ["a", "b"])
    base = info_for(info(location="login.example"), keys, "client")
    write_agent_files(base, keys, folder)
    read = farm_paths.read_connection_file(agent_file(folder, "a"))
    assert (read.role, read.agent, read.host, read.location) == ("agent", "a", "login.example", "")
    assert (read.public_key, read.secret_key) == (keys.agents["a"].public, keys.agents["a"].secret)
    assert agent_file(folder, "a").stat().st_mode & 0o777 == 0o600
    assert agent_file(folder, "a").parent.stat().st_mode & 0o777 == 0o700
    before = agent_file(folder, "b").stat().st_ino
    keys = rotated(without_agents(with_agents(keys, ["c"]), ["a"]), ["c"])
    write_agent_files(base, keys, folder)
    assert sorted(path.name for path in (folder / "agents").iterdir()) == ["b.json", "c.json"]
    assert agent_file(folder, "b").stat().st_ino == before, "what has not changed is not written"


def test_a_link_in_the_place_of_an_agents_file_is_refused(folder: Path) -> None:
    keys = with_agents(make_farm_keys(), ["a"])
    farm_paths.private_folder(folder / "agents")
    agent_file(folder, "a").symlink_to(folder / "elsewhere")
    with pytest.raises(errors.SecurityError, match="is a link"):
        write_agent_files(info(), keys, folder)
    assert not (folder / "elsewhere").exists()
