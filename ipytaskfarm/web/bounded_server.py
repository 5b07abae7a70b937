"""An HTTP server that keeps little for those who have not logged in.

The operating system lets every user of the machine connect to 127.0.0.1. So what one connection may send, and for how
long it may be silent, is limited, and so is the number of connections of strangers.
"""

from __future__ import annotations

from typing import Any

from tornado import httpserver, httputil, web
from tornado.http1connection import HTTP1ServerConnection

BODY_BYTES_MAX = 64 << 10
"""For a request's body; pages send some hundred bytes. Messages of a socket have a limit of their own."""
HEADER_BYTES_MAX = 32 << 10
"""For a request's headers: a browser sends the cookies of all servers of this host."""
BODY_S = 10.0
"""How long a request's body may take."""
IDLE_S = 60.0
"""How long a connection may take until it has sent the headers of its next request. Browsers connect again."""
STRANGERS_MAX = 100
"""The most connections of those who have not logged in; the oldest one is closed for a new one."""
KNOWN_MAX = 400
"""The most connections of those who have logged in, besides sockets; a browser has six at most for all its pages."""


class BoundedServer(httpserver.HTTPServer):
    """Closes the oldest connection of a stranger when there are too many. `knows` tells who is none."""

    def initialize(self, application: web.Application, **kwargs: Any) -> None:  # type: ignore[override]
        """Set the limits."""
        self._strangers: dict[HTTP1ServerConnection, None] = {}
        """Connections, the oldest one first."""
        self._known: set[HTTP1ServerConnection] = set()
        super().initialize(
            application,
            max_body_size=BODY_BYTES_MAX,
            max_header_size=HEADER_BYTES_MAX,
            body_timeout=BODY_S,
            idle_connection_timeout=IDLE_S,
            **kwargs,
        )

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """Wait for a request of a connection, its first one or a further one."""
        assert isinstance(server_conn, HTTP1ServerConnection)
        if server_conn.stream.closed():
            # It was closed for a newer one, and has sent further requests before. They are read, and not answered.
            return httputil.HTTPMessageDelegate()
        if server_conn not in self._known and server_conn not in self._strangers:
            self._strangers[server_conn] = None
            if len(self._strangers) > STRANGERS_MAX:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.stream.close()
        return super().start_request(server_conn, request_conn)

    def knows(self, connection: object) -> bool:
        """Record that the user of a connection has logged in.  Return whether there was a place for it."""
        if isinstance(connection, HTTP1ServerConnection) and connection in self._strangers:
            if len(self._known) >= KNOWN_MAX:
                return False
            del self._strangers[connection]
            self._known.add(connection)
        return True

    def on_close(self, server_conn: object) -> None:
        """Forget a connection that has ended, or has become a socket's."""
        assert isinstance(server_conn, HTTP1ServerConnection)
        self._strangers.pop(server_conn, None)
        self._known.discard(server_conn)
        super().on_close(server_conn)
