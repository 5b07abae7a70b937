"""The agent's parts by themselves: ladder, relay (over a real flight recorder), reaping, what a dead agent left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from ipytaskfarm.agent import __main__ as agent_main, relay as relay_module, watch
from ipytaskfarm.agent.engines import _how, users_stack
from ipytaskfarm.agent.limits import Backoff, EndedRunWatch, Ladder, Step
from ipytaskfarm.agent.node import resources
from ipytaskfarm.agent.reaping import COOKIE, Marks, is_marked, reap
from ipytaskfarm.agent.relay import Account, Relay
from ipytaskfarm.agent.sweep import counters, remember_farm, succeed
from ipytaskfarm.agent.zygote import Exit
from ipytaskfarm.core.errors import ResultTooLarge
from ipytaskfarm.core.messages import (
    AgentState,
    Crash,
    EngineDown,
    HandOut,
    Results,
    Returned,
    Run as RunMessage,
    TaskBatch,
)
from ipytaskfarm.core.messages.task_types import Ended
from ipytaskfarm.system import process
from ipytaskfarm.system.flight_recorder import Recorder
from ipytaskfarm.system.process import STOPPED_S, StoppedWatch
from ipytaskfarm.transport.peer import Link
from tests.support.polling import eventually
from tests.support.recorders import held_bytes

RUN, OTHER = (7, 1), (8, 1)

# ------------------------------------------------------------------------------------------------------------
# limits


def test_a_run_that_hears_the_interrupt_ends_the_ladder() -> None:
    ladder = Ladder(RUN, "aborted", 1.0, 100.0)
    assert ladder.step(RUN, True, 100.0) is Step.SIGNAL, "delivered is an earlier run's, nothing was told yet"
    assert ladder.step(RUN, False, 100.02) is Step.SIGNAL, "sent again until it was delivered"
    assert ladder.step(RUN, True, 100.04) is Step.WAIT
    assert ladder.step(OTHER, True, 100.06) is Step.OVER
    assert not ladder.terminated


def test_a_run_that_ignores_the_interrupt_is_terminated_then_killed() -> None:
    ladder = Ladder(RUN, "time limit", 1.0, 100.0)
    ladder.step(RUN, False, 100.0)
    assert ladder.step(RUN, True, 100.99) is Step.WAIT
    assert ladder.step(RUN, True, 101.0) is Step.TERMINATE
    assert ladder.step(RUN, True, 101.2) is Step.WAIT
    assert ladder.step(RUN, True, 101.5) is Step.KILL
    assert ladder.step(RUN, True, 101.6) is Step.WAIT


def test_after_sigterm_the_engine_must_die_whatever_it_runs_by_then() -> None:
    ladder = Ladder(RUN, "aborted", 1.0, 100.0)
    assert ladder.step(RUN, False, 101.0) is Step.TERMINATE
    assert ladder.step(OTHER, False, 101.1) is Step.WAIT
    assert ladder.step(OTHER, False, 101.5) is Step.KILL


def test_a_run_that_is_over_is_not_interrupted() -> None:
    assert Ladder(RUN, "aborted", 1.0, 0.0).step(OTHER, False, 0.0) is Step.OVER
    assert Ladder(RUN, "aborted", 1.0, 0.0).step(None, False, 50.0) is Step.OVER


def test_a_stopped_process_is_given_thirty_seconds() -> None:
    watch = StoppedWatch()
    times = range(0, int(STOPPED_S) + 1, 5)
    assert [watch.too_long(True, float(t)) for t in times] == [False] * 6 + [True]
    assert not watch.too_long(False, 31.0)
    assert not watch.too_long(True, 32.0)


def test_time_in_which_nobody_could_look_is_not_held_against_a_process() -> None:
    watch = StoppedWatch()
    assert not watch.too_long(True, 0.0)
    assert not watch.too_long(True, 10_000.0)


def test_a_run_that_has_ended_is_given_ten_seconds() -> None:
    watch = EndedRunWatch()
    assert [watch.too_long(RUN, now_s) for now_s in (0.0, 5.0, 9.0)] == [False] * 3
    assert not watch.too_long(OTHER, 10.0)
    assert not watch.too_long(None, 12.0)
    assert [watch.too_long(OTHER, now_s) for now_s in (15.0, 20.0, 25.0)] == [False, False, True]


def test_an_engine_that_any_signal_has_ended_at_its_start_is_described() -> None:
    assert _how(Exit(signal.SIGKILL)) == "signal 9 (SIGKILL)"
    assert _how(Exit(signal.SIGRTMIN + 3)) == "signal 37 (unknown)"


def test_the_cores_of_a_node_are_those_that_its_control_groups_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "core_quotas", lambda: [0.5])
    assert resources({})[0]["cores"] == 1.0
    assert resources({"cores": 4.0})[0]["cores"] == 4.0


def test_failed_starts_are_delayed_more_and_more() -> None:
    backoff = Backoff()
    assert backoff.delay_s(1.0) == 0.0
    delays = []
    for _ in range(12):
        backoff.failed()
        delays.append(backoff.delay_s(1.0))
    assert delays[0] == pytest.approx(0.1)
    assert delays == sorted(delays)
    assert delays[-1] == 5.0
    assert backoff.delay_s(0.0) == 2.5
    backoff.succeeded()
    assert backoff.delay_s(1.0) == 0.0


# ------------------------------------------------------------------------------------------------------------
# relay


class FakeLink:
    """Keeps what is sent.  `ack` gives the tokens back, `forget` is what a new epoch does."""

    def __init__(self) -> None:
        self.is_up = True
        self.unacked_bytes = 0
        self.sent: list[object] = []
        self.tokens: list[object] = []
        self.largest = 1 << 30

    def send(self, message: object, token: object | None = None) -> None:
        size = len(msgspec.msgpack.encode(message))
        if size > self.largest:
            raise ResultTooLarge(f"{size} bytes")
        self.unacked_bytes += size
        self.sent.append(message)
        if token is not None:
            self.tokens.append(token)

    def ack(self, relay: Relay) -> None:
        tokens, self.tokens, self.unacked_bytes = self.tokens, [], 0
        for token in tokens:
            relay.acked(token)

    def forget(self) -> None:
        self.sent, self.tokens, self.unacked_bytes = [], [], 0

    def ended(self) -> list[tuple[int, int]]:
        """The runs in all `Results`, as the controller would decode them."""
        found = []
        for message in self.sent:
            if isinstance(message, Results):
                decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Results)
                found += [(ended.task, ended.attempt) for ended in decoded.ended]
        return found


class Desk:
    """A relay between a fake link and a real recorder, with both of the recorder's ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "engine-1.rec"
        self.account = Account("s.1", Recorder.create(self.path, "s.1", 3))
        self.runner = Recorder.open(self.path)
        self.link = FakeLink()
        self.relay = Relay(cast(Link, self.link))
        self.state = AgentState("here", 1, 1, 1, "", "", [])

    def hand(self, *runs: tuple[int, int]) -> None:
        batch = TaskBatch([RunMessage(task, attempt, b"") for task, attempt in runs])
        message = HandOut("s.1", list(runs), msgspec.Raw(msgspec.msgpack.encode(batch)))
        assert bytes(self.relay.hand_out(self.account, message)) == msgspec.msgpack.encode(batch)

    def end(self, *runs: tuple[int, int], body: bytes = b"") -> None:
        for task, attempt in runs:
            self.runner.begin(task, attempt)
            self.runner.end_with(msgspec.msgpack.encode(Ended(task, attempt, "", 1.0, 0.5, None, body)), task, attempt)

    def new_epoch(self) -> None:
        self.link.forget()
        self.relay.restate(self.state, [self.account])

    def close(self) -> None:
        self.runner.close()
        self.account.recorder.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    desk.new_epoch()
    yield desk
    desk.close()


