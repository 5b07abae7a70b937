"""The live view under test: servers of the page, and pages that let nothing through."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request

from ipytaskfarm.system.jupyter_extension import SOURCE
from tests.conftest import Dirs
from tests.support.browser import DEADLINE_MS
from tests.support.polling import DEADLINE_S, eventually

SOCKETS = """
window.sockets = []; window.said = [];
window.WebSocket = class extends WebSocket {
    constructor(...given) {
        super(...given);
        window.sockets.push(this);
        this.addEventListener("message", event => window.said.push(JSON.parse(event.data).type));
    }
};
"""
"""Lets a test close a page's socket, and see what came through it."""


class WebPage(NamedTuple):
    """A server of the page: ``ipytaskfarm web``."""

    url: str
    """With the key."""

    @property
    def base(self) -> str:
        return self.url.partition("#")[0]

    @property
    def token(self) -> str:
        return self.url.partition("#token=")[2]

    def request(self, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """Ask the server, and return the status and the text of the answer."""
        data = None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.base + path, data, named)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@contextmanager
def web_page(farm: str, *flags: str, program: Sequence[str] = ("-m", "ipytaskfarm")) -> Iterator[WebPage]:
    """``ipytaskfarm web`` for a farm of this world; it ends with the block, or with us.

    `program` is how Python runs the command.
    """
    command = [
        "setpriv", "--pdeathsig", "TERM", "--",
        sys.executable, *program, "web", "--farm", farm, *flags,
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            lines = iter(server.stdout.readline, "")
            yield WebPage(next(line.strip() for line in lines if "http://" in line))
        finally:
            server.terminate()
            try:
                server.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                server.kill()
                raise


@contextmanager
def strict_page(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """A page on which an error, a violation of its content policy, and a request to elsewhere are failures.

    This holds for further pages of its context too.
    """
    found: list[str] = []
    home = urlsplit(url).netloc

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error" and "WebSocket" not in message.text and "ERR_CONNECTION" not in message.text:
            found.append(f"console: {message.text}")

    def on_request(request: Request) -> None:
        if not request.url.startswith(("data:", "blob:", "file:")) and urlsplit(request.url).netloc != home:
            found.append(f"a request to elsewhere: {request.url}")

    def on_dialog(dialog: Dialog) -> None:
        found.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    settings = {"viewport": {"width": 1280, "height": 900}, **context}
    opened = browser.new_context(**settings)
    opened.set_default_timeout(DEADLINE_MS)
    opened.on("console", on_console)
    opened.on("weberror", lambda error: found.append(f"error: {error.error}"))
    opened.on("dialog", on_dialog)
    opened.on("request", on_request)
    opened.add_init_script(SOCKETS)
    page = opened.new_page()
    page.clock.install()
    try:
        page.goto(url)
        yield page
        assert not found, found
    finally:
        opened.close()


def seen(page: Page, selector: str, text: str, timeout_s: float = DEADLINE_S) -> None:
    """Wait until this part of the page contains a text."""

    def there() -> bool:
        shown = page.locator(selector).inner_text()
        assert text in shown, f"{text!r} is not in {shown!r}"
        return True

    eventually(there, timeout_s, every_s=0.1)


def picture(page: Page, name: str) -> None:
    """Take a picture into the folder that SCREENSHOTS names; without one do nothing."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


SECOND_USER = os.geteuid() == 0 and shutil.which("setpriv") is not None
"""Whether a test may try something as another user of this machine."""

_TRIES = """
import socket, sys, urllib.error, urllib.request
def tried(what):
    kind, _, place = what.partition(" ")
    try:
        if kind == "read":
            return open(place).read() and "read it"
        if kind == "connect":
            socket.socket(socket.AF_UNIX).connect(place)
            return "connected"
        return str(urllib.request.urlopen(place, timeout=60).status)
    except PermissionError:
        return "no permission"
    except urllib.error.HTTPError as error:
        return str(error.code)
print(*map(tried, sys.argv[1:]), sep=chr(10))
"""


def second_user_tries(*what: str) -> list[str]:
    """Try as user nobody: ``read PATH``, ``connect PATH`` of a unix socket, ``get URL``. Return what comes of each."""
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command = [*user, sys.executable, "-I", "-c", _TRIES, *what]
    ended = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    return ended.stdout.splitlines()


def install_for_jupyter(dirs: Dirs) -> None:
    """Let Jupyter's servers of this world find the extensions, as an installed wheel does in its environment."""
    labs, configs = dirs.data / "labextensions", dirs.config / "jupyter_server_config.d"
    for folder in (labs, configs):
        folder.mkdir(exist_ok=True)
    (labs / "ipytaskfarm").symlink_to(SOURCE / "labextension")
    shutil.copy(SOURCE / "ipytaskfarm.json", configs)
