"""Test a loss of power: synced data is there, other data is torn, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from ipytaskfarm.core import saves as s
from ipytaskfarm.storage import backup, store as module
from ipytaskfarm.storage.beside import count_file
from ipytaskfarm.storage.commit_count import read
from ipytaskfarm.storage.free_room import log_bytes
from ipytaskfarm.storage.store import Store

from ..support.store_model import final, task

TURNS = 60


@pytest.mark.parametrize("seed", range(12))
def test_a_log_that_was_torn_anywhere_behind_the_last_commit(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each commit is a fsync of the log: a cut may tear what follows it, in any way."""
    chance = random.Random(seed)
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", chance.choice((30_000, 4 << 20)))
    path = tmp_path / "store.sqlite"
    log = path.with_name(path.name + "-wal")
    cut_after = chance.randrange(5, TURNS)
    with closing(Store.open(path)) as store:
        for turn in range(TURNS):
            saves: list[s.Save] = [task(turn, chance.randbytes(chance.randrange(3000)))]
            if turn % 2:
                saves.append(final(turn - 1))
            store.commit(saves)
            store.settle()
            if turn == cut_after:
                files = {file: file.read_bytes() for file in (path, log) if file.exists()}
                recorded = read(count_file(path))
                assert recorded is not None
                synced = log_bytes(recorded.log.frames)  # there is room behind it, which was made ahead
            elif turn == cut_after + 1:
                torn = _torn(files[log], synced, log.read_bytes(), chance)
        ended = {n for n in range(cut_after) if n % 2 == 0}
    after = tmp_path / "after"
    after.mkdir(mode=0o700)
    (after / path.name).write_bytes(files[path])
    (after / log.name).write_bytes(torn if cut_after + 1 < TURNS else files[log])
    for file in after.iterdir():
        os.chmod(file, 0o600)
    with closing(Store.open(after / path.name)) as store:
        found = store.load()
        there = {record.id for record in found.tasks} | {record.id for record in found.finals}
        assert there >= set(range(cut_after + 1)), "a task that was acknowledged is missing"
        assert {record.id for record in found.finals} >= ended, "an end that was acknowledged is missing"
        assert backup.check(store.path) == []
    shutil.rmtree(after)


def _torn(before: bytes, synced: int, later: bytes, chance: random.Random) -> bytes:
    """Return the log as of the commit, with nothing, a part, or a damaged part of what was written to it since.

    If a new log was begun since (after a checkpoint), the old one is returned.
    """
    if later[:32] != before[:32]:
        return before
    grown = later[synced : synced + 20_000]
    kept = grown[: chance.randrange(len(grown) + 1)] if grown else b""
    rubbish = chance.randbytes(chance.choice((0, 100, 5000)))
    torn = before[:synced] + kept + rubbish
    return torn + before[len(torn) :]  # the room that was made ahead, or what an earlier log has left there
