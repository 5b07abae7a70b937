"""Test how results, errors, tables and clients are shown as HTML and as text; text of tasks is never HTML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest

from ipytaskfarm import MultiEngineClient, TaskClient, errors
from ipytaskfarm.client import TaskResult, sessions
from ipytaskfarm.client.commands import ResultList
from ipytaskfarm.client.output_printer import TEXT_MAX, output_html, text_html
from ipytaskfarm.client.tables import FailureGroup, FailureGroups, TaskStatus, TaskTable
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages import payload, tables
from ipytaskfarm.core.messages.task_types import FailureSummary
from ipytaskfarm.core.states import Reason
from ipytaskfarm.display.text import redrawn
from ipytaskfarm.jupyter import handles
from ipytaskfarm.serialization.pack import pack, pack_error
from ipytaskfarm.web.questions import long_text
from tests.support.fake_hub_controller import FakeController, encode, final

EVIL = "<script>alert(1)</script>"
TAMED = "&lt;script&gt;"


def result(value: Any = None, *, kind: str = "names", **body: Any) -> TaskResult:
    packed = pack(value if value is not None else {})
    return TaskResult(final(7, body=encode(payload.ResultBody(value=packed, kind=kind, **body))))


def failed(error: Exception) -> TaskResult:
    return TaskResult(final(7, Reason.ERROR, encode(payload.ResultBody(failure=pack_error(error), stdout="before\n"))))


def test_a_result_shows_names_output_and_pictures() -> None:
    outputs = [{"data": {"image/png": "iVBO\nRw0=", "text/plain": "<Figure>"}, "metadata": {}}]
    html = result({"a": 73}, stdout="printed", stderr="warned", outputs=outputs)._repr_html_()
    assert "<b>task 7</b> succeeded" in html
    assert "<code>a</code><pre>73</pre>" in html
    assert "<pre>printed</pre>" in html
    assert "warned" in html
    assert '<img src="data:image/png;base64,iVBORw0=">' in html
    assert repr(result({"a": 73})) == "TaskResult[ID:7]:{'a': 73}"


def test_values_with_html_of_their_own_show_it() -> None:
    frame = pandas.DataFrame({"x": [1, 2]})
    assert "<table" in result({"frame": frame})._repr_html_()
    assert "<table" in result(frame, kind="call")._repr_html_()


class Broken:
    def _repr_html_(self) -> str:
        raise RuntimeError("not today")

    def __repr__(self) -> str:
        return EVIL


def test_text_of_tasks_is_never_html() -> None:
    shown = [
        result({"a": EVIL, EVIL: 1}, stdout=EVIL, stderr=EVIL)._repr_html_(),
        result(EVIL, kind="call")._repr_html_(),
        result({"b": Broken()})._repr_html_(),
        failed(ValueError(EVIL))._repr_html_(),
        output_html({"data": {"text/plain": EVIL}}),
        output_html({"data": {"image/svg+xml": f"<svg>{EVIL}</svg>"}}),
        output_html({"data": {"image/png": '"><script>'}}),
        text_html(EVIL, error=True),
        errors.CompositeError(EVIL, [(0, EVIL, ValueError(EVIL))])._repr_html_(),
        FailureGroups([FailureGroup(EVIL, EVIL, [1], EVIL, EVIL)])._repr_html_(),
        TaskTable(
            [tables.TaskRow(1, "failed", EVIL, EVIL, 0, 1, 0.0, failure=FailureSummary(EVIL, EVIL))]
        )._repr_html_(),
        ResultList([entry(stdout=EVIL, raw=EVIL)])._repr_html_(),
        ResultList([EVIL])._repr_html_(),
    ]
    for html in shown:
        assert "<script" not in html


def test_a_long_word_of_an_error_is_broken_in_a_notebook() -> None:
    """Otherwise it goes on beyond the notebook's edge."""
    groups = FailureGroups([FailureGroup("KeyError", "k" * 300, [1], "", "KeyError")])
    assert '<summary style="overflow-wrap:anywhere">1 × <b>KeyError</b>' in groups._repr_html_()


class Waits:
    """A client that counts how often it is asked for the state of a task, which waits."""

    asked = 0

    def status(self, task_id: int) -> TaskStatus:
        self.asked += 1
        return TaskStatus(tables.TaskRow(task_id, "scheduled", "queued", "", -1, 0, 0.0))


def test_a_task_that_writes_is_not_said_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("ipytaskfarm.jupyter.handles.time.monotonic", lambda: clock[0])
    client: Any = Waits()
    state = handles.TaskState(client, 7)
    for now_s, has_output, asked in [(100.0, False, 1), (100.5, False, 1), (100.5, True, 2), (100.6, True, 2)]:
        clock[0] = now_s
        assert state.text(has_output) == "scheduled (queued)"
        assert client.asked == asked


