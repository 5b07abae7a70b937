"""The table of legal moves, and its copy in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipytaskfarm.core.scheduler.state import SchedulerState
from ipytaskfarm.core.scheduler.transitions import IllegalMove, _count
from ipytaskfarm.core.states import FINAL, MOVES, State

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_page_shows_the_table() -> None:
    shown = PAGE.read_text().partition("<!-- moves -->\n")[2].partition("<!-- /moves -->")[0]
    rows = [f"| {before or '–'} | {after} | {what} |" for (before, after), what in MOVES.items()]
    assert shown == "\n".join(["| from | to | what happened |", "|---|---|---|", *rows, ""]), (
        "docs/architecture.md does not show core.states.MOVES: copy the table from this message"
    )


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
