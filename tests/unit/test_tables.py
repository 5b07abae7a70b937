"""Test the printer of tables: the contents in each width, marks, and remarks about what is left out."""

from __future__ import annotations

import io
import os
import time
from typing import Any

import pytest
from hypothesis import given, strategies as st
from rich.cells import cell_len

from ipytaskfarm.client.tables import StateCounts, TaskStatus, TaskTable, event_listing
from ipytaskfarm.controller.replies import explain_final
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.messages.task_types import FailureSummary, Final
from ipytaskfarm.display import farm_tables
from ipytaskfarm.display.tables import MARK, REPR_WIDTH, Column, Table, is_styled, terminal_width
from ipytaskfarm.display.text import CELL_MAX, ending, safe, summary, with_local_times

CAUSE = "KeyError: 'the cause'"
ESCAPE = "\x1b[31m\x07\r\nred\u202e"


def row(task_id: int, state: str = "succeeded", error: str = "", **more: Any) -> tables.TaskRow:
    failure = FailureSummary("ValueError", error) if error else None
    reason = "error" if error else ""
    return tables.TaskRow(task_id, state, reason, "sweep", task_id % 4, 1, 0.0, run_s=1.5, failure=failure, **more)


def engine(number: int) -> tables.EngineRow:
    return tables.EngineRow(
        number, "a.1", f"node{number}.cluster.example", 4000 + number, "busy", number, 3, time.time() - 100, {},
        note="memory 3.4 of 4.0 GiB", environment="imagenet",
    )  # fmt: skip


def agent(name: str) -> dict[str, Any]:
    return {
        "node": name, "state": "up", "guard": "", "engines": 4, "slots": 4, "cores": 64, "load": 0.97,
        "memory": 2**37, "free_memory": 2**35, "free_disk": 2**40, "used": {"cores": 4.0, "gpu": 2.0},
        "environments": {"0": "imagenet", "1": "imagenet"},
    }  # fmt: skip


JOB = tables.JobRow("0123456789abcdef", "a job of a rather long name, with spaces", 120_000, 3, 7, False, "", 1e9)
EVENT = (1e9, 12, "sweep", "failed: error", 3, "ValueError: no\n" + CAUSE)
TASKS = [row(i, "failed", f"it went wrong\nall the way\n{CAUSE}") if i % 7 == 0 else row(i) for i in range(300)]
EVERY = {
    "tasks": farm_tables.task_table(TASKS, omitted=2705, page=100, more="last=0 lists all"),
    "engines": farm_tables.engine_table([engine(0), engine(1)]),
    "nodes": farm_tables.node_table([agent("node1.cluster.example"), agent("node2.cluster.example")]),
    "jobs": farm_tables.job_table([JOB, JOB], {JOB.id: 2}),
    "events": farm_tables.event_table([EVENT, EVENT]),
}


def lines_of(table: Table, width: int | None = None) -> list[str]:
    return table.text(width).splitlines()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("width", [80, 100, 200])
def test_every_table_fits_the_terminal(name: str, width: int) -> None:
    assert max(map(cell_len, lines_of(EVERY[name], width))) <= width


@pytest.mark.parametrize(("name", "columns"), [
    ("tasks", {"id", "state", "name", "engine", "error"}),
    ("engines", {"engine", "state", "task", "node", "environment", "note"}),
    ("nodes", {"node", "state", "engines", "cores", "load", "free", "reserved"}),
    ("jobs", {"job", "tasks", "unfinished", "state", "opened"}),
    ("events", {"when", "task", "what", "engine", "details"}),
])  # fmt: skip
def test_in_80_columns_the_columns_that_matter_are_there(name: str, columns: set[str]) -> None:
    assert any(all(column in line.split() for column in columns) for line in lines_of(EVERY[name], 80))


def test_wide_terminals_have_all_columns() -> None:
    heading = lines_of(EVERY["tasks"], 200)[2]
    assert " ".join(heading.split()) == "id state reason name engine attempts submitted duration error"


def test_nothing_is_cut_where_there_is_no_terminal() -> None:
    assert f"it went wrong … {CAUSE}" in EVERY["tasks"].text()


