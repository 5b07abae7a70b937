"""The client against a controller with canned answers: submitting, waiting, fetching, restarts, refusals."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipytaskfarm import client as client_module
from ipytaskfarm.client import (
    MultiEngineClient,
    StringTask,
    Task,
    TaskClient,
    io as io_module,
    outbox,
    session as session_module,
)
from ipytaskfarm.core import errors, messages as m
from ipytaskfarm.core.messages import payload
from ipytaskfarm.core.messages.task_types import RESULT_CACHE, Final, KeptResults, Packed, Submission
from ipytaskfarm.serialization.pack import pack
from ipytaskfarm.transport import wire
from tests.support.fake_hub_controller import FakeController, final, in_thread, names
from tests.support.polling import DEADLINE_S, eventually


@pytest.fixture
def tc(fake: FakeController) -> TaskClient:
    return TaskClient(str(fake.connection_file))


@pytest.fixture
def mec(fake: FakeController) -> MultiEngineClient:
    return MultiEngineClient(str(fake.connection_file))


# Connecting


def test_a_farm_that_is_not_there_is_named(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(errors.FarmNotRunning, match=r"nowhere.*ipytaskfarm start --farm nowhere"):
        TaskClient("nowhere")
    with pytest.raises(errors.FarmNotRunning, match=r"gone\.json"):
        TaskClient(tmp_path / "gone.json")
    assert time.monotonic() - began < DEADLINE_S


def test_a_stale_connection_file_is_no_hang(tmp_path: Path) -> None:
    with FakeController(tmp_path / "farm") as fake:
        fake.stop()
        began = time.monotonic()
        with pytest.raises(errors.FarmNotRunning, match="ipytaskfarm start --farm fake"):
            TaskClient(fake.connection_file, timeout=0.7)
        assert time.monotonic() - began < DEADLINE_S


def test_clients_of_one_process_share_a_session(fake: FakeController, tc: TaskClient) -> None:
    other = TaskClient(("127.0.0.1", fake.port), key_file=fake.connection_file)
    assert other._session is tc._session
    other.close()
    other.close()
    assert tc.run(Task("a")) == 0
    session = tc._session
    tc.close()
    assert not session.io.thread.is_alive()
    with pytest.raises(errors.ConnectionError, match="closed"):
        tc.run(Task("a"))
    with TaskClient(fake.connection_file) as again:
        assert again.run(Task("a")) > 0
        assert "fake" in repr(again)


def test_default_task_address() -> None:
    assert client_module.default_task_address == ("127.0.0.1", 10113)
    with pytest.raises(AttributeError):
        _ = client_module.no_such_name


# Submitting, waiting, fetching


def test_quick_start(fake: FakeController, tc: TaskClient) -> None:
    fake.respond = lambda task: final(task.id, body=names(a=task.id))
    ids = [tc.run(Task(f"a = {n}", pull="a")) for n in range(1000)]
    assert ids == list(range(1000))
    assert tc.barrier(ids) is None
    results = [tc.get_task_result(i) for i in ids]
    assert [r.results["a"] for r in results] == ids
    assert repr(results[73]) == "TaskResult[ID:73]:{'a': 73}"
    assert list(fake.submitted) == ids
    # A loop of `run` calls must not be a message each.
    assert fake.count(m.Submit) < 500


def test_not_a_task_uses_no_id(tc: TaskClient) -> None:
    for wrong in (5, "a = 1", None):
        with pytest.raises(TypeError, match="Task"):
            tc.run(wrong)
    with pytest.raises(errors.UnpickleableException):
        tc.run(StringTask("a", push={"g": threading.Lock()}))
    assert tc.run(Task("a")) == 0


def test_unfinished_gives_none_and_block_waits(fake: FakeController, tc: TaskClient) -> None:
    fake.respond = lambda task: None
    task_id = tc.run(Task("a"))
    assert tc.get_task_result(task_id, block=False) is None
    with pytest.raises(TimeoutError):
        tc.get_task_result(task_id, block=True, timeout=0.05)
    with pytest.raises(TimeoutError):
        tc.barrier(timeout=0.05)
    _, found = in_thread(lambda: tc.get_task_result(task_id, block=True))
    fake.finals[task_id] = final(task_id, body=names(a=1))
    fake.say(m.Finals([fake.finals[task_id]]))
    eventually(lambda: found)
    assert found[0].results == {"a": 1}


def test_ids_of_all_forms(fake: FakeController, tc: TaskClient) -> None:
    ids = [tc.run(Task("a")) for _ in range(5)]
    tc.barrier(ids[0])
    tc.barrier([])
    tc.barrier(range(5))
    tc.barrier(i for i in ids)
    tc.barrier({1, 2})
    for wrong in (True, 1.5, "1", [None]):
        with pytest.raises(TypeError, match="integer task id"):
            tc.barrier(wrong)
    assert tc.wait(ids) == (ids, [])


def test_unknown_ids(fake: FakeController, tc: TaskClient) -> None:
    tc.run(Task("a"))
    for call in (tc.barrier, tc.get_task_result, lambda i: tc.get_task_result(i, block=True), tc.wait):
        with pytest.raises(IndexError, match="99"):
            call(99)


def test_a_task_of_another_client(fake: FakeController, tc: TaskClient) -> None:
    fake.submitted[70_000] = Submission(70_000, b"", 0.0)
    assert tc.get_task_result(70_000, block=False) is None
    thread, found = in_thread(lambda: tc.barrier(70_000))
    eventually(lambda: fake.count(m.WatchTasks) == 1)
    assert not found
    # The end of a watched task is told in short, the result is fetched.
    fake.finals[70_000] = final(70_000, body=names(a=5))
    fake.say(m.Finals([final(70_000, body=None)]))
    thread.join(60)
    assert found == [None]
    assert tc.get_task_result(70_000).ns.a == 5
    fake.finals[70_001] = final(70_001, body=names(a=6))
    assert tc.get_task_result(70_001)["a"] == 6


def test_a_kept_value_ends_the_call_that_wants_it_and_no_other_wait(fake: FakeController, tc: TaskClient) -> None:
    fake.respond = lambda task: None
    body = msgspec.msgpack.encode(payload.ResultBody(value=pack(9), kind="call"))
    kept = final(0, body=body, engine_id=-1, node=RESULT_CACHE, attempts=0)
    square = tc.cached(lambda x: x * x)
    _, found = in_thread(lambda: square(3))
    eventually(lambda: 0 in fake.submitted)
    fake.say(KeptResults([msgspec.structs.replace(kept, id=5)]))
    fake.say(KeptResults([kept]))
    eventually(lambda: found)
    assert found == [9]
    assert square.last_id == 0
    assert tc.get_task_result(0, block=False) is None
    with pytest.raises(TimeoutError):
        tc.barrier(timeout=0.05)
    fake.say(m.Finals([kept]))
    tc.barrier(timeout=DEADLINE_S)
    assert tc.get_task_result(0).result == 9


def test_wait_first_and_as_completed(fake: FakeController, tc: TaskClient) -> None:
    fake.respond = lambda task: None
    ids = [tc.run(Task("a")) for _ in range(4)]
    assert tc.wait(ids, timeout=0) == ([], ids)
    _, found = in_thread(lambda: tc.wait(ids, return_when="first"))
    completed = tc.as_completed(ids)
    fake.say(m.Finals([final(2)]))
    eventually(lambda: found)
    assert found == [([2], [0, 1, 3])]
    assert next(completed) == 2
    fake.say(m.Finals([final(3), final(0)]))
    assert [next(completed), next(completed)] == [3, 0]
    with pytest.raises(TimeoutError):
        list(tc.as_completed(ids, timeout=0.05))
    fake.say(m.Finals([final(1)]))
    assert list(completed) == [1]
    with pytest.raises(ValueError, match="return_when"):
        tc.wait(ids, return_when="some")  # type: ignore[arg-type]


def test_the_cache_is_bounded_and_fetches_again(fake: FakeController, tc: TaskClient) -> None:
    tc._session.arrivals._cache_bytes_max = 200_000
    fake.respond = lambda task: final(task.id, body=names(a=b"x" * 1000))
    ids = [tc.run(Task("a", pull="a")) for _ in range(1000)]
    tc.barrier(ids)
    assert len(tc._session.arrivals.finals) < 250
    assert all(len(tc.get_task_result(i)["a"]) == 1000 for i in ids)
    # A loop over results asks for the next ones too.
    assert fake.count(m.FetchResults) < 200


def test_results_that_were_only_told_of_are_fetched(fake: FakeController, tc: TaskClient) -> None:
    fake.push = False
    fake.respond = lambda task: final(task.id, body=names(a=task.id))
    ids = [tc.run(Task("a", pull="a")) for _ in range(20)]
    eventually(lambda: len(fake.finals) == 20)
    fake.say(m.Finals([final(i, body=None) for i in ids]))
    tc.barrier(ids)
    assert [tc.get_task_result(i)["a"] for i in ids] == ids


def test_several_threads(fake: FakeController, tc: TaskClient) -> None:
    def submit() -> list[int]:
        return [tc.run(Task("a")) for _ in range(500)]

    threads = [in_thread(submit) for _ in range(4)]
    for thread, _ in threads:
        thread.join(60)
    ids = [i for _, (found,) in threads for i in found]
    assert sorted(ids) == list(range(2000))
    tc.barrier(timeout=60)
    assert list(fake.submitted) == list(range(2000))


def test_commands_and_questions_keep_their_place_among_tasks(
    fake: FakeController, tc: TaskClient, mec: MultiEngineClient
) -> None:
    tc.run(Task("first"))
    tc.flush()
    fake.heard.clear()
    tc.run(Task("before"))
    mec.push({"a": 1}, targets=0, block=False)
    tc.run(Task("after"))
    tc.queue_status()
    tc.flush()
    kinds = [type(getattr(h, "question", h)).__name__ for h in fake.heard]
    assert kinds == ["Submit", "SendCommand", "Submit", "QueueStatus"]


# Restarts and refusals


def test_a_restart_loses_nothing(fake: FakeController, tc: TaskClient) -> None:
    """After the controller's restart every id ends exactly once, whether it was accepted or reported before."""
    seen: list[int] = []

    def respond(task: Submission) -> Final:
        seen.append(task.id)
        return final(task.id, body=names(a=task.id))

    fake.respond = respond
    fake.push = False  # what ended before the restart is told by nobody
    told = [tc.run(Task("a")) for _ in range(50)]
    tc.flush()
    fake.mute = True  # and this is not even accepted
    lost = [tc.run(Task("a")) for _ in range(50)]
    eventually(lambda: fake.count(m.Submit) >= 2)

    def wait_and_look() -> dict[str, Any]:
        tc.barrier()
        return tc.queue_status()

    thread, found = in_thread(wait_and_look)
    fake.stop()
    fake.mute = False
    fake.start()
    tc.barrier(timeout=60)
    thread.join(60)
    assert found[0]["succeeded"] == 100
    assert [tc.get_task_result(i)["a"] for i in told + lost] == told + lost
    assert sorted(seen) == sorted(told + lost)


