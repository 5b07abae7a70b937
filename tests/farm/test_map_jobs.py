"""A map is a job whose items are its tasks, on a real farm: named, counted, explained, retried and aborted by item."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, Ref, Task, TaskClient, errors
from ipytaskfarm.core import messages
from ipytaskfarm.core.messages.tables import FarmState
from tests.support.farms import DEADLINE_S, Gate, ask
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


def fragile(x: int, folder: str) -> int:
    """Fails three times out of sixty until a file says that it is mended."""
    if x in (7, 37, 59) and not os.path.exists(f"{folder}/mended"):
        raise ValueError(f"bad {x}")
    if x == 11:
        print("eleven")
    return x * x


@pytest.fixture
def sweep(tc: TaskClient, tmp_path: Path) -> Iterator[Any]:
    """A map of sixty items in chunks, of which three have failed."""
    with pytest.raises(ValueError, match="bad 7"):
        tc.map(fragile, range(60), [str(tmp_path)] * 60, name="sweep", chunksize=20)
    job = tc.job("sweep")
    yield job
    with suppress(KeyError):
        tc.clear(job.ids)


def test_a_wait_for_the_first_of_some_items_that_share_a_run(tc: TaskClient, gate: Gate) -> None:
    def item(x: int, code: str) -> int:
        if x:
            exec(code)
        return x

    job = tc.map(item, [0, 1, 1], [gate.code] * 3, chunksize=3, block=False)
    assert tc.wait(job.ids, timeout=0.2, return_when="first") == ([], job.ids)
    threading.Timer(0.2, gate.open).start()
    done, _ = tc.wait(job.ids, timeout=DEADLINE_S, return_when="first")
    assert done
    assert job.wait(DEADLINE_S)
    tc.clear(job.ids)


def test_each_item_is_a_task_for_every_eye(tc: TaskClient, sweep: Any) -> None:
    assert len(sweep) == 60
    assert sweep.counts()["succeeded"] == 57
    ids = sweep.ids
    assert len(set(ids)) == 60
    (line,) = [line for line in tc.jobs() if line.id == sweep.id]
    assert (line.tasks, line.unfinished) == (60, 0)
    rows = tc.tasks(ids=ids).rows
    assert [row.id for row in rows] == sorted(ids)
    assert {row.name for row in rows} == {"sweep"}
    assert [row.id for row in tc.tasks(name="sweep", state="failed").rows] == [ids[7], ids[37], ids[59]]
    assert list(tc.tasks(job="sweep")) == ids
    assert list(tc.tasks(job=sweep, state="failed")) == [ids[7], ids[37], ids[59]]
    (group,) = tc.failures(job="sweep")
    assert group.ids == [ids[7], ids[37], ids[59]]
    with pytest.raises(KeyError, match="no job 'swep'"):
        tc.tasks(job="swep")
    with pytest.raises(TypeError, match="not both"):
        tc.failures([1], job=sweep)
    (group,) = tc.failures(ids)
    assert group.ids == [ids[7], ids[37], ids[59]]
    assert "item 7 of 60: fragile(x=7" in group.traceback
    assert "bad 37" in tc.explain(ids[37])
    assert "shared a run" in tc.explain(ids[36])
    assert tc.get_task_result(ids[36], raw=False).result == 36 * 36
    assert tc.get_task_result(ids[11], raw=False).stdout == "eleven\n"
    assert len(tc.get_task_result(ids[37], raw=False).attempts) == 1
    assert tc.status(ids[36]).state == "succeeded"


def test_the_history_is_that_of_the_items(tc: TaskClient, sweep: Any, farm: Farm) -> None:
    ids = sweep.ids
    events = tc.history(name="sweep", last=1000)
    assert {event.task for event in events} == set(ids)
    assert [event.what for event in tc.history(ids[36])] == ["accepted", "started", "succeeded"]
    assert [event.what for event in tc.history(ids[37])] == ["accepted", "started", "failed: error"]
    assert len(tc.history(ids[20:25])) == 15
    said = command(farm, "history", str(ids[36]))
    assert said.count(f" {ids[36]} ") == 3, said


def test_an_error_names_item_engine_and_the_users_lines(tc: TaskClient, sweep: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad 7") as raised:
        sweep.results()
    notes = "\n".join(raised.value.__notes__)
    assert "item 7 of 60: fragile(x=7, folder=" in notes
    assert "raised on engine" in notes
    assert "in fragile" in notes
    assert "tc.job('sweep').retry_failed()" in notes
    assert "map_chunks" not in notes
    found = tc.map(fragile, range(8), [str(tmp_path)] * 8, on_error="return")
    assert isinstance(found[7], ValueError)
    with pytest.raises(ExceptionGroup, match="3 of 60 items") as many:
        tc.map(fragile, range(60), [str(tmp_path)] * 60, on_error="collect")
    assert [str(error) for error in many.value.exceptions] == ["bad 7", "bad 37", "bad 59"]


def test_only_failed_items_run_again(tc: TaskClient, sweep: Any, tmp_path: Path) -> None:
    (tmp_path / "mended").touch()
    again = sweep.retry_failed()
    assert len(again) == 3
    assert sweep.results() == [x * x for x in range(60)]
    assert tc.job("sweep").results() == [x * x for x in range(60)]  # as another client finds it


def test_another_process_finds_the_map_again(tc: TaskClient, sweep: Any, farm: Farm) -> None:
    script = textwrap.dedent(
        f"""
        from ipytaskfarm import TaskClient
        with TaskClient({str(farm.connection_file)!r}) as tc:
            found = tc.job("sweep").results(return_exceptions=True)
            print([x if isinstance(x, int) else repr(x) for x in found[5:9]], len(found))
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout.strip() == "[25, 36, \"ValueError('bad 7')\", 64] 60", done.stderr


