"""Test a running farm with a hostile client: each refusal is visible, and the farm continues after each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import psutil
import pytest
import zmq

from ipytaskfarm import Farm, MapTask, MultiEngineClient, Task, TaskClient, errors
from ipytaskfarm.cli import main
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages import PROTOCOL, AgentState, AskQuestion, NeedIds, SendCommand, Submit, tables
from ipytaskfarm.core.messages.task_types import Ended, Submission, encode_runs
from ipytaskfarm.deployment import enrolment
from ipytaskfarm.system import farm_paths
from ipytaskfarm.transport import wire
from ipytaskfarm.transport.handshake import Refuse, Welcome, WhoAreYou
from ipytaskfarm.transport.keys import make_keypair
from ipytaskfarm.transport.read_only import READ_ONLY
from ipytaskfarm.transport.reliable_session import HEADER, PacketKind
from tests.conftest import Dirs
from tests.support.farms import Gate, ask, engines, until_running, value
from tests.support.hostile import (
    Intruder,
    controller_pid,
    data,
    folder_of,
    instance,
    intruder,
    keys_of,
    processes,
    secrets_of,
)
from tests.support.polling import eventually
from tests.support.wire_world import Proxy, hello
from tests.unit.test_wire_refusals import BAD

QUESTIONS = get_args(m.Question)


@pytest.fixture
def thief(farm: Farm, tc: TaskClient) -> Iterator[Intruder]:
    """Check after the test that the refused client has changed nothing: the farm has the same processes as before."""
    before = {process.pid for process in processes(farm)}
    wanted = ask(farm, m.FarmStatus())
    with intruder(farm) as it:
        yield it
    assert value(tc, "a = 6 * 7", "a") == 42
    assert before <= {process.pid for process in processes(farm)}
    after = ask(farm, m.FarmStatus())
    assert isinstance(wanted, tables.FarmState)
    assert isinstance(after, tables.FarmState)
    assert (after.wanted, after.held, after.stopping, after.epoch) == (wanted.wanted, False, False, wanted.epoch)


def tasks_there(farm: Farm) -> set[int]:
    table = ask(farm, m.ListTasks())
    assert isinstance(table, tables.TaskRows)
    return {row.id for row in table.rows}


# ------------------------------------------------------------------------------------------------ what is open


def test_only_loopback_is_listened_on_and_only_by_the_controller(farm: Farm, tc: TaskClient) -> None:
    value(tc, "a = 1", "a")
    listening = {
        (process.pid, connection.laddr.ip)
        for process in processes(farm)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {(controller_pid(farm), "127.0.0.1")}
    assert len(processes(farm)) >= 5  # controller, agent, zygote, two engines
    assert "listening" not in repr(farm)


# ------------------------------------------------------------------------------------------------ who comes in


@pytest.mark.parametrize("how", ["null", "plain", "wrong server", "unenrolled", "no zmq"])
def test_without_a_key_of_the_farm_there_is_no_handshake(thief: Intruder, how: str) -> None:
    if how == "no zmq":
        with socket.create_connection(("127.0.0.1", thief.info.port)) as plain:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
            plain.settimeout(20.0)
            with contextlib.suppress(ConnectionError):
                while plain.recv(1000):
                    pass
        return
    pairs = {"wrong server": thief.keys.client, "unenrolled": make_keypair()}
    server = make_keypair().public if how == "wrong server" else None
    sock = thief.socket(pairs.get(how), server=server, connect=False)
    if how == "plain":
        sock.plain_username, sock.plain_password = b"user", b"password"
    assert "HANDSHAKE_SUCCEEDED" not in thief.fate(sock)


def test_a_revoked_key_gets_no_handshake_and_its_connection_is_cut(farm: Farm, thief: Intruder) -> None:
    name = "thief-1"
    enrolment.enrol(farm._home, [name])
    info = enrolment.connection_info(farm._home, f"agent:{name}")
    pair = msgspec.structs.replace(make_keypair(), public=info.public_key, secret=info.secret_key)
    sock = thief.greeted(pair, "agent", f"{name}:1")
    assert enrolment.revoke(farm._home, [name]) == 1
    refuse = thief.refused(sock)
    assert (refuse.etype, refuse.later) == ("SecurityError", False)
    assert "ipytaskfarm keys add" in refuse.text
    sock.send(data(1, AgentState("evil", 1, 2, 3, "linux", "3", [])))
    assert "revoked" in thief.refused(sock).text
    assert "HANDSHAKE_SUCCEEDED" not in thief.fate(thief.socket(pair, connect=False))


# ------------------------------------------------------------------------------------------------ roles


def test_a_client_key_cannot_be_an_agents(thief: Intruder) -> None:
    answer = thief.greet(thief.socket(thief.keys.client), hello("agent", "agent:raw"))
    assert isinstance(answer, Refuse)
    assert "does not allow to be 'agent'" in answer.text


@pytest.mark.parametrize("what", sorted(wire.TAGS["agent"]))
def test_a_client_key_cannot_say_what_agents_say(thief: Intruder, what: str) -> None:
    sock = thief.greeted(thief.keys.client)
    sock.send(data(1, what))
    assert thief.refused(sock).text == f"a key for the role client does not allow to send {what}"


@pytest.mark.parametrize("what", sorted(kind.__name__ for kind in (*get_args(m.ToClient), *get_args(m.ToAgent))))
@pytest.mark.parametrize("role", ["client", "agent"])
def test_no_key_lets_anybody_act_for_the_controller(thief: Intruder, role: str, what: str) -> None:
    session = "raw" if role == "client" else "agent:raw"
    sock = thief.greeted(thief.keys.peers()[role], role, session)
    sock.send(data(1, what))
    assert thief.refused(sock).text == f"a key for the role {role} does not allow to send {what}"


@pytest.mark.parametrize("what", sorted(wire.TAGS["client"]))
def test_an_agents_key_hands_nothing_in_and_asks_nothing(farm: Farm, thief: Intruder, what: str) -> None:
    before = tasks_there(farm)
    sock = thief.greeted(thief.keys.agent, "agent", "agent:raw")
    sock.send(data(1, what))
    assert thief.refused(sock).text == f"a key for the role agent does not allow to send {what}"
    assert tasks_there(farm) == before


@pytest.mark.parametrize("kind", QUESTIONS, ids=lambda kind: kind.__name__)
def test_a_read_only_key_may_look_and_nothing_else(farm: Farm, thief: Intruder, kind: type) -> None:
    before = tasks_there(farm)
    sock = thief.greeted(thief.keys.reader, "client", "reader:raw")
    sock.send(data(1, AskQuestion(5, instance(kind))))
    answer = thief.answer(sock)
    if kind in READ_ONLY:
        assert not isinstance(answer.reply, m.Refusal) or answer.reply.etype != "SecurityError"
    else:
        assert isinstance(answer.reply, m.Refusal)
        assert answer.reply.etype == "SecurityError"
        assert answer.reply.text.startswith(f"this connection's key is read-only: it does not allow {kind.__name__};")
    assert tasks_there(farm) == before


@pytest.mark.parametrize("message", [NeedIds(), Submit([]), SendCommand(1, None, "execute", b"", "")])
def test_a_read_only_key_hands_nothing_in(thief: Intruder, message: object) -> None:
    sock = thief.greeted(thief.keys.reader, "client", "reader:raw")
    sock.send(data(1, message))
    assert "read-only" in thief.refused(sock).text


# ------------------------------------------------------------------------------------------------ sessions


def test_nobody_takes_over_a_session(farm: Farm, tc: TaskClient, thief: Intruder) -> None:
    enrolment.enrol(farm._home, ["thief-2"])
    own = tc._session.session_id
    agents = engines(farm)[0].engine.rpartition(".")[0]
    assert agents.startswith("agent:")
    keys = keys_of(farm)
    enrolled = keys.agents["thief-2"]
    for pair, role in ((keys.reader, "client"), (keys.agent, "agent"), (enrolled, "agent"), (keys.client, "agent")):
        for session in (own, agents, f"reader:{own}"):
            if (pair, session) in ((keys.agent, agents), (keys.reader, f"reader:{own}")):
                continue
            answer = thief.greet(thief.socket(pair), hello(role, session))
            assert isinstance(answer, Refuse), (role, session)
            assert answer.etype == "SecurityError"
    answer = thief.greet(thief.socket(keys.client), hello("client", agents))
    assert isinstance(answer, Refuse)
    enrolment.revoke(farm._home, ["thief-2"])


def test_an_enrolled_agent_does_not_speak_for_others(
    farm: Farm, tc: TaskClient, thief: Intruder, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    task_id = tc.run(Task(gate.code + "a = 'true'", pull="a"))
    until_running(tc, task_id)
    victim = next(row for row in engines(farm) if row.task == task_id)
    enrolment.enrol(farm._home, ["thief-3"])
    sock = thief.greeted(keys_of(farm).agents["thief-3"], "agent", "thief-3:1")
    run = (task_id, 1)
    reports = [m.EngineReport(victim.engine, victim.id, 1, True, 1.0, held=encode_runs([run]))]
    former = [victim.engine.rpartition(".")[0]]
    state = AgentState("evil", 1, 2, 3, "linux", "3", reports, 0, former)
    forged = [
        state,
        m.Results(victim.engine, [Ended(*run, "", 1.0, 0.1, None, b"forged")]),
        m.EngineDown(victim.engine, victim.id, run, True, m.Crash(signal=9)),
        m.Returned(victim.engine, [run]),
        m.PropertiesChanged(victim.engine, 99, b"forged"),
        m.NodeState(float("nan"), -1, 2**63),
    ]
    sock.send(data(1, *forged))
    until_heard(thief, sock)
    row = next(row for row in engines(farm) if row.id == victim.id)
    assert (row.engine, row.pid, row.task, row.node) == (victim.engine, victim.pid, task_id, victim.node)
    gate.open()
    assert tc.get_task_result(task_id, block=True, timeout=60)["a"] == "true"
    enrolment.revoke(farm._home, ["thief-3"])
    log = (folder_of(farm) / "logs" / "controller.log").read_text()
    assert "may not send this" in log


def until_heard(thief: Intruder, sock: zmq.Socket[bytes]) -> None:
    """The controller has dealt with the first packet: it acknowledges that."""
    while HEADER.unpack_from(thief.frame(sock))[2] < 1:
        pass


# ------------------------------------------------------------------------------------------------ replays


def one_task(first: int) -> Submit:
    return Submit([Submission(first, b"no payload of ours", 1.0)])


def test_frames_that_are_sent_again_have_no_effect(farm: Farm, thief: Intruder) -> None:
    sock = thief.greeted(thief.keys.client, session="replayed")
    sock.send(data(1, NeedIds()))
    (block,) = thief.messages(sock)
    submitted = data(2, one_task(block.first))
    sock.send(submitted)
    eventually(lambda: block.first in tasks_there(farm))
    before = tasks_there(farm)
    for _ in range(3):
        sock.send(submitted)
    sock.send(data(1, NeedIds()))
    other = thief.socket(thief.keys.client)
    other.send(submitted)
    assert isinstance(thief.handshake(other), WhoAreYou), "a session is not carried by frames alone"
    sock.send(data(3, AskQuestion(1, m.AbortTasks([block.first]))))
    assert [type(said) for said in thief.messages(sock)] != [m.IdBlock]
    assert tasks_there(farm) == before


class Recorder(Proxy):
    """Keeps what went to the farm."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.went = bytearray()

    def _write(self, sock: socket.socket) -> None:
        waiting = self._waiting.get(sock)
        if waiting and sock in self._pairs and not self._pairs[sock][1]:
            self.went += waiting
        super()._write(sock)