def runs(first: int, last: int) -> list[tuple[int, int]]:
    return [(task, 1) for task in range(first, last + 1)]


def test_results_go_out_in_order_and_their_room_is_freed_when_acknowledged(desk: Desk) -> None:
    desk.hand(*runs(1, 2500))
    desk.end(*runs(1, 2500))
    assert desk.relay.collect(desk.account)
    assert desk.link.ended() == runs(1, 2500)
    assert desk.account.open_runs == 0
    assert desk.account.unacknowledged() == runs(1, 2500)
    assert held_bytes(desk.account.recorder) > 0
    desk.link.ack(desk.relay)
    assert desk.account.unacknowledged() == []
    assert held_bytes(desk.account.recorder) == 0


def test_a_new_epoch_hears_everything_again_that_was_not_acknowledged(desk: Desk) -> None:
    desk.hand(*runs(1, 6))
    desk.end(*runs(1, 2))
    desk.relay.collect(desk.account)
    desk.link.ack(desk.relay)
    desk.end(*runs(3, 4))
    desk.relay.collect(desk.account)
    desk.relay.give_back(desk.account, Returned("s.1", [(6, 1)]))
    assert desk.account.open_runs == 1
    desk.new_epoch()
    assert desk.link.sent[0] is desk.state
    assert desk.link.ended() == runs(3, 4)
    assert desk.link.sent[-1] == Returned("s.1", [(6, 1)])
    assert desk.account.unacknowledged() == runs(3, 6)
    assert desk.account.open_runs == 1
    desk.link.ack(desk.relay)
    assert desk.account.unacknowledged() == [(5, 1)]
    assert desk.relay.delivered