def test_what_failed_is_marked_without_colour() -> None:
    body = lines_of(EVERY["tasks"], 80)[3:]
    assert [line.startswith(MARK) for line in body] == ["failed" in line for line in body]
    assert any(line.startswith(MARK) for line in body)
    assert MARK not in farm_tables.task_table([row(1)]).text()


def test_colours_only_where_they_are_wanted() -> None:
    assert "\x1b" not in EVERY["tasks"].text(80)
    assert "\x1b[31m✗" in EVERY["tasks"].text(80, styled=True)


def test_the_last_line_of_the_cause_is_kept() -> None:
    for width in (80, 120, None):
        shown = next(line for line in lines_of(EVERY["tasks"], width) if line.startswith(MARK))
        assert shown.endswith(CAUSE)


def test_a_long_table_is_a_page_with_the_counts() -> None:
    shown = EVERY["tasks"].text(80).splitlines()
    assert shown[0] == "300 of 3,005 tasks, the newest last: 257 succeeded, 43 failed"
    assert shown[1] == "2,905 older tasks not shown: last=0 lists all"
    assert len(shown) == 2 + 1 + farm_tables.PAGE
    assert shown[-1].split()[0] == "299"


def test_a_table_of_3005_tasks_has_all_ids_and_shows_a_page() -> None:
    table = TaskTable([row(i) for i in range(3005)])
    assert len(list(table)) == 3005
    assert repr(table).startswith("3,005 tasks, the newest last: 3,005 succeeded\n2,905 older tasks not shown")
    assert table._repr_html_().count("<tr") == 1 + farm_tables.PAGE
    assert len(table._repr_html_()) < 60_000


def test_a_history_is_a_page_too() -> None:
    events = event_listing([EVENT] * 1000)
    assert len(events) == 1000
    assert repr(events).startswith("1,000 events, the newest last; 900 older events not shown")
    assert events._repr_html_().count("<tr") == 1 + farm_tables.PAGE


def test_numbers_stand_to_the_right_and_text_to_the_left() -> None:
    html = Table(("id", "name"), [(1, "a"), (22, "<b>")]).html()
    assert '<td style="text-align:right;white-space:nowrap">22</td>' in html
    assert '<td style="text-align:left;white-space:nowrap">&lt;b&gt;</td>' in html


def test_empty_columns_that_may_be_left_out_are() -> None:
    table = Table((Column("id"), Column("note", 1)), [(1, None), (2, "")])
    assert table.text() == "id\n 1\n 2"
    assert "note" not in table.html()


def test_wide_letters_take_two_columns() -> None:
    table = Table(("name", "n"), [("日本語の名前です" * 3, 1), ("a", 2)])
    assert {cell_len(line) for line in lines_of(table, 30) if line.endswith(("1", "2"))} == {30}


@given(
    st.lists(st.tuples(st.text(), st.text(), st.integers()), max_size=5),
    st.integers(20, 200) | st.none(),
    st.sets(st.integers(0, 4)),
)
def test_whatever_tasks_are_called_a_row_is_a_line(
    rows: list[tuple[str, str, int]], width: int | None, failed: set[int]
) -> None:
    table = Table(("name", Column("error", 1, cut=summary), "n"), rows, failed=failed)
    shown = lines_of(table, width)
    assert len(shown) == (1 + len(rows) if rows else 1)
    assert all(line.isprintable() for line in shown)
    assert width is None or all(cell_len(line) <= width for line in shown)


def test_an_explanation_has_the_readers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    final = Final(7, "error", 3, "n", 2, 1.0, 3.0, 0.5, 1795959620.0, FailureSummary("E", "x at 2026-11-29T13:40:20Z"))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        said = with_local_times("\n".join(explain_final(final)))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert said.splitlines()[0] == "task 7 failed: error on engine 3 (n) at 2026-11-29 22:40:20, run time 0.500 s"
    assert "x at 2026-11-29T13:40:20Z" in said, "the user's own text stays"