def command(farm: Farm, *words: str) -> str:
    """Run the command about this farm in another process. Returns what it prints."""
    line = [sys.executable, "-m", "ipytaskfarm", *words, "--farm", str(farm.connection_file)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for_file(x: int, path: str) -> int:
    while x % 20 == 0 and not os.path.exists(path):
        time.sleep(0.01)
    return x


def test_items_are_aborted_by_themselves(tc: TaskClient, tmp_path: Path) -> None:
    job = tc.map(wait_for_file, range(40), [str(tmp_path / "go")] * 40, name="some", chunksize=10, block=False)
    ids = job.ids
    eventually(lambda: tc.status(ids[0]).state == "running", DEADLINE_S, what="the first item runs")
    tc.abort([ids[3], ids[5]])
    (tmp_path / "go").touch()
    found = list(job.results(return_exceptions=True))
    assert [x for x in range(40) if isinstance(found[x], errors.TaskAborted)] == [3, 5]
    assert all(found[x] == x for x in range(40) if x not in (3, 5))
    assert tc.status(ids[3]).reason == "aborted"
    assert job.retry_failed()
    assert job.results() == list(range(40))


def test_a_running_item_is_interrupted_and_the_rest_goes_on(tc: TaskClient, tmp_path: Path) -> None:
    job = tc.map(wait_for_file, range(10), [str(tmp_path / "never")] * 10, chunksize=10, block=False)
    first = job.ids[0]
    eventually(lambda: tc.status(first).state == "running", DEADLINE_S, what="the first item runs")
    tc.abort(first)
    found = list(job.results(return_exceptions=True))
    assert isinstance(found[0], errors.TaskAborted)
    assert found[1:] == list(range(1, 10))


def test_an_item_is_stopped_that_is_aborted_before_it_begins(tc: TaskClient, tmp_path: Path) -> None:
    """It begins all the same, as its chunk is on its way: the engine is told what to stop when it gets there."""
    never = str(tmp_path / "never")
    for _ in range(5):
        job = tc.map(wait_for_file, range(0, 80, 20), [never, *["/"] * 3], chunksize=4, block=False)
        tc.abort(job.ids[0])
        assert job.wait(DEADLINE_S)
        assert list(job.results(return_exceptions=True))[1:] == [20, 40, 60]
    gate = tmp_path / "gate"
    job = tc.map(wait_for_file, range(0, 80, 20), [str(gate), "/", never, "/"], chunksize=4, block=False)
    eventually(lambda: tc.status(job.ids[0]).state == "running", DEADLINE_S, what="the first item runs")
    tc.abort(job.ids[2])
    gate.touch()
    assert job.wait(DEADLINE_S)
    found = list(job.results(return_exceptions=True))
    assert isinstance(found.pop(2), errors.TaskAborted)
    assert found == [0, 20, 60]


def test_every_command_about_a_job_speaks_of_the_items(tc: TaskClient, sweep: Any, farm: Farm, tmp_path: Path) -> None:
    ids = sweep.ids
    bad = [ids[7], ids[37], ids[59]]
    assert sorted(row["id"] for row in json.loads(command(farm, "tasks", "--job", "sweep", "--json"))) == sorted(ids)
    shown = json.loads(command(farm, "jobs", "sweep", "--json"))
    assert sorted(row["id"] for row in shown["members"]) == sorted(ids)
    (group,) = json.loads(command(farm, "failures", "--job", "sweep", "--json"))
    assert group["ids"] == bad
    assert f"task {ids[36]} succeeded" in command(farm, "explain", str(ids[36]))
    assert "1296" in command(farm, "result", str(ids[36]))
    (tmp_path / "mended").touch()
    again = json.loads(command(farm, "retry", "--job", "sweep", "--json"))
    assert len(again) == 3
    assert tc.job("sweep").results() == [x * x for x in range(60)]
    assert "63" in command(farm, "remove", "--job", "sweep")
    assert set(ids).isdisjoint(row.id for row in tc.tasks(name="sweep").rows)


def test_the_values_of_a_map_are_arguments_of_tasks(tc: TaskClient) -> None:
    values = tc.map(abs, [-3, 4, -5])
    assert tc.submit(sum, values).result() == 12
    assert tc.map(len, [values, values]) == [3, 3]
    assert pickle.loads(pickle.dumps(values)) == [3, 4, 5]
    assert values.job.counts()["succeeded"] == 3


def loses(x: int, folder: str, wanted: list[int]) -> int:
    """Fails once with lost inputs for the third item."""
    from ipytaskfarm import errors

    if x == 2 and not os.path.exists(f"{folder}/lost"):
        Path(folder, "lost").touch()
        raise errors.InputsLost(wanted)
    return x


def test_lost_inputs_and_items(tc: TaskClient, sweep: Any, tmp_path: Path) -> None:
    """An item makes its inputs anew as a task does; a value that shared its run cannot be made anew."""
    source = tc.run(Task("1"))
    tc.barrier(source)
    folder = str(tmp_path)
    assert tc.map(loses, range(5), [folder] * 5, [[source]] * 5, chunksize=5) == [0, 1, 2, 3, 4]
    assert [row.outcome for row in tc.get_task_result(source).attempts] == ["inputs lost", ""]
    (tmp_path / "lost").unlink()
    shared = sweep.ids[5]
    with pytest.raises(errors.InputsLost, match=rf"task {shared} .* shared its run with .* tc.restart\({shared}\)"):
        tc.submit(loses, 2, folder, [shared]).result()


def test_explain_names_the_place_in_the_map(tc: TaskClient, sweep: Any, tmp_path: Path) -> None:
    ids = sweep.ids
    for index in (7, 36, 11, 59):  # failed, silent, has printed, the last
        assert f"item {index} of 60 of map 'sweep'" in tc.explain(ids[index]).splitlines()
    (again,) = tc.retry(ids[37])
    tc.barrier(again)
    assert f"item 37 of 60 of map 'sweep', which task {ids[37]} ran first" in tc.explain(again)
    slow = tc.map(wait_for_file, [20, 21], [str(tmp_path / "go")] * 2, name="slow", chunksize=1, block=False)
    eventually(lambda: tc.status(slow.ids[0]).state == "running", DEADLINE_S)
    assert "item 0 of 2 of map 'slow'" in tc.explain(slow.ids[0])
    (tmp_path / "go").touch()
    assert slow.results() == [20, 21]
    assert "of map" not in tc.explain(tc.run(Task("1")))


ABORT = """
from ipytaskfarm import TaskClient
with TaskClient({file!r}) as tc:
    tc.job({name!r}).abort()
"""


@pytest.mark.parametrize("chunksize", [1, 10])
@pytest.mark.parametrize("way", ["client", "command"])
def test_another_process_aborts_a_map(tc: TaskClient, farm: Farm, tmp_path: Path, way: str, chunksize: int) -> None:
    """Some of its items have ended, one runs on each engine, the others wait."""
    name, never = f"stop by {way} {chunksize}", str(tmp_path / "never")
    job = tc.map(wait_for_file, range(15, 75), [never] * 60, name=name, chunksize=chunksize, block=False)
    eventually(lambda: "running" in {row.state for row in tc.tasks(name=name).rows}, DEADLINE_S, what="an item waits")
    if way == "client":
        script = ABORT.format(file=str(farm.connection_file), name=name)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_S)
        assert (done.returncode, done.stderr) == (0, "")
    else:
        command(farm, "abort", "--job", name)
    found = list(job.results(return_exceptions=True))
    aborted = [x for x, value in zip(range(15, 75), found, strict=True) if isinstance(value, errors.TaskAborted)]
    assert {20, 40, 60} <= set(aborted)
    assert all(value == x for x, value in zip(range(15, 75), found, strict=True) if x not in aborted)
    assert {row.reason for row in tc.tasks(name=name, state="failed").rows} == {"aborted"}
    assert {row.id for row in tc.tasks(name=name, state="failed").rows} == {job.ids[x - 15] for x in aborted}
    assert tc.map(abs, range(4)) == [0, 1, 2, 3], "the engines go on"


