"""``%%task``, ``%%taskmap``, ``%task`` and ``%tasks`` in an IPython shell, on a real farm."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pickle
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError

from ipytaskfarm import Farm, StringTask, TaskClient, errors
from ipytaskfarm.client import TaskResult, debugging
from ipytaskfarm.jupyter.task_actions import ACTIONS, OPTIONS
from ipytaskfarm.jupyter.task_magics import split_map
from tests.support.farms import DEADLINE_S, Gate, until_running
from tests.support.polling import eventually
from tests.support.shells import Shell, shell_with_magics

pytestmark = pytest.mark.farm


@pytest.fixture
def shell(farm: Farm) -> Iterator[Shell]:
    with shell_with_magics() as shell:
        shell.ok(f"%taskfarm connect {farm.connection_file}")
        yield shell


# -- %%task


def test_a_task_that_is_waited_for_binds_its_names(shell: Shell) -> None:
    shell["x"], shell["y"] = 20, 22
    cell = shell.ok("%%task --push x,y --pull total,text -b\ntotal = x + y\ntext = 'é'\nprint('seen')")
    assert (shell["total"], shell["text"]) == (42, "é")
    assert cell.out == "seen\n"
    shell.ok("%%task -b\nunpulled = 1")
    assert "unpulled" not in shell.shell.user_ns


def test_what_it_shows_is_shown(shell: Shell) -> None:
    cell = shell.ok(
        "%%task -b\nimport sys\nfrom IPython.display import HTML, display\n"
        "print('out')\nprint('err', file=sys.stderr)\ndisplay(HTML('<b>bold</b>'))\n6 * 7"
    )
    assert cell.out.startswith("out\n")
    assert "err\n" in cell.err
    shown = [output.data for output in cell.outputs]
    assert shown[0]["text/html"] == "<b>bold</b>"
    assert shown[1]["text/plain"] == "42"


def test_a_task_that_is_not_waited_for_gives_a_handle(shell: Shell, gate: Gate) -> None:
    cell = shell.ok(f"%%task --pull a -o h\n{gate.code}a = 7")
    handle = shell["h"]
    assert f"task {handle.id}: submitted" in cell.out
    assert not handle.done()
    assert handle.status in ("scheduled", "running")
    gate.open()
    assert handle.ns.a == 7
    assert handle.done()
    assert handle.status == "succeeded"
    assert isinstance(handle.result(), TaskResult)
    assert re.fullmatch(rf"<task {handle.id}: succeeded on engine \d in .* s>", repr(handle))
    assert "a" not in shell.shell.user_ns, "nothing else is bound"

    async def wait() -> Any:
        return await handle

    assert asyncio.run(wait())["a"] == 7
    assert shell.ok("await h").value["a"] == 7


def test_its_rules(shell: Shell, tc: TaskClient, tmp_path: Path) -> None:
    count = tmp_path / "count"
    shell.ok("def only_one(properties):\n    return properties['id'] == 1")
    shell.ok(
        "%%task -b --retries 2 --name counted --priority 3 --depend only_one --pull id,n --time-limit 20\n"
        f"n = open({str(count)!r}, 'a').write('x')\nassert len(open({str(count)!r}).read()) == 3"
    )
    assert count.read_text() == "xxx"
    assert shell["id"] == 1
    assert len(tc.tasks(name="counted")) == 1
    shell.ok("%%task -b -t 0 --pull id\npass")
    assert shell["id"] == 0
    shell.ok("%%task -b -t 0\nleft = 1")
    shell.fails("%%task -b -t 0 --clear-before\nleft", NameError)
    shell.ok("%%task -b -t 0 --clear-after\nleft = 1")
    shell.fails("%%task -b -t 0\nleft", NameError)
    shell.fails("%%task -b --time-limit 0.2\nimport time; time.sleep(30)", errors.TimeLimitExceeded)


def test_an_error_is_as_short_as_a_local_one(shell: Shell) -> None:
    cell = shell.fails("%%task -b\ndef f(x):\n    return 1 / x\nf(0)", ZeroDivisionError)
    lines = cell.out.rstrip().splitlines()
    assert lines[0].startswith("on engine")
    assert "    f(0)" in lines
    assert "    return 1 / x" in lines
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert len(lines) <= 8
    assert "site-packages" not in cell.out
    assert "ipytaskfarm" not in cell.out
    again = shell.run("%tb")
    assert "ZeroDivisionError" in again.out
    assert "return 1 / x" in again.out
    assert shell.run("import sys; sys.last_value").value is cell.error
    handle = shell.ok("%%task -o h\n1/0")
    assert handle.error is None
    short = shell.fails("h.ns", ZeroDivisionError)
    assert "raiseException" not in short.out


def test_a_name_of_the_notebook_is_pushed(shell: Shell) -> None:
    shell["only_here"] = 5
    remedy = "a task has only what is sent with its code: %%task --push only_here"
    for code in ("%%task -b\nz = only_here", "%%taskmap n in [1]\nz = only_here"):
        cell = shell.run(code)
        assert cell.out.endswith(f"\nthis session has 'only_here', and {remedy}\n"), cell.shown


def test_mistakes_are_told_in_one_line(shell: Shell) -> None:
    for code, match in [
        ("%%task --push nothing\n1", "nothing"),
        ("%%task --retries many\n1", "%%task: --retries takes a whole number, not 'many'"),
        ("%%task --retires 2\n1", "there is no flag --retires, did you mean --retries?"),
        ("%%task --time-limit\n1", "--time-limit takes a value"),
        ("%%task --no-such-option\n1", "there is no flag --no-such-option; %%task[?] shows which there are"),
        ("%tasks failed", "%tasks: 'failed' fits nothing, did you mean --state failed?"),
        ("%task", "%task: it needs an action; %task[?] shows which there are"),
        ("%%task -t x\n1", "--targets x: engine ids, like 0 or 0,2, or all"),
        ("%%task -t -1\n1", "--targets -1: engine ids"),
        ("%%task -o 2h\n1", "'2h' cannot be the name of a variable"),
        ("%%taskmap n in [1] -o class\n1", "'class' cannot be the name of a variable"),
        ("%task mark-done 3 --result (", "is no expression: "),
        ("%task debug 3 --here --frames", "not both"),
        ("%task retri 3", "there is no action 'retri', did you mean retry?"),
        ("%task result", "which task"),
        ("%task frobnicate 1", "there is no action 'frobnicate'; it is one of status, result"),
        ("%task cancel 3", "there is no action 'cancel', did you mean abort?"),
        ("%task list", "did you mean %tasks?"),
        ("%task x = 1", "code goes into a cell that begins with %%task"),
        ("%taskfarm restart", "did you mean stop, then start?"),
        ("%taskfarm start 2", "-n 2 starts 2 engines, --farm 2 a farm '2'"),
        ("%%taskmap n range(3)\n1", "ITERABLE"),
        ("%%taskmap n in range(3) --retires\n1", "no flag --retires, did you mean --retries"),
        ("%%taskmap n in range(3 --pull y\n1", "is not an expression"),
    ]:
        cell = shell.fails(code, UsageError, match)
        assert len(cell.shown.strip().splitlines()) == 1
    for action in ("failures", "history", "progress"):
        shell.fails(f"%task {action} 999999", IndexError, "not registered: 999999")
    shell.fails("%tasks --last -2", ValueError, "last must be 0 or more, not -2")
    assert "gets tasks again" in shell.ok("%task drain nobody --off").out
    shell.ok("one = 1\ntwo = 2")
    shell.ok("%%task --push \"one, two\" --pull 'three, four' -b\nthree = one + two; four = 4")
    assert (shell["three"], shell["four"]) == (3, 4)
    cell = shell.fails("%task result 999999", IndexError)
    assert cell.out.strip().splitlines() == ["IndexError: task ID not registered: 999999 (never issued, or cleared)"]


# -- %%taskmap


def test_taskmap(shell: Shell) -> None:
    shell["k"] = 10
    shell.ok("%%taskmap n in range(12 - 2) --pull y --push k -o ys\ny = n * k")
    assert shell["ys"] == [10 * n for n in range(10)]
    shell.ok("%%taskmap a, b in zip('xyz', [1, 2, 3]) --pull c,d -o pairs\nc = a * b; d = b")
    assert shell["pairs"] == [("x", 1), ("yy", 2), ("zzz", 3)]
    shell.ok("%%taskmap n in [] -o none\n1")
    assert shell["none"] == []
    shell.ok("%%taskmap n in range(2) -o results\nprint(n)")
    assert [result.stdout for result in shell["results"]] == ["0\n", "1\n"]


def test_taskmap_with_failures_keeps_what_there_is(shell: Shell) -> None:
    cell = shell.fails("%%taskmap n in range(5) --pull y -o ys\ny = 1 / (n - 2)", ZeroDivisionError)
    assert "1 of 5 tasks failed" in cell.err
    assert "1 × ZeroDivisionError: division by zero" in cell.err
    assert [y for y in shell["ys"] if not isinstance(y, Exception)] == [-0.5, -1.0, 1.0, 0.5]
    assert isinstance(shell["ys"][2], ZeroDivisionError)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("n in range(10)", (["n"], "range(10)", "")),
        ("n in range(10 - 1) --pull y", (["n"], "range(10 - 1)", "--pull y")),
        ("n in items -o out", (["n"], "items", "-o out")),
        ("a, b in [(x, -x) for x in y] -b --name z", (["a", "b"], "[(x, -x) for x in y] -b", "--name z")),
        ("n in f(x --y) --pull q", (["n"], "f(x --y)", "--pull q")),
        ("n in range(3) --retires", (["n"], "range(3)", "--retires")),
    ],
)
def test_where_the_expression_ends(shell: Shell, line: str, found: tuple[list[str], str, str]) -> None:
    parser = shell.shell.find_cell_magic("taskmap").parser
    assert split_map(line, parser) == found


@pytest.mark.parametrize(
    ("items", "wrong"),
    [("[(1, 2), (3,)]", r"item 1 has 1: \(3,\)"), ("[1, 2]", "item 0 is 1"), ("['abc']", "item 0 has 3: 'abc'")],
)
def test_items_that_do_not_fit_the_names_are_named(shell: Shell, items: str, wrong: str) -> None:
    shell.fails(f"%%taskmap a, b in {items}\na", UsageError, f"each item has 2 values, for a, b; {wrong}")


# -- %task and %tasks


def test_looking_at_tasks(shell: Shell, tc: TaskClient, gate: Gate) -> None:
    shell.ok(f"%%task -o waits --name waiting\n{gate.code}")
    handle = shell["waits"]
    until_running(tc, handle.id)
    assert shell.ok(f"%task status {handle.id}").value.state == "running"
    assert f"task {handle.id}" in str(shell.ok("%task explain waits").value)
    eventually(lambda: "<module>" in str(shell.ok("%task stack waits").value), DEADLINE_S, what="the stack")
    table = shell.ok("%tasks --name waiting --state running").value
    assert table.ids == [handle.id]
    gate.open()
    shell.ok("%task barrier waits")
    assert shell.ok("%task result waits").value.taskid == handle.id
    assert len(shell.ok("%tasks --last 3").value) <= 3


def test_abort_retry_and_failures(shell: Shell, tc: TaskClient) -> None:
    shell.ok("%%task -o long\nimport time; time.sleep(60)")
    assert shell.ok("%task priority long --to 3").out == "1 unfinished task of priority 3\n"
    assert shell.ok("%task abort long").out == "1 task aborted\n"
    assert tc.status(shell["long"].id).reason == "aborted"
    shell.fails("%task abort long", IndexError, "already aborted")
    shell.ok("%%task -o other\nimport time; time.sleep(60)")
    assert shell.ok("%task abort long,other").out == "1 task aborted; 1 had ended\n"
    shell.ok("%%task -o bad --name bad\n{}['key']")
    shell.ok("%task barrier bad")
    (again,) = shell.ok("%task retry bad").value
    tc.barrier(again, timeout=DEADLINE_S)
    groups = shell.ok(f"%task failures bad {again}").value
    assert [(group.etype, len(group)) for group in groups] == [("KeyError", 2)]
    job = tc.create_job("doomed")
    job.add_task(StringTask("1 / 0"))
    job.submit()
    job.wait(timeout=DEADLINE_S)
    assert [group.ids for group in shell.ok("%task failures --job doomed").value] == [job.ids]
    assert shell.ok("%tasks --job doomed").value.ids == job.ids
    shell["ids"] = [shell["bad"].id, again]
    found = shell.ok("%task result ids").value
    assert [result.taskid for result in found] == shell["ids"]
    assert shell.ok(f"%task status {again}-{again}").value.id == again


def test_each_magic_explains_itself(shell: Shell) -> None:
    for magic in ("%taskfarm", "%%task", "%task", "%tasks", "%%taskmap"):
        kind = "cell" if magic.startswith("%%") else "line"
        text = shell.shell.magics_manager.magics[kind][magic.strip("%")].__doc__
        assert magic in text
        assert "::" in text
        assert "options" in text or "positional" in text


def test_plain_words_stay_free(shell: Shell) -> None:
    assert not {"abort", "result", "status", "px"} & shell.shell.magics_manager.magics["line"].keys()
    assert "px" not in shell.shell.magics_manager.magics["cell"]


def test_completion(shell: Shell, farm: Farm) -> None:
    assert set(shell.completions("%task sta")) == {"status", "stack"}
    assert {"start", "stop", "status", "connect"} <= set(shell.completions("%taskfarm "))
    assert "--pull" in shell.completions("%%task --pu")
    assert {"0", "1"} <= set(shell.completions("%%task -t "))
    shell["my_data"] = 1
    assert "my_data" in shell.completions("%%task --push my_")
    shell.ok("%%task -b --name completed\n1")
    last = shell.ok("%tasks --name completed").value.ids[-1]
    assert str(last) in shell.completions("%task result ")
    assert "running" in shell.completions("%tasks --state ")
    assert farm.name in shell.completions("%taskfarm stop ")


def test_loading_the_magics_again_keeps_the_farm(shell: Shell, farm: Farm) -> None:
    shell.ok("%reload_ext ipytaskfarm")
    assert farm.name in repr(shell.ok("%taskfarm status").value)


def test_unloading_takes_the_magics_away(shell: Shell) -> None:
    shell.ok("%unload_ext ipytaskfarm")
    assert shell.run("%tasks").error is not None
    shell.ok("%load_ext ipytaskfarm")


# -- what %task can do, without asking the farm


def test_each_action_is_documented_and_explained(shell: Shell) -> None:
    page = (Path(__file__).parents[2] / "docs" / "magics.md").read_text()
    text = shell.shell.magics_manager.magics["line"]["task"].__doc__
    section = page.partition("## Tasks\n")[2].partition("\n## ")[0]
    for action, what in ACTIONS.items():
        assert re.search(rf"[` ]{action}[ `]", section), f"docs/magics.md says nothing about %task {action}"
        assert re.search(rf"\b{action}\b[^.]*:", text), f"%task? says nothing about {action}"
        for option in what.options:
            assert f"--{option.replace('_', '-')}" in section
    assert {option for what in ACTIONS.values() for option in what.options} == set(OPTIONS)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("%task abort 5 --off", "%task abort does not take --off; it takes --job, --reason, --no-interrupt"),
        ("%task status 5 --job x", "%task status does not take --job; it takes no options"),
        ("%task abort", "of which task"),
        ("%task abort 5 --job x", "not both"),
        ("%task remove 5 --all", "not both"),
        ("%task pause 5", "what is '5' for"),
        ("%task job", "which job"),
        ("%task job a b", "one job at a time"),
        ("%task drain", "which nodes"),
        ("%task abort 9-3", "write 3-9"),
        ("%task history --since yesterday", "'yesterday' is not a time"),
        ("%task history --last many", "--last takes a whole number, not 'many'"),
    ],
)
def test_words_that_do_not_fit_an_action(shell: Shell, line: str, told: str) -> None:
    cell = shell.fails(line, UsageError, told)
    assert len(cell.shown.strip().splitlines()) == 1


@pytest.mark.parametrize("action", ["status", "abort"])
def test_values_that_are_no_ids(shell: Shell, action: str) -> None:
    """The text "12" is no list of tasks 1 and 2."""
    shell["text"], shell["number"] = "12", 1.5
    shell.ok("%%task -b -o h\na = 1")
    shell.fails(f"%task {action} text", TypeError, "an integer task id expected: '12'")
    shell.fails(f"%task {action} number", TypeError, "an integer task id expected: 1.5")
    shell.fails(f"%task {action} h.result()", TypeError, "the id of a TaskResult is its .taskid")
    shell.fails("%%task --after text\n1", TypeError, "an integer task id expected: '12'")


def test_a_task_of_another_farm_is_none_of_this_one(shell: Shell, farm: Farm) -> None:
    with Farm(n=1) as other, other.task_client() as client:
        job = client.create_job()
        job.add_task(abs)
        job.submit()
        shell["future"], shell["member"] = client.submit(abs, -3), job.tasks[0]
        shell.ok(f"%taskfarm connect {other.name}")
        shell.ok("%%task -b -o h\na = 1")
        shell.ok(f"%taskfarm connect {farm.name}")
        for name in ("future", "member", "h"):
            shell.fails(f"%task status {name}", ValueError, f"belongs to farm '{other.name}'")


def test_options_may_stand_before_ids(shell: Shell, tc: TaskClient, gate: Gate) -> None:
    ids = [tc.run(StringTask(gate.code)) for _ in range(3)]
    shell.ok(f"%task abort --reason 'too many of them' {ids[0]},{ids[1]} --no-interrupt {ids[2]}")
    tc.barrier(ids, timeout=DEADLINE_S)
    assert {row.reason for row in tc.tasks(ids=ids).rows} == {"aborted"}
    assert "too many of them" in tc.explain(ids[2])


# -- what a traceback shows


def shown_error(shell: Shell, code: str) -> str:
    """Run a cell; return what IPython shows of its error."""
    shell.shell.execution_count += 1
    return shell.run(code).shown


def test_a_syntax_error_shows_the_cells_line_alone(shell: Shell) -> None:
    shown = shown_error(shell, "%%task -b\na = 1\nb = = 2")
    first, *more = [line.strip() for line in shown.splitlines()]
    assert re.fullmatch(rf"on engine \d: In \[{shell.shell.execution_count}\], line 3", first)
    assert more == ["b = = 2", "^", "SyntaxError: invalid syntax"]


def test_an_interrupt_shows_the_users_frames_alone(shell: Shell, tc: TaskClient, gate: Gate) -> None:
    shell["tc"], shell["press"] = tc, lambda: os.kill(os.getpid(), signal.SIGINT)
    shell["code"] = gate.code
    start = "from ipytaskfarm import Task\nimport threading\ntid = tc.run(Task(code))\n"
    wait = f"{start}threading.Timer(0.5, press).start()\n"
    for call in ("tc.barrier(tid)", "next(tc.as_completed([tid]))", "tc.get_task_result(tid, block=True)"):
        shown = shown_error(shell, f"{wait}def mine():\n    {call}\nmine()")
        assert f"----> 6     {call}" in shown, shown
        assert "\nKeyboardInterrupt:" in shown
        assert "taskclient.py" not in shown
        assert "threading.py" not in shown
        shell.ok("tc.abort(tid)")


def test_places_name_the_cell(shell: Shell, tc: TaskClient) -> None:
    shell["tc"] = tc
    shell.shell.execution_count = 41
    cell = shell.ok("def fails(x):\n    y = x - 1\n    return 1 / y")
    shell.ok("from ipytaskfarm import Task\ntid = tc.run(Task(fails, args=(1,)))\ntc.barrier(tid)")
    assert cell.error is None
    assert "ZeroDivisionError at In [41], line 3 in fails" in repr(tc.failures(shell["tid"]))
    assert "In [41], line 3, in fails" in tc.failures(shell["tid"])[0].traceback
    assert "(In [41], line 3 in fails)" in tc.explain(shell["tid"])
    assert "In [41], line 3, in fails" in tc.get_task_result(shell["tid"]).failure.getTraceback()


def test_the_place_of_a_cells_task_is_the_cell(shell: Shell, tc: TaskClient) -> None:
    """Whether the engine runs it as plain Python or through IPython."""
    shell["tc"] = tc
    for number, code in ((7, "def f(x):\n    return 1 / x\nf(0)"), (8, "import asyncio\nawait asyncio.sleep(0)\n1/0")):
        shell.shell.execution_count = number
        shell.ok(f"%%task -o h --name fails\n{code}")
        shell.run("h.result()")
        line = {7: "line 3 in f", 8: "line 4 in <module>"}[number]
        task_id = shell["h"].id
        assert f"ZeroDivisionError at In [{number}], {line}" in repr(tc.failures(task_id))
        assert f"(In [{number}], {line})" in tc.explain(task_id)
        shell.shell.execution_count = number
        shown = shell.run(f"%%task -b\n{code}").shown
        assert f"In [{number}], {line.replace(' in ', ', in ')}" in shown
        assert "<task>" not in shown
        # Without the magic IPython itself shows the frames, with the lines of the cell.
        shell.shell.execution_count = 30
        shown = shell.run("h.result().raise_exception()").shown
        assert f"In[{number}], line {line.split()[1]}" in shown, shown
        assert "ipytaskfarm/" not in shown


def test_a_map_that_raises_shows_the_users_frames_alone(shell: Shell, tc: TaskClient) -> None:
    shell["tc"] = tc
    shell.ok("def fails(x):\n    return 1 // x\ndef sweep(xs):\n    return tc.map(fails, xs)")
    for call in ("sweep([1, 0])", "tc.job('map fails').results()", "list(tc.imap(fails, [1, 0]))"):
        run = shell.run(call)
        places = re.findall(r"^\S*(?:File|Cell|Input) .*", run.shown, re.MULTILINE)
        assert all("ipytaskfarm" not in place for place in places), run.shown
        assert "return 1 // x" in run.shown
        assert call in run.shown
        assert "ipytaskfarm/client" not in run.shown
        again = pickle.loads(pickle.dumps(run.error))
        assert isinstance(again, ZeroDivisionError)


REFUSED = """import threading
from ipytaskfarm import Executor
holder = {"a": threading.Lock()}
def uses_lock(x):
    with holder["a"]: return x