def test_accepted_but_not_told_so(fake: FakeController, tc: TaskClient) -> None:
    """The acceptance was lost with the controller, and the task ended while the client was disconnected."""
    tc.barrier(tc.run(Task("a")))
    fake._hub.send = lambda *_, **__: False  # type: ignore[method-assign]
    task_id = tc.run(Task("a"))
    eventually(lambda: task_id in fake.finals)
    fake.restart()
    tc.barrier(task_id, timeout=60)
    tc.flush(timeout=60)
    assert tc.get_task_result(task_id).taskid == task_id


def test_another_farm_under_the_same_name(fake: FakeController, tc: TaskClient) -> None:
    fake.respond = lambda task: None
    tc.run(Task("a"))
    _, found = in_thread(tc.barrier)
    fake.stop()
    fake.incarnation = "another"
    fake.start()
    eventually(lambda: found)
    assert isinstance(found[0], errors.FarmReplaced)
    with pytest.raises(errors.FarmReplaced):
        tc.run(Task("a"))
    with TaskClient(fake.connection_file) as fresh:
        assert fresh.run(Task("a")) == 1024


def test_futures_of_a_farm_that_was_replaced(fake: FakeController, tc: TaskClient) -> None:
    """Whoever waits for one is told: asyncio asks an ended future for its exception, which must not raise."""
    fake.respond = lambda task: None
    future = tc.submit(abs, -1)

    async def wait() -> None:
        await future

    _, found = in_thread(lambda: asyncio.run(wait()))
    eventually(lambda: fake.count(m.Submit) >= 1)
    fake.stop()
    fake.incarnation = "another"
    fake.start()
    eventually(lambda: found)
    for error in (found[0], future.exception()):
        assert isinstance(error, errors.ConnectionError)
        assert "another farm answers under the name 'fake' now" in str(error)
    with pytest.raises(errors.ConnectionError, match="another farm"):
        future.result()