def die_at_five(x: int, folder: str) -> int:
    Path(folder, f"{x}-{os.getpid()}").touch()
    if x == 5 and len(list(Path(folder).glob("5-*"))) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_after_a_loss_only_items_that_had_begun_are_charged(tc: TaskClient, tmp_path: Path) -> None:
    found = tc.map(die_at_five, range(20), [str(tmp_path)] * 20, chunksize=20, on_error="return")
    lost = [x for x in range(20) if isinstance(found[x], errors.EngineLost)]
    assert 5 in lost
    named = {note.partition(" of ")[0] for x in lost for note in found[x].__notes__ if note.endswith("of 20")}
    assert named & {"item 5", f"items 0 to {lost[-1]}"}
    assert lost == list(range(len(lost)))  # those behind the running ones had not begun
    assert lost[-1] < 19
    assert all(found[x] == x for x in range(len(lost), 20))
    assert tc.map(die_at_five, range(20), [str(tmp_path)] * 20, chunksize=20) == list(range(20))


def test_rules_hold_for_each_item(tc: TaskClient, tmp_path: Path) -> None:
    def flaky(x: int, folder: str = str(tmp_path)) -> int:
        path = Path(folder, f"tried-{x}")
        if x % 10 == 3 and not path.exists():
            path.touch()
            raise OSError("not yet")
        return x

    assert tc.map(flaky, range(50), retries=1, chunksize=25) == list(range(50))
    job = tc.map(flaky, range(50), retries=1, name="flaky", block=False)
    assert job.results() == list(range(50))
    found = tc.map(lambda x: time.sleep(30 * x), range(2), time_limit=0.3, on_error="return")
    assert isinstance(found[1], errors.TimeLimitExceeded)
    assert found[0] is None
    with pytest.raises(TypeError, match="retires"):
        tc.map(abs, [1], retires=3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="on_error"):
        tc.map(abs, [1], on_error="ignore")  # type: ignore[call-overload]