def test_while_the_controller_is_away_results_stay_in_the_recorder(desk: Desk) -> None:
    desk.link.is_up = False
    desk.hand(*runs(1, 3))
    desk.end(*runs(1, 3))
    assert not desk.relay.collect(desk.account)
    assert desk.link.ended() == []
    desk.link.is_up = True
    assert desk.relay.collect(desk.account)
    assert desk.link.ended() == runs(1, 3)


def test_a_slow_controller_costs_no_memory(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "UNACKED_BYTES_MAX", 1 << 20)
    desk.hand(*runs(1, 40))
    desk.end(*runs(1, 40), body=bytes(200_000))
    assert not desk.relay.collect(desk.account)
    assert desk.link.unacked_bytes < 3 << 20
    while not desk.relay.collect(desk.account):
        desk.link.ack(desk.relay)
    assert desk.link.ended() == runs(1, 40)


def test_a_run_ends_once_whoever_writes_it_again(desk: Desk) -> None:
    desk.hand((1, 1), (2, 1))
    desk.end((1, 1), (1, 1), (9, 9), (2, 1))
    desk.relay.collect(desk.account)
    assert desk.link.ended() == runs(1, 2)
    desk.link.ack(desk.relay)
    assert held_bytes(desk.account.recorder) == 0


def test_a_result_larger_than_a_message_ends_its_task_as_too_large(desk: Desk) -> None:
    desk.link.largest = 1 << 20
    desk.hand(*runs(1, 3))
    desk.end((1, 1))
    desk.end((2, 1), body=bytes(2 << 20))
    desk.end((3, 1))
    desk.relay.collect(desk.account)
    assert desk.link.ended() == runs(1, 3)
    (large,) = [m.ended[0] for m in desk.link.sent if isinstance(m, Results) and isinstance(m.ended[0], Ended)]
    assert (large.outcome, large.body) == ("too large", b"")
    assert large.failure is not None
    assert large.failure.etype == "ResultTooLarge"


def test_what_an_engine_was_running_is_told_from_what_it_never_began(desk: Desk) -> None:
    desk.hand(*runs(1, 5))
    desk.end(*runs(1, 2))
    desk.runner.begin(3, 1)
    desk.relay.collect(desk.account)
    assert desk.account.running() == (3, 1)
    desk.end((3, 1))
    desk.relay.collect(desk.account)
    assert desk.account.running() is None


def test_a_former_engine_s_results_and_running_task_are_found_in_its_recorder(desk: Desk) -> None:
    desk.end(*runs(1, 3))
    desk.runner.begin(4, 1)
    former = Account("s.1", Recorder.open(desk.path), former=True)
    try:
        desk.relay.collect(former)
        assert desk.link.ended() == runs(1, 3)
        assert former.running() == (4, 1)
        desk.link.ack(desk.relay)
        former.rewind()
        assert former.running() == (4, 1)
    finally:
        former.recorder.close()


def test_a_loss_is_told_once_per_epoch_and_settled_by_its_acknowledgement(desk: Desk) -> None:
    loss = EngineDown("s.1", 3, None, True, Crash())
    desk.relay.keep(loss, desk.account)
    desk.new_epoch()
    assert desk.link.sent == [desk.state], "losses follow the results of their engine"
    assert desk.relay.delivered
    desk.relay.keep(loss, desk.account)
    desk.link.ack(desk.relay)
    assert desk.relay.lost_acked == ["s.1"]


def test_a_damaged_recorder_is_said_to_be_one(desk: Desk) -> None:
    desk.hand(*runs(1, 2))
    with open(desk.path, "r+b") as file:
        file.seek(32 * 8)
        file.write((1 << 60).to_bytes(8, sys.byteorder))
    assert desk.relay.collect(desk.account)
    assert desk.account.damaged
    assert desk.account.running() is None


# ------------------------------------------------------------------------------------------------------------
# reaping and sweeping


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks("test.reaping", tmp_path / "engine-1.rec")


