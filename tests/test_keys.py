"""The farm's keys: kept over restarts, told to nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipytaskfarm.core import errors
from ipytaskfarm.doors.keys import KEYS_FILE, FarmKeys, farm_keys, load_keys, make_farm_keys, make_keypair, save_keys


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
