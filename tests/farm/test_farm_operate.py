"""Operating a farm from Python, the command line and magics: three ways to the same calls, with the same outcome."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeAlias

import pytest

from ipytaskfarm import Farm, Task, TaskClient, errors
from ipytaskfarm.cli import main
from ipytaskfarm.client import Job
from tests.support.farms import DEADLINE_S, Gate, until_running
from tests.support.polling import eventually
from tests.support.shells import Shell, shell_with_magics

FARM = "operated"

pytestmark = pytest.mark.farm(name=FARM)

Line: TypeAlias = tuple[int, str, str]
"""Id, state, reason."""
Happened: TypeAlias = tuple[datetime | None, int, str, int | None]
JobLine: TypeAlias = tuple[object, ...]
"""Name, id, tasks, unfinished, state."""


@pytest.fixture(scope="module")
def shell(farm: Farm) -> Iterator[Shell]:
    with shell_with_magics() as shell:
        shell.ok(f"%taskfarm connect {FARM}")
        yield shell


class Said(NamedTuple):
    """The outcome of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def command(*words: object) -> Said:
    """Return a function that runs ``ipytaskfarm …`` in this process: it is the same code, and starting Python takes a
    second.
    """
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([*map(str, words), "--farm", FARM])
    return Said(code, out.getvalue(), err.getvalue())


def done(*words: object) -> Said:
    said = command(*words)
    assert said.code == 0, said.err
    return said


class Way(Protocol):
    """One of the three; what the calls return is brought to one form."""

    def table(self, name: str) -> list[Line]: ...
    def detail(self, task: int) -> str: ...
    def abort(self, *tasks: int, reason: str) -> None: ...
    def retry(self, task: int) -> int: ...
    def restart(self, task: int) -> int: ...
    def remove(self, *tasks: int) -> int: ...
    def set_priority(self, priority: int, *tasks: int, job: str | None = None) -> None: ...
    def hold(self, on: bool, job: str | None = None) -> None: ...
    def drain(self, node: str, on: bool) -> None: ...
    def history(self, task: int) -> list[Happened]: ...
    def jobs(self) -> list[JobLine]: ...
    def mark_done(self, task: int, result: dict[str, int]) -> None: ...
    def mark_failed(self, task: int, reason: str) -> str: ...


class InPython:
    def __init__(self, tc: TaskClient) -> None:
        self.tc = tc

    def table(self, name: str) -> list[Line]:
        return [(row.id, row.state, row.reason) for row in self.tc.tasks(name=name).rows]

    def detail(self, task: int) -> str:
        return str(self.tc.explain(task))

    def abort(self, *tasks: int, reason: str) -> None:
        self.tc.abort(tasks, reason=reason)

    def retry(self, task: int) -> int:
        return self.tc.retry(task)[0]

    def restart(self, task: int) -> int:
        return self.tc.restart(task)[0]

    def remove(self, *tasks: int) -> int:
        return self.tc.clear(tasks)

    def set_priority(self, priority: int, *tasks: int, job: str | None = None) -> None:
        if job is None:
            assert self.tc.set_priority(tasks, priority) == [*tasks]
        else:
            assert self.tc.job(job).set_priority(priority) == len(self.tc.job(job))

    def hold(self, on: bool, job: str | None = None) -> None:
        (self.tc.pause if on else self.tc.resume)(job)

    def drain(self, node: str, on: bool) -> None:
        assert self.tc.drain(node, on) == 1

    def history(self, task: int) -> list[Happened]:
        return [(row.at, row.task, row.what, row.engine) for row in self.tc.history(task)]

    def jobs(self) -> list[JobLine]:
        return [tuple(row[:5]) for row in self.tc.jobs()]

    def mark_done(self, task: int, result: dict[str, int]) -> None:
        self.tc.mark_done(task, result)

    def mark_failed(self, task: int, reason: str) -> str:
        return self.tc.mark_failed(task, reason)


