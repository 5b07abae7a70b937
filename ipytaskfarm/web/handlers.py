"""The requests of a page, for any tornado application: its files, its socket, its actions, and metrics.

The application brings two base classes, which decide who may come in: one for requests, one for sockets. What a page
shows goes through the socket; what it changes comes as a POST, which the base class protects against other sites.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tornado import web, websocket

from ipytaskfarm.core import errors
from ipytaskfarm.core.text import text_of
from ipytaskfarm.view.picture import Delta, PictureData

from . import questions
from .bundle import bundle
from .feed import FarmFeed

STATIC = Path(__file__).parent / "static"
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
MESSAGE_MAX = 64 * 1024
"""The largest message of a page in bytes."""
QUESTIONS_MAX = 16
"""How many questions of one page are answered at once."""
UNSENT_MAX = 64
"""A page that has not received this number of messages is closed; it comes back by itself."""
SOCKETS_MAX = 200
"""How many sockets of pages one process serves."""
BEHIND = 4001
"""The code with which such a page is closed."""

NO_MESSAGE = 4000
"""The code with which a page is closed that sends something else than a message."""

Route = tuple[str, type[web.RequestHandler], dict[str, Any]]
FindFeed = Callable[[str], FarmFeed]
"""Returns the feed of the farm with this name. Raises KeyError if there is no such farm."""


def error_value(error: BaseException) -> dict[str, str]:
    """Return an error as a page shows it."""
    # A KeyError shows its text as Python shows a key.
    text = text_of(error.args[0] if type(error) is KeyError and len(error.args) == 1 else error)
    return {"type": type(error).__name__, "text": text[:1000]}


def json_of(text: str | bytes) -> Any:
    """Return the value that a page has sent.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def routes(
    prefix: str, find_feed: FindFeed, request_base: type[Any], socket_base: type[Any], names: Callable[[], list[str]]
) -> list[Route]:
    """Return the routes of the pages of farms below a prefix, which ends with a slash.

    Args:
        prefix: the beginning of the paths, a regular expression.
        find_feed: returns the feed of a farm.
        request_base: a tornado RequestHandler; its `prepare` refuses strangers.
        socket_base: the same for the socket; its `check_origin` refuses other sites.
        names: returns the names of the farms that pages may choose from.
    """

    def made(part: type[Any], base: type[Any]) -> type[Any]:
        members = {"find_feed": staticmethod(find_feed), "farm_names": staticmethod(names)}
        return type(part.__name__.removeprefix("_"), (part, base), members)

    files = made(_PageFile, request_base)
    return [
        (rf"{prefix}socket", made(_PageSocket, socket_base), {}),
        (rf"{prefix}act", made(_Act, request_base), {}),
        (rf"{prefix}farms", made(_FarmNames, request_base), {}),
        (rf"{prefix}metrics", made(_FarmMetrics, request_base), {}),
        (rf"{prefix}main\.bundle\.(js|css)", made(_PageBundle, request_base), {}),
        (rf"{prefix}(.*)", files, {"path": str(STATIC), "default_filename": "index.html"}),
    ]


class _PageFile(web.StaticFileHandler):
    """A file of the page. There is nothing of a farm in it, so that a page can ask for its login."""

    public = True

    def set_extra_headers(self, path: str) -> None:
        _set_headers_of_files(self)

    def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
        try:
            return super().validate_absolute_path(root, absolute_path)
        except (ValueError, OSError):  # no file can have this name: a null character, or it is too long
            raise web.HTTPError(404) from None


class _PageBundle(web.RequestHandler):
    """All modules, or styles, of the page as one: a browser needs some 10 ms for each file, and there are 30."""

    public = True

    def get(self, kind: str) -> None:
        _set_headers_of_files(self)
        if kind == "css":
            self.set_header("Content-Type", "text/css; charset=utf-8")
            self.finish(page_style())
        else:
            self.set_header("Content-Type", "text/javascript; charset=utf-8")
            self.finish(page_script())


def page_style() -> str:
    return "".join((STATIC / name).read_text(encoding="utf-8") for name in ("vendor/uplot.css", "page.css"))


