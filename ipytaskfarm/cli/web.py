"""The live view of a farm: ``ipytaskfarm web`` in a browser, ``ipytaskfarm report`` as a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from traitlets import Int, List, Unicode

from ipytaskfarm.cli.application import OK, Command, UsageError, flag, switch
from ipytaskfarm.cli.jobs import find_job
from ipytaskfarm.core import errors
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.display.text import size
from ipytaskfarm.system import farm_paths
from ipytaskfarm.system.host import runtime_folder


class Web(Command):
    """``ipytaskfarm web``"""

    name = "web"
    description = """
Shows a farm in a browser: failures by cause, jobs with the time left, why tasks wait, engines, the task stream with
time travel, and every task. The server listens only on 127.0.0.1. The printed URL contains a key, and is also in a
file that only this user can read. Pages are read-only, unless --control lets them abort and retry tasks, pause and
scale. Ctrl-C ends the server; the farm continues.
"""
    examples = """
        ipytaskfarm web
        ipytaskfarm web --farm nightly --port 8790 --control
        ipytaskfarm web --socket /run/user/1000/farm.sock
    """
    port = flag("PORT", Int(0, help="the port (default: 0, a free one)"))
    socket = flag("PATH", Unicode("", help="listen on a unix socket at this path, not on a port"))
    hosts = flag(
        "NAME:PORT",
        List(Unicode(), help="a name under which a proxy calls this server; may be given several times"),
        "host-name",
    )
    control = switch("let pages change the farm: abort, retry, pause, scale")

    def carry_out(self) -> int:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port {self.port} is not a port: 0 to 65535 was expected")
        if self.socket and self.port:
            raise UsageError("--port or --socket: not both")
        asyncio.run(self._serve())
        return OK

    async def _serve(self) -> None:
        # tornado costs 0.1 s, which only this command should take.
        from ipytaskfarm.web.feed import FarmFeed, page_connection
        from ipytaskfarm.web.server import WebServer

        connection = page_connection(self.farm, self.control)
        name = connection().farm  # a farm that is not there is said at once
        server = WebServer(FarmFeed(name, connection, self.control), extra_hosts=self.hosts)
        try:
            server.listen(self.port, Path(self.socket).expanduser() if self.socket else None)
        except (OSError, ValueError) as error:
            raise self._no_place(error) from None
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, over.set)
        url = f"http://localhost/#token={server.token}" if self.socket else server.url
        try:
            with _url_file(name, url) as path:
                where = f"on the socket {self.socket}, at" if self.socket else "at"
                print(f"farm {name!r} is shown {where}\n\n    {url}\n\n(also in {path}; Ctrl-C ends it)", flush=True)
                await over.wait()
        finally:
            await server.stop()
        print("the page is closed; the farm goes on", file=sys.stderr)

    def _no_place(self, error: Exception) -> errors.TaskFarmError:
        """Return the error for a place at which the server cannot listen."""
        why = (error.strerror if isinstance(error, OSError) else None) or error
        if self.socket:
            return errors.TaskFarmError(
                f"cannot listen on the socket {self.socket} ({why}): --socket takes a path of at most"
                f" {farm_paths.IPC_PATH_MAX} bytes, in a folder that is there, and no other file's"
            )
        return errors.TaskFarmError(
            f"cannot listen on port {self.port} of 127.0.0.1 ({why}): name another one, or leave --port out"
        )


@contextlib.contextmanager
def _url_file(farm: str, url: str) -> Iterator[Path]:
    """Write the URL into a file that only this user can read, as long as the server runs."""
    folder = runtime_folder()
    farm_paths.private_folder(folder)
    for old in folder.glob("ipytaskfarm-web-*.url"):
        pid = old.stem.rpartition("-")[2]
        if pid.isdecimal() and farm_paths.process_started(int(pid)) is None:  # it was killed, and its key is of no use
            old.unlink(missing_ok=True)
    path = folder / f"ipytaskfarm-web-{farm}-{os.getpid()}.url"
    farm_paths.write_private(path, f"{url}\n".encode())
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


class Report(Command):
    """``ipytaskfarm report``"""

    name = "report"
    description = """
Writes the page of `ipytaskfarm web` with its data into one file: failures with tracebacks, jobs, engines, the task
stream, and up to 5,000 tasks, failed ones first. The file can be opened without the farm and without a network, for
example from a mail. It contains the output and the errors of tasks, but not their values.
"""
    examples = """
        ipytaskfarm report --output run.html
        ipytaskfarm report --farm nightly --job sweep --output sweep.html
    """
    output = flag("FILE", Unicode("", help="the file to write"), "o output")
    job = flag("NAME", Unicode("", help="only this job: its name (the latest of that name), or its id"))

    def carry_out(self) -> int:
        if not self.output:
            raise UsageError("which file? `ipytaskfarm report --output run.html`")
        job = None
        with connect(self.farm) as questioner:
            if self.job:
                job = find_job(questioner, self.job).id
        text = asyncio.run(self._report(job))
        path = Path(self.output).expanduser()
        path.write_text(text, encoding="utf-8")
        print(f"{path}: {size(len(text.encode()))}")
        return OK

    async def _report(self, job: str | None) -> str:
        from ipytaskfarm.web.feed import FarmFeed, page_connection
        from ipytaskfarm.web.report import report

        connection = page_connection(self.farm, False)
        feed = FarmFeed(connection().farm, connection, False)
        try:
            return await report(feed, job)
        finally:
            await feed.stop()
