"""Test the commands of the ssh launcher as text, and its remote part on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipytaskfarm.deployment import agent_groups
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.launchers.interface import AgentSpec, Seat, elsewhere
from ipytaskfarm.launchers.ssh.command_lines import (
    MARK,
    Host,
    answer_of,
    helper_script,
    look_script,
    parse_hosts,
    said_port,
    ssh_words,
    tunnel_script,
    tunnel_words,
)
from ipytaskfarm.launchers.ssh.launcher import Ssh
from ipytaskfarm.settings.checks import Agents
from ipytaskfarm.system.farm_paths import ConnectionInfo, agent_folder, private_folder, process_started, write_private
from tests.conftest import Dirs
from tests.support.polling import eventually

SECRET = "s" * 40
INFO = ConnectionInfo(
    farm="x", incarnation="0123456789abcdef", host="127.0.0.1", port=4711, server_key="k" * 40, public_key="p" * 40,
    secret_key=SECRET, role="agent", controller_pid=1, controller_started=1.0, version="0", protocol=1,
)  # fmt: skip


def shell(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script like a host's ``sh -s``: without a terminal, with the script on stdin."""
    return subprocess.run(["/bin/sh", "-s", *arguments], input=script, capture_output=True, text=True, timeout=60)


# ---------------------------------------------------------------------------------------- hosts


def test_hosts_with_and_without_users_and_numbers() -> None:
    found = parse_hosts("node01:4, me@node02:2,node03 [fe80::1]:3,me@[fe80::2]")
    assert found == [
        Host("node01", 4), Host("me@node02", 2), Host("node03", None), Host("[fe80::1]", 3), Host("me@[fe80::2]", None),
    ]  # fmt: skip
    assert [host.name for host in found] == ["node01", "node02", "node03", "fe80::1", "fe80::2"]
    assert found[4].destination == "me@fe80::2"