class ByCommand:
    def table(self, name: str) -> list[Line]:
        return [(row["id"], row["state"], row["reason"]) for row in done("tasks", "--name", name, "--json").json]

    def detail(self, task: int) -> str:
        explanation: str = done("explain", task, "--json").json["explanation"]
        assert done("explain", task).out.splitlines()[0] in explanation
        return explanation

    def abort(self, *tasks: int, reason: str) -> None:
        done("abort", *tasks, "--reason", reason)

    def retry(self, task: int) -> int:
        (pair,) = done("retry", task, "--json").json["handed_in"]
        return int(pair["again"])

    def restart(self, task: int) -> int:
        (pair,) = done("restart", task, "--json").json["handed_in"]
        return int(pair["again"])

    def remove(self, *tasks: int) -> int:
        return int(done("remove", ",".join(map(str, tasks)), "--json").json["removed"])

    def set_priority(self, priority: int, *tasks: int, job: str | None = None) -> None:
        told = done("priority", *tasks, *(("--job", job) if job else ()), f"--to={priority}", "--json").json
        assert (told["priority"], told["ended"], told["missing"]) == (priority, [], [])

    def hold(self, on: bool, job: str | None = None) -> None:
        said = done("pause" if on else "resume", *(("--job", job) if job else ()))
        assert f"{'job' if job else 'farm'} {job or FARM!r} is {'paused' if on else 'running'}" in said.out

    def drain(self, node: str, on: bool) -> None:
        (told,) = done("drain", node, *(() if on else ("--off",)), "--json").json
        assert told == {"node": node, "drained": on, "there": True, "busy": told["busy"]}

    def history(self, task: int) -> list[Happened]:
        rows = done("history", task, "--json").json
        return [(datetime.fromisoformat(r["at"]), r["task"], r["what"], r["engine"]) for r in rows]

    def jobs(self) -> list[JobLine]:
        keys = ("name", "id", "tasks", "unfinished", "state")
        return [tuple(row[key] for key in keys) for row in done("jobs", "--json").json]

    def mark_done(self, task: int, result: dict[str, int]) -> None:
        done("mark-done", task, "--result", json.dumps(result))

    def mark_failed(self, task: int, reason: str) -> str:
        (told,) = done("mark-failed", task, "--reason", reason, "--json").json
        return str(told["outcome"])


class ByMagic:
    def __init__(self, shell: Shell) -> None:
        self.shell = shell

    def _value(self, line: str) -> Any:
        return self.shell.ok(line).value

    def table(self, name: str) -> list[Line]:
        return [(row.id, row.state, row.reason) for row in self._value(f"%tasks --name {name}").rows]

    def detail(self, task: int) -> str:
        return str(self._value(f"%task explain {task}"))

    def abort(self, *tasks: int, reason: str) -> None:
        self._value(f"%task abort {','.join(map(str, tasks))} --reason '{reason}'")

    def retry(self, task: int) -> int:
        return int(self._value(f"%task retry {task}")[0])

    def restart(self, task: int) -> int:
        return int(self._value(f"%task restart {task}")[0])

    def remove(self, *tasks: int) -> int:
        return int(self._value(f"%task remove {' '.join(map(str, tasks))}"))

    def set_priority(self, priority: int, *tasks: int, job: str | None = None) -> None:
        self._value(f"%task priority {' '.join(map(str, tasks))} {f'--job {job}' if job else ''} --to {priority}")

    def hold(self, on: bool, job: str | None = None) -> None:
        cell = self.shell.ok(f"%task {'pause' if on else 'resume'}" + (f" --job {job}" if job else ""))
        assert f"{job or FARM!r} {'is paused' if on else 'is resumed'}" in cell.out

    def drain(self, node: str, on: bool) -> None:
        cell = self.shell.ok(f"%task drain {node}" + ("" if on else " --off"))
        assert cell.out.startswith(f"{node}: {'drained' if on else 'gets tasks again'}")

    def history(self, task: int) -> list[Happened]:
        return [(row.at, row.task, row.what, row.engine) for row in self._value(f"%task history {task}")]

    def jobs(self) -> list[JobLine]:
        return [tuple(row[:5]) for row in self._value("%task jobs")]

    def mark_done(self, task: int, result: dict[str, int]) -> None:
        self.shell["marked"] = result
        self._value(f"%task mark-done {task} --result marked")

    def mark_failed(self, task: int, reason: str) -> str:
        return str(self._value(f'%task mark-failed {task} --reason "{reason}"'))