def test_a_program_with_the_cookie_is_reaped_in_whatever_session_it_is(marks: Marks) -> None:
    environment = {**os.environ, COOKIE: marks.engine}
    daemon = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)
    other = subprocess.Popen(["sleep", "600"])
    try:
        eventually(lambda: is_marked(daemon.pid, marks), what="sleep has begun")
        assert reap(marks) == 1
        assert daemon.wait(60) == -9
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        daemon.kill()
        daemon.wait()


def test_a_process_that_maps_the_recorder_is_reaped(marks: Marks) -> None:
    marks.recorder.write_bytes(bytes(4096))
    code = "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(marks.recorder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert reap(marks) == 1
        assert process.wait(60) == -9


def test_a_session_is_reaped_by_its_leader_s_number(tmp_path: Path) -> None:
    code = "import subprocess; p = subprocess.Popen(['sleep', '600'], process_group=0); print(p.pid, flush=True)"
    leader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    with leader:
        assert leader.stdout is not None
        left = int(leader.stdout.readline())
        leader.wait(60)
        assert reap(Marks("x.1", tmp_path / "none.rec", leader.pid)) == 1
    eventually(lambda: not os.path.exists(f"/proc/{left}"), what="the orphan is gone")


def test_what_forks_faster_than_it_can_be_looked_at_does_not_escape(tmp_path: Path) -> None:
    # A comet: each process lives only until it has forked the next. This one burns out by itself after 20,000.
    code = "import os\nprint(flush=True)\nfor _ in range(20_000):\n    if os.fork(): os._exit(0)\nprint('burnt out')"
    comet = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    with comet:
        assert comet.stdout is not None
        comet.stdout.readline()
        comet.wait(60)
        reap(Marks("x.1", tmp_path / "none.rec", comet.pid))
        assert comet.stdout.read() == b"", "the pipe is closed by the last of them, killed before its end"


def test_a_farm_s_files_mean_nothing_to_another_farm(tmp_path: Path) -> None:
    assert remember_farm(tmp_path, "one")
    assert remember_farm(tmp_path, "one")
    assert not remember_farm(tmp_path, "two")
    assert remember_farm(tmp_path, "two")


def test_an_agent_knows_who_had_its_folder_before(tmp_path: Path) -> None:
    folders = tmp_path / "folder", tmp_path / "recorders"
    for folder in folders:
        folder.mkdir()
    assert succeed("a", folders) == []
    assert succeed("b", folders) == ["a"]
    for folder in folders:
        (folder / "sessions").unlink()
        (folder / "sessions").mkdir()
        assert succeed("c", folders) == ["a", "b"], "the other folder has it too"
        for each in folders:
            assert (each / "sessions").read_text().split() == ["a", "b", "c"]
            (each / "sessions").write_text("a b")


def test_counters_go_on_after_those_that_were_used(tmp_path: Path) -> None:
    for name in ("engine-3.rec", "engine-3.out", "kernel-12.json-ipc-1", "kernel-7.json", "zygote.out", "lane.sock"):
        (tmp_path / name).touch()
    assert counters(tmp_path) == [3, 7, 12]


# ------------------------------------------------------------------------------------------------------------
# where engines start


def test_a_start_folder_that_is_not_on_this_machine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert agent_main._start_folder(tmp_path) == tmp_path
    assert agent_main._start_folder(None) == Path.cwd()
    assert not caplog.records
    assert agent_main._start_folder(tmp_path / "elsewhere") == Path.home()
    assert f"there is no folder {tmp_path}/elsewhere here" in caplog.text


# -- stacks


def test_a_stack_is_the_users_part() -> None:
    package = str(Path(watch.__file__).parents[1])
    text = (
        "Stack (most recent call first):\n"
        f'  File "{package}/engine/current.py", line 9 in barrier\n'
        '  File "/home/me/study.py", line 7 in fit\n'
        '  File "<task 3227>", line 1 in <module>\n'
        f'  File "{package}/engine/runner.py", line 343 in _string\n'
        '  File "/usr/lib/python3.11/asyncio/events.py", line 80 in _run\n'
    )
    assert users_stack(text).splitlines()[1:] == [
        '  File "/home/me/study.py", line 7 in fit',
        '  File "<task>", line 1 in <module>',
    ]


def test_a_stack_without_the_users_code_stays_whole() -> None:
    text = f'Stack (most recent call first):\n  File "{Path(watch.__file__)}", line 9 in idle\n'
    assert users_stack(text) == text