def test_a_recorded_connection_that_is_played_again_has_no_effect(farm: Farm, thief: Intruder) -> None:
    recorder = Recorder(thief.info.port)
    try:
        sock = thief.socket(thief.keys.client, port=recorder.port)
        sock.send(wire.encode_handshake(hello(session="recorded")))

        def frame() -> bytes:
            def turned() -> bool:
                recorder.turn()
                return bool(sock.poll(0))

            eventually(turned)
            return sock.recv()

        assert isinstance(wire.decode_handshake(frame()), Welcome)
        sock.send(data(1, NeedIds()))
        while (first := frame())[0] != PacketKind.DATA:
            pass
        (block,) = wire.to_client().decode(first[HEADER.size :])
        assert isinstance(block, m.IdBlock)
        sock.send(data(2, one_task(block.first)))

        def is_there() -> bool:
            recorder.turn()
            return block.first in tasks_there(farm)

        eventually(is_there, every_s=0.05)
        recorded = bytes(recorder.went)
    finally:
        recorder.close()
    before = tasks_there(farm)
    assert len(recorded) > 500
    with socket.create_connection(("127.0.0.1", thief.info.port)) as plain:
        plain.sendall(recorded)
        plain.settimeout(20.0)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while got := plain.recv(4096):
                answer += got
    assert len(answer) < 1000, "its greeting and no more: the rest is for another's ears"
    assert tasks_there(farm) == before
    ask(farm, m.AbortTasks([block.first]))