WAYS = ("python", "command", "magic")


@pytest.fixture
def ways(tc: TaskClient, shell: Shell) -> dict[str, Way]:
    return {"python": InPython(tc), "command": ByCommand(), "magic": ByMagic(shell)}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, ways: dict[str, Way]) -> Way:
    return ways[request.param]


def ended(tc: TaskClient, task: int) -> str:
    """The state of a task, when it has ended."""
    tc.barrier(task, timeout=DEADLINE_S)
    return tc.status(task).state


# ---------------------------------------------------------------------------------------- looking


def test_all_three_show_the_same(tc: TaskClient, ways: dict[str, Way]) -> None:
    job = tc.create_job("shown")
    job.add_task(Task("a = 1", pull="a", name="seen"))
    job.add_task(Task("1 / 0", name="seen"))
    good, bad = job.submit()
    assert job.wait(DEADLINE_S)
    assert [way.table("seen") for way in ways.values()] == [[(good, "succeeded", ""), (bad, "failed", "error")]] * 3
    explained = [way.detail(bad) for way in ways.values()]
    assert "ZeroDivisionError" in explained[0]
    assert explained == [explained[0]] * 3
    told = [way.history(bad) for way in ways.values()]
    assert [what for _, _, what, _ in told[0]] == ["accepted", "started", "failed: error"]
    assert told == [told[0]] * 3
    listed = [[row for row in way.jobs() if row[0] == "shown"] for way in ways.values()]
    assert listed == [[("shown", job.id, 2, 0, "ended")]] * 3


def test_json_has_what_python_has(tc: TaskClient) -> None:
    task = tc.run(Task("1 / 0", name="\x1b[2Jhostile"))
    tc.barrier(task, timeout=DEADLINE_S)
    status = vars(tc.status(task))
    said = done("tasks", task, "--json")
    assert "\x1b" not in said.out
    (row,) = said.json
    moments = ("submitted_at", "started_at", "completed_at")
    assert {**row, **{key: datetime.fromisoformat(row[key]) for key in moments}} == status
    assert "\x1b" not in done("tasks", task).out + done("history", task).out + done("explain", task).out


# ---------------------------------------------------------------------------------------- acting on tasks


def test_abort(tc: TaskClient, way: Way, gate: Gate) -> None:
    first, second = tc.run(Task(gate.code)), tc.run(Task(gate.code))
    until_running(tc, first)
    way.abort(first, second, reason="wrong input")
    for task in (first, second):
        with pytest.raises(errors.TaskAborted, match="wrong input"):
            tc.get_task_result(task, block=True, timeout=DEADLINE_S)
    assert tc.status(first).reason == "aborted"


def test_retry_and_restart(tc: TaskClient, way: Way) -> None:
    good, bad = tc.run(Task("a = 1", pull="a")), tc.run(Task("1 / 0"))
    assert (ended(tc, good), ended(tc, bad)) == ("succeeded", "failed")
    again, once_more = way.retry(bad), way.restart(good)
    assert again > bad
    assert once_more > good
    assert ended(tc, again) == "failed"
    assert ended(tc, once_more) == "succeeded"
    assert tc.get_task_result(once_more)["a"] == 1


def test_remove(tc: TaskClient, way: Way) -> None:
    ids = [tc.run(Task("pass")) for _ in range(3)]
    tc.barrier(ids, timeout=DEADLINE_S)
    assert way.remove(*ids[:2]) == 2
    for task in ids[:2]:
        with pytest.raises(IndexError):
            tc.status(task)
    assert tc.status(ids[2]).state == "succeeded"


def test_marks(tc: TaskClient, way: Way, gate: Gate) -> None:
    task = tc.run(Task(gate.code, pull="a"))
    until_running(tc, task)
    way.mark_done(task, {"a": 42})
    assert tc.get_task_result(task, block=True, timeout=DEADLINE_S)["a"] == 42
    other = tc.run(Task(gate.code))
    until_running(tc, other)
    assert way.mark_failed(other, "no good") == "failed"
    assert "no good" in tc.status(other).error


