"""The live view under test: servers of the page, and pages that let nothing through."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
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
def web_page(farm: str, *flags: str) -> Iterator[WebPage]:
    """``ipytaskfarm web`` for a farm of this world; it ends with the block, or with us."""
    command = [
        "setpriv", "--pdeathsig", "TERM", "--",
        sys.executable, "-m", "ipytaskfarm", "web", "--farm", farm, *flags,
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
    """A page on which an error, a violation of its content policy, and a request to elsewhere are failures."""
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
    page = opened.new_page()
    page.set_default_timeout(DEADLINE_MS)
    page.on("console", on_console)
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on("dialog", on_dialog)
    page.on("request", on_request)
    page.add_init_script(SOCKETS)
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


def install_for_jupyter(dirs: Dirs) -> None:
    """Let Jupyter's servers of this world find the extensions, as an installed wheel does in its environment."""
    labs, configs = dirs.data / "labextensions", dirs.config / "jupyter_server_config.d"
    for folder in (labs, configs):
        folder.mkdir(exist_ok=True)
    (labs / "ipytaskfarm").symlink_to(SOURCE / "labextension")
    shutil.copy(SOURCE / "ipytaskfarm.json", configs)