class Bad:
    def __reduce__(self): raise ValueError("no reduce")
"""


@pytest.mark.parametrize(
    "call",
    [
        "tc.map(uses_lock, [1])",
        "tc.map(len, [holder])",
        "tc.submit(uses_lock, 1)",
        "list(tc.imap(uses_lock, [1]))",
        "mec.push({'holder': holder})",
        "mec.execute('1', targets=77)",
    ],
)
def test_a_refusal_shows_the_users_line_and_the_sentence(shell: Shell, farm: Farm, call: str) -> None:
    shell.ok(REFUSED)
    with farm.task_client() as tc, farm.multiengine_client() as mec:
        shell["tc"], shell["mec"] = tc, mec
        cell = shell.run(call)
    _, _, _, line, empty, sentence = cell.shown.splitlines()
    assert (line, empty) == (f"----> 1 {call}", "")
    assert sentence.startswith(("UnpickleableException: ", "InvalidEngineID: "))
    if "execute" not in call:
        assert type(cell.error.__cause__) is TypeError, "the exception keeps what is not shown"  # type: ignore[union-attr]
        assert cell.error.__cause__.__traceback__ is not None  # type: ignore[union-attr]


def test_a_refusal_shows_the_users_code_that_has_failed(shell: Shell, tc: TaskClient) -> None:
    shell.ok(REFUSED)
    shell["tc"] = tc
    shown = shell.run("tc.map(print, [Bad()])").shown
    assert "in Bad.__reduce__(self)" in shown
    assert "The above exception was the direct cause of the following exception" in shown
    assert "ipytaskfarm/" not in shown
    shown = shell.run("with Executor(tc) as e: e.submit(uses_lock, 1).result()").shown
    assert "ipytaskfarm/" not in shown
    assert "holder" in shown.splitlines()[-1]


def test_the_debugger_lands_in_the_users_code_with_its_variables(shell: Shell, tc: TaskClient) -> None:
    shell["tc"] = tc
    shell.ok("def fails(x):\n    y = x - 1\n    return 1 / y")
    error = shell.run("from ipytaskfarm import Task\ntc.run(Task(fails, args=(1,)), block=True).result").error
    assert error is not None
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    assert tb is not None
    frame = tb.tb_frame
    assert (frame.f_code.co_name, {n: repr(v) for n, v in frame.f_locals.items()}) == ("fails", {"x": "1", "y": "0"})


class Watched(io.StringIO):
    """A stream that opens the gate as soon as a text appears."""

    def __init__(self, gate: Gate, text: str) -> None:
        super().__init__()
        self._gate, self._text = gate, text

    def write(self, text: str) -> int:
        count = super().write(text)
        if self._text in self.getvalue():
            self._gate.open()
        return count


def test_prints_and_displays_come_while_the_task_runs(shell: Shell, gate: Gate) -> None:
    """The shown output opens the gate: if it appeared only at the end, the task would never end."""
    code = (
        "from IPython.display import Markdown, display\nprint('begun')\ndisplay(Markdown('*early*'))\n"
        f"{gate.code}\nprint('half a line', end='')\nMarkdown('**late**')"
    )
    with contextlib.redirect_stdout(Watched(gate, "Markdown object")) as seen:
        shell.shell.run_cell_magic("task", "-b", code)
    assert seen.getvalue().replace("\n", "|") == (
        "begun|<IPython.core.display.Markdown object>|half a line<IPython.core.display.Markdown object>|"
    )


def test_the_items_of_a_taskmap_speak_behind_their_ids(shell: Shell, gate: Gate) -> None:
    with contextlib.redirect_stdout(Watched(gate, "begun 1")) as seen:
        shell.shell.run_cell_magic("taskmap", "n in range(2)", f"print('begun', n)\n{gate.code}\nprint('ended', n)")
    lines = seen.getvalue().splitlines()
    assert all(re.match(r"\[\d+\] (begun|ended) \d", line) for line in lines)
    assert sorted(line.partition("] ")[2] for line in lines) == ["begun 0", "begun 1", "ended 0", "ended 1"]


def test_a_handle_says_where_the_task_is_and_its_last_lines(shell: Shell, gate: Gate, farm: Farm) -> None:
    shell.ok(f"%%task -o h\nfor n in range(50): print('line', n)\n{gate.code}")
    handle = shell["h"]
    with farm.task_client() as tc:
        until_running(tc, handle.id)
    # The output comes a moment after the state.
    said = rf"<task {handle.id}: running on engine \d, \d+ s>\n  line 47\n  line 48\n  line 49$"
    eventually(lambda: re.match(said, repr(handle)), what="the last lines of the task")
    gate.open()
    handle.result()
    assert repr(handle).startswith(f"<task {handle.id}: succeeded on engine ")


def test_what_was_not_shown_is_counted(shell: Shell) -> None:
    cell = shell.ok("%%task -b\nfor n in range(100_000): print('line', n)")
    assert len(cell.out) < 300_000
    assert cell.out.endswith("\nline 99999\n")
    assert "characters left out ...]\n" in cell.out


def test_the_debugger_is_opened_for_a_task(shell: Shell, tc: TaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    shell["tc"] = tc
    shell.ok("def fails(x):\n    y = x - 1\n    return 1 / y")
    shell.ok("from ipytaskfarm import Task\nbad, good = tc.run(Task(fails, args=(1,))), tc.run(Task(fails, args=(2,)))")
    shell.ok("tc.barrier([bad, good])")
    opened: list[bool] = []
    monkeypatch.setattr(debugging, "can_ask", lambda: True)
    for name in ("last_type", "last_value", "last_traceback"):
        monkeypatch.setattr(sys, name, None, raising=False)
    monkeypatch.setattr(shell.shell.InteractiveTB, "debugger", lambda force: opened.append(force))
    shell.ok(f"%task debug {shell['bad']}")
    assert opened == [True]
    *_, (frame, _) = traceback.walk_tb(sys.last_traceback)
    assert (frame.f_locals["x"], frame.f_locals["y"]) == (1, 0)
    shell.ok(f"%task debug --frames {shell['bad']}")
    *_, (frame, _) = traceback.walk_tb(sys.last_traceback)
    assert repr(frame.f_locals["y"]) == "0"
    assert opened == [True, True]
    assert f"task {shell['good']} succeeded here: 1.0" in shell.ok(f"%task debug {shell['good']}").out
    shell.fails(f"%task debug --frames {shell['good']}", UsageError, "has not failed")


def test_a_retry_says_that_its_function_was_defined_anew(shell: Shell, tc: TaskClient) -> None:
    shell["tc"] = tc
    shell.ok("def inverse(x):\n    return 1 / x")
    shell.ok("from ipytaskfarm import Job\njob = tc.map(inverse, [0, 1], block=False, name='inverses')")
    shell.ok("found = job.results(return_exceptions=True)")
    shell.ok("def inverse(x):\n    return 1 / x")  # the same cell again
    assert "defined anew" not in shell.ok("job.retry_failed()").err
    shell.ok("found = job.results(return_exceptions=True)")
    shell.ok("def inverse(x):\n    return 1 / x if x else None")
    told = shell.ok("again = tc.job('inverses').retry_failed()").err
    assert "inverse has been defined anew since these tasks were submitted; they run again as they were." in told
    shell.ok("found = job.results(return_exceptions=True)")
    shell.ok("from ipytaskfarm import Task\nsecond = Job(tc)\nsecond.add_task(Task(inverse, args=('x',)))")
    shell.ok("tc.barrier(second.submit())\ndef inverse(x):\n    return None")
    assert "inverse has been defined anew" in shell.ok("again = second.retry_failed()").err
