"""The zygote: forks, exits, deaths up and down the chain, what engines share and what not."""

from __future__ import annotations

import os
import re
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ipytaskfarm.core.messages.payload import StringWork
from tests.support.ended import has_ended
from tests.support.fake_agent import FakeAgent, FakeEngine
from tests.support.polling import eventually


@pytest.fixture
def engine(agent: FakeAgent) -> FakeEngine:
    return agent.start_engine()


def test_a_fork_is_quick_and_says_hello(agent: FakeAgent, engine: FakeEngine) -> None:
    assert engine.hello.engine == engine.name
    assert engine.hello.pid == engine.pid
    assert engine.hello.connection_file == str(engine.connection_file)
    facts = engine.hello.facts
    assert set(facts) == {
        "id", "hostname", "cores", "memory", "platform", "os", "bits", "python", "version", "node", "started",
    }  # fmt: skip
    assert (facts["id"], facts["node"], facts["platform"]) == (3, "testnode", "linux")
    eventually(lambda: agent.start_engine().ready_s < 0.25, what="an engine that is ready within 0.25 s")


def test_processes_say_what_they_are(agent: FakeAgent, engine: FakeEngine) -> None:
    assert psutil.Process(agent.zygote.pid).cmdline()[0] == "ipytaskfarm zygote"
    assert psutil.Process(engine.pid).cmdline()[0] == "ipytaskfarm engine 3 --farm default"
    assert os.getpgid(engine.pid) == engine.pid


def test_the_zygote_has_one_thread(agent: FakeAgent) -> None:
    assert psutil.Process(agent.zygote.pid).num_threads() == 1


def test_files_are_private(engine: FakeEngine) -> None:
    for path in (engine.connection_file, engine.output, engine.stack):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_an_idle_engine_uses_no_cpu(engine: FakeEngine) -> None:
    engine.run("a = 1")
    select.select([], [], [], 0.2)  # the lane's thread looks once more
    before = sum(_switches(engine.pid))
    select.select([], [], [], 1.0)  # the time that is looked at, not a wait for something
    assert sum(_switches(engine.pid)) - before < 10


def _switches(pid: int) -> list[int]:
    counts = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        counts += [int(n) for n in re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text())]
    return counts


def test_environment_and_folder(agent: FakeAgent) -> None:
    folder = agent.folder / "start"
    folder.mkdir()
    (folder / "beside.py").write_text("value = 17\n")
    engine = agent.start_engine(7, env={"MINE": "yes", "PATH": None}, cwd=str(folder))
    code = "import os, beside; x = os.environ['MINE'], 'PATH' in os.environ, os.getcwd(), beside.value, int(id)"
    assert engine.run(code, "x").value == {"x": ("yes", False, str(folder), 17, 7)}


def test_engines_draw_different_numbers(agent: FakeAgent) -> None:
    code = "import random, uuid, tempfile, numpy\n"
    code += "x = random.random(), uuid.uuid4().hex, tempfile.mktemp(), float(numpy.random.rand())"
    drawn = [agent.start_engine().run(code, "x").value["x"] for _ in range(2)]
    assert all(a != b for a, b in zip(*drawn, strict=True))


