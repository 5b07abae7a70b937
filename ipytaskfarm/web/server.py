"""``ipytaskfarm web``: the live view on this machine, for whoever has the URL.

The URL has a token in its fragment, which browsers do not send. The page posts it once and gets a cookie that scripts
cannot read and other sites cannot send. Requests for another host name are refused, so that no other site's name can
be bound to this address.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tornado import netutil, web, websocket

from ipytaskfarm.core import errors

from .bounded_server import KNOWN_MAX, BoundedServer
from .feed import FarmFeed
from .handlers import json_of, page_script, routes

COOKIE_DAYS = 7


class Guard:
    """Decides who may come in.

    Args:
        token: the secret of the URL.
        hosts: the names, with ports, under which the server may be called.
    """

    def __init__(self, token: str, hosts: Sequence[str]) -> None:
        self.token = token
        self.hosts = frozenset(hosts)
        self.cookie = f"taskfarm-{secrets.token_hex(4)}"
        """The cookie's name: two servers of one host share their cookies, whatever their ports."""

    def is_token(self, given: object) -> bool:
        if not isinstance(given, str):
            return False
        return hmac.compare_digest(given.encode(errors="surrogatepass"), self.token.encode())

    def check_host(self, request: Any) -> None:
        """Refuse a request for another host, or from a page of another one.

        Raises:
            tornado.web.HTTPError: 403.
        """
        if self.hosts and request.host.lower() not in self.hosts:
            raise web.HTTPError(403, f"this server is not called {request.host[:100]!r}")
        origin = request.headers.get("Origin")
        if origin is not None and not _is_of(origin, request.host):
            raise web.HTTPError(403, f"a page of {origin[:100]!r} may not use this server")