def test_foreign_text_is_harmless() -> None:
    assert safe(ESCAPE) == " [31m   red "
    assert safe("x" * 100, CELL_MAX) == "x" * 59 + "…"
    assert ending("/a/long/path/module.py:12 in f", 18) == "…module.py:12 in f"
    assert ending("module.py:12", 12) == "module.py:12"
    assert summary(f"  first {ESCAPE}\n\n last \n") == "first  [31m  … last"
    lost = "EngineLost: engine 1 on vm was ended by signal 11 (SIGSEGV)"
    assert summary(f'{lost}\nits last output: last\nFatal Python error: …\n  File "<task>", line 1', 80) == lost


# -- terminals


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_has_no_width(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    with open(tmp_path / "out", "w", encoding="utf-8") as file:
        assert terminal_width(file) is None
    assert terminal_width(file) is None  # closed
    assert terminal_width(None) is None
    monkeypatch.setenv("COLUMNS", "70")
    assert terminal_width(None) == 70


def test_a_terminal_says_how_wide_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((93, 20)))
    monkeypatch.setattr(Terminal, "fileno", lambda self: 1)
    assert terminal_width(Terminal()) == 93


def test_who_wants_no_colours_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert is_styled(Terminal())
    assert not is_styled(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not is_styled(Terminal())


def test_a_repr_that_no_terminal_shows_has_a_width_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert max(map(cell_len, repr(EVERY["tasks"]).splitlines())) <= REPR_WIDTH


# -- states


def test_the_old_word_for_running_still_counts() -> None:
    counts = StateCounts(scheduled=1, running=2)
    with pytest.deprecated_call(match="running"):
        assert counts["pending"] == 2
    with pytest.raises(KeyError):
        counts["nonsense"]
    state = TaskStatus(row(1, "pending")).state
    assert len({state, TaskStatus(row(2, "pending")).state, "running"}) == 1, "warnings are errors here"
    assert (state, f"{state!r}", {state: 1}["running"]) == ("running", "'running'", 1)
    with pytest.deprecated_call(match="running"):
        assert state == "pending"
    with pytest.deprecated_call(match="running"):
        assert not state != "pending"  # noqa: SIM202 - the other operator
    assert state != "scheduled"


def test_a_task_that_never_ran_has_no_duration() -> None:
    never = tables.TaskRow(7, "failed", "aborted", None, -1, 0, 0.0, None, 0.0, 1.0)
    assert "µs" not in farm_tables.task_table([never], omitted=0).text(200)


def test_a_text_of_wide_characters_is_marked_where_it_is_cut() -> None:
    table = Table([Column("error", cut=summary)], [["行" * 30]])
    assert lines_of(table, 21)[1] == "行" * 10 + "…"


def test_the_error_has_the_room_that_columns_of_less_weight_have_left() -> None:
    heading, line = farm_tables.task_table([row(0, "failed", "went wrong and wrong and wrong")]).text(40).splitlines()
    assert heading.split() == ["id", "state", "error"]
    assert line == "✗   0  failed  ValueError: went wrong a…"
    assert cell_len(line) == 40


def test_columns_stay_straight_where_a_locale_has_no_sign_for_a_character() -> None:
    plain = io.TextIOWrapper(io.BytesIO(), "ascii", "backslashreplace")
    table = Table(["name", "n"], [["数据", 1], ["plain", 2]]).written_to(plain)
    assert lines_of(table) == ["name          n", r"\u6570\u636e  1", "plain         2"]


def test_a_text_that_is_broken_in_html_keeps_a_least_width() -> None:
    table = Table([Column("error", least=28, cut=summary), "n"], [["x" * 100, 1]])
    assert table.html().count("overflow-wrap:anywhere;min-width:28ch") == 2


def test_a_long_name_is_broken_in_html_and_a_date_is_not() -> None:
    """Beside a name of a hundred characters the error of a task was out of sight."""
    html = Table(["name", "submitted", "n"], [["n" * 100, "2026-12-01 02:26:23", 1]]).html()
    assert html.count("overflow-wrap:anywhere;min-width:24ch") == 2
    assert '<td style="text-align:left;white-space:nowrap">2026' in html