# ------------------------------------------------------------------------------------------------ nonsense


@pytest.mark.parametrize("name", BAD)
def test_nonsense_is_turned_away(farm: Farm, thief: Intruder, name: str) -> None:
    controller = psutil.Process(controller_pid(farm))
    before = controller.memory_info().rss
    sock = thief.greeted(thief.keys.client, session=f"bad-{name}")
    sock.send_multipart(BAD[name])
    assert isinstance(ask(farm, m.QueueStatus()), tables.QueueStatusReply)
    assert controller.memory_info().rss - before < 64 * 2**20


def test_who_speaks_another_version_is_told_both(thief: Intruder) -> None:
    answer = thief.greet(thief.socket(thief.keys.client), hello(protocol=PROTOCOL + 7, version="9.9"))
    assert isinstance(answer, Refuse)
    assert answer.etype == "VersionMismatch"
    assert f"9.9 (protocol {PROTOCOL + 7})" in answer.text
    assert wire.own_version() in answer.text


def test_a_client_of_another_version_is_told_both(farm: Farm, thief: Intruder, tmp_path: Path) -> None:
    other = msgspec.structs.replace(thief.info, protocol=PROTOCOL + 7, version="9.9", incarnation="x")
    path = tmp_path / "other.json"
    enrolment.write_copy(other, path)
    with pytest.raises(errors.VersionMismatch, match=rf"9\.9 \(protocol {PROTOCOL + 7}\)"):
        TaskClient(str(path))