def test_priorities(tc: TaskClient, way: Way) -> None:
    """Tasks and a job that wait for the held farm; those of a higher priority begin first."""
    way.hold(True)
    one_at_a_time: dict[str, Any] = {"group": "moved", "max_parallel": 1}
    first, second = (tc.run(Task("pass", **one_at_a_time)) for _ in range(2))
    job = tc.create_job("moved")
    job.add_task(Task("pass", priority=2, **one_at_a_time))
    (third,) = job.submit()
    tc.flush()
    way.set_priority(5, second)
    way.set_priority(-3, job="moved")
    job.add_task(Task("pass", priority=9))
    later = job.submit()[-1]
    assert [what for _, _, what, _ in way.history(second)] == ["accepted", "priority 0 → 5"]
    for task in (third, later):
        assert "its priority is -3" in way.detail(task)
    way.hold(False)
    assert job.wait(DEADLINE_S)
    tc.barrier([first, second], timeout=DEADLINE_S)
    rows = tc.tasks(ids=[first, second, third]).rows
    started = {row.id: row.started_at.timestamp() if row.started_at else 0.0 for row in rows}
    assert started[second] <= started[first] <= started[third]
    with pytest.raises(IndexError, match="already completed"):
        tc.set_priority(first, 1)
    assert command("priority", 10**9, "--to", 1).code == 1
    assert command("priority", first).code == 2


# ---------------------------------------------------------------------------------------- holding back


def test_pause_and_resume_the_farm(tc: TaskClient, way: Way) -> None:
    way.hold(True)
    task = tc.run(Task("pass"))
    tc.flush()
    assert tc.status(task).reason == "paused"
    way.hold(False)
    assert ended(tc, task) == "succeeded"


def test_pause_and_resume_a_job(tc: TaskClient, way: Way, gate: Gate) -> None:
    """The tasks of the job wait for a gate: running ones go on, and other tasks overtake the paused ones."""
    busy = [tc.run(Task(gate.code)) for _ in range(2)]
    for task in busy:
        until_running(tc, task)
    job = tc.create_job("held")
    job.add_task(Task("pass"))
    (held,) = job.submit()
    tc.flush()
    way.hold(True, "held")
    # Had it been sent ahead of need, behind one of the others, it is on its way back.
    eventually(lambda: tc.status(held).reason == "paused", DEADLINE_S, what="it waits")
    gate.open()
    assert ended(tc, tc.run(Task("pass"))) == "succeeded"
    assert (tc.status(held).state, tc.status(held).reason) == ("scheduled", "paused")
    assert [row.state for row in tc.jobs() if row.id == job.id] == ["paused"]
    way.hold(False, "held")
    assert ended(tc, held) == "succeeded"


def test_drain(tc: TaskClient, way: Way, gate: Gate) -> None:
    (node,) = [node.name for node in tc.snapshot()]
    running = tc.run(Task(gate.code))
    until_running(tc, running)
    way.drain(node, True)
    try:
        assert [node.state for node in tc.snapshot()] == ["drained"]
        gate.open()
        assert ended(tc, running) == "succeeded", "what runs comes to its end"
        waiting = tc.run(Task("pass"))
        tc.flush()
        assert tc.status(waiting).state == "scheduled"
        assert "drained" in tc.explain(waiting)
    finally:
        way.drain(node, False)
    assert ended(tc, waiting) == "succeeded"


# ---------------------------------------------------------------------------------------- whole jobs