@pytest.mark.parametrize(
    "text", ["", " ,", "-oProxyCommand=id", "me@-x", "a:b", "a:0", "a;id", "a b$c", "ssh://a", "a:1:2"]
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"hosts=|no host|no engine"):
        parse_hosts(text)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, "the option hosts is needed"),
        ({"hosts": "a", "tunnel": "maybe"}, "auto, yes or no"),
        ({"hosts": "a", "folder": "here"}, "begins with /"),
    ],
)
def test_options_that_cannot_be(options: dict[str, str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Ssh(options)


def test_one_agent_for_each_host() -> None:
    ssh = Ssh({"hosts": "a:1,b"})
    assert ssh.names("ssh-3", None) == ssh.names("ssh-3", 2) == ["ssh-3.0", "ssh-3.1"]
    with pytest.raises(ValueError, match="3 agents were requested, and there are 2 hosts"):
        ssh.names("ssh-3", 3)


# ---------------------------------------------------------------------------------------- command lines


def test_the_command_never_asks_and_forwards_nothing() -> None:
    words = ssh_words(None, Host("me@node01", 4))
    assert words[:4] == ["ssh", "-T", "-a", "-x"]
    assert words[-3:] == ["--", "me@node01", "sh -s"]
    options = words[5:-3:2]
    assert {"BatchMode=yes", "ConnectTimeout=10", "ClearAllForwardings=yes", "RemoteCommand=none"} <= set(options)
    assert "-F" not in words
    assert ssh_words("/c", Host("n", None))[4:6] == ["-F", "/c"]


def test_the_reason_of_a_failure_is_shown_and_not_the_sites_banner() -> None:
    assert "LogLevel=ERROR" in ssh_words(None, Host("node01", None))


def test_a_tunnel_leads_from_the_hosts_loopback_alone() -> None:
    words = tunnel_words("/c", Host("node01", None), ("10.0.0.1", 4711))
    assert words[words.index("-R") + 1] == "127.0.0.1:0:10.0.0.1:4711"
    assert {"ExitOnForwardFailure=yes", "ControlPath=none", "ServerAliveInterval=10"} <= set(words)
    words = tunnel_words(None, Host("node01", None), ("fe80::1", 4711))
    assert words[words.index("-R") + 1] == "127.0.0.1:0:[fe80::1]:4711"


def test_the_port_that_ssh_says() -> None:
    assert said_port("Warning: x\r\nAllocated port 43997 for remote forward to 127.0.0.1:55879\r\n") == 43997
    assert said_port("Connection refused") is None


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost", "0.0.0.0", "::"])
def test_addresses_that_mean_nothing_elsewhere(address: str) -> None:
    assert elsewhere(msgspec.structs.replace(INFO, host=address)) is None
    assert elsewhere(msgspec.structs.replace(INFO, host=address, location="10.1.2.3")) == "10.1.2.3"
    assert elsewhere(msgspec.structs.replace(INFO, host="head.example.org")) == "head.example.org"


# ---------------------------------------------------------------------------------------- scripts


def test_the_look_finds_the_first_interpreter_that_is_there(tmp_path: Path) -> None:
    ended = shell(look_script(["/nowhere/python", sys.executable], None, str(tmp_path)))
    answer = answer_of(ended.stdout)
    assert answer is not None
    assert answer["python"] == sys.executable
    assert answer["cwd"] is True
    assert "reaches" not in answer
    assert answer_of(shell(look_script(["/nowhere/python"], None, "/")).stdout) == {"error": "there is no Python"}


def test_a_script_that_prepares_an_environment_stays_the_interpreter(tmp_path: Path) -> None:
    """The agent was started with the interpreter behind it, without what the script had prepared."""
    script = tmp_path / "my python"
    script.write_text(f'#!/bin/sh\nPREPARED=yes exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    answer = answer_of(shell(look_script([str(script)], None, "/")).stdout)
    assert answer is not None
    assert answer["python"] == str(script)


def test_the_look_survives_any_name(tmp_path: Path) -> None:
    odd = tmp_path / "it's $(touch never) `x`"
    odd.mkdir()
    answer = answer_of(shell(look_script([sys.executable], ("127.0.0.1", 1), str(odd))).stdout)
    assert answer is not None
    assert answer["cwd"] is True
    assert answer["reaches"] is False


def test_an_answer_stands_among_what_login_shells_print() -> None:
    assert answer_of(f'Welcome!\n{MARK}{{}}\n{MARK}{{"a": 1}}\nbye\n') == {"a": 1}
    assert answer_of("Welcome!\n") is None
    assert answer_of(f"{MARK}{{") is None


def test_data_goes_by_stdin_unharmed() -> None:
    data = {"folder": "/nowhere", "connection": "'\"$HOME`id`\\\nipytaskfarm-end-of-data\n"}
    script = helper_script(sys.executable, "look", data)
    assert json.loads(script.splitlines()[-2]) == data
    assert script.splitlines()[0].endswith("umask 077")
    command = script.splitlines()[2]
    assert "nowhere" not in command
    assert answer_of(shell(script).stdout) == {"state": "gone"}


def test_a_tunnels_script_ends_with_its_agent(tmp_path: Path) -> None:
    folder = tmp_path / "it's"
    assert shell(tunnel_script(str(folder), 0)).returncode == 0  # it never came
    folder.mkdir()
    (folder / "exit").write_text("137\n")
    waiting = subprocess.Popen(["/bin/sh", "-s"], stdin=subprocess.PIPE, text=True)
    try:
        assert waiting.stdin is not None
        waiting.stdin.write(tunnel_script(str(folder), 0))
        waiting.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1.5)  # an agent that crashed is started again
        (folder / "exit").write_text("0\n")
        assert waiting.wait(60) == 0
    finally:
        waiting.kill()
        waiting.wait(60)


def test_the_preview_shows_all_but_the_secret(farm_dirs: Dirs) -> None:
    file = farm_dirs.work / "agent.json"
    write_private(file, msgspec.json.encode(INFO))
    spec = AgentSpec(farm="x", group="ssh-1", engines=3, cwd=Path("/data"))
    ssh = Ssh({"hosts": "node01:4,node02"})
    text = ssh.preview([Seat(name, file) for name in ssh.names("ssh-1", None)], spec)
    assert SECRET not in text
    assert text.count("-R 127.0.0.1:0:127.0.0.1:4711") == 2
    assert re.search(r'"--engines", "4".*"--engines", "3"', text, re.DOTALL)
    assert "~/.cache/ipytaskfarm/x-01234567-ssh-1.0" in text


def test_the_preview_needs_no_running_farm(farm_dirs: Dirs) -> None:
    text = agent_groups.preview(Home.of("preview"), Agents("ssh", options={"hosts": "node01"}))
    assert "# ssh-1.0: a tunnel, if it does not reach the controller\nssh -T" in text
    assert "-R 127.0.0.1:0:CONTROLLER:0" in text
    assert "# ssh-1.0: the agent\nssh -T" in text
    assert "tunnel" not in agent_groups.preview(
        Home.of("preview"), Agents("ssh", options={"hosts": "a", "tunnel": "no"})
    )


# ---------------------------------------------------------------------------------------- the other side

AGENT = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nprint('up', flush=True)\n"


def told(verb: str, folder: Path, **data: Any) -> dict[str, Any]:
    """Call the remote part as the launcher does, but without a network."""
    ended = shell(helper_script(sys.executable, verb, {"folder": str(folder), **data}))
    answer = answer_of(ended.stdout)
    assert answer is not None, ended.stderr
    return answer


def started(folder: Path, code: str) -> dict[str, Any]:
    connection = msgspec.json.encode(INFO).decode()
    return told("start", folder, connection=connection, words=[sys.executable, "-c", AGENT + code])


def until_up(folder: Path) -> None:
    eventually(lambda: "up" in (folder / "agent.out").read_text())


def test_an_agent_is_started_once_and_watched(farm_dirs: Dirs) -> None:
    folder = farm_dirs.work / "far" / "a"
    first = started(folder, "time.sleep(60)")
    until_up(folder)
    assert started(folder, "time.sleep(60)") == first
    assert told("look", folder) == {"state": "running", **first}
    assert (folder / "connection.json").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert SECRET in (folder / "connection.json").read_text()
    assert told("end", folder, name="a", patience_s=30.0) == {"state": "ending"}
    eventually(lambda: not folder.parent.exists())
    assert process_started(first["pid"]) != first["started"]
    assert told("look", folder) == {"state": "gone"}


def test_how_an_agent_ended_is_kept(farm_dirs: Dirs) -> None:
    folder = farm_dirs.work / "far"
    for code, expected in (("sys.exit(0)", 0), ("sys.exit('no farm')", 1), ("os.kill(os.getpid(), 9)", 137)):
        started(folder, f"import os\n{code}")
        eventually(lambda: told("look", folder)["state"] == "ended")
        found = told("look", folder)
        assert found["code"] == expected
        assert ("no farm" in found["said"]) == (expected == 1)
    shutil.rmtree(folder)


def test_one_that_does_not_end_is_killed_and_its_own_folder_goes(farm_dirs: Dirs) -> None:
    folder = farm_dirs.work / "far"
    own = private_folder(agent_folder("x", INFO.incarnation, "a"))
    (own / "engine-1.rec").touch()
    record = started(folder, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)")
    eventually(lambda: "deaf" in (folder / "agent.out").read_text())
    assert told("end", folder, name="a", patience_s=2.0) == {"state": "ending"}
    assert "about to end" in started(folder, "")["error"]
    eventually(lambda: not folder.exists())
    assert process_started(record["pid"]) != record["started"]
    assert not own.parent.exists()


def test_a_process_that_only_has_the_number_is_not_touched(farm_dirs: Dirs) -> None:
    folder = farm_dirs.work / "far"
    record = started(folder, "sys.exit(3)")
    eventually(lambda: told("look", folder)["state"] == "ended")
    other = {**record, "pid": os.getpid()}
    write_private(folder / "agent.json", json.dumps(other).encode())
    assert told("look", folder)["state"] == "ended"
    assert told("end", folder, name="a", patience_s=1.0) == {"state": "gone"}


def test_a_folder_that_others_may_use_is_refused(farm_dirs: Dirs) -> None:
    folder = farm_dirs.work / "far"
    folder.mkdir()
    folder.chmod(0o777)
    assert re.search(
        r"SecurityError: others can use .*far", told("start", folder, connection="{}", words=["x"])["error"]
    )
    assert not list(folder.iterdir())
