"""Test the lane: order, recall, cells of the console between tasks, MultiEngine commands, the end."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from ipytaskfarm.core.messages import CommandDone, EngineCommand, PropertiesChanged, Returned
from ipytaskfarm.core.messages.engine_commands import ExecuteBody, ExecuteReply, PropertiesBody, PushBody
from ipytaskfarm.core.messages.payload import CallWork, FailureBody, StringWork
from ipytaskfarm.serialization.pack import pack, pack_function, unpack
from tests.support.fake_agent import FakeAgent, FakeEngine, Outcome
from tests.support.polling import eventually


@pytest.fixture
def engine(agent: FakeAgent) -> FakeEngine:
    """A fresh engine: it takes 50 ms."""
    return agent.start_engine()


@pytest.fixture
def console(engine: FakeEngine) -> Iterator[BlockingKernelClient]:
    """A client attached to the engine, as `jupyter console --existing` is."""
    client = BlockingKernelClient(connection_file=str(engine.connection_file))
    client.load_connection_file()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield client
    client.stop_channels()


def execute(engine: FakeEngine, lines: str, sticky: bool = False, **name: Any) -> ExecuteReply:
    done = engine.command("execute", msgspec.msgpack.encode(ExecuteBody(lines, sticky)), **name)
    assert done.ok, failure_of(done)
    return msgspec.msgpack.decode(done.body, type=ExecuteReply)


def push(values: dict[str, Any], sticky: bool = False) -> bytes:
    return msgspec.msgpack.encode(PushBody(pack(values), sticky))


def failure_of(done: CommandDone) -> FailureBody:
    assert not done.ok
    return msgspec.msgpack.decode(done.body, type=FailureBody)


def pull(engine: FakeEngine, *names: str) -> list[Any]:
    done = engine.command("pull", msgspec.msgpack.encode(names))
    assert done.ok, failure_of(done)
    values = unpack(done.body)
    assert isinstance(values, list)
    return values


@pytest.mark.parametrize(
    "lines",
    [
        "import os; os.environ = os.environ.copy()",
        "import os; os.close(0)",
        "import logging; logging.root.handlers = 5",
    ],
)
def test_a_command_leaves_what_cannot_be_kept(engine: FakeEngine, lines: str) -> None:
    execute(engine, f"kept = 1; {lines}")
    code = "import os, subprocess, sys; r = kept, type(os.environ).__name__, subprocess.call('true'), sys.stdin.read()"
    assert engine.run(code, "r").value == {"r": (1, "_Environ", 0, "")}


def properties(engine: FakeEngine, op: str, **fields: Any) -> CommandDone:
    return engine.command("properties", msgspec.msgpack.encode(PropertiesBody(op, **fields)))


# -- runs


def test_runs_in_order(engine: FakeEngine) -> None:
    keys = engine.hand(StringWork("seen = []"), *[StringWork(f"seen.append({i})") for i in range(300)])
    engine.ended(keys[-1])
    assert engine.run("pass", "seen").value == {"seen": list(range(300))}
    starts = [engine.results[key].started_s for key in keys]
    assert starts == sorted(starts)


def test_recall_while_a_task_runs(engine: FakeEngine) -> None:
    code = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.001)"
    keys = engine.hand(StringWork(code), *[StringWork("a = 1")] * 4)
    engine.wait_running(keys[0])
    engine.recall([keys[0], keys[2], keys[4], (99, 1)])
    assert engine.wait(Returned).runs == [keys[2], keys[4]]
    (engine.agent.folder / "go").touch()
    for key in (keys[0], keys[1], keys[3]):
        assert engine.ended(key).outcome == ""
    assert keys[2] not in engine.results
    (engine.agent.folder / "go").unlink()
    assert engine.run("b = 1", "b").value == {"b": 1}


def test_a_function_is_sent_once(engine: FakeEngine) -> None:
    function = pack_function(eval("lambda x: x + 1", {"__name__": "__main__"}))
    work = CallWork(pack(((1,), {})))
    (first,) = engine.hand(work, functions=[function], function=function.digest)
    (second,) = engine.hand(work, function=function.digest)
    assert Outcome(engine.ended(first)).value == Outcome(engine.ended(second)).value == 2
    (third,) = engine.hand(work, function="never heard of")
    returned = engine.wait(Returned)
    assert (returned.runs, returned.why) == ([third], "unknown function")


def test_a_result_is_announced_before_a_long_task_that_follows(engine: FakeEngine) -> None:
    keys = engine.hand(*[StringWork("a = 1")] * 5, StringWork("import time; time.sleep(1)"))
    for key in keys[:5]:
        engine.ended(key, timeout_s=0.8)
    assert keys[5] not in engine.results


def test_exit_ends_the_running_task_and_returns_the_rest(agent: FakeAgent, engine: FakeEngine) -> None:
    keys = engine.hand(StringWork("import time; time.sleep(0.3)\na = 1", ("a",)), *[StringWork("b = 1")] * 3)
    engine.wait_running(keys[0])
    engine.exit()
    assert engine.wait(Returned).runs == keys[1:]
    assert Outcome(engine.ended(keys[0])).value == {"a": 1}
    assert agent.exited(engine)["status"] == 0
    assert not engine.connection_file.exists()
    assert not list(agent.folder.glob(f"kernel-{engine.counter}-*"))


def test_exit_runs_what_was_registered_for_it(agent: FakeAgent, engine: FakeEngine) -> None:
    engine.run("import atexit, pathlib; atexit.register(pathlib.Path('was-here').touch)")
    engine.exit()
    assert agent.exited(engine)["status"] == 0
    assert (agent.folder / "was-here").exists()


def test_the_end_of_its_agent_leaves_no_words(agent: FakeAgent, engine: FakeEngine) -> None:
    """What the engine writes then is shown as the last output of the user's task."""
    key = engine.hand(StringWork("import time; time.sleep(60)"))[0]
    engine.wait_running(key)
    agent.lane._by_engine[engine.name].stream.sock.shutdown(socket.SHUT_RDWR)
    assert agent.exited(engine)["status"] != 0
    assert engine.output.read_text() == ""


