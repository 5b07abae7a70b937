"""Test the output of tasks as a waiting client sees it, on a real farm."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from tests.support.farms import DEADLINE_S, Gate
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


def test_what_tasks_print_is_shown_with_their_ids(tc: TaskClient, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys, time\nfor n in range(3):\n    print('line', n); print('err', n, file=sys.stderr); time.sleep(0.2)"
    )
    ids = [tc.run(Task(code)) for _ in range(4)]
    tc.barrier(ids, timeout=DEADLINE_S, stream=True)
    out, err = capsys.readouterr()
    for task_id in ids:
        assert [line for line in out.splitlines() if line.startswith(f"[{task_id}]")] == [
            f"[{task_id}] line {n}" for n in range(3)
        ]
        assert err.count(f"[{task_id}] err 2\n") == 1
    assert tc.get_task_result(ids[0]).stdout == "line 0\nline 1\nline 2\n"


def test_lines_come_while_the_task_still_runs(farm: Farm, gate: Gate) -> None:
    begin = "import subprocess\nprint('begun')\nsubprocess.run(['echo', 'from a child'])\n"
    code = (
        "from ipytaskfarm import Task, TaskClient\n"
        f"tc = TaskClient({str(farm.connection_file)!r})\n"
        f"tc.barrier(tc.run(Task({begin + gate.code + 'print(1234)'!r})), stream=True)\n"
    )
    with subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert [line.partition("] ")[2] for line in lines] == ["begun\n", "from a child\n"]
        assert not gate.path.exists()
        gate.open()
        rest = process.communicate(timeout=DEADLINE_S)[0]
    assert rest.endswith("] 1234\n")
    assert "begun" not in rest


def test_explain_shows_the_last_lines_of_a_task_that_runs(farm: Farm, tc: TaskClient, gate: Gate) -> None:
    begin = (
        "import os, sys\nfor n in range(30): print('line', n)\nos.system('echo child')\nprint('bad', file=sys.stderr)\n"
    )
    task = tc.run(Task(begin + "print('here', flush=True)\n" + gate.code))
    eventually(lambda: "here" in tc.explain(task), DEADLINE_S)
    last = ["its last output:", *(f"    line {n}" for n in range(22, 30)), "    child", "    here"]
    assert "\n".join([*last, "its last standard error:", "    bad"]) in tc.explain(task)
    for words in (["explain", str(task)], ["logs", "--task", str(task)]):
        shown = subprocess.run(
            [sys.executable, "-m", "ipytaskfarm", *words, "--farm", farm.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "\n".join(last) in shown
    gate.open()
    tc.barrier(task, timeout=DEADLINE_S)
    assert "here" not in tc.explain(task)


def test_explain_shows_what_a_failed_task_has_printed(farm: Farm, tc: TaskClient) -> None:
    code = "import threading\nt = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()\nassert 0, 'no part'"
    task = tc.run(Task(code), block=True).taskid
    shown = subprocess.run(
        [sys.executable, "-m", "ipytaskfarm", "explain", str(task), "--farm", str(farm.connection_file)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for text in (tc.explain(task), shown):
        assert "AssertionError: no part" in text
        assert "its last standard error:" in text
        assert "    ZeroDivisionError: division by zero" in text


def test_a_line_without_an_end_is_shown_after_a_while(
    tc: TaskClient, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tc.run(Task("print('how far? ', end='')\n" + gate.code + "print('to the end')"))
    with pytest.raises(TimeoutError):
        tc.barrier(task, timeout=2.5, stream=True)
    assert capsys.readouterr().out == f"[{task}] how far? \n"
    gate.open()
    tc.barrier(task, timeout=DEADLINE_S)


def test_a_flood_is_bounded_and_what_is_left_out_is_told(tc: TaskClient, capsys: pytest.CaptureFixture[str]) -> None:
    task = tc.run(Task("for n in range(200_000):\n    print('line', n)"))
    tc.barrier(task, timeout=DEADLINE_S, stream=True)
    out, err = capsys.readouterr()
    assert 10 < len(out.splitlines()) < 5_000
    assert re.search(r"not shown|left out", out + err)


def test_output_of_another_attempt_and_of_a_lost_engine(tc: TaskClient, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import os, time\nprint('attempt', flush=True); time.sleep(0.6)\nos.kill(os.getpid(), 9)"
    task = tc.run(Task(code, retries=1))
    tc.barrier(task, timeout=DEADLINE_S, stream=True)
    assert capsys.readouterr().out.count(f"[{task}] attempt\n") == 2


def test_bars_are_shown_as_they_were_last(tc: TaskClient, capsys: pytest.CaptureFixture[str]) -> None:
    task = tc.run(Task("for n in range(101):\n    print(f'\\r{n} %', end='')\nprint()"))
    tc.barrier(task, timeout=DEADLINE_S, stream=True)
    assert capsys.readouterr().out.splitlines()[-1] == f"[{task}] 100 %"


def test_without_asking_nothing_is_shown(tc: TaskClient, capsys: pytest.CaptureFixture[str]) -> None:
    tc.barrier(tc.run(Task("print('unseen')")), timeout=DEADLINE_S)
    assert "unseen" not in capsys.readouterr().out
    assert tc._session.io.output_listeners == []


def test_output_of_earlier_ends_is_not_repeated(tc: TaskClient, capsys: pytest.CaptureFixture[str]) -> None:
    task = tc.run(Task("print('before')"))
    tc.barrier(task, timeout=DEADLINE_S)
    tc.barrier(task, stream=True)
    assert capsys.readouterr().out == ""


def test_output_in_the_descriptors_is_whole_in_the_result(tc: TaskClient) -> None:
    """Looking on takes what children write out of the descriptors' files: nothing may get lost between."""
    code = (
        "import subprocess, time\nfor n in range(20):\n"
        "    print('p', n); subprocess.run(['echo', 'c', str(n)]); time.sleep(0.03)"
    )
    ids = [tc.run(Task(code)) for _ in range(2)]
    tc.barrier(ids, timeout=DEADLINE_S, stream=True)
    for task_id in ids:
        lines = tc.get_task_result(task_id).stdout.splitlines()
        assert sorted(lines) == sorted([f"p {n}" for n in range(20)] + [f"c {n}" for n in range(20)])


def test_a_stream_ends_with_its_wait(tc: TaskClient, gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    task = tc.run(Task("print('seen')\n" + gate.code + "print('after')"))
    with pytest.raises(TimeoutError):
        tc.barrier(task, timeout=1.5, stream=True)
    assert f"[{task}] seen\n" in capsys.readouterr().out
    gate.open()
    tc.barrier(task, timeout=DEADLINE_S)
    assert "after" not in capsys.readouterr().out


WIDGET = "application/vnd.jupyter.widget-view+json"
SLIDER = f"""
from IPython.display import display
class Slider:
    def _repr_mimebundle_(self, **kwargs):
        return {{"text/plain": "IntSlider(value=3)", {WIDGET!r}: {{"model_id": "1", "version_major": 2}}}}
display(Slider())
Slider()
"""


def test_a_widget_is_shown_by_its_text(farm: Farm, tc: TaskClient) -> None:
    """Its model is in the engine's process: Jupyter would show "Loading widget..." for ever."""
    found = [tc.run(Task(SLIDER), block=True).outputs]
    with farm.multiengine_client() as mec:
        found.append(mec.execute(SLIDER, targets=0)[0]["display"])
    for outputs in found:
        assert [output["data"] for output in outputs] == [{"text/plain": "IntSlider(value=3)"}] * 2
