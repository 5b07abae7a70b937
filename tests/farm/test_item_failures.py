"""How items of a map fail on a real farm: each for itself, with a name on one line, and whatever it raises."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import TaskClient, errors
from tests.support.farms import DEADLINE_S
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


class OutcomeError(BaseException):
    """Like the outcomes of pytest and trio's Cancelled: no Exception."""


RAISED: dict[int, BaseException] = {
    10: KeyboardInterrupt(),
    20: GeneratorExit(),
    30: asyncio.CancelledError("by a library"),
    35: OutcomeError("no outcome"),
}


def raise_some(x: int) -> int:
    if x in RAISED:
        raise RAISED[x]
    return x


def notes(error: Any) -> list[str]:
    return list(getattr(error, "__notes__", ()))


@pytest.mark.parametrize("chunksize", [1, 40, 2000])
def test_an_item_that_raises_no_exception_fails_alone(tc: TaskClient, chunksize: int) -> None:
    """A library's KeyboardInterrupt, a CancelledError, a GeneratorExit, outcomes of pytest."""
    found = tc.map(raise_some, range(2000), chunksize=chunksize, on_error="return")
    assert [x for x, value in enumerate(found) if value != x] == list(RAISED)
    assert [notes(found[x])[0] for x in RAISED] == [f"item {x} of 2000: raise_some(x={x})" for x in RAISED]
    assert str(found[10]) == "KeyboardInterrupt"
    assert str(found[30]) == "asyncio.exceptions.CancelledError: by a library"


def test_an_abort_still_ends_the_run_of_several_items(tc: TaskClient, tmp_path: Path) -> None:
    def wait(x: int, folder: str) -> int:
        if x == 3:
            Path(folder, "begun").touch()
            while not Path(folder, "never").exists():
                time.sleep(0.01)
        return x

    job = tc.map(wait, range(40), [str(tmp_path)] * 40, chunksize=40, block=False)
    eventually(lambda: Path(tmp_path, "begun").exists(), DEADLINE_S, what="an item waits")
    tc.abort(job.ids[3])
    found = job.results(return_exceptions=True)
    assert isinstance(found[3], errors.TaskAborted)
    assert [x for x in range(40) if found[x] != x] == [3]
