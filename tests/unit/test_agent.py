"""A real agent with real engines, and a controller that only hears and says."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from ipytaskfarm.core.messages import (
    AgentState,
    CommandDone,
    EngineCommand,
    EngineDown,
    EngineNote,
    EnginePrepared,
    Interrupt,
    Lease,
    Recall,
    Results,
    Returned,
    Shutdown,
    StackQuery,
    StackText,
    StartEngine,
    StopEngine,
)
from ipytaskfarm.core.messages.engine_commands import ExecuteBody
from ipytaskfarm.core.messages.task_types import decode_runs
from tests.conftest import Dirs
from tests.support.ended import has_ended
from tests.support.fake_controller import FakeController, code_run
from tests.support.polling import eventually
from tests.support.thorough import by_hand

PROJECT = Path(__file__).parents[2]
WAIT = "import time\ntime.sleep(60)"
SPIN = "while True: pass"
DEAF = """
import signal
for number in (signal.SIGRTMIN + 5, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
"""
HOLD_GIL = "import itertools\nsum(itertools.repeat(0, 10**13))"


class Desk:
    """A fake controller, and the agents that a test starts for it."""

    def __init__(self, dirs: Dirs) -> None:
        self.dirs = dirs
        self.folder = dirs.sockets / "agent-0"
        self.controller = FakeController(dirs.runtime)
        self.agents: list[subprocess.Popen[bytes]] = []
        self.log = dirs.work / "agent.log"

    def start_agent(self, *arguments: str) -> AgentState:
        command = [
            sys.executable, "-m", "ipytaskfarm.agent", "--farm", "fake", "--node", "here",
            "--connection-file", str(self.controller.connection_file), "--folder", str(self.folder),
            "--startup-cwd", str(self.dirs.work), *arguments,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        with open(self.log, "ab") as log:
            self.agents.append(subprocess.Popen(command, env=environment, cwd=self.dirs.work, stdout=log, stderr=log))
        return self.controller.wait(AgentState, lambda state: state.pid == self.agent.pid)

    @property
    def agent(self) -> subprocess.Popen[bytes]:
        return self.agents[-1]

    def kill_agent(self) -> None:
        self.agent.kill()
        self.agent.wait(60)

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.terminate()
        for agent in self.agents:
            deadline_s = time.monotonic() + 20
            while agent.poll() is None and time.monotonic() < deadline_s:
                if self.controller.hub._curve.closed:
                    break
                self.controller.acknowledging = True
                self.controller.pump()
            if agent.poll() is None:
                agent.kill()
            agent.wait(60)
        self.controller.close()


@pytest.fixture
def desk(farm_dirs: Dirs) -> Iterator[Desk]:
    desk = Desk(farm_dirs)
    try:
        yield desk
    finally:
        desk.close()
        print(desk.log.read_text(errors="replace") if desk.log.exists() else "no log")


def file_says(path: Path) -> Callable[[], str]:
    """Waits for a task to have written something."""
    return lambda: path.read_text() if path.exists() else ""


def begun(desk: Desk, name: str = "begun") -> str:
    """Code that tells the test that it has begun."""
    return f"open({str(desk.dirs.work / name)!r}, 'w').write('x')\n"


def wait_begun(desk: Desk, name: str = "begun") -> None:
    eventually(file_says(desk.dirs.work / name), what="the task has begun")


# ------------------------------------------------------------------------------------------------------------
# ordinary life


def test_from_start_to_shutdown(desk: Desk) -> None:
    state = desk.start_agent("--slots", "3")
    assert (state.node, state.slots, state.engines) == ("here", 3, [])
    report = desk.controller.start_engine(5)
    assert report.ready
    assert report.id == 5
    assert psutil.Process(report.pid).cmdline()[0].startswith("ipytaskfarm engine 5")
    assert psutil.Process(desk.agent.pid).cmdline()[0].startswith("ipytaskfarm agent --farm fake")
    desk.controller.hand(report.engine, *(code_run(task, f"x = {task}", pull="x") for task in range(1, 301)))
    outcomes = desk.controller.wait_ended(*((task, 1) for task in range(1, 301)))
    assert set(outcomes.values()) == {""}
    assert list(outcomes) == sorted(outcomes), "in the order of their ends"
    desk.controller.hand(report.engine, code_run(301, "1 / 0"))
    assert desk.controller.wait_ended((301, 1))[301, 1] == "error"

    desk.controller.say(Shutdown())
    lost = desk.controller.wait(EngineDown)
    assert (lost.engine, lost.id, lost.running, lost.known, lost.expected) == (report.engine, 5, None, True, True)
    assert lost.crash.exit_code == 0
    desk.controller.pump_until(lambda: desk.agent.poll() is not None, "the agent has ended")
    assert desk.agent.returncode == 0
    assert not desk.folder.exists()


def test_an_engine_is_stopped_and_gives_back_what_it_had_not_begun(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    desk.controller.hand(report.engine, code_run(1, begun(desk) + "import time\ntime.sleep(0.3)"), code_run(2, "x = 1"))
    wait_begun(desk)
    desk.controller.say(StopEngine(report.engine, 5.0))
    assert desk.controller.wait(Returned).runs == [(2, 1)]
    lost = desk.controller.wait(EngineDown)
    assert lost.expected
    assert lost.running is None
    assert desk.controller.ended() == {(1, 1): ""}


def test_a_stop_does_not_wait_for_ever(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    desk.controller.hand(report.engine, code_run(1, begun(desk) + WAIT))
    wait_begun(desk)
    desk.controller.say(StopEngine(report.engine, 0.2))
    lost = desk.controller.wait(EngineDown)
    assert (lost.running, lost.crash.signal, lost.expected) == ((1, 1), 9, True)


def test_what_was_not_begun_is_recalled(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    desk.controller.hand(report.engine, code_run(1, begun(desk) + WAIT), code_run(2, "x = 2"), code_run(3, "x = 3"))
    wait_begun(desk)
    desk.controller.say(Recall(report.engine, [(1, 1), (2, 1)]))
    assert desk.controller.wait(Returned).runs == [(2, 1)]
    desk.controller.say(Interrupt(report.engine, (1, 1)))
    assert desk.controller.wait_ended((1, 1), (3, 1)) == {(1, 1): "aborted", (3, 1): ""}


def test_commands_are_answered_and_preparation_is_remembered(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    assert not report.prepared
    body = msgspec.msgpack.encode(ExecuteBody("y = 42"))
    desk.controller.say(EngineCommand(report.engine, "", 1, "execute", body), EnginePrepared(report.engine))
    done = desk.controller.wait(CommandDone)
    assert (done.engine, done.session, done.n, done.ok) == (report.engine, "", 1, True)
    desk.controller.crash()
    desk.controller.restart()
    (engine,) = desk.controller.wait(AgentState).engines
    assert (engine.prepared, engine.ready, decode_runs(engine.held)) == (True, True, [])


def test_where_an_engine_is_can_be_asked(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    code = f"def inner():\n    {begun(desk).strip()}\n    import time; time.sleep(60)\ninner()"
    desk.controller.hand(report.engine, code_run(1, code))
    wait_begun(desk)
    desk.controller.say(StackQuery(7, report.engine))
    answer = desk.controller.wait(StackText)
    assert answer.n == 7
    assert "inner" in answer.text
    desk.controller.say(StackQuery(8, "nobody.1"))
    assert "gone" in desk.controller.wait(StackText, lambda m: m.n == 8).text


def test_an_engine_that_cannot_start_is_reported(desk: Desk) -> None:
    desk.start_agent()
    no_limit = resource.prlimit(desk.agent.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    desk.controller.say(StartEngine(0))
    note = desk.controller.wait(EngineNote)
    assert note.failed_start
    assert note.id == 0
    resource.prlimit(desk.agent.pid, resource.RLIMIT_FSIZE, no_limit)
    assert desk.controller.start_engine(0).id == 0


def test_what_has_the_name_of_a_new_engines_file_is_removed(desk: Desk) -> None:
    desk.start_agent()
    desk.folder.joinpath("engine-1.rec").mkdir()
    os.mkfifo(desk.folder / "engine-1.out")
    assert desk.controller.start_engine(0).id == 0


# ------------------------------------------------------------------------------------------------------------
# losses


def test_a_killed_engine_is_reported_with_what_it_was_running(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    say = "import sys, os\nos.write(2, b'last words\\n')\n"
    desk.controller.hand(
        report.engine, code_run(1, "x = 1"), code_run(2, say + begun(desk) + WAIT), code_run(3, "x = 3")
    )
    wait_begun(desk)
    os.kill(report.pid, signal.SIGKILL)
    killed_s = time.monotonic()
    lost = desk.controller.wait(EngineDown)
    print(f"kill to EngineLost: {(time.monotonic() - killed_s) * 1e3:.0f} ms")
    assert (lost.running, lost.known, lost.expected) == ((2, 1), True, False)
    assert (lost.crash.signal, lost.crash.exit_code) == (9, None)
    assert lost.crash.peak_bytes > 10 << 20
    assert "last words" in lost.crash.output
    assert desk.controller.ended() == {(1, 1): ""}, "the result that stood in the ring came first"
    assert desk.controller.start_engine().engine != report.engine


def test_an_exit_in_a_task_is_a_loss(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    desk.controller.hand(report.engine, code_run(1, "import os\nos._exit(0)"))
    lost = desk.controller.wait(EngineDown)
    assert (lost.running, lost.crash.exit_code, lost.expected) == ((1, 1), 0, False)
    assert desk.controller.ended() == {}


def test_a_segfault_comes_with_its_traceback(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    desk.controller.hand(report.engine, code_run(1, "import ctypes\nctypes.string_at(0)"))
    lost = desk.controller.wait(EngineDown)
    assert (lost.running, lost.crash.signal) == ((1, 1), signal.SIGSEGV)
    assert lost.crash.dump.startswith("Fatal Python error: Segmentation fault")
    frames = [line.split(" in ")[-1] for line in lost.crash.dump.splitlines() if line.startswith("  File")]
    assert frames == ["string_at", "<module>"], "the user's frames alone"
    assert "Fatal" not in lost.crash.output


def test_all_that_an_engine_left_behind_is_reaped(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    pids = desk.dirs.work / "pids"
    code = f"""
import os, subprocess, time
a = subprocess.Popen(["sleep", "600"])
b = subprocess.Popen(["sleep", "600"], start_new_session=True)
c = os.fork()
if c == 0:
    os.setsid()
    d = os.fork()
    if d == 0:
        time.sleep(600)
    open({str(pids)!r}, "w").write(f"{{a.pid}} {{b.pid}} {{os.getpid()}} {{d}} ")
    time.sleep(600)
time.sleep(600)
"""
    desk.controller.hand(report.engine, code_run(1, code))
    children = [int(pid) for pid in eventually(file_says(pids), what="the children are there").split()]
    assert len(children) == 4
    os.kill(report.pid, signal.SIGKILL)
    desk.controller.wait(EngineDown)
    eventually(lambda: all(has_ended(pid) for pid in children), what="all descendants are gone")


def test_a_zygote_that_dies_is_replaced_and_its_engines_are_reported(desk: Desk) -> None:
    desk.start_agent()
    reports = [desk.controller.start_engine(i) for i in (0, 1)]
    zygote = psutil.Process(reports[0].pid).ppid()
    desk.controller.hand(reports[0].engine, code_run(1, begun(desk) + WAIT))
    wait_begun(desk)
    os.kill(zygote, signal.SIGKILL)
    lost = desk.controller.wait_all(EngineDown, 2)
    assert {(m.engine, m.running) for m in lost} == {(reports[0].engine, (1, 1)), (reports[1].engine, None)}
    report = desk.controller.start_engine(0)
    assert psutil.Process(report.pid).ppid() != zygote


@by_hand
def test_a_zygote_that_is_stuck_costs_no_engine(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine(0)
    zygote = psutil.Process(psutil.Process(report.pid).ppid())
    zygote.suspend()
    desk.controller.say(StartEngine(1))
    note = desk.controller.wait(EngineNote)
    assert note.failed_start
    assert "did not answer" in note.text
    other = desk.controller.start_engine(1)
    assert psutil.Process(other.pid).ppid() != zygote.pid
    zygote.resume()
    for engine in (report, other):
        desk.controller.hand(engine.engine, code_run(engine.id, "x = 1"))
    desk.controller.wait_ended((0, 1), (1, 1))
    # The engine that it was asked for while it could not hear must not live beside the one that took its place.
    eventually(lambda: len(zygote.children()) == 1, what="the late fork is gone")


# ------------------------------------------------------------------------------------------------------------
# limits


@pytest.mark.parametrize("code", [WAIT, SPIN])
def test_a_running_task_is_interrupted_and_its_engine_lives(desk: Desk, code: str) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    desk.controller.hand(report.engine, code_run(1, begun(desk) + code), code_run(2, "x = 2"))
    wait_begun(desk)
    desk.controller.say(Interrupt(report.engine, (1, 1)))
    assert desk.controller.wait_ended((1, 1), (2, 1)) == {(1, 1): "aborted", (2, 1): ""}


def test_what_ignores_interrupts_is_killed(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    desk.controller.hand(report.engine, code_run(1, DEAF + begun(desk) + SPIN), code_run(2, "x = 2"))
    wait_begun(desk)
    desk.controller.say(Interrupt(report.engine, (1, 1), 0.2))
    lost = desk.controller.wait(EngineDown)
    assert (lost.running, lost.crash.signal, lost.crash.cause) == ((1, 1), 9, "abort")
    assert desk.controller.ended() == {}


def test_an_interrupt_of_what_has_not_begun_gives_it_back(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    desk.controller.hand(report.engine, code_run(1, begun(desk) + WAIT), code_run(2, "x = 2"))
    wait_begun(desk)
    desk.controller.say(Interrupt(report.engine, (2, 1)), Interrupt(report.engine, (99, 1)))
    assert desk.controller.wait(Returned).runs == [(2, 1)]
    desk.controller.say(Interrupt(report.engine, (1, 1)))
    assert desk.controller.wait_ended((1, 1)) == {(1, 1): "aborted"}


def test_a_time_limit_ends_its_own_run_alone(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    limited = [code_run(task, SPIN, time_limit_s=0.2) for task in (1, 3)]
    desk.controller.hand(report.engine, limited[0], code_run(2, "x = 2"), limited[1], code_run(4, "x = 4"))
    outcomes = desk.controller.wait_ended(*((task, 1) for task in (1, 2, 3, 4)))
    assert outcomes == {(1, 1): "time limit", (2, 1): "", (3, 1): "time limit", (4, 1): ""}


def test_a_time_limit_is_kept_while_c_code_holds_the_gil(desk: Desk) -> None:
    desk.start_agent("--grace", "0.2")
    report = desk.controller.start_engine()
    desk.controller.hand(report.engine, code_run(1, HOLD_GIL, time_limit_s=0.2))
    lost = desk.controller.wait(EngineDown)
    assert (lost.running, lost.crash.cause) == ((1, 1), "time limit")


def test_finished_results_flow_while_c_code_holds_the_gil(desk: Desk) -> None:
    desk.start_agent("--grace", "0.1")
    report = desk.controller.start_engine()
    runs = [code_run(task, "x = 1") for task in range(1, 50)]
    desk.controller.hand(report.engine, *runs, code_run(50, HOLD_GIL))
    desk.controller.wait_ended(*((run.task, 1) for run in runs))
    desk.controller.say(StopEngine(report.engine, 0.1))
    assert desk.controller.wait(EngineDown).running == (50, 1)


@pytest.mark.slow
def test_a_stopped_engine_is_killed(desk: Desk) -> None:
    desk.start_agent("--stopped", "5")
    report = desk.controller.start_engine()
    desk.controller.hand(report.engine, code_run(1, begun(desk) + WAIT))
    wait_begun(desk)
    os.kill(report.pid, signal.SIGSTOP)
    lost = desk.controller.wait(EngineDown)
    assert (lost.running, lost.crash.signal, lost.crash.cause) == ((1, 1), 9, "stopped")


# ------------------------------------------------------------------------------------------------------------
# the controller goes, the agent goes


def test_in_a_new_epoch_all_is_stated_that_was_not_acknowledged(desk: Desk) -> None:
    desk.start_agent()
    dying, living = desk.controller.start_engine(0), desk.controller.start_engine(1)
    desk.controller.hand(living.engine, code_run(1, "x = 1"), code_run(2, begun(desk) + WAIT), code_run(3, "x = 3"))
    desk.controller.hand(dying.engine, code_run(4, "x = 4"), code_run(5, begun(desk, "other") + WAIT))
    wait_begun(desk)
    wait_begun(desk, "other")
    desk.controller.say(Recall(living.engine, [(3, 1)]))
    desk.controller.acknowledging = False
    desk.controller.wait_ended((1, 1), (4, 1))
    desk.controller.wait(Returned)
    desk.controller.crash()
    os.kill(dying.pid, signal.SIGKILL)
    desk.controller.restart()

    state = desk.controller.wait(AgentState)
    assert desk.controller.heard[0] is state
    assert [(e.engine, decode_runs(e.held)) for e in state.engines if e.ready] == [
        (living.engine, [(1, 1), (2, 1), (3, 1)])
    ]
    lost = desk.controller.wait(EngineDown)
    assert (lost.engine, lost.running) == (dying.engine, (5, 1))
    assert desk.controller.wait(Returned).runs == [(3, 1)]
    assert desk.controller.wait_ended((1, 1), (4, 1)) == {(1, 1): "", (4, 1): ""}
    results = next(m for m in desk.controller.heard if isinstance(m, Results) and m.engine == dying.engine)
    assert desk.controller.heard.index(results) < desk.controller.heard.index(lost)


def test_engines_work_on_while_the_controller_is_away(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    desk.controller.hand(
        report.engine,
        code_run(1, begun(desk, "arrived") + "import time; time.sleep(0.3)"),
        *(code_run(task, f"x = {task}") for task in range(2, 201)),
        code_run(201, begun(desk)),
    )
    wait_begun(desk, "arrived")
    desk.controller.crash()
    wait_begun(desk)
    desk.controller.restart()
    assert len(desk.controller.wait_ended(*((task, 1) for task in range(1, 202)))) == 201


def test_no_engine_survives_its_agent_and_the_next_agent_tells_of_them(desk: Desk) -> None:
    desk.start_agent()
    reports = [desk.controller.start_engine(i) for i in (0, 1)]
    child = desk.dirs.work / "child"
    code = f"""
import subprocess
p = subprocess.Popen(["sleep", "600"], start_new_session=True)
open({str(child)!r}, "w").write(str(p.pid))
"""
    desk.controller.acknowledging = False
    desk.controller.hand(reports[0].engine, code_run(1, "x = 1"), code_run(2, code + WAIT), code_run(3, "x = 3"))
    pid = int(eventually(file_says(child), what="the task has begun"))
    desk.controller.wait_ended((1, 1))
    desk.kill_agent()
    eventually(lambda: all(has_ended(report.pid) for report in reports), what="no engine is left")
    desk.controller.crash()
    desk.controller.restart()

    state = desk.start_agent()
    assert state.engines == []
    assert state.former == [reports[0].engine.partition(".")[0]]
    lost = desk.controller.wait_all(EngineDown, 2)
    assert {(m.engine, m.running, m.known) for m in lost} == {
        (reports[0].engine, (2, 1), True),
        (reports[1].engine, None, True),
    }
    assert desk.controller.ended() == {(1, 1): ""}
    assert has_ended(pid)
    fresh = desk.controller.start_engine()
    assert fresh.engine not in {report.engine for report in reports}
    desk.controller.pump_until(lambda: len(list(desk.folder.glob("engine-*.rec"))) == 1, "old files are gone")


def test_beyond_the_lease_the_agent_ends_its_engines_and_itself(desk: Desk) -> None:
    desk.start_agent("--lease", "2.5")
    report = desk.controller.start_engine()
    desk.controller.crash()
    eventually(lambda: has_ended(report.pid), what="the engine is gone")
    assert desk.agent.wait(60) == 0
    assert re.search(r"does not answer \(127.0.0.1:\d+: .*\): trying again; .* after 2.5 s", desk.log.read_text())
    assert list(desk.folder.glob("engine-*.rec")), "the next agent has something to tell"


def test_the_lease_is_what_the_controller_says(desk: Desk) -> None:
    desk.start_agent()
    desk.controller.say(Lease(2.5))
    report = desk.controller.start_engine()
    desk.controller.crash()
    eventually(lambda: has_ended(report.pid), what="the engine is gone")
    assert desk.agent.wait(60) == 0


def test_another_farm_under_the_name_ends_the_agent(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    desk.controller.crash()
    desk.controller.restart(farm="another-farm")
    desk.controller.pump_until(lambda: desk.agent.poll() is not None, "the agent has ended")
    assert desk.agent.returncode == 4
    assert has_ended(report.pid)


def test_two_agents_do_not_share_a_folder(desk: Desk) -> None:
    desk.start_agent()
    with pytest.raises(AssertionError):
        desk.controller.wait(AgentState, lambda state: False, timeout_s=0.0)
    command = [sys.executable, "-m", "ipytaskfarm.agent", "--folder", str(desk.folder)]
    command += ["--connection-file", str(desk.controller.connection_file)]
    second = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True, timeout=60, check=False
    )
    assert second.returncode == 4
    assert str(desk.agent.pid) in second.stderr.decode()


def test_a_signal_ends_the_agent_in_good_order(desk: Desk) -> None:
    desk.start_agent()
    report = desk.controller.start_engine()
    desk.controller.hand(report.engine, code_run(1, "x = 1"), code_run(2, begun(desk) + WAIT))
    wait_begun(desk)
    desk.agent.terminate()
    lost = desk.controller.wait(EngineDown)
    assert (lost.running, lost.expected) == ((2, 1), True)
    desk.controller.pump_until(lambda: desk.agent.poll() is not None, "the agent has ended")
    assert desk.agent.returncode == 0
    assert desk.controller.ended() == {(1, 1): ""}