# -- the console


def test_a_console_sees_what_tasks_left(engine: FakeEngine, console: BlockingKernelClient) -> None:
    engine.run("left = 41")
    seen: list[dict[str, Any]] = []
    reply = console.execute_interactive("print(left + 1)", timeout=60, output_hook=seen.append)
    assert reply["content"]["status"] == "ok"
    assert "42\n" in [message["content"].get("text") for message in seen]
    console.execute_interactive("import os; os.environ['MINE'] = '1'; made = 1", timeout=60)
    # What a person does by hand becomes the baseline, and a task's output is not the console's.
    assert engine.run("x = made, os.environ['MINE']\nprint('task')", "x").value == {"x": (1, "1")}
    seen.clear()
    console.execute_interactive("os.write(1, b'raw\\n')", timeout=60, output_hook=seen.append)
    assert [message["content"]["text"] for message in seen if message["msg_type"] == "stream"] == ["raw\n"]
    assert engine.run("a = 1").body.stdout == ""


def test_cells_and_tasks_exclude_one_another(engine: FakeEngine, console: BlockingKernelClient) -> None:
    code = "import asyncio\nmine = 'cell'\nawait asyncio.sleep(0.3)\nseen = mine"
    console.execute(code)
    eventually(lambda: console.get_iopub_msg(timeout=60)["msg_type"] == "execute_input", what="the cell has begun")
    outcome = engine.run("mine = 'task'", "mine")
    assert outcome.value == {"mine": "task"}
    assert engine.run("pass", "seen").value == {"seen": "cell"}