def test_a_stopped_farm_ends_the_waiting(
    fake: FakeController, tc: TaskClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(io_module, "GONE_S", 0.3)
    monkeypatch.setattr(io_module, "NOTICE_S", 0.1)
    fake.respond = lambda task: None
    task_id = tc.run(Task("a"))
    tc.flush()
    fake.stop()
    fake.connection_file.unlink()
    with pytest.raises(errors.FarmNotRunning, match="was stopped"):
        tc.barrier()
    assert capsys.readouterr().err.count("does not answer") == 1
    # It is only asleep: once the farm is back, so is everything else.
    fake.start()
    fake.finals[task_id] = final(task_id)
    eventually(lambda: tc._session.io.down_since_s is None)
    tc.barrier(timeout=60)


def test_a_full_disk(fake: FakeController, tc: TaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FULL_RETRY_S", 0.05)
    first = tc.run(Task("a"))
    tc.flush()
    fake.full = "no room on the disk"
    kept = [tc.run(Task("a")) for _ in range(3000)]
    with pytest.raises(errors.StoreFull, match="no room"):
        tc.flush()
    with pytest.raises(errors.StoreFull, match="no room"):
        tc.barrier()
    tc.barrier(first)  # what was accepted is safe
    assert tc.queue_status()["succeeded"] == 1
    # While it is full, one chunk is enough to find out.
    sent = fake.count(m.Submit)
    eventually(lambda: fake.count(m.Submit) > sent + 2)
    assert all(len(h.tasks) <= outbox.CHUNK_TASKS for h in fake.heard if isinstance(h, m.Submit))
    fake.full = None
    eventually(lambda: _flushed(tc))
    tc.barrier(timeout=60)
    assert list(fake.submitted) == [first, *kept]


def _flushed(tc: TaskClient) -> bool:
    try:
        tc.flush(timeout=1)
    except errors.StoreFull:
        return False
    return True


def test_a_full_outbox_waits_and_says_why(
    fake: FakeController, tc: TaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "LIMIT_BYTES", 10_000)
    tc.run(Task("a"))
    tc.flush()
    fake.mute = True

    def submit() -> list[int]:
        return [tc.run(Task("a" * 1000)) for _ in range(100)]

    thread, found = in_thread(submit)
    eventually(lambda: tc._session._outbox.size_bytes > 10_000)
    assert not found
    fake.mute = False
    fake.restart()
    thread.join(60)
    assert found == [list(range(1, 101))]
    fake.full = "no room"
    with pytest.raises(errors.StoreFull):
        submit()


def test_a_task_too_large_to_travel_is_refused_here(tc: TaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "PAYLOAD_BYTES_MAX", 10_000)
    with pytest.raises(errors.ResultTooLarge, match="20,"):
        tc.run(Task("a" * 20_000))
    assert tc.run(Task("a")) == 0


def test_tasks_that_are_too_large_together_travel_in_parts(tc: TaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller takes a message into its store in one commit, so their rules count too."""
    monkeypatch.setattr(wire, "message_bytes_max", lambda role: 20_000)
    ids = [tc.run(Task("a", name="n" * 1000)) for _ in range(100)]
    tc.flush()
    assert ids == list(range(100))


def test_an_interrupt_leaves_no_gap_in_the_ids() -> None:
    """The controller takes the ids of a block one after the other: a lost one would hold up all that follow."""
    box = outbox.Outbox()
    box.block_came(m.IdBlock(10, 19))
    assert box.has_id()
    assert box.add(Packed(b""), 0.0) == 10
    box.next_id = 10  # as if Ctrl-C had come between queueing and counting
    assert box.add(Packed(b""), 0.0) == 11
    box.next_id = 11
    box.mark()
    assert box.next_id == 12


# Ends


def test_a_forked_child_gets_a_clear_error_and_may_begin_anew(fake: FakeController, tc: TaskClient) -> None:
    tc.run(Task("a"), block=True)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def child() -> None:
        try:
            tc.run(Task("a"))
        except errors.ConnectionError as error:
            queue.put(str(error))
        tc.close()
        with TaskClient(fake.connection_file) as own:
            queue.put(own.run(Task("b")))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = context.Process(target=child)
        process.start()
    assert "make a new TaskClient" in queue.get(timeout=60)
    assert queue.get(timeout=60) == 1024
    process.join(60)
    assert process.exitcode == 0
    assert tc.run(Task("a"), block=True) is not None


def run_script(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", text, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])


def test_exit_flushes(fake: FakeController) -> None:
    text = (
        "import sys; from ipytaskfarm import client; tc = client.TaskClient(sys.argv[1])\n"
        "for n in range(3000): tc.run(client.Task('a'))"
    )
    done = run_script(text, str(fake.connection_file))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(fake.submitted) == 3000


def test_exit_names_what_is_lost(fake: FakeController) -> None:
    text = (
        "import sys; from ipytaskfarm.client import TaskClient, Task, sessions; sessions.EXIT_FLUSH_S = 0.3\n"
        "tc = TaskClient(sys.argv[1]); tc.run(Task('a')); tc.flush(); sys.stdin.read()\n"
        "tc.run(Task('b')); tc.run(Task('c'))"
    )
    command = [sys.executable, "-c", text, str(fake.connection_file)]
    folder = Path(__file__).parents[2]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=folder) as process:
        eventually(lambda: 0 in fake.submitted, timeout_s=60.0)
        fake.full = "no room on the disk"
        _, said = process.communicate("", timeout=60)
    assert process.returncode == 0
    assert "2 tasks (ids 1 to 2) were submitted but not accepted by farm 'fake', and lost" in said
    assert "no room on the disk" in said


@pytest.mark.alone
def test_cost_of_a_run_call(fake: FakeController, tc: TaskClient) -> None:
    """A coarse guard: the real numbers are in benchmarks.  Thread time, so that other people's load does not count."""
    tc.run(Task("a"), block=True)
    count = 5000
    began = time.thread_time()
    ids = [tc.run(Task(f"a = {n}", pull="a")) for n in range(count)]
    run_s = time.thread_time() - began
    tc.barrier(ids)
    began = time.thread_time()
    for i in ids:
        tc.get_task_result(i)
    fetch_s = time.thread_time() - began
    assert run_s / count < 50e-6
    assert fetch_s / count < 50e-6


def test_no_thread_and_no_descriptor_is_left(fake: FakeController) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with TaskClient(fake.connection_file) as tc:
        tc.run(Task("a"), block=True)
    del tc
    threads, before = threading.active_count(), descriptors()
    for _ in range(3):
        with TaskClient(fake.connection_file) as tc:
            tc.run(Task("a"), block=True)
        del tc
    assert threading.active_count() == threads
    eventually(lambda: descriptors() <= before)