# ------------------------------------------------------------------------------------------------ secrets and files


def test_no_secret_is_shown_anywhere(
    farm: Farm, tc: TaskClient, mec: MultiEngineClient, capsys: pytest.CaptureFixture[str]
) -> None:
    enrolment.enrol(farm._home, ["node7"])
    secrets = secrets_of(keys_of(farm))
    assert len(secrets) == 5
    os.kill(controller_pid(farm), signal.SIGUSR2)
    eventually(lambda: list(folder_of(farm).glob("events-*.txt")))
    shown = [repr(farm), repr(tc), repr(mec), repr(farm.state), farm._repr_html_()]
    for process in processes(farm):
        shown += [" ".join(process.cmdline()), *process.environ().values()]
    for path in [*folder_of(farm).glob("logs/*"), *folder_of(farm).glob("events-*.txt")]:
        shown.append(path.read_text(errors="replace"))
    for words in (["status", "--json"], ["engines", "--json"], ["list", "--json"]):
        assert main([*words, *(["--farm", farm.name] if words[0] != "list" else [])]) == 0
    shown.append(capsys.readouterr().out)
    text = "\n".join(shown)
    assert len(text) > 5000
    assert not [secret for secret in secrets if secret in text]
    enrolment.revoke(farm._home, ["node7"])


def modes(root: Path) -> dict[str, int]:
    """All files and folders below, those that others can use."""
    found = {}
    for path in root.rglob("*"):
        mode = path.lstat().st_mode & 0o777
        if path.match("agent-*/profile/startup/README"):
            continue  # IPython's own, in a folder that nobody else can enter
        if mode & 0o077 and not path.is_symlink() and not path.is_socket():
            found[str(path)] = mode
    return found


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_files_are_private_under_any_umask(farm_dirs: Dirs, umask: int) -> None:
    before = os.umask(umask)
    try:
        with Farm(n=1, name="umask") as farm:
            os.umask(before)
            enrolment.enrol(farm._home, ["node7"])
            with farm.task_client() as tc:
                value(tc, "a = b'x' * 1_000_000", "a")
            for root in (farm_dirs.data, farm_dirs.runtime, farm_dirs.sockets):
                assert len(list(root.rglob("*"))) > 0
                assert modes(root) == {}
    finally:
        os.umask(before)