def test_a_console_gets_through_a_stream_of_tasks(engine: FakeEngine, console: BlockingKernelClient) -> None:
    keys = engine.hand(*[StringWork(f"a = {i}\nfor _ in range(20_000): pass") for i in range(5000)])
    engine.ended(keys[50])
    reply = console.execute_interactive("b = 1", timeout=60, output_hook=lambda message: None)
    assert reply["content"]["status"] == "ok"
    engine.collect()
    assert keys[-1] not in engine.results
    engine.ended(keys[-1])


def test_exit_in_a_console_does_not_end_the_engine(engine: FakeEngine, console: BlockingKernelClient) -> None:
    console.execute_interactive("exit()", timeout=60, output_hook=lambda message: None)
    assert engine.run("a = 1", "a").value == {"a": 1}


def test_no_tcp_port_is_open(engine: FakeEngine) -> None:
    import psutil

    engine.run("a = 1")
    assert psutil.Process(engine.pid).net_connections("inet") == []


# -- commands


def test_execute_push_pull_keys(engine: FakeEngine) -> None:
    reply = execute(engine, "print('out'); import sys; print('err', file=sys.stderr)\na = 5\na + 1")
    assert (reply.id, reply.number, reply.stdout, reply.stderr) == (3, 1, "out\n", "err\n")
    assert [output["data"] for output in reply.display] == [{"text/plain": "6"}]
    assert execute(engine, "%time b = _ + Out[1]").translated.startswith("get_ipython()")
    assert pull(engine, "a", "b") == [5, 12]
    assert engine.command("push", push({"c": [1]})).body == b""
    assert msgspec.msgpack.decode(engine.command("keys").body) == ["sys", "a", "b", "c"]
    assert engine.run("d = c + [2]", "d").value == {"d": [1, 2]}
    assert failure_of(engine.command("pull", msgspec.msgpack.encode(["nope"]))).etype == "NameError"
    engine.command("push", push({"lock": None}))
    execute(engine, "import threading; lock = threading.Lock()")
    assert "'lock'" in failure_of(engine.command("pull", msgspec.msgpack.encode(["a", "lock"]))).value
    execute(engine, "import asyncio\nawait asyncio.sleep(0.01)\nslept = 1")
    assert pull(engine, "slept") == [1]
    assert failure_of(engine.command("dance")).etype == "KernelError"


def test_get_result(engine: FakeEngine) -> None:
    assert failure_of(engine.command("get_result", msgspec.msgpack.encode(None))).etype == "IndexError"
    first, second = execute(engine, "1"), execute(engine, "2")
    assert engine.command("get_result", msgspec.msgpack.encode(1)).body == msgspec.msgpack.encode(first)
    assert engine.command("get_result", msgspec.msgpack.encode(None)).body == msgspec.msgpack.encode(second)
    assert failure_of(engine.command("get_result", msgspec.msgpack.encode(7))).etype == "IndexError"


def test_commands_go_before_tasks(engine: FakeEngine) -> None:
    keys = engine.hand(StringWork("import time; time.sleep(0.2)"), StringWork("seen = flag", ("seen",)))
    engine.wait_running(keys[0])
    engine.post("push", push({"flag": "by command"}))
    assert Outcome(engine.ended(keys[1])).value == {"seen": "by command"}


def test_a_failure_clears_what_waits_behind_it_of_the_same_session(engine: FakeEngine) -> None:
    (task,) = engine.hand(StringWork("import time; time.sleep(0.2)"))
    engine.wait_running(task)
    bad = engine.post("execute", msgspec.msgpack.encode(ExecuteBody("1/0")), "alice")
    mine = engine.post("push", push({"x": 1}), "alice")
    theirs = engine.post("push", push({"y": 1}), "bob")
    assert failure_of(engine.wait_command(bad)).etype == "ZeroDivisionError"
    assert failure_of(engine.wait_command(mine)).etype == "QueueCleared"
    assert engine.wait_command(theirs).ok
    assert engine.command("push", push({"x": 2}), "alice").ok
    assert engine.ended(task).outcome == ""