def test_what_a_task_displays_as_html_is_html() -> None:
    assert output_html({"data": {"text/html": "<b>x</b>", "text/plain": "x"}}) == "<b>x</b>"


def test_a_failed_result_shows_its_traceback() -> None:
    html = failed(ValueError("no"))._repr_html_()
    assert "failed: error on engine" in html
    assert "before" in html
    assert "ValueError: no" in html


def test_long_text_is_bounded() -> None:
    html = text_html("x" * 10 * TEXT_MAX)
    assert len(html) < TEXT_MAX + 200
    assert f"{9 * TEXT_MAX:,} characters" in html


def entry(stdout: str = "", raw: str = "1", display: Any = ()) -> dict[str, Any]:
    source = {"raw": raw, "translated": raw}
    return {"id": 0, "number": 3, "input": source, "stdout": stdout, "stderr": "", "display": list(display)}


def test_commands_show_each_engine() -> None:
    html = ResultList([entry("out", "x = 1", [{"data": {"text/html": "<i>rich</i>"}}])])._repr_html_()
    assert "<b>[0]</b> In [3]" in html
    assert "<pre>out</pre>" in html
    assert "<i>rich</i>" in html
    assert "[1, 2]" in ResultList([1, 2])._repr_html_()


def test_a_status_is_one_line_whatever_the_task_says() -> None:
    row = tables.TaskRow(1, "failed", "error", "n", 0, 1, 0.0, failure=FailureSummary("E", "a\nb\x1b[31m"))
    assert "\n" not in repr(TaskStatus(row))
    assert "\x1b" not in repr(TaskStatus(row))


# -- clients


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeController]:
    with FakeController(tmp_path / "farm") as controller:
        yield controller
        sessions.end_farm(controller.incarnation)


def test_clients_show_what_there_is(fake: FakeController) -> None:
    fake.answers[m.QueueStatus] = lambda q: tables.QueueStatusReply({"scheduled": 5, "failed": 1})
    row = tables.EngineRow(0, "x.1", EVIL, 99, "busy", 12, 0, 0.0, {})
    fake.answers[m.ListEngines] = lambda q: tables.EngineTable([row])
    tc, mec = TaskClient(str(fake.connection_file)), MultiEngineClient(str(fake.connection_file))
    assert ">5</td>" in tc._repr_html_()
    html = mec._repr_html_()
    assert ">busy</td>" in html
    assert TAMED in html
    tc.close()
    mec.close()
    assert "closed" in tc._repr_html_()
    assert "closed" in mec._repr_html_()


def test_what_goes_wrong_is_shown_and_not_raised(fake: FakeController) -> None:
    fake.answers[m.QueueStatus] = lambda q: m.Refusal("ConnectionError", "gone fishing")
    tc = TaskClient(str(fake.connection_file))
    assert "ConnectionError: gone fishing" in tc._repr_html_()


def test_colours_of_a_terminal_are_those_of_the_notebook() -> None:
    html = text_html("\x1b[31mred\x1b[0m <b>\x1b[1;92mbold\x1b[0m")
    assert '<span class="ansi-red-fg">red</span> &lt;b&gt;' in html
    assert '<span class="ansi-green-intense-fg ansi-bold">bold</span>' in html
    assert html.startswith('<div class="jp-RenderedText"><pre>')
    assert "\x1b" not in text_html("\x1b]0;title\x07\x1b[38;2;1;2;3mx\x1b[999mlast\x1b[")
    assert "ansi" not in text_html("plain")


def test_a_display_without_html_is_shown_by_its_source_and_not_by_its_repr() -> None:
    data = {"text/plain": "<IPython.core.display.Markdown object>", "text/markdown": "# A <heading>"}
    assert output_html({"data": data}) == "<pre># A &lt;heading&gt;</pre>"


BAR = "\r  0%|    | 0/9\r 50%|██  | 5/9, loss=2\r100%|████| 9/9         \n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"before\n{BAR}after\n", "before\n100%|████| 9/9         \nafter\n"),
        ("abcdef\rxy", "xycdef"),
        ("done\r\nnext\r\n", "done\nnext\n"),
        ("10 %\r", "10 %"),
        ("\x1b[31m50 %\x1b[0m\r\x1b[32m99 %\x1b[0m\n", "\x1b[32m99 %\x1b[0m\n"),
        ("".join(f"\r{n} of 99,999" for n in range(100_000)), "99999 of 99,999"),
        ("no bar\n", "no bar\n"),
    ],
)
def test_lines_that_were_redrawn_are_shown_in_their_last_state(text: str, shown: str) -> None:
    assert redrawn(text) == shown
    assert text_html(text) == text_html(shown)
    if "\x1b" not in text:
        assert long_text(text) == long_text(shown)
    assert "characters" not in text_html(text), "what is not seen takes no room"
