"""The live view within Jupyter's server: ``{base_url}taskfarm/``, behind Jupyter's own login.

Whoever may use the server runs code as its user anyway, so these pages may act, unless the farm's connection file is
one for readers. Jupyter's server checks the login, the origin of sockets, and the XSRF header of actions.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from jupyter_server.utils import ensure_async, url_path_join
from tornado import web

from ipytaskfarm.core import errors
from ipytaskfarm.system import farm_paths, jupyter_extension, live_pages
from ipytaskfarm.system.farm_paths import connection_reader

from .farm_requests import farm_routes
from .feed import FarmFeed, page_connection
from .handlers import routes


class FarmFeeds:
    """The feeds of the farms that run here, one for each that was asked for."""

    def __init__(self) -> None:
        self._feeds: dict[str, FarmFeed] = {}

    def names(self) -> list[str]:
        """Return the names of the farms that run here."""
        return [farm.name for farm in farm_paths.list_farms() if farm.running]

    def find(self, name: str) -> FarmFeed:
        """Return the feed of a farm of this user.

        Raises:
            KeyError: there is no farm of this name.
        """
        feed = self._feeds.get(name)
        if feed is None:
            there = {farm.name for farm in farm_paths.list_farms()}
            # Only names that are there: a path in place of a name would open any connection file.
            if name not in there:
                raise KeyError(f"there is no farm {name[:80]!r}: `ipytaskfarm list` shows those that are here")
            # A server lives for months, and each temporary farm has a name of its own.
            self._feeds = {each: kept for each, kept in self._feeds.items() if each in there or kept.is_followed}
        control = _may_act(name)
        if feed is None or feed.control != control:  # the file may be replaced by one with another key
            if feed is not None:
                self._ending = asyncio.create_task(feed.stop())
            feed = self._feeds[name] = FarmFeed(name, page_connection(name, control), control)
        return feed

    async def stop(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(feed.stop() for feed in self._feeds.values()))


def _may_act(name: str) -> bool:
    """Return whether the connection file of a farm has a client's key.  A farm that is gone is one of this user."""
    try:
        return connection_reader(name)().role != "reader"
    except (errors.TaskFarmError, OSError):
        return True


class LoggedInRequest(JupyterHandler):
    """A request of a page whose user has logged in to Jupyter."""

    async def prepare(self) -> None:  # type: ignore[override]
        """Send strangers to Jupyter's login."""
        await super().prepare()
        if self._finished or self.current_user is not None:
            return
        if self.request.method in ("GET", "HEAD") and self.request.path.endswith("/"):
            self.redirect(f"{self.get_login_url()}?next={quote(self.request.uri or '/')}")
        else:
            raise web.HTTPError(403, "log in to Jupyter first")


class LoggedInSocket(WebSocketMixin, JupyterHandler):
    """The socket of such a page."""

    async def prepare(self) -> None:  # type: ignore[override]
        """Refuse strangers."""
        await ensure_async(super().prepare())
        if self.current_user is None:
            raise web.HTTPError(403, "log in to Jupyter first")


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "ipytaskfarm.web.extension"}]


def _show_frozen_engines(serverapp: Any) -> None:
    """Let Jupyter's server list the kernels of frozen engines, which clients offer in a folder for that purpose.

    Without this, the server does so only if ``ServerApp.allow_external_kernels`` is set.
    """
    manager = serverapp.kernel_manager
    if getattr(manager, "external_connection_dir", "") is None:  # the server can, and is not told where
        manager.external_connection_dir = str(Path(serverapp.runtime_dir) / jupyter_extension.FOLDER)


def _load_jupyter_server_extension(serverapp: Any) -> None:
    """Add the pages to Jupyter's server, and the kernels of frozen engines."""
    _show_frozen_engines(serverapp)
    feeds = FarmFeeds()
    application = serverapp.web_app
    prefix = url_path_join(application.settings["base_url"], "taskfarm/")
    application.settings["ipytaskfarm_feeds"] = feeds
    live_pages.announce(prefix)
    application.add_handlers(
        ".*$",
        [
            *farm_routes(prefix, feeds.find, LoggedInRequest),
            *routes(prefix, feeds.find, LoggedInRequest, LoggedInSocket, feeds.names),
        ],
    )
    serverapp.log.info("ipytaskfarm: farms are shown at %s", prefix)