def test_a_failure_of_the_farms_own_clears_nothing(engine: FakeEngine) -> None:
    (task,) = engine.hand(StringWork("import time; time.sleep(0.2)"))
    engine.wait_running(task)
    bad = engine.post("execute", msgspec.msgpack.encode(ExecuteBody("1/0")), "")
    good = engine.post("execute", msgspec.msgpack.encode(ExecuteBody("x = 1")), "")
    assert not engine.wait_command(bad).ok
    assert engine.wait_command(good).ok


def test_a_command_that_comes_twice_is_run_once(engine: FakeEngine) -> None:
    execute(engine, "count = 0")
    body = msgspec.msgpack.encode(ExecuteBody("count += 1"))
    name = engine.post("execute", body, "alice", 100)
    first = engine.wait_command(name)
    del engine.done[name]
    engine.post("execute", body, "alice", 100)
    assert engine.wait_command(name) == first
    assert pull(engine, "count") == [1]


def replay(engine: FakeEngine, verb: str, body: bytes, n: int) -> CommandDone:
    """Do again what client "client" has done by hand under this number."""
    engine.send(EngineCommand(engine.name, "", -n, verb, body, ("client", n)))
    engine.wait_command(("", -n))
    return engine.done.pop(("", -n))


def test_what_is_done_again_is_not_sticky_and_done_once(engine: FakeEngine) -> None:
    assert replay(engine, "push", push({"x": 1}), 5).ok
    increment = msgspec.msgpack.encode(ExecuteBody("x += 1"))
    assert replay(engine, "execute", increment, 6).ok
    again = replay(engine, "execute", increment, 6)
    by_hand = engine.command("execute", increment, session="client", n=6)
    assert [(each.session, each.n, each.ok) for each in (again, by_hand)] == [("", -6, True), ("client", 6, True)]
    assert pull(engine, "x") == [2]
    engine.command("reset")
    assert not engine.command("pull", msgspec.msgpack.encode(["x"])).ok


def test_a_missing_name_tells_what_was_lost(engine: FakeEngine) -> None:
    engine.command("replaces", msgspec.msgpack.encode("engine 1 is the replacement of one which was lost"))
    missing = (("execute", msgspec.msgpack.encode(ExecuteBody("x"))), ("pull", msgspec.msgpack.encode(["x"])))
    for verb, body in missing:
        assert "the replacement of one which was lost" in failure_of(engine.command(verb, body)).traceback
    assert (
        "replacement"
        not in failure_of(engine.command("execute", msgspec.msgpack.encode(ExecuteBody("1 / 0")))).traceback
    )
    engine.command("reset")
    for verb, body in missing:
        assert "replacement" not in failure_of(engine.command(verb, body)).traceback, "it was emptied on purpose"


def test_sticky_names_come_back(engine: FakeEngine) -> None:
    execute(engine, "import math\nbase = 10", sticky=True)
    execute(engine, "start = 'up'", session="")
    engine.command("push", push({"pushed": 1}, sticky=True))
    execute(engine, "other = 1; base = 11")
    engine.run("pass", clear_before=True)
    code = "x = math.floor(2.5) + base + pushed, start, 'other' in globals()"
    assert engine.run(code, "x").value == {"x": (13, "up", False)}
    assert engine.command("reset").ok
    assert engine.run(code, "x").value == {"x": (13, "up", False)}
    assert execute(engine, "1").number == 1


def test_what_commands_do_to_the_surroundings_stays(engine: FakeEngine) -> None:
    execute(engine, "import os; os.environ['SET'] = 'by mec'; os.chdir('/')")
    engine.run("import os; os.chdir('/tmp'); del os.environ['SET']")
    assert engine.run("x = os.getcwd(), os.environ['SET']", "x").value == {"x": ("/", "by mec")}