def _is_of(origin: str, host: str) -> bool:
    """Return whether a page of this origin comes from this host."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:  # it is no URL
        return False


def bases(
    guard: Guard, knows: Callable[[object], None]
) -> tuple[type[web.RequestHandler], type[websocket.WebSocketHandler]]:
    """Return the base classes of `handlers.routes` that let in whoever has the cookie, or sends the token.

    knows: is told the connection of each request whose user has logged in, and refuses it if there is no place.
    """

    class _Identified(web.RequestHandler):
        public = False

        def get_current_user(self) -> str | None:
            scheme, _, given = self.request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() == "bearer" and guard.is_token(given):
                return "token"
            return "cookie" if self.get_signed_cookie(guard.cookie, max_age_days=COOKIE_DAYS) else None

        def prepare(self) -> None:
            guard.check_host(self.request)
            if self.current_user is not None:
                knows(self.request.server_connection)
            elif not self.public:
                raise web.HTTPError(401, "open the URL that `ipytaskfarm web` has printed")

        def write_error(self, status_code: int, **kwargs: Any) -> None:
            error = kwargs.get("exc_info", (None, None, None))[1]
            message = error.log_message if isinstance(error, web.HTTPError) else None
            text = message % error.args if error is not None and message else self._reason
            self.finish({"error": {"type": "HTTPError", "text": text}})

    class PageRequest(_Identified):
        """A request of a page that has logged in."""

    class PageSocket(_Identified, websocket.WebSocketHandler):
        """The socket of such a page."""

        def check_origin(self, origin: str) -> bool:
            return _is_of(origin, self.request.host)

    class Login(PageRequest):
        """Exchanges the token for a cookie."""

        public = True

        def check_xsrf_cookie(self) -> None:
            """Accept every request: `post` asks for the token, and no cookie helps."""

        def post(self) -> None:
            try:
                given = json_of(self.request.body).get("token")
            except (ValueError, AttributeError):
                given = None
            if not guard.is_token(given):
                raise web.HTTPError(403, "this is not the token: open the URL that `ipytaskfarm web` has printed")
            knows(self.request.server_connection)
            self.set_signed_cookie(guard.cookie, "in", expires_days=None, httponly=True, samesite="Strict", path="/")
            self.finish({"xsrf": self.xsrf_token.decode()})

    PageRequest.login = Login  # type: ignore[attr-defined]
    return PageRequest, PageSocket


class WebServer:
    """The application of one farm, and its sockets.

    Args:
        feed: follows the farm.
        token: the secret of the URL; a fresh one if None.
        extra_hosts: further names, with ports, under which the server may be called.
    """

    def __init__(self, feed: FarmFeed, token: str | None = None, extra_hosts: Sequence[str] = ()) -> None:
        self.feed = feed
        self.token = token or secrets.token_urlsafe(24)
        self._extra_hosts = list(extra_hosts)
        self._server: BoundedServer | None = None
        self._file: tuple[Path, int] | None = None
        """The file of the unix socket, and its number."""
        self.port = 0

    def listen(self, port: int = 0, path: Path | None = None) -> None:
        """Listen on 127.0.0.1, or on a unix socket at this path, which only this user can open.

        The first page is probably opened at once: its script is made, and the farm is followed for a moment.

        Raises:
            OSError: the port is taken, or the path cannot be used.
        """
        if path is None:
            sockets = netutil.bind_sockets(port, "127.0.0.1")
            self.port = int(sockets[0].getsockname()[1])
            hosts = own_hosts(self.port)
        else:
            sockets = [_bind_unix_socket(path)]
            self._file = path, os.stat(path).st_ino
            hosts = ["localhost"]
        self._server = BoundedServer(self._application([*hosts, *self._extra_hosts]))
        self._server.add_sockets(sockets)
        page_script()
        self.feed.look()

    def _application(self, hosts: Sequence[str]) -> web.Application:
        guard = Guard(self.token, [host.lower() for host in hosts])
        request_base, socket_base = bases(guard, self._knows)
        find = _only(self.feed)
        return web.Application(
            [
                (r"/login", request_base.login),  # type: ignore[attr-defined]
                *routes("/", find, request_base, socket_base, lambda: [self.feed.name]),
            ],
            cookie_secret=secrets.token_bytes(32),
            xsrf_cookies=True,
            xsrf_cookie_kwargs={"samesite": "Strict", "path": "/"},
            websocket_ping_interval=20,
            log_function=lambda handler: None,
        )

    def _knows(self, connection: object) -> None:
        if self._server is not None and not self._server.knows(connection):
            text = f"{KNOWN_MAX} connections of pages and programs are open, the most of this server: close some"
            raise web.HTTPError(503, text)

    @property
    def url(self) -> str:
        """Return the URL to open, with the token."""
        return f"http://127.0.0.1:{self.port}/#token={self.token}"

    async def stop(self) -> None:
        """Close the sockets and the connection to the farm, and remove the socket's file."""
        if self._server is not None:
            self._server.stop()
            await self._server.close_all_connections()
        if self._file is not None:
            path, number = self._file
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == number:  # and not that of a server that came in its place
                    path.unlink()
        await self.feed.stop()


def own_hosts(port: int) -> list[str]:
    """Return the names by which browsers of this machine call a server at this port; they leave that of http out."""
    ports = ("", ":80") if port == 80 else (f":{port}",)
    return [f"{name}{number}" for name in ("127.0.0.1", "localhost") for number in ports]


def _bind_unix_socket(path: Path) -> socket.socket:
    """Return a socket that listens at this path, in the place of one on which nobody listens any more.

    Raises:
        OSError: another process listens there, or the path cannot be used.
        ValueError: another kind of file is there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        if path.is_socket() and other.connect_ex(str(path)) == 0:
            raise OSError(errno.EADDRINUSE, "another process listens there")
    return netutil.bind_unix_socket(str(path), mode=0o600)


def _only(feed: FarmFeed) -> Callable[[str], FarmFeed]:
    def find(name: str) -> FarmFeed:
        if name not in ("", feed.name):
            raise errors.FarmNotRunning(f"this server shows farm {feed.name!r} alone")
        return feed

    return find
