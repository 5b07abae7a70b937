"""Fixtures that several files of unit tests share. What they need is imported when it is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ipytaskfarm.storage.blobs import Blobs
    from ipytaskfarm.storage.store import Store
    from tests.support.fake_agent import FakeAgent
    from tests.support.pack_peer import Notebook, Peer
    from tests.support.uploads import UploadWorld


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Provide another process that unpacks what a test has packed."""
    from tests.support.pack_peer import Peer

    found = Peer(tmp_path_factory.mktemp("engine"))
    yield found
    found.close()


@pytest.fixture
def notebook() -> Notebook:
    """Provide an empty notebook, the home of functions and classes that travel by value."""
    from tests.support.pack_peer import Notebook

    return Notebook()


@pytest.fixture(scope="module")
def agent() -> Iterator[FakeAgent]:
    """Provide an agent without a controller, which starts real engines."""
    from tests.support.fake_agent import FakeAgent

    agent = FakeAgent()
    yield agent
    agent.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a store that does not exist yet."""
    return tmp_path / "store.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """Provide an open store at `path`."""
    from ipytaskfarm.storage.store import Store

    opened = Store.open(path)
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    """Return the farm's own folder of large values, which this process does not know of."""
    from ipytaskfarm.storage import blobs as door

    monkeypatch.setattr(door, "_known", {})
    monkeypatch.setattr(door, "_fetches", [])
    return door.Blobs.create(tmp_path / "farm", "farm-1")


@pytest.fixture
def world(blobs: Blobs) -> Iterator[UploadWorld]:
    """Provide a controller's end of uploads into `blobs`, which leaves no unfinished one."""
    from tests.support.uploads import UploadWorld

    world = UploadWorld(blobs)
    yield world
    world.receiver.close()
    assert world.parts() == []