@pytest.mark.parametrize("code", ["exit()", "raise SystemExit", "raise KeyboardInterrupt", "input()"])
def test_commands_do_not_end_the_engine(engine: FakeEngine, code: str) -> None:
    assert not engine.command("execute", msgspec.msgpack.encode(ExecuteBody(code))).ok
    assert engine.run("a = 1", "a").value == {"a": 1}


# -- properties


def test_properties_by_command(engine: FakeEngine) -> None:
    assert properties(engine, "set", packed=pack({"RAM": 2**33, "gpu": None})).ok
    told = engine.wait(PropertiesChanged)
    assert (told.engine, told.version, unpack(told.packed)) == (engine.name, 1, {"RAM": 2**33, "gpu": None})
    assert unpack(properties(engine, "get").body) == {"RAM": 2**33, "gpu": None}
    assert unpack(properties(engine, "get", keys=["RAM"]).body) == {"RAM": 2**33}
    assert unpack(properties(engine, "get", facts=True).body)["id"] == 3
    assert unpack(properties(engine, "has", keys=["RAM", "x"]).body) == [True, False]
    assert failure_of(properties(engine, "get", keys=["x"])).etype == "KeyError"
    assert failure_of(properties(engine, "del", keys=["gpu", "x"])).etype == "KeyError"
    assert unpack(properties(engine, "has", keys=["gpu"]).body) == [True]
    assert properties(engine, "del", keys=["gpu"]).ok
    assert unpack(engine.wait(PropertiesChanged).packed) == {"RAM": 2**33}
    assert failure_of(properties(engine, "set", packed=pack({"hostname": "x"}))).etype == "InvalidProperty"
    engine.command("reset")
    assert unpack(properties(engine, "get").body) == {"RAM": 2**33}
    assert properties(engine, "clear").ok
    assert engine.wait(PropertiesChanged).version == 3


def test_properties_from_a_task(engine: FakeEngine) -> None:
    code = "from ipytaskfarm.engine import get_engine\nget_engine(id).properties['RAM'] = 5"
    assert engine.run(code).value == {}
    code = "f = get_engine(3).facts['node']"
    assert engine.run(code, "f").value == {"f": "testnode"}
    told = engine.wait(PropertiesChanged)
    assert (told.version, unpack(told.packed)) == (1, {"RAM": 5})
    (key,) = engine.hand(StringWork("a = 1"), properties_version=1)
    assert engine.ended(key).outcome == ""
    assert engine.run("get_engine(4)").failure.etype == "InvalidEngineID"
    refused = "import threading\nget_engine(3).properties.update(a=1, b=threading.Lock())"
    assert engine.run(refused).failure.etype == "InvalidProperty"
    assert engine.run("x = dict(get_engine(3).properties)", "x").value == {"x": {"RAM": 5}}


def test_get_engine_outside_of_an_engine() -> None:
    from ipytaskfarm.core.errors import InvalidEngineID
    from ipytaskfarm.engine import get_engine

    with pytest.raises(InvalidEngineID, match="this process is no engine"):
        get_engine(0)


def test_endless_output_of_children_does_not_fill_the_memory(engine: FakeEngine) -> None:
    import psutil

    code = "import subprocess, time\np = subprocess.Popen(['yes'])\ntime.sleep(0.7)\np.kill(); p.wait()"
    (key,) = engine.hand(StringWork(code))
    engine.wait_running(key)
    deadline = time.monotonic() + 0.6
    largest = 0
    while time.monotonic() < deadline:
        largest = max(largest, psutil.Process(engine.pid).memory_info().shared, _descriptor_bytes(engine.pid))
        time.sleep(0.02)
    body = Outcome(engine.ended(key)).body
    assert body.stdout.startswith("y\ny\n")
    assert "characters left out" in body.stdout
    assert len(body.stdout) < 140_000
    assert largest < 2 << 30


def _descriptor_bytes(pid: int) -> int:
    return os.stat(f"/proc/{pid}/fd/1").st_size