@pytest.mark.parametrize("what", ["client file", "keys", "farm folder"])
def test_planted_links_are_refused_by_name(farm_dirs: Dirs, what: str) -> None:
    target = farm_dirs.work / "target"
    folder = farm_paths.farm_folder("planted")
    if what == "farm folder":
        target.mkdir()
        farm_paths.private_folder(folder.parent)
        folder.symlink_to(target, target_is_directory=True)
        link = folder
    else:
        target.write_text("precious")
        link = farm_paths.connection_path("planted") if what == "client file" else folder / "keys.json"
        farm_paths.private_folder(link.parent)
        link.symlink_to(target)
    with pytest.raises((errors.SecurityError, errors.FarmExists), match=str(link)):
        Farm(n=1, name="planted")
    if what == "farm folder":
        assert list(target.iterdir()) == []
    else:
        assert target.read_text() == "precious"
    link.unlink(missing_ok=True)  # what a farm leaves of connection files goes with it
    with Farm(n=1, name="planted") as farm, farm.task_client() as tc:
        assert value(tc, "a = 42", "a") == 42


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make other users' files")
def test_other_users_connection_files_are_refused(farm: Farm, thief: Intruder, tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    enrolment.write_copy(thief.info, path)
    os.chown(path, 12345, 12345)
    with pytest.raises(errors.SecurityError, match="belongs to user 12345"):
        TaskClient(str(path))
    assert not [session for session in thief_sessions(farm) if "12345" in session]


def thief_sessions(farm: Farm) -> list[str]:
    table = ask(farm, m.ListConnections())
    assert isinstance(table, tables.ConnectionTable)
    return [row.name for row in table.rows]


# ------------------------------------------------------------------------------------------------ nothing is unpickled


class Bomb:
    """Where it is unpickled, that process's pid is written down."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"echo $PPID >> {self.path}",)


MAKE_BOMB = """
import os
class Bomb(Exception):
    def __reduce__(self):
        return os.system, ("echo $PPID >> {path}",)
"""


def test_nothing_is_unpickled_in_controller_and_agent(
    farm: Farm, tc: TaskClient, mec: MultiEngineClient, tmp_path: Path
) -> None:
    path = tmp_path / "exploded"
    make = MAKE_BOMB.format(path=path)
    mec.execute(make)
    argument = tc.run(MapTask(_ignore, [Bomb(str(path))]))
    result = tc.run(Task(make + "a = Bomb()", pull="a"))
    raised = tc.run(Task(make + "raise Bomb()"))
    mec.set_properties({"bomb": Bomb(str(path))})
    tc.barrier([argument, result, raised], timeout=60)
    tc.get_task_result(argument)
    tc.get_task_result(result)
    with pytest.raises(Exception) as caught:
        tc.get_task_result(raised).raise_exception()
    assert type(caught.value).__name__ == "Bomb"
    eventually(path.exists)
    value(tc, "a = 1", "a")
    pids = set(map(int, path.read_text().split()))
    allowed = {row.pid for row in engines(farm)} | {os.getpid()}
    assert pids <= allowed, "it went off where nothing may be unpickled"
    assert controller_pid(farm) not in pids
    mec.del_properties(["bomb"])


def _ignore(bomb: object) -> int:
    return 1


def test_keys_list_names_no_secret(farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]) -> None:
    with Farm(n=1, name="listed") as farm:
        enrolment.enrol(farm._home, ["node7"])
        secrets = secrets_of(keys_of(farm))
        assert main(["keys", "list", "--farm", "listed"]) == 0
        assert main(["keys", "list", "--farm", "listed", "--json"]) == 0
        shown = capsys.readouterr().out
        assert not [secret for secret in secrets if secret in shown]
        rows = {row["name"]: row for row in json.loads(shown[shown.index("[") :])}
        assert list(rows) == ["server", "client", "agent", "reader", "node7"]
        assert rows["agent"]["connected"] == [os.uname().nodename]
        assert rows["node7"]["connected"] == []
        assert "node7" in shown.partition("[")[0]