def _set_headers_of_files(handler: web.RequestHandler) -> None:
    handler.set_header("Cache-Control", "no-cache")
    handler.set_header("Content-Security-Policy", CONTENT_POLICY)
    handler.set_header("X-Content-Type-Options", "nosniff")
    handler.set_header("Referrer-Policy", "no-referrer")


def page_script() -> str:
    """Return all modules of the page as one script."""
    return _script(max(file.stat().st_mtime_ns for file in STATIC.rglob("*.js")))


@functools.lru_cache(maxsize=1)
def _script(stamp: int) -> str:
    """Return the page's script as the files are at this time: an edited one is read again."""
    return bundle(STATIC, "main.js")


class _FarmRequest(web.RequestHandler):
    """A request about farms. Another class adds who may come in."""

    def find_feed(self, name: str) -> FarmFeed:
        """Return the feed of a farm.  Raises KeyError."""
        raise NotImplementedError

    def farm_names(self) -> list[str]:
        """Return the names of the farms that pages may choose from."""
        raise NotImplementedError


class _FarmNames(_FarmRequest):
    """The farms that a page may choose from, and what it shows first of the chosen one, until its socket is open."""

    @web.authenticated
    async def get(self) -> None:
        _ = self.xsrf_token  # the page needs its cookie for actions, and asks this first
        farms = self.farm_names()
        found: dict[str, Any] = {"farms": farms}
        first = self.get_argument("first", None)
        if first is not None and (first or len(farms) == 1):
            with contextlib.suppress(KeyError, ValueError, errors.TaskFarmError):  # the socket says so
                feed = self.find_feed(first or farms[0])
                found["first"] = {"control": feed.control, "picture": await feed.numbers()}
        self.finish(found)


class _Act(_FarmRequest):
    """An action of a page."""

    @web.authenticated
    async def post(self) -> None:
        try:
            request = json_of(self.request.body)
            feed = self.find_feed(str(request["farm"]))
            value = await questions.act(feed, request.get("what"), request.get("arguments"))
        except errors.SecurityError as error:
            self.set_status(403)
            self.finish({"error": error_value(error)})
        except Exception as error:  # of the farm, or of the request: the page shows it
            self.set_status(400)
            self.finish({"error": error_value(error)})
        else:
            self.finish({"value": value})


class _FarmMetrics(_FarmRequest):
    """The numbers of a farm for Prometheus."""

    @web.authenticated
    async def get(self) -> None:
        try:
            feed = self.find_feed(self.get_argument("farm", ""))
        except (KeyError, errors.TaskFarmError):
            raise web.HTTPError(404) from None
        picture = await feed.first_picture()
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(metrics_text(feed.name, picture))


_open_sockets: set[_PageSocket] = set()