def test_exits_are_reported_with_status_and_peak(agent: FakeAgent) -> None:
    killed, left, aborted = agent.start_engine(), agent.start_engine(), agent.start_engine()
    os.kill(killed.pid, signal.SIGKILL)
    exited = agent.exited(killed)
    assert os.waitstatus_to_exitcode(exited["status"]) == -signal.SIGKILL
    assert exited["maxrss"] > 10 << 20
    left.hand(StringWork("import os; os._exit(0)"))
    assert agent.exited(left)["status"] == 0
    assert left.recorder.current() is not None
    aborted.hand(StringWork("import ctypes; ctypes.string_at(8)"))
    assert os.waitstatus_to_exitcode(agent.exited(aborted)["status"]) == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in aborted.output.read_text()
    terminated = agent.start_engine()
    os.kill(terminated.pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(agent.exited(terminated)["status"]) == -signal.SIGTERM


def test_a_task_that_closes_the_engines_sockets_ends_it(agent: FakeAgent, engine: FakeEngine) -> None:
    (key,) = engine.hand(StringWork("import os; os.closerange(3, 256)"))
    assert agent.exited(engine)["status"] != 0
    assert key not in engine.results


def test_descriptors_used_up_fail_the_task_alone(engine: FakeEngine) -> None:
    code = "import resource; limit = resource.RLIMIT_NOFILE; files = []\n"
    code += "resource.setrlimit(limit, (60, resource.getrlimit(limit)[1]))\n"
    outcome = engine.run(code + "while True: files.append(open('/dev/null'))")
    assert outcome.failure.etype == "OSError"
    assert engine.run("a = 1", "a").value == {"a": 1}


def test_an_engine_that_cannot_start_says_why(agent: FakeAgent) -> None:
    engine = FakeEngine(agent, "feed.99", 99, 1)
    agent.engines[engine.name] = engine
    agent.ask_zygote(op="fork", **engine.request(cwd="/nowhere/at/all"))
    assert agent.exited(engine)["status"] == 1 << 8
    assert "/nowhere/at/all" in engine.output.read_text()
    agent.ask_zygote(op="fork", engine="feed.100", id="not a number")
    failed = agent.wait_zygote(lambda message: message["op"] == "failed")
    assert (failed["engine"], failed["id"]) == ("feed.100", "not a number")


def test_the_stack_is_written_while_c_code_holds_the_gil(engine: FakeEngine) -> None:
    code = "import re\ndef busy():\n    re.match('(a*)*b', 'a' * 27)\nbusy()"
    (key,) = engine.hand(StringWork(code))
    engine.wait_running(key)

    def written() -> bool:
        os.kill(engine.pid, signal.SIGRTMIN + 6)
        return "in busy" in engine.stack.read_text()

    eventually(written, every_s=0.02)
    os.kill(engine.pid, signal.SIGKILL)
    engine.agent.exited(engine)


def test_a_fork_in_a_task_does_not_come_back_as_a_second_engine(engine: FakeEngine) -> None:
    outcome = engine.run("import os\npid = os.fork()\nif pid == 0: raise ValueError('child')", "pid")
    child = outcome.value["pid"]
    eventually(lambda: has_ended(child))
    assert "ValueError: child" in engine.run("import os; os.waitpid(-1, 0)").body.stderr + engine.output.read_text()
    assert engine.run("a = 1", "a").value == {"a": 1}


def test_engines_die_with_the_zygote() -> None:
    agent = FakeAgent()
    try:
        engines = [agent.start_engine() for _ in range(2)]
        agent.zygote.kill()
        agent.zygote.wait()
        eventually(lambda: all(has_ended(engine.pid) for engine in engines))
    finally:
        agent.close()


def test_the_zygote_ends_with_its_agent_and_takes_its_engines_along() -> None:
    agent = FakeAgent()
    try:
        engine = agent.start_engine()
        agent.control.shutdown(2)
        assert agent.zygote.wait(60) == 0
        eventually(lambda: has_ended(engine.pid))
    finally:
        agent.close()


def test_quit_reports_the_exits() -> None:
    agent = FakeAgent()
    try:
        engine = agent.start_engine()
        agent.ask_zygote(op="quit")
        assert os.waitstatus_to_exitcode(agent.exited(engine)["status"]) == -signal.SIGKILL
        assert agent.zygote.wait(60) == 0
    finally:
        agent.close()


def test_preloads_are_imported_once_or_dropped_by_name() -> None:
    pytest.importorskip("numpy")
    agent = FakeAgent(preload=["numpy", "json", "no_such_module_at_all"])
    try:
        assert [name for name, _ in agent.ready["dropped"]] == ["no_such_module_at_all"]
        assert psutil.Process(agent.zygote.pid).num_threads() == 1
        engine = agent.start_engine()
        code = "import sys, os; there = 'numpy' in sys.modules; limit = os.environ.get('OPENBLAS_NUM_THREADS')"
        limit = os.environ.get("OPENBLAS_NUM_THREADS")
        assert engine.run(code, "there", "limit").value == {"there": True, "limit": limit}
    finally:
        agent.close()


def test_engines_import_next_to_nothing_of_their_own(agent: FakeAgent, engine: FakeEngine) -> None:
    """Each module that engines import themselves costs every engine time and memory: add it to `zygote.TRAINED`."""
    code = "import sys; from ipytaskfarm.engine.zygote import warm_up; warm_up(); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    zygote = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    before = set(zygote.stdout.split())
    engine.run("1/0")
    engine.run("%time 1")
    engine.run("!true")
    engine.run("display(1)")
    now = set(engine.run("import sys; m = sorted(sys.modules)", "m").value["m"])
    assert sorted(now - before) == []
