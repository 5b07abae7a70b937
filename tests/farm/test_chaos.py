"""The nemesis against a real farm, and whether its checker would notice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Dirs
from tests.farm.test_farm import background_farm
from tests.support.chaos import Evidence, complaints, torment
from tests.support.thorough import THOROUGH


def evidence() -> Evidence:
    """Return records of three tasks: one succeeded, one was repeated, one was lost and must not be repeated."""
    return Evidence(
        submitted={10: 0, 11: 1, 12: 5},
        once={0, 5},
        finals=[(10, ""), (11, ""), (12, "engine lost")],
        told={10: "", 11: "", 12: "engine lost"},
        values={10: 0, 11: 1},
        begun=Counter({0: 1, 1: 2, 5: 1}),
        ended=Counter({0: 1, 1: 1}),
    )


def test_the_checker_is_content_when_all_is_well() -> None:
    assert list(complaints(evidence())) == []


def test_the_checker_finds_a_planted_loss() -> None:
    planted = evidence()
    planted.finals.remove((11, ""))
    assert list(complaints(planted)) == ["task 11 (1) is recorded 0 times"]


def test_the_checker_finds_a_planted_double() -> None:
    planted = evidence()
    planted.finals.append((10, ""))
    assert list(complaints(planted)) == ["task 10 (0) is recorded 2 times"]
    planted = evidence()
    planted.begun[0] = 2
    assert list(complaints(planted)) == ["task 10 (0) was not to be repeated, and was begun 2 times"]


def test_the_checker_finds_what_else_is_wrong() -> None:
    planted = evidence()
    planted.told[10] = "engine lost"
    planted.values[11] = 7
    planted.finals[2] = (12, "error")
    planted.told[12] = "error"
    planted.ended.clear()
    planted.finals.append((99, ""))
    found = "\n".join(complaints(planted))
    for word in ("was told 'engine lost'", "gave back 7", "never ran to its end", "failed: error", "never submitted"):
        assert word in found


@pytest.mark.farm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thousands_of_tasks_under_the_nemesis(farm_dirs: Dirs, tmp_path: Path) -> None:
    """The small and hasty form of `make chaos`."""
    tasks, haste = (10_000, 1.0) if THOROUGH else (2_500, 2.0)
    with background_farm("-n", "3", "--max-engine-losses", "1000000") as home:
        did, found = torment(home, tmp_path / "ledger", 60.0, seed=1, tasks=tasks, haste=haste)
    assert found == []
    # How many it comes to kill depends on how busy the machine is.
    assert did["engine"] >= 3, did
    assert did["controller"] >= 1, did
    assert did["agent"] == 1, did
