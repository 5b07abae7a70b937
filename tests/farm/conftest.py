"""Fixtures that several files of tests on farms share. What they need is imported when it is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import Dirs, assert_nothing_left, isolated

if TYPE_CHECKING:
    from ipytaskfarm import Executor, TaskClient
    from ipytaskfarm.storage.blobs import Blobs
    from tests.support.fake_hub_controller import FakeController


@pytest.fixture(scope="module")
def dirs() -> Iterator[Dirs]:
    """Provide a world of its own for a module; nothing may be left in it."""
    with isolated("itf-") as dirs:
        yield dirs
        assert_nothing_left(dirs)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeController]:
    """Provide a controller with canned answers."""
    from ipytaskfarm.client import sessions
    from tests.support.fake_hub_controller import FakeController

    with FakeController(tmp_path / "farm") as controller:
        first = controller.incarnation
        yield controller
        for incarnation in {first, controller.incarnation}:
            sessions.end_farm(incarnation)


@pytest.fixture
def blobs(tc: TaskClient) -> Blobs:
    """Return the large values that the client writes."""
    found = tc._session.io.folder_of_blobs
    assert found is not None
    return found


@pytest.fixture
def cleared(tc: TaskClient) -> Iterator[None]:
    """Clear the module's farm after a test."""
    yield
    tc.clear()


@pytest.fixture
def ex(tc: TaskClient, cleared: None) -> Iterator[Executor]:
    """Provide an executor on the module's farm, which is cleared afterwards."""
    from ipytaskfarm import Executor

    with Executor(tc) as executor:
        yield executor


@pytest.fixture
def empty_cache(tc: TaskClient) -> None:
    """Remove the results that earlier tests of the module have kept."""
    tc.cache.forget()
