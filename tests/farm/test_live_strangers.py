"""The live view's server and people without its token: what they send is bounded, and no input is an error of ours."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import socket
import threading
import zlib
from collections.abc import Iterator

import pytest
from tornado.http1connection import HTTP1ServerConnection
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from ipytaskfarm import Farm
from ipytaskfarm.system.farm_paths import connection_reader
from ipytaskfarm.web import bounded_server, handlers
from ipytaskfarm.web.feed import FarmFeed
from ipytaskfarm.web.handlers import MESSAGE_MAX
from ipytaskfarm.web.server import WebServer
from tests.support.polling import DEADLINE_S, eventually

pytestmark = pytest.mark.farm(n=1)

TOKEN = "the token"
KEY = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(farm: Farm) -> Iterator[WebServer]:
    """A server in a thread of its own."""
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), []

    def serve() -> None:
        asyncio.set_event_loop(loop)

        async def begin() -> None:
            feed = FarmFeed(farm.name, connection_reader(str(farm.connection_file)), control=False)
            found.append(WebServer(feed, TOKEN))
            found[0].listen()

        loop.run_until_complete(begin())
        ready.set()
        loop.run_forever()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(DEADLINE_S)
    yield found[0]
    asyncio.run_coroutine_threadsafe(found[0].stop(), loop).result(DEADLINE_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(DEADLINE_S)
    loop.close()


@pytest.fixture
def tracebacks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail if anything was logged with a traceback, or as an error."""
    caplog.set_level(logging.INFO)
    yield
    wrong = [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert not wrong, wrong


def ask(
    server: WebServer, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Return the status and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
    connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


# -- what is odd


DEEP = b"[" * 60_000
ODD: list[tuple[str, str, bytes | None, dict[str, str]]] = [
    ("GET", "/%00", None, {}),
    ("GET", "/main.bundle.js%00", None, {}),
    ("GET", "/" + "a" * 5000, None, {}),
    ("GET", "/%ff", None, {}),
    ("GET", "/..%2f..%2f..%2fetc/passwd", None, {}),
    ("FOO", "/", None, {}),
    ("DELETE", "/farms", None, {}),
    ("GET", "/farms", None, {"Origin": "http://["}),
    ("GET", "/", None, {"Origin": "http://[]"}),
    ("GET", "/", None, {"Origin": "http://℀.com".encode().decode("latin-1")}),
    ("GET", "/", None, {"Host": "%s.example"}),
    ("GET", "/farms", None, {"Authorization": "Bearer ÿ"}),
    ("GET", "/farms", None, {"Cookie": '_xsrf=2|x|y|z; a="; ="\\777"'}),
    ("POST", "/login", b'{"token":"\\ud800"}', {}),
    ("POST", "/login", DEEP, {}),
    ("POST", "/login", b'{"token":' * 5000, {}),
    ("POST", "/login", b"\xff\xfe", {}),
    ("POST", "/login", b"null", {}),
    ("POST", "/login", b"9" * 5000, {}),
    ("POST", "/login", b"x", {"Content-Type": "multipart/form-data; boundary="}),
    ("POST", "/act", b"{}", {}),
    ("GET", "/socket", None, {"Upgrade": "websocket"}),
    ("GET", "/farms?first=%ff", None, KEY),
    ("GET", "/metrics?farm=nobody", None, KEY),
    ("GET", "/socket", None, KEY | {"Origin": "http://["}),
]


@pytest.mark.usefixtures("tracebacks")
@pytest.mark.parametrize(("method", "path", "body", "headers"), ODD)
def test_odd_requests_are_refused_without_a_traceback(
    server: WebServer, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> None:
    status, text = ask(server, method, path, body, headers)
    assert 400 <= status < 500, text
    assert "%s" not in text.replace("%s.example", "")


@pytest.mark.usefixtures("tracebacks")
@pytest.mark.parametrize("body", [b'{"farm":"\\ud800"}', b"[]", DEEP, b'{"farm":"","what":[]}'])
def test_odd_actions_are_refused_without_a_traceback(server: WebServer, body: bytes) -> None:
    headers = KEY | {"Cookie": "_xsrf=abc", "X-XSRFToken": "abc"}
    assert ask(server, "POST", "/act", body, headers)[0] == 400


def test_a_refusal_names_the_path(server: WebServer) -> None:
    status, text = ask(server, "GET", "/..%2f..%2fetc/passwd")
    assert status == 403
    assert "etc/passwd is not in root" in json.loads(text)["error"]["text"]


@pytest.mark.usefixtures("tracebacks")
@pytest.mark.parametrize(
    "message",
    [
        "[" * 60_000, '{"type":"ask","n":' * 3000, "[]", "null", "9" * 5000, '{"type":"ask"}',
        '{"type":"ask","n":' + "[" * 900 + "]" * 900 + "}",
    ],
)  # fmt: skip
def test_a_page_that_sends_no_message_is_closed(server: WebServer, message: str) -> None:
    async def closed() -> int | None:
        page = await websocket_connect(HTTPRequest(f"ws://127.0.0.1:{server.port}/socket", headers=KEY))
        await page.write_message(message)
        while await page.read_message() is not None:
            pass
        page.close()
        return page.close_code

    assert asyncio.run(asyncio.wait_for(closed(), DEADLINE_S)) == 4000


@pytest.mark.usefixtures("tracebacks")
@pytest.mark.parametrize("frame", [b"\xc2\xb2" + bytes(54), b"\x88\x84" + bytes(4) + b"\x03\xe8\xff\xff"])
def test_a_frame_that_cannot_be_read_ends_the_socket(server: WebServer, frame: bytes) -> None:
    """The first one cannot be decompressed, the second one's reason is no text."""
    with opened(server, "permessage-deflate") as page:
        page.sendall(frame)
        page.settimeout(DEADLINE_S)
        while page.recv(65536):
            pass


@pytest.mark.usefixtures("tracebacks")
def test_a_socket_for_a_farm_that_is_not_shown_is_refused(server: WebServer) -> None:
    async def said() -> str | bytes | None:
        url = f"ws://127.0.0.1:{server.port}/socket?farm=nobody"
        page = await websocket_connect(HTTPRequest(url, headers=KEY))
        try:
            return await page.read_message()
        finally:
            page.close()
            await page.read_message()

    found = asyncio.run(asyncio.wait_for(said(), DEADLINE_S))
    assert found is not None
    refused = json.loads(found)
    assert refused["type"] == "refused"
    assert refused["error"]["text"].startswith("this server shows"), "without quotes around the sentence"


def test_a_message_that_is_large_when_it_is_decompressed_ends_the_socket(server: WebServer) -> None:
    with opened(server, "permessage-deflate") as page:
        packed = zlib.compress(b"x" * 100 * MESSAGE_MAX)[2:]
        page.sendall(b"\xc2\xfe" + len(packed).to_bytes(2, "big") + bytes(4) + packed)
        page.settimeout(DEADLINE_S)
        while page.recv(65536):
            pass


def opened(server: WebServer, extensions: str) -> socket.socket:
    """Return a socket that speaks the frames of a page."""
    page = socket.create_connection(("127.0.0.1", server.port), DEADLINE_S)
    lines = {
        "Host": f"127.0.0.1:{server.port}", "Upgrade": "websocket", "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Extensions": extensions, **KEY,
    }  # fmt: skip
    page.sendall(request("GET /socket", lines))
    assert b" 101 " in page.recv(4096)
    return page


def request(line: str, headers: dict[str, str]) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


# -- what is much, or slow


def test_a_large_body_is_refused_before_it_comes(server: WebServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as stranger:
        headers = {"Host": f"127.0.0.1:{server.port}", "Content-Length": "104000000"}
        stranger.sendall(request("POST /login", headers))
        assert stranger.recv(4096).startswith(b"HTTP/1.1 400")


def test_large_headers_end_the_connection(server: WebServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as stranger:
        try:
            stranger.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 10**6)
            assert stranger.recv(4096) == b""
        except ConnectionError:
            pass


def test_a_body_and_headers_that_do_not_come_end_the_connection(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_server, "BODY_S", 0.2)
    monkeypatch.setattr(bounded_server, "IDLE_S", 0.3)

    async def served() -> None:
        server = WebServer(FarmFeed(farm.name, connection_reader(str(farm.connection_file)), control=False), TOKEN)
        server.listen()
        headers = {"Host": f"127.0.0.1:{server.port}", "Content-Length": "100"}
        for begun in (request("POST /login", headers) + b"{", b"GET / HT", b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(begun)
            assert await reader.read() == b""
            writer.close()
        await server.stop()

    asyncio.run(asyncio.wait_for(served(), DEADLINE_S))


def test_connections_of_those_who_have_logged_in_are_bounded(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_server, "KNOWN_MAX", 4)
    assert server._server is not None
    eventually(lambda: not server._server._known)  # type: ignore[union-attr]
    pages = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S) for _ in range(6)]
    answers = []
    for page in pages:
        page.request("GET", "/farms", headers=KEY)
        answer = page.getresponse()
        answers.append((answer.status, answer.read().decode()))
    assert [status for status, _ in answers] == [200] * 4 + [503] * 2
    assert "connections of pages and programs are open, the most of this server: close some" in answers[-1][1]
    pages[0].close()
    eventually(lambda: len(server._server._known) == 3)  # type: ignore[union-attr]
    pages[-1].request("GET", "/farms", headers=KEY)
    assert pages[-1].getresponse().status == 200
    for page in pages:
        page.close()


def test_sockets_of_pages_are_bounded(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "SOCKETS_MAX", 2)
    eventually(lambda: not handlers._open_sockets)

    async def said() -> str | bytes | None:
        url = HTTPRequest(f"ws://127.0.0.1:{server.port}/socket", headers=KEY)
        pages = [await websocket_connect(url) for _ in range(3)]
        try:
            return await pages[-1].read_message()
        finally:
            for page in pages:
                page.close()
                while await page.read_message() is not None:
                    pass

    found = asyncio.run(asyncio.wait_for(said(), DEADLINE_S))
    assert found is not None
    assert "there is no place for this page" in json.loads(found)["error"]["text"]
    with opened(server, ""):  # there is one again
        eventually(lambda: len(handlers._open_sockets) == 1)


def test_connections_of_strangers_are_bounded_and_those_of_pages_stay(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page has a connection that asks again, and a socket."""
    monkeypatch.setattr(bounded_server, "STRANGERS_MAX", 8)
    page = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
    page.request("GET", "/farms", headers=KEY)
    assert page.getresponse().read()
    its_socket = page.sock
    with opened(server, "") as feed:
        strangers = [socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) for _ in range(40)]
        assert [stranger.recv(1) for stranger in strangers[:32]] == [b""] * 32
        assert server._server is not None
        eventually(lambda: len(server._server._connections) <= 9)  # type: ignore[union-attr]
        page.request("GET", "/farms", headers=KEY)
        assert page.getresponse().status == 200
        assert page.sock is its_socket
        assert ask(server, "GET", "/")[0] == 200  # a new browser gets in
        assert ask(server, "POST", "/login", json.dumps({"token": TOKEN}).encode())[0] == 200
        feed.sendall(b"\x81\x90" + bytes(4) + b'{"type":"hello"}')
        assert feed.recv(4096)
        for stranger in strangers:
            stranger.close()
    page.close()


def test_strangers_that_ask_much_and_read_nothing_do_not_keep_pages_out(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that a connection has sent before it was closed do not count as a new connection."""
    monkeypatch.setattr(bounded_server, "STRANGERS_MAX", 8)
    many = f"GET /main.bundle.js HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode() * 50
    strangers = [socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) for _ in range(40)]
    for stranger in strangers:
        with contextlib.suppress(OSError):  # it was closed for a newer one
            stranger.sendall(many)
    assert server._server is not None
    eventually(lambda: len(server._server._connections) <= 9)  # type: ignore[union-attr]
    for _ in range(5):
        assert ask(server, "GET", "/farms", headers=KEY)[0] == 200
    connections: set[HTTP1ServerConnection] = server._server._connections
    assert sum(not each.stream.closed() for each in connections) >= 7, "only the oldest one made room"
    for stranger in strangers:
        stranger.close()