def test_a_chunk_that_turns_out_slow_is_shared(tc: TaskClient) -> None:
    def slow_later(x: int) -> tuple[int, int]:
        time.sleep(0.15)
        return x, os.getpid()

    job = tc.map(slow_later, range(12), chunksize=12, block=False)
    found = list(job.results())
    assert [x for x, _ in found] == list(range(12))
    assert len({pid for _, pid in found}) > 1, "one engine ran all items of a slow chunk"


def test_the_stop_button_ends_the_wait_alone(tc: TaskClient, tmp_path: Path) -> None:
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        tc.map(wait_for_file, range(30), [str(tmp_path / "go")] * 30, name="stopped")
    timer.join()
    job = tc.job(tc.jobs()[-1])
    assert job.name == "stopped"
    assert len(job) == 30
    (tmp_path / "go").touch()
    assert job.results() == list(range(30))


def test_all_that_is_silent_costs_the_store_and_not_the_controller(tc: TaskClient) -> None:
    values = tc.map(abs, range(100_000), name="many")
    chunks = {(row.engineid, row.started_at) for row in tc.tasks(ids=values.job.ids).rows}
    assert len(chunks) < 2_000
    (line,) = [line for line in tc.jobs() if line.id == values.job.id]
    assert (line.tasks, line.unfinished) == (100_000, 0)
    assert tc.tasks(last=3).ids == values.job.ids[-3:]
    assert tc.clear(values.job.ids[:10]) == 10
    with pytest.raises(IndexError):
        tc.get_task_result(values.job.ids[3])
    assert tc.get_task_result(values.job.ids[10], raw=False).result == 10
    tc.clear(values.job.ids[10:])
    with pytest.raises(KeyError):
        tc.job("many")