class _PageSocket(websocket.WebSocketHandler):
    """Sends a picture and deltas, and answers questions. Another class adds who may come in."""

    _feed: FarmFeed | None = None
    _unsent = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._answering: set[asyncio.Task[None]] = set()

    def find_feed(self, name: str) -> FarmFeed:
        raise NotImplementedError

    def get_compression_options(self) -> dict[str, Any]:
        return {"compression_level": 1}

    @property
    def max_message_size(self) -> int:
        return MESSAGE_MAX

    async def get(self, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(zlib.error):  # a message that cannot be decompressed ends the connection
            await super().get(*args, **kwargs)

    def open(self, *args: str, **kwargs: str) -> None:
        super().open(*args, **kwargs)
        try:
            if len(_open_sockets) >= SOCKETS_MAX:
                text = f"there is no place for this page: {SOCKETS_MAX} are open, the most of this server; close some"
                raise errors.TaskFarmError(text)
            self._feed = self.find_feed(self.get_argument("farm", ""))
        except (KeyError, ValueError, errors.TaskFarmError) as error:
            self._send({"type": "refused", "error": error_value(error)})
            self.close(4004)
            return
        _open_sockets.add(self)
        self.set_nodelay(True)

    def on_close(self) -> None:
        _open_sockets.discard(self)
        if self._feed is not None:
            self._feed.close(self)

    async def on_message(self, message: str | bytes) -> None:
        feed = self._feed
        if feed is None:
            return
        try:
            said = json_of(message)
            kind = said["type"]
        except (ValueError, KeyError, TypeError):
            self.close(NO_MESSAGE)
            return
        if kind == "ask" and type(said.get("n")) is not int:
            self.close(NO_MESSAGE)
            return
        if kind == "hello":
            await self._greet(feed, said)
        elif kind == "ask" and len(self._answering) >= QUESTIONS_MAX:
            error = {"type": "ValueError", "text": "too many questions at once"}
            self._send({"type": "answer", "n": said.get("n"), "error": error})
        elif kind == "ask":
            # Further messages are read meanwhile: one question may wait for an engine.
            answering = asyncio.create_task(self._answer(feed, said))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

    async def _greet(self, feed: FarmFeed, said: dict[str, Any]) -> None:
        await feed.numbers()
        if self.ws_connection is None:  # the page has gone meanwhile
            return
        found = feed.hello(said.get("picture"), said.get("number"))
        if isinstance(found, dict):
            self._send(found)
        else:
            self._send({"type": "resumed", "control": feed.control, "at_s": time.time()})
            for delta in found:
                self.tell(delta)
        feed.open(self)

    async def _answer(self, feed: FarmFeed, said: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"type": "answer", "n": said.get("n")}
        try:
            reply["value"] = await questions.ask(feed, said.get("what"), said.get("arguments"))
        except Exception as error:  # of the farm, or of the question: the page shows it
            reply["error"] = error_value(error)
        self._send(reply)

    # -- the feed's page

    def tell(self, delta: Delta) -> None:
        self._send({"type": "delta", "number": delta.number, "operations": delta.operations})

    def show(self) -> None:
        """Send the whole picture."""
        if self._feed is not None:
            found = self._feed.hello(None, None)
            assert isinstance(found, dict)
            self._send(found)

    def _send(self, message: dict[str, Any]) -> None:
        if self._unsent >= UNSENT_MAX:
            self.close(BEHIND)
            return
        try:
            sent = self.write_message(json.dumps(message, separators=(",", ":")))
        except websocket.WebSocketClosedError:
            return
        self._unsent += 1
        asyncio.ensure_future(sent).add_done_callback(self._was_sent)

    def _was_sent(self, sent: asyncio.Future[None]) -> None:
        self._unsent -= 1
        if not sent.cancelled():
            sent.exception()  # a page that is gone is no error


NODES_MAX = 200


def metrics_text(farm: str, picture: PictureData) -> bytes:
    """Return a farm's numbers in the text format of Prometheus.  Labels are bounded: never tasks or names.

    Args:
        farm: the farm's name.
        picture: see `view.picture`.
    """
    # 0.1 s, which only a server that is asked for metrics should take.
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"taskfarm_{name}", text, ["farm", *labels], registry=registry)

    is_up = picture.get("status", {}).get("state") == "up"
    gauge("up", "Whether the controller answers").labels(farm).set(is_up)
    if not is_up:  # what was known before would be taken for the present
        return bytes(generate_latest(registry))
    tasks = gauge("tasks", "Tasks that were not cleared, by state", "state")
    for state, count in picture.get("counts", {}).items():
        tasks.labels(farm, state).set(count)
    engines = gauge("engines", "Engines, by what they do", "state")
    for state, count in picture.get("engine_states", {}).items():
        engines.labels(farm, state).set(count)
    gauge("engines_wanted", "Engines that the farm should have").labels(farm).set(picture.get("wanted", 0))
    waiting = gauge("waiting_tasks", "Tasks that wait, by reason", "reason")
    for reason, count, *_ in picture.get("waiting", []):
        waiting.labels(farm, reason).set(count)
    gauge("clients", "Connected clients").labels(farm).set(picture.get("clients", 0))
    gauge("nodes", "Agents").labels(farm).set(picture.get("nodes_total", 0))
    store = gauge("store_bytes", "Bytes of the store when the view connected")
    store.labels(farm).set(picture.get("farm", {}).get("store_bytes", 0))
    load = gauge("node_load", "Share of the node's cores that is busy", "node")
    memory = gauge("node_free_memory_bytes", "Free memory of the node", "node")
    for node, row in list(picture.get("nodes", {}).items())[:NODES_MAX]:
        if row.get("load") is not None:
            load.labels(farm, node).set(row["load"])
        if row.get("free_memory") is not None:
            memory.labels(farm, node).set(row["free_memory"])
    return bytes(generate_latest(registry))