def test_a_job_by_its_name(tc: TaskClient, gate: Gate) -> None:
    def jobs() -> Job:
        job = tc.create_job("named")
        for code in ("a = 1", "1 / 0"):
            job.add_task(Task(code))
        job.submit()
        assert job.wait(DEADLINE_S)
        return job

    good, bad = jobs().ids
    assert [row["id"] for row in done("tasks", "--job", "named", "--json").json] == [good, bad]
    shown = done("jobs", "named", "--json").json
    assert ([row["id"] for row in shown["members"]], shown["name"]) == ([good, bad], "named")
    assert done("retry", "--job", "named", "--json").json["handed_in"][0]["id"] == bad
    assert "no unfinished task to abort" in done("abort", "--job", jobs().id).out
    job = jobs()
    eventually(lambda: tc.job(job.id).counts()["failed"] == 1, DEADLINE_S)
    assert done("remove", "--job", job.id, "--json").json["removed"] == 2
    assert job.id not in [row.id for row in tc.jobs()], "a job is gone with the last of its tasks"
    said = command("retry", "--job", job.id)
    assert (said.code, said.out) == (1, "")
    assert "`ipytaskfarm jobs` lists all jobs" in said.err
    waiting = tc.create_job("ended by name")
    waiting.add_task(Task(gate.code))
    waiting.submit()
    tc.flush()
    said = done("abort", "--job", "ended by name", "--reason", "over")
    assert said.out == f"task {waiting.ids[0]}: aborted\n"


def test_a_job_behind_magics(tc: TaskClient, shell: Shell, gate: Gate) -> None:
    job = tc.create_job("magic")
    job.add_task(Task("1 / 0"))
    job.submit()
    assert job.wait(DEADLINE_S)
    found = shell.ok("%task job magic").value
    assert isinstance(found, Job)
    assert found.ids == job.ids == shell.ok("%tasks --job magic").value.ids
    shell["mine"] = job
    assert [row.id for row in [shell.ok("%task status mine").value]] == job.ids
    (again,) = shell.ok("%task retry --job magic").value
    tc.barrier(again, timeout=DEADLINE_S)
    assert shell.ok("%task job magic").value.ids == [again]
    assert len(shell.ok("%task restart --job magic").value) == 1, "its task, in whose place is the retry"
    assert "magic" in shell.completions("%task job ")
    assert "magic" in shell.completions("%task pause --job ")
    assert set(shell.completions("%task mark-")) == {"mark-done", "mark-failed"}
    assert [node.name for node in tc.snapshot()] == shell.completions("%task drain ")
    assert set(shell.completions("%task remove --")) == {"--job", "--all"}
    tc.barrier(timeout=DEADLINE_S)
    assert shell.ok("%task remove --job magic").value == 3
    shell.fails("%task job magic", KeyError, "was cleared")


# ---------------------------------------------------------------------------------------- refusals and logs


def test_refusals_name_the_remedy(tc: TaskClient, gate: Gate) -> None:
    good, running = tc.run(Task("pass")), tc.run(Task(gate.code))
    tc.barrier(good, timeout=DEADLINE_S)
    until_running(tc, running)
    needs = tc.run(Task("pass", after=running))
    tc.flush()
    for words, remedy in [
        (("abort", 999_999), "ipytaskfarm tasks"),
        (("retry", good), "ipytaskfarm restart"),
        (("restart", running), "ipytaskfarm abort"),
        (("remove", running, needs), "ipytaskfarm abort"),
        (("remove", 999_999), "ipytaskfarm tasks"),
        (("mark-done", good), "ipytaskfarm restart"),
        (("mark-failed", 999_999), "ipytaskfarm tasks"),
        (("pause", "--job", "no such"), "ipytaskfarm jobs"),
        (("tasks", 999_999), "ipytaskfarm tasks"),
        (("jobs", "no such"), "ipytaskfarm jobs"),
    ]:
        said = command(*words)
        assert said.code == 1, words
        assert f"`{remedy}" in said.err, said.err
        assert str(words[-1]) in said.err
    said = command("remove", f"{good},{running}", "--json")
    assert (said.code, said.json["removed"], said.json["unfinished"]) == (1, 1, [running])
    gate.open()
    assert ended(tc, needs) == "succeeded"


def test_a_result_that_others_need_stays(tc: TaskClient, shell: Shell) -> None:
    tc.pause()
    try:
        first = tc.submit(pow, 2, 10)
        second = tc.submit(abs, first)
        tc.flush()
        tc.mark_done(first.id, 7)
        said = command("remove", first.id)
        assert said.code == 1
        assert f"task {first.id}: other tasks still need its result" in said.err
        shell["first"] = first
        shell.fails("%task remove first", KeyError, "still need")
        out = done("remove", "--all").out
        assert "kept 1 task: not ended" in out
        assert "kept 1 task: other tasks still need the result" in out
    finally:
        tc.resume()
    assert second.result(DEADLINE_S) == 7


