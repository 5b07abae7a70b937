"""Keys of a running farm: agents enrolled, rotated and revoked while they work, clients that find their way back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipytaskfarm import Farm, Task, TaskClient, errors
from ipytaskfarm.cli import main
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages import tables
from ipytaskfarm.deployment import enrolment
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.system import farm_paths
from ipytaskfarm.transport.keys import SERVER, agent_file, farm_keys, load_keys
from tests.conftest import Dirs
from tests.support.farms import DEADLINE_S, Gate, ask, engines, python, until_engines, until_running, value
from tests.support.polling import eventually
from tests.support.thorough import by_hand

pytestmark = pytest.mark.farm


@pytest.fixture
def keyed(farm_dirs: Dirs) -> Iterator[Farm]:
    """Provide a farm with one engine, and a name under which the command finds it."""
    with Farm(n=1, name="keyed") as farm:
        yield farm


@contextmanager
def agent(file: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An agent of another node, as one starts it by hand; it is gone afterwards."""
    words = ["--connection-file", str(file), "--folder", str(folder), "--farm", "keyed", "--node", "node7"]
    with open(folder.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ipytaskfarm.agent", *words],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60.0)
        finally:
            process.kill()
            process.wait()


def two_nodes(farm: Farm) -> tables.EngineRow:
    """One engine on each; that of the other node."""
    ask(farm, m.SetWanted(2))
    until_engines(farm, 2)
    (row,) = [row for row in engines(farm) if row.node == "node7"]
    return row


def until_joined(farm: Farm) -> None:
    def joined() -> bool:
        state = ask(farm, m.FarmStatus())
        assert isinstance(state, tables.FarmState)
        return any(row["node"] == "node7" and row["state"] == "up" for row in state.agents)

    eventually(joined, DEADLINE_S, every_s=0.05)


def connected(farm: Farm) -> dict[str, int]:
    """Title of a key -> how many are connected by it."""
    table = ask(farm, m.ListConnections())
    assert isinstance(table, tables.ConnectionTable)
    found: dict[str, int] = {}
    for row in table.rows:
        if row.there:
            found[row.key] = found.get(row.key, 0) + 1
    return found


def test_an_agent_with_a_copied_file_works_and_is_shut_out(
    keyed: Farm, farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = farm_dirs.work / "node7.json"
    assert main(["keys", "add", "node7", "--output", str(copy), "--farm", "keyed"]) == 0
    assert copy.stat().st_mode & 0o777 == 0o600
    gate = Gate(farm_dirs.work / "gate")
    with keyed.task_client() as tc, agent(copy, farm_dirs.work / "node7") as process:
        until_joined(keyed)
        theirs = two_nodes(keyed)
        assert theirs.engine.startswith("node7:")
        assert connected(keyed)["agent:node7"] == 1
        # Each agent counts its own engines, so the files of this machine's first engine have the same name.
        assert main(["logs", "engine", str(theirs.id), "--farm", "keyed"]) == 1
        assert "is one of agent node7 on node node7, whose files are there" in capsys.readouterr().err
        repeated = tc.run(Task(gate.code + "a = 1", pull="a", targets=[theirs.id], retries=1))
        once = tc.run(Task("a = 2", pull="a", targets=[theirs.id]))
        until_running(tc, repeated)
        assert main(["keys", "revoke", "node7", "--farm", "keyed"]) == 0
        # Long before any lease: what ran there runs again, on an engine of the same id here.
        eventually(lambda: "its key was revoked" in "".join(ask_state(keyed).losses), DEADLINE_S)
        gate.open()
        tc.barrier([repeated, once], timeout=DEADLINE_S)
        assert tc.get_task_result(repeated)["a"] == 1
        assert tc.get_task_result(once)["a"] == 2, "it had not begun, and lost nothing"
        assert process.wait(DEADLINE_S) == 4
        assert "agent:node7" not in connected(keyed)
        assert not agent_file(Home.of("keyed").folder, "node7").exists()
    with agent(copy, farm_dirs.work / "again") as process:
        assert process.wait(DEADLINE_S) == 4
    assert "does not know the key" in (farm_dirs.work / "again.log").read_text()
    assert main(["keys", "revoke", "node7", "--farm", "keyed"]) == 1
    assert "no agent 'node7' with a key of its own" in capsys.readouterr().err


def ask_state(farm: Farm) -> tables.FarmState:
    state = ask(farm, m.FarmStatus())
    assert isinstance(state, tables.FarmState)
    return state


def test_an_agent_that_reads_the_farms_own_file_survives_a_rotation(keyed: Farm, farm_dirs: Dirs) -> None:
    file = enrolment.enrol(Home.of("keyed"), ["node7"])["node7"]
    before = file.read_bytes()
    gate = Gate(farm_dirs.work / "gate")
    with keyed.task_client() as tc, agent(file, farm_dirs.work / "node7") as process:
        until_joined(keyed)
        theirs = two_nodes(keyed)
        task_id = tc.run(Task(gate.code + "a = 1", pull="a", targets=[theirs.id]))
        until_running(tc, task_id)
        assert enrolment.rotate(Home.of("keyed"), ["node7"]) == 1
        assert file.read_bytes() != before
        eventually(lambda: connected(keyed).get("agent:node7") == 1, DEADLINE_S)
        gate.open()
        assert tc.get_task_result(task_id, block=True, timeout=DEADLINE_S)["a"] == 1
        assert process.poll() is None
        assert theirs.pid in {row.pid for row in engines(keyed)}
        assert enrolment.revoke(Home.of("keyed"), ["node7"]) == 1


def test_clients_and_this_machines_agent_survive_a_rotation_of_all_keys(keyed: Farm, farm_dirs: Dirs) -> None:
    home = Home.of("keyed")
    gate = Gate(farm_dirs.work / "gate")
    copied = keyed.connection_file.read_bytes()
    (ours,) = engines(keyed)
    with keyed.task_client() as tc:
        task_id = tc.run(Task(gate.code + "a = 1", pull="a"))
        until_running(tc, task_id)
        server = farm_paths.read_connection_file(keyed.connection_file).server_key
        assert main(["keys", "rotate", "--all", "--farm", "keyed"]) == 0
        others = [tc.run(Task(f"a = {n}", pull="a")) for n in range(200)]
        gate.open()
        assert tc.get_task_result(task_id, block=True, timeout=DEADLINE_S)["a"] == 1
        tc.barrier(others, timeout=DEADLINE_S)
        assert [tc.get_task_result(i)["a"] for i in others] == list(range(200))
        assert [row.pid for row in engines(keyed)] == [ours.pid]
        eventually(lambda: connected(keyed).get("agent") == 1, DEADLINE_S)
    # The server's own is another one only after the next start.
    keys = load_keys(home.folder)
    assert keys is not None
    assert farm_paths.read_connection_file(keyed.connection_file).server_key == server != keys.server.public
    old = farm_dirs.work / "old.json"
    farm_paths.write_private(old, copied)
    with pytest.raises(errors.SecurityError, match="does not know the key"):
        TaskClient(str(old), timeout=DEADLINE_S)
    eventually(lambda: keyed.state is not None, DEADLINE_S)


@by_hand
def test_a_rotated_server_key_takes_effect_at_the_next_start(
    farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]
) -> None:
    with Farm(n=1, name="keyed") as farm:
        before = farm_paths.read_connection_file(farm.connection_file)
        assert main(["keys", "rotate", SERVER, "--farm", "keyed"]) == 0
        assert "started next" in capsys.readouterr().out
        enrolment.enrol(Home.of("keyed"), ["node7"])
    keys = load_keys(Home.of("keyed").folder)
    assert keys is not None
    with Farm(n=1, name="keyed") as farm, farm.task_client() as tc:
        after = farm_paths.read_connection_file(farm.connection_file)
        assert after.server_key == keys.server.public != before.server_key
        own = farm_paths.read_connection_file(agent_file(Home.of("keyed").folder, "node7"))
        assert (own.server_key, own.port, own.public_key) == (
            after.server_key,
            after.port,
            keys.agents["node7"].public,
        )
        assert value(tc, "a = 1", "a") == 1


@by_hand
def test_a_farm_that_begins_anew_knows_no_agents(farm_dirs: Dirs) -> None:
    home = Home.of("keyed")
    with Farm(n=1, name="keyed"):
        enrolment.enrol(home, ["node7"])
    assert agent_file(home.folder, "node7").exists()
    with Farm(n=1, name="keyed", fresh=True):
        keys = load_keys(home.folder)
        assert keys is not None
        assert not keys.agents
        assert not agent_file(home.folder, "node7").exists()


def test_what_a_stopped_farm_is_told_holds_when_it_starts(farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home.of("keyed")
    with Farm(n=1, name="keyed"):
        enrolment.enrol(home, ["one", "two"])
    assert main(["keys", "revoke", "one", "--farm", "keyed"]) == 0
    assert main(["keys", "add", "three", "--farm", "keyed"]) == 0
    assert "as soon as the farm is started" in capsys.readouterr().out
    assert main(["keys", "add", "four", "--output", str(farm_dirs.work / "f.json"), "--farm", "keyed"]) == 4
    assert "start it" in capsys.readouterr().err
    assert main(["keys", "list", "--farm", "keyed"]) == 0
    with Farm(n=1, name="keyed"):
        files = sorted(path.stem for path in (home.folder / "agents").iterdir())
        assert files == ["four", "three", "two"]


def test_a_reader_whose_task_was_refused_goes_on_looking(keyed: Farm, tmp_path: Path) -> None:
    """Its thread asked for ids without end, which it never got, and read no answer any more."""
    file = tmp_path / "looks.json"
    assert main(["keys", "add", "--reader", "--output", str(file), "--farm", "keyed"]) == 0
    with TaskClient(str(file)) as reader, keyed.task_client() as tc:
        with pytest.raises(errors.SecurityError, match="cannot submit tasks"):
            reader.run(Task("a = 1"))
        for _ in range(20):
            assert reader.session.ask(m.QueueStatus(), timeout_s=DEADLINE_S)
        eventually(lambda: reader.session.io.idle)
        assert value(tc, "a = 2", "a") == 2, "the clients of one process have one connection for each role"


def test_a_reader_beside_a_client_of_the_same_process_changes_nothing(keyed: Farm, farm_dirs: Dirs) -> None:
    file = farm_dirs.root / "beside.json"
    assert main(["keys", "add", "--reader", "--output", str(file), "--farm", "keyed"]) == 0
    with TaskClient("keyed") as tc, TaskClient(str(file)) as reader:
        assert reader.queue_status() == tc.queue_status()
        for change in (lambda: reader.run(Task("a = 1")), reader.clear):
            with pytest.raises(errors.SecurityError):
                change()
    with TaskClient(str(file)), TaskClient("keyed") as tc:
        assert tc.map(abs, [-1]) == [1]


def test_no_other_file_is_lost_to_a_connection_file(
    keyed: Farm, farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]
) -> None:
    file = farm_dirs.work / "notes"
    words = ["keys", "add", "--reader", "--output", str(file), "--farm", "keyed"]
    file.write_text("precious")
    assert main(words) == 1
    assert f"{file} is there, and is no connection file: choose another name" in capsys.readouterr().err
    assert file.read_text() == "precious"
    file.write_text("")
    for _ in range(2):
        assert main(words) == 0
    assert farm_paths.read_connection_file(file).role == "reader"


def test_readers_look_and_change_nothing(keyed: Farm, farm_dirs: Dirs) -> None:
    file = farm_dirs.work / "colleagues.json"
    assert main(["keys", "add", "--reader", "--output", str(file), "--farm", "keyed"]) == 0
    with keyed.task_client() as tc:
        tc.map(abs, [-1], name="squares")
        code = (
            "import sys\n"
            "from ipytaskfarm import TaskClient, Task, errors\n"
            "tc = TaskClient(sys.argv[1])\n"
            "print(len(tc.tasks().rows), tc.queue_status()['succeeded'], len(tc.jobs()), tc.job('squares').results())\n"
            "for forbidden in (lambda: tc.run(Task('a = 1')), lambda: tc.clear(), lambda: tc.abort(0)):\n"
            "    try:\n"
            "        forbidden()\n"
            "    except errors.SecurityError as error:\n"
            "        print('refused:', error)\n"
        )
        lines = python(code, str(file)).splitlines()
        assert lines[0] == "1 1 1 [1]"
        assert [line[:8] for line in lines[1:]] == ["refused:"] * 3
        for command in (["jobs", "squares"], ["tasks", "--job", "squares"], ["failures", "--job", "squares"], ["top"]):
            assert main([*command, "--farm", str(file)]) == 0, command
        assert len(tc.tasks().rows) == 1
    copy = farm_dirs.work / "clients.json"
    assert main(["keys", "add", "--client", "--output", str(copy), "--farm", "keyed"]) == 0
    with TaskClient(str(copy)) as other:
        assert value(other, "a = 3", "a") == 3


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["fly"], "not one of list, add, rotate and revoke"),
        (["list", "x"], "nothing more"),
        (["add"], "which agent?"),
        (["add", "a", "b"], "which agent?"),
        (["add", "client"], "cannot be an agent's name"),
        (["add", "a/b"], "cannot be an agent's name"),
        (["add", "--reader"], "--output FILE"),
        (["add", "--reader", "--client", "--output", "x"], "one of the two"),
        (["rotate"], "which keys?"),
        (["rotate", "a", "--all"], "which keys?"),
        (["revoke"], "whose key?"),
        (["revoke", "reader"], "`keys rotate reader`"),
    ],
)
def test_a_wrong_command_line_says_what_is_right(
    words: list[str], part: str, farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home.of("default")
    home.make_folders()
    farm_keys(home.folder)
    assert main(["keys", *words]) == 2
    assert part in capsys.readouterr().err


def test_without_a_farm_there_are_no_keys(farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "list", "--farm", "nowhere"]) == 4
    assert "there is no farm 'nowhere'" in capsys.readouterr().err
    assert not Home.of("nowhere").folder.exists()


def test_what_others_can_reach_is_said(farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]) -> None:
    with Farm(n=1, name="open", host="0.0.0.0", location="localhost", port=0) as farm:
        assert "listening on all addresses of this machine" in repr(farm)
        info = farm_paths.read_connection_file(farm.connection_file)
        assert (info.host, info.location) == ("127.0.0.1", "localhost")
        file = enrolment.enrol(Home.of("open"), ["node7"])["node7"]
        assert farm_paths.read_connection_file(file).host == "localhost"
        log = Home.of("open").log("controller").read_text()
        assert f"other machines find it at localhost:{info.port}" in log
        with agent(file, farm_dirs.work / "node7"):
            until_joined(farm)