SPEAKS = """
from ipytaskfarm import TaskClient
import os, time
def speaks(x, folder):
    print("begin", x)
    while x in (2, 5) and not os.path.exists(f"{{folder}}/go"):
        time.sleep(0.01)
    print("end", x)
    return x
tc = TaskClient({connection!r})
"""


@pytest.mark.parametrize(
    ("call", "alone"),
    [
        ("tc.map(speaks, range(8), [{folder!r}] * 8, chunksize=4, stream=True)", False),
        ("tc.map(speaks, range(8), [{folder!r}] * 8, time_limit=60, stream=True)", True),
        ("tc.map(speaks, range(8), [{folder!r}] * 8, chunksize=4, block=False).results(stream=True)", False),
        ("list(tc.imap(speaks, range(8), [{folder!r}] * 8, chunksize=4, stream=True))", False),
    ],
    ids=["chunks", "tasks", "handle", "imap"],
)
def test_what_an_item_prints_is_shown_while_it_runs(farm: Farm, tmp_path: Path, call: str, alone: bool) -> None:
    """In a script, whose output is a pipe: no control characters."""
    code = SPEAKS.format(connection=str(farm.connection_file)) + f"print({call.format(folder=str(tmp_path))})\n"
    env = {**os.environ, "IPYTASKFARM_PROGRESS": "1"}
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        timer = threading.Timer(DEADLINE_S, process.kill)
        timer.start()
        seen: list[str] = []
        while not {"[2] begin 2\n", "[5] begin 5\n"} <= set(seen):
            seen.append(process.stdout.readline())
            assert seen[-1], process.stderr.read()
        assert "[2] end 2\n" not in seen
        if not alone:
            assert "[4] end 4\n" in seen, "an item that shares its run with one that goes on"
        (tmp_path / "go").touch()
        out, err = process.communicate(timeout=DEADLINE_S)
        timer.cancel()
    lines = [*"".join(seen).splitlines(), *out.splitlines()]
    assert lines.pop() == str(list(range(8)))
    assert sorted(lines) == sorted(f"[{x}] {word} {x}" for x in range(8) for word in ("begin", "end"))
    assert "\x1b" not in out + err
    assert "\r" not in out + err


def test_each_item_keeps_what_it_displays_clears_and_floods(tc: TaskClient) -> None:
    def shows(x: int) -> int:
        from IPython.display import HTML, clear_output, display

        print("before", x)
        if x == 1:
            display(HTML("<b>one</b>"))
        if x == 2:
            clear_output(wait=True)
            print("after")
        if x == 3:
            print("x" * 200_000)
        return x

    job = tc.map(shows, range(6), chunksize=6, block=False)
    assert job.results() == list(range(6))
    results = [tc.get_task_result(i, raw=False) for i in job.ids]
    assert [result.stdout for result in results if result.taskid in (job.ids[0], job.ids[1], job.ids[4])] == [
        "before 0\n", "before 1\n", "before 4\n",
    ]  # fmt: skip
    assert [output["data"]["text/html"] for output in results[1].outputs] == ["<b>one</b>"]
    assert results[0].outputs == results[2].outputs == []
    assert results[2].stdout == "after\n"
    assert results[3].stdout.startswith("before 3\nxxx")
    assert "characters left out" in results[3].stdout
    assert results[3].stdout.endswith("x\n")


def half(x: int) -> float:
    if x == 3:
        raise ValueError("bad 3")
    return x / 2


