"""What JupyterLab's panel asks and does beyond one farm: all farms with their numbers, starting and stopping.

Only Jupyter's server has these requests, because whoever may use it runs code as its user anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tornado import web

from ipytaskfarm.core import errors, messages
from ipytaskfarm.core.messages.tables import QueueStatusReply
from ipytaskfarm.core.messages.view import EnginePage, ReadEngines
from ipytaskfarm.core.states import state_counts
from ipytaskfarm.deployment.daemon import start_detached, stop_farm
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.system import farm_paths
from ipytaskfarm.system.farm_paths import FarmEntry
from ipytaskfarm.version import __version__

from .feed import FarmFeed
from .handlers import FindFeed, Route, error_value, json_of

OVERVIEW_S = 2.0
"""How long a farm has for its numbers; one that is slower is listed without them."""
STOP_WAIT_S = 10.0
"""How long running tasks may go on when a farm is stopped."""
ENGINES_MAX = 10_000


def farm_routes(prefix: str, find_feed: FindFeed, request_base: type[Any]) -> list[Route]:
    """Return the routes of the panel below a prefix, which ends with a slash; see `handlers.routes`."""

    def made(part: type[Any]) -> type[Any]:
        members = {"find_feed": staticmethod(find_feed)}
        return type(part.__name__.removeprefix("_"), (part, request_base), members)

    return [
        (rf"{prefix}overview", made(_Overview), {}),
        (rf"{prefix}start", made(_Start), {}),
        (rf"{prefix}stop", made(_Stop), {}),
    ]


class _Overview(web.RequestHandler):
    """All farms of this user, with the numbers of those that run."""

    # A page that looks at these numbers by itself must not keep Jupyter's server from being culled.
    _track_activity = False
    find_feed: FindFeed

    @web.authenticated
    async def get(self) -> None:
        found = await asyncio.gather(*(self._look(farm) for farm in farm_paths.list_farms()))
        self.finish({"version": __version__, "farms": found})

    async def _look(self, farm: FarmEntry) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": farm.name, "running": farm.running, "lasting": farm.folder is not None}
        if not farm.running:
            return entry
        try:
            entry |= await asyncio.wait_for(_numbers(self.find_feed(farm.name)), OVERVIEW_S)
        except TimeoutError:
            entry["error"] = "does not answer"
        except (KeyError, OSError, errors.TaskFarmError) as error:
            entry["error"] = error_value(error)["text"]
        return entry


async def _numbers(feed: FarmFeed) -> dict[str, Any]:
    """Return a farm's tasks by state, its engines, and whether its connection file lets pages change it."""
    tasks, engines = await asyncio.gather(
        feed.answer_for(messages.QueueStatus(), QueueStatusReply), feed.answer_for(ReadEngines(count=1), EnginePage)
    )
    ready = engines.states.get("idle", 0) + engines.states.get("busy", 0)
    counts = state_counts(tasks.counts)
    return {"counts": counts, "engines": ready, "wanted": engines.wanted, "control": feed.control}


class _Progress:
    """Keeps the last line of a start or a stop."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def progress(self, text: str) -> None:
        """Ignore what is waited for: the panel shows that it waits."""

    def say(self, line: str) -> None:
        """Keep a line about an event."""
        self.lines.append(line)


class _Change(web.RequestHandler):
    """Starts or stops a farm, in a thread."""

    @web.authenticated
    async def post(self) -> None:
        try:
            request = json_of(self.request.body)
            text = await asyncio.to_thread(self.action(request))
        except errors.TaskFarmError as error:
            self._refuse(error)
        except (ValueError, TypeError, KeyError, OSError) as error:
            self._refuse(error)
        else:
            self.finish({"value": {"text": text}})

    def _refuse(self, error: Exception) -> None:
        self.set_status(400)
        self.finish({"error": error_value(error)})

    def action(self, request: Any) -> Callable[[], str]:
        """Return what the thread does for this request.  Raises ValueError, TypeError or KeyError."""
        raise NotImplementedError


class _Start(_Change):
    """Starts a farm, or resumes one that was stopped."""

    def action(self, request: Any) -> Callable[[], str]:
        name, engines = farm_paths.check_name(str(request["farm"])), request.get("engines")
        if engines is not None and (type(engines) is not int or not 0 <= engines <= ENGINES_MAX):
            raise ValueError(f"a number of engines from 0 to {ENGINES_MAX:,} was expected")

        def start() -> str:
            words = ["--farm", name, *(["-n", str(engines)] if engines is not None else [])]
            started = start_detached(Home.of(name), words, _Progress())
            if started.code:
                raise errors.ConnectionError(started.text)
            return started.text.partition(" Connect: ")[0]

        return start


class _Stop(_Change):
    """Stops a farm; its tasks and results are kept."""

    def action(self, request: Any) -> Callable[[], str]:
        name = farm_paths.check_name(str(request["farm"]))

        def stop() -> str:
            told = _Progress()
            stop_farm(Home.of(name), STOP_WAIT_S, told)
            return "\n".join([*told.lines, f"farm {name!r} has stopped; its tasks and results are kept"])

        return stop