def test_draining_a_node_that_is_not_there_is_told(tc: TaskClient, shell: Shell) -> None:
    said = command("drain", "elsewhere")
    assert said.code == 1
    assert "`ipytaskfarm drain elsewhere --off` takes that back" in said.err
    said = done("drain", "elsewhere", "--off")
    assert (said.out, said.err) == ("node elsewhere: gets tasks again\n", "")
    assert "no agent of the farm is on node elsewhere now (nodes: " in shell.ok("%task drain elsewhere").err
    shell.ok("%task drain elsewhere --off")


def test_history_can_be_searched(tc: TaskClient, shell: Shell) -> None:
    bad = tc.run(Task("1 / 0", name="searched"))
    tc.barrier(bad, timeout=DEADLINE_S)
    said = done("history", "--name", "searched", "--what", "failed", "--since", "1h", "--last", 5, "--json")
    assert [(row["task"], row["what"]) for row in said.json] == [(bad, "failed: error")]
    assert done("history", "--since", "2999-01-01", "--json").json == []
    assert done("history", bad, "--what", "no such").out == "nothing happened\n"
    found = shell.ok("%task history --name searched --what failed --since 1h --last 5").value
    assert [row.task for row in found] == [bad]


def test_progress_and_messages_behind_magics(tc: TaskClient, shell: Shell) -> None:
    def tell() -> None:
        from ipytaskfarm.engine import current_task

        current_task().progress(3, total=4, message="nearly")
        current_task().send("\x1b[2Jhello")

    task = tc.run(tell)
    tc.barrier(task, timeout=DEADLINE_S)
    assert shell.ok(f"%task progress {task}").value[task].fraction == 0.75
    assert f"task {task}: '\\x1b[2Jhello'" in shell.ok(f"%task messages {task}").out


def test_rules_of_a_cell(tc: TaskClient, shell: Shell, gate: Gate) -> None:
    shell.ok(f"%%task -o first --unique only-one\n{gate.code}")
    shell.fails("%%task --unique only-one\npass", errors.DuplicateTask)
    shell.ok("%%task -o second --after first --retries 1 --retry-delay 0.01\npass")
    assert tc.status(shell["second"].id).reason == "waiting for tasks"
    gate.open()
    assert ended(tc, shell["second"].id) == "succeeded"


def test_all_that_speaks_of_a_task(tc: TaskClient, farm: Farm) -> None:
    task = tc.run(Task("import os, sys; print('printed', flush=True); sys.stderr.write('\\x1b[2Jtold\\n')"))
    lost = tc.run(Task("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    tc.barrier([task, lost], timeout=DEADLINE_S)
    found = done("logs", "--task", task, "--json").json
    assert (found["task"], found["stdout"], found["stderr"]) == (task, "printed\n", "\x1b[2Jtold\n")
    assert [row["what"] for row in found["events"]] == ["accepted", "started", "succeeded"]
    shown = done("logs", "--task", task).out
    assert "==> stdout <==\nprinted\n" in shown
    assert "·[2Jtold" in shown
    shown = done("logs", "--task", lost).out
    assert "failed: engine" in shown
    assert f"; it ran task {lost}\n" in shown
    said = command("logs", "--task", 999_999)
    assert said.code == 1
    assert "nothing is known of task 999999" in said.err
    (log,) = [each for each in done("logs", "--json").json if each["log"] == "controller.log"]
    assert any("listening" in line for line in log["lines"])


def test_status_engines_and_list_for_programs(farm: Farm) -> None:
    state = done("status", "--json").json
    assert (state["name"], state["held"], len(state["agents"])) == (FARM, False, 1)
    engines = done("engines", "list", "--json").json
    for row in (state, *state["engines"], *engines):
        assert datetime.fromisoformat(row["started_at"]).tzinfo is not None
        assert not [key for key in row if key.endswith("_s")]
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["list", "--json"]) == 0
    (row,) = [row for row in json.loads(out.getvalue()) if row["name"] == FARM]
    assert row["state"] == "running"
    assert row["store_bytes"] > 0
    assert isinstance(row["engines"], int)