def test_the_result_of_an_item_is_the_argument_of_another_task(tc: TaskClient, tmp_path: Path, gate: Gate) -> None:
    values = tc.map(half, range(10), chunksize=10, on_error="return")
    ids = values.job.ids
    add = tc.run(Task(lambda a, b: a + b, args=(Ref(ids[4]), Ref(ids[9]))))
    assert tc.get_task_result(add, block=True).result == 2.0 + 4.5
    told = tc.run(Task(repr, args=(Ref(ids[3]),), if_failed="run"))
    assert tc.get_task_result(told, block=True).result.startswith("ValueError('bad 3'")
    # It waits for a chunk that has not ended, and the value stays until it has been taken.  Item 7 waits for the file
    # too: behind a slow item it would run elsewhere.
    job = tc.map(wait_for_file, [*range(7), 20, *range(8, 20)], [str(tmp_path / "go")] * 20, chunksize=20, block=False)
    later = tc.run(Task(f"{gate.code}\nseen = value", pull="seen", push={"value": Ref(job.ids[7])}))
    assert "waits for" in tc.explain(later)
    (tmp_path / "go").touch()
    tc.barrier(job.ids)
    eventually(lambda: tc.status(later).state == "running", DEADLINE_S, what="it runs")
    with pytest.raises(KeyError, match=f"still need the result of task {job.ids[7]}"):
        tc.clear(job.ids[5:9])
    assert tc.clear() >= 16
    gate.open()
    assert tc.get_task_result(later, block=True).ns.seen == 20
    assert tc.clear(job.ids[7]) == 1


def test_imap_has_rules_too(tc: TaskClient) -> None:
    assert list(tc.imap(abs, range(-5, 0), name="some", retries=1)) == [5, 4, 3, 2, 1]
    found = list(tc.imap(lambda x: 1 // x, [1, 0, 1], on_error="return"))
    assert [type(x).__name__ for x in found] == ["int", "ZeroDivisionError", "int"]


def test_a_map_outlives_its_controller(tmp_path: Path) -> None:
    with Farm(n=1, name="map-restart") as farm, farm.task_client() as tc:
        job = tc.map(wait_for_file, range(30), [str(tmp_path / "go")] * 30, name="sweep", chunksize=10, block=False)
        eventually(lambda: tc.status(job.ids[0]).state == "running", DEADLINE_S, what="the first item runs")
        tc.abort(job.ids[15])
        state = ask(farm, messages.FarmStatus())
        assert isinstance(state, FarmState)
        os.kill(state.pid, signal.SIGKILL)
        (tmp_path / "go").touch()
        found = list(job.results(return_exceptions=True))
        assert [x for x in range(30) if found[x] != x] == [15]
        assert list(tc.job("sweep").results(return_exceptions=True))[16:] == list(range(16, 30))


def test_rows_of_a_table_name_tasks_where_ids_do(tc: TaskClient) -> None:
    job = tc.map(lambda x: 1 // x, [0, 1, 0], block=False)
    job.wait()
    failed = tc.tasks(ids=job.ids, state="failed")
    assert failed[0].id == job.ids[0]
    assert len(tc.retry(failed[:1])) == 1
    assert tc.clear(failed[1]) == 1


def test_a_range_of_ids_means_only_the_items_in_it(tc: TaskClient, farm: Farm) -> None:
    """The ids of chunks lie between those of their items, and nobody sees them."""
    job = tc.map(abs, range(40), chunksize=10, block=False, name="ranges")
    assert list(job.results()) == list(range(40))
    shown = sorted(job.ids)
    hidden = next(i for i in range(shown[0], shown[-1]) if i not in shown)  # the next chunk's own id
    before, behind = [i for i in shown if i < hidden], [i for i in shown if i > hidden]
    with pytest.raises(KeyError, match=str(hidden)):
        tc.clear(range(shown[0], hidden + 1))
    assert [row.id for row in tc.tasks(ids=shown).rows] == behind, before
    with pytest.raises(IndexError, match=str(hidden)):
        tc.restart(range(hidden, hidden + 2))
    newest = max(row.id for row in tc.tasks().rows)
    with farm.task_client() as other:
        others = [other.run(Task(f"a = {n}", pull="a")) for n in range(30)]
        other.barrier(others, timeout=DEADLINE_S)
        assert [other.get_task_result(i)["a"] for i in others] == list(range(30))
        assert newest not in others
    tc.clear(behind)
