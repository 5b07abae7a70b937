"""``ipytaskfarm web``: where it listens, what it leaves, and whose logs its page shows."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ipytaskfarm import Farm
from ipytaskfarm.system.farm_paths import connection_reader
from ipytaskfarm.system.host import runtime_folder
from ipytaskfarm.web import questions
from ipytaskfarm.web.extension import FarmFeeds
from ipytaskfarm.web.feed import FarmFeed
from ipytaskfarm.web.server import own_hosts
from tests.conftest import Dirs
from tests.support.polling import DEADLINE_S

pytestmark = pytest.mark.farm


def refusal(farm: Farm, *flags: str) -> str:
    command = [sys.executable, "-m", "ipytaskfarm", "web", "--farm", farm.name, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 1, done.stdout
    return done.stderr


def test_a_place_at_which_it_cannot_listen_is_named(farm: Farm, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        said = refusal(farm, "--port", port)
    assert f"port {port} of 127.0.0.1 (Address already in use): name another one" in said
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file", tmp_path / "gone" / "socket", tmp_path / ("long" * 40)):
        assert f"cannot listen on the socket {path} (" in refusal(farm, "--socket", str(path))
    assert (tmp_path / "file").read_text() == "precious"


def test_urls_of_servers_that_were_killed_do_not_stay(farm: Farm, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ipytaskfarm", "web", "--farm", farm.name, "--socket", str(tmp_path / "s")]
    found = []
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                said = [server.stdout.readline() for _ in range(5)]
                found.append(sorted(runtime_folder().glob("ipytaskfarm-web-*.url")))
            finally:
                server.kill()
        assert said[0] == f"farm {farm.name!r} is shown on the socket {tmp_path / 's'}, at\n"
    assert [len(files) for files in found] == [1, 1]
    assert found[0] != found[1]


def test_a_server_keeps_its_socket(farm: Farm, tmp_path: Path) -> None:
    """A second one is refused; one that comes when the file was removed keeps its own when the first one ends."""
    path = tmp_path / "s"
    command = [sys.executable, "-m", "ipytaskfarm", "web", "--farm", farm.name, "--socket", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout is not None
            first.stdout.readline()
            assert "(another process listens there)" in refusal(farm, "--socket", str(path))
            path.unlink()
            with subprocess.Popen(command, stdout=subprocess.PIPE) as second:
                try:
                    assert second.stdout is not None
                    second.stdout.readline()
                    first.terminate()
                    assert first.wait(DEADLINE_S) == 0
                    assert path.is_socket()
                    second.terminate()
                    assert second.wait(DEADLINE_S) == 0
                    assert not path.exists()
                finally:
                    second.kill()
        finally:
            first.kill()


def test_jupyters_server_forgets_farms_that_are_gone(farm_dirs: Dirs) -> None:
    async def names() -> list[str]:
        feeds = FarmFeeds()
        with Farm(n=0) as first:
            feed = feeds.find(first.name)
            await feed.first_picture()
        assert list(feeds._feeds) == [first.name]
        await feed.stop()  # as by itself, a minute after its last page
        with Farm(n=0) as second:
            feeds.find(second.name)
            await feeds.stop()
        assert first.name != second.name
        return [*feeds._feeds, second.name]

    known, second = asyncio.run(names())
    assert known == second


def test_browsers_leave_the_port_of_http_out() -> None:
    assert {"127.0.0.1", "localhost:80"} <= {*own_hosts(80)}
    assert own_hosts(8790) == ["127.0.0.1:8790", "localhost:8790"]


def test_a_page_shows_no_logs_of_another_farm_of_its_name(farm: Farm) -> None:
    """A colleague's connection file has the name of his farm, which may be the name of one here."""

    async def names(name: str, file: str) -> list[str]:
        feed = FarmFeed(name, connection_reader(file), control=False)
        await feed.first_picture()
        found: dict[str, list[str]] = await questions.ask(feed, "logs", {})
        await feed.stop()
        return found["names"]

    with Farm(n=1, name="mine") as mine:
        assert "controller" in asyncio.run(names("mine", str(mine.connection_file)))
        assert asyncio.run(names("mine", str(farm.connection_file))) == []
