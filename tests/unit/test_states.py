"""The table of legal moves.  Its copy in the documentation: test_architecture_page.py."""

from __future__ import annotations

import pytest

from ipytaskfarm.core.scheduler.state import SchedulerState
from ipytaskfarm.core.scheduler.transitions import IllegalMove, _count
from ipytaskfarm.core.states import FINAL, MOVES, State


@pytest.mark.parametrize("before", [None, *State])
@pytest.mark.parametrize("after", list(State))
def test_only_legal_moves_pass(before: State | None, after: State) -> None:
    farm = SchedulerState("f", "f")
    if before is after:
        return
    if (before, after) in MOVES:
        _count(farm, 1, before, after)
        assert farm.tasks.counts[after] == 1
    else:
        with pytest.raises(IllegalMove, match="task 1"):
            _count(farm, 1, before, after)


def test_only_reopening_leaves_a_final_state() -> None:
    assert [move for move in MOVES if move[0] in FINAL] == [(State.SUCCEEDED, State.SCHEDULED)]
