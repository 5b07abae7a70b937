"""Drive JupyterLab in a headless Chromium: read and click like a user.

A `Lab` is a server in a world of its own (`tests.conftest.Dirs`), a `Notebook` is a page in the browser with its
kernel, and a `Cell` is a cell on the screen.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.conftest import Dirs, _is_farm, assert_nothing_left, isolated
from tests.support.notebooks import quickly
from tests.support.polling import DEADLINE_S, eventually

DEADLINE_MS = DEADLINE_S * 1000
START_S = 120.0
"""Deadline for the start of a server, a page or a kernel."""
END_S = DEADLINE_S
expect.set_options(timeout=DEADLINE_MS)

CHROMIUM_FLAGS = [
    "--no-sandbox",  # root has none, and the pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

SETTINGS = {
    # A fresh JupyterLab asks whether it may fetch news, and covers a corner of the page.
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # Cells that are scrolled away stay in the page, where locators find them.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    # Brackets and quotes arrive in pairs otherwise.
    "@jupyterlab/fileeditor-extension:plugin": {"editorConfig": {"autoClosingBrackets": False}},
}

EMPTY_NOTEBOOK = {
    "cells": [
        {"cell_type": "code", "id": "first", "metadata": {}, "execution_count": None, "outputs": [], "source": ""}
    ],
    "metadata": {
        "kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
    },
    "nbformat": 4,
    "nbformat_minor": 5,
}

PANEL = "const panel = jupyterapp.shell.currentWidget;"
IMAGE_WIDTH = "e => e.complete ? e.naturalWidth : 0"


def chromium() -> str:
    """Return the path of Debian's browser, or of another Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "no Chromium on the PATH; `make apt` installs it"
    return found


def free_port() -> int:
    """Return a free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Cell:
    """One code cell of a notebook, on the screen."""

    def __init__(self, locator: Locator) -> None:
        self.locator = locator

    @property
    def output(self) -> Locator:
        """All below the code."""
        return self.locator.locator(".jp-OutputArea-output")

    @property
    def text(self) -> str:
        """Return the present text of the output."""
        return "\n".join(self.output.all_inner_texts())

    @property
    def html(self) -> Locator:
        """Return the HTML of the output."""
        return self.locator.locator(".jp-RenderedHTMLCommon[data-mime-type='text/html']")

    @property
    def images(self) -> Locator:
        return self.locator.locator(".jp-RenderedImage img")

    @property
    def number(self) -> int:
        """Return the number in the prompt of a cell that was run."""
        return int(self.locator.locator(".jp-InputArea-prompt").inner_text().strip("[]: "))

    @property
    def running(self) -> bool:
        """Return whether the prompt shows a star."""
        return self.locator.locator(".jp-InputArea-prompt").inner_text() == "[*]:"

    def done(self, timeout_s: float = DEADLINE_S) -> Cell:
        """Wait until the kernel has run the cell, and its prompt shows a number."""
        prompt = self.locator.locator(".jp-InputArea-prompt")

        def numbered() -> bool:
            number = prompt.inner_text().strip("[]: ")
            assert number.isdigit(), f"a cell runs still: {prompt.inner_text()!r}, and shows {self.text!r}"
            return True

        eventually(numbered, timeout_s, every_s=0.03)
        return self

    def shows(self, text: str, timeout_s: float = DEADLINE_S) -> None:
        """Wait until the output contains this text."""

        def there() -> bool:
            assert text in self.text, f"{text!r} is not in {self.text!r}"
            return True

        eventually(there, timeout_s, every_s=0.03)

    def image_width(self) -> int:
        """Wait for a picture; its width in pixels, as it was drawn."""
        expect(self.images.first).to_be_visible()
        return eventually(lambda: int(self.images.first.evaluate(IMAGE_WIDTH)), DEADLINE_S, what="a picture")


class Notebook:
    """A page with one notebook and its kernel."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.path = path

    def cell(self, number: int) -> Cell:
        return Cell(self.page.locator(".jp-Notebook .jp-CodeCell").nth(number))

    def start(self, code: str) -> Cell:
        """Type code into the last cell and run it, as a person does; a fresh cell comes below."""
        count = self.page.locator(".jp-Notebook .jp-CodeCell").count()
        cell = self.cell(count - 1)
        cell.locator.locator(".jp-InputArea-editor .cm-content").click()
        # Typed key by key, the editor would indent the code again.
        self.page.keyboard.insert_text(code)
        self.page.keyboard.press("Shift+Enter")
        expect(self.page.locator(".jp-Notebook .jp-CodeCell")).to_have_count(count + 1)
        return cell

    def run(self, code: str, timeout_s: float = DEADLINE_S) -> Cell:
        """Run code and wait until the kernel is through with it."""
        return self.start(code).done(timeout_s)

    def clear(self) -> None:
        """Replace all cells by an empty one; the kernel keeps its names."""
        # Right after a command has opened the notebook, another tab may be the current one still.
        self.page.wait_for_function(f"() => {{ {PANEL} return panel?.content?.model?.sharedModel !== undefined; }}")
        self.page.evaluate(
            f"""() => {{ {PANEL} const shared = panel.content.model.sharedModel;
                const count = shared.cells.length;
                shared.insertCell(count, {{cell_type: 'code', source: ''}}); shared.deleteCellRange(0, count); }}"""
        )
        expect(self.page.locator(".jp-Notebook .jp-CodeCell")).to_have_count(1)

    def interrupt(self) -> None:
        """Click the stop button."""
        self.page.get_by_role("button", name="Interrupt the kernel").click()

    def restart(self) -> None:
        """Click the restart button and say yes; returns when there is a new kernel."""
        self.page.get_by_role("button", name="Restart the kernel", exact=True).click()
        self.page.locator(".jp-Dialog").get_by_role("button", name="Confirm Kernel Restart").click()
        self.page.wait_for_function(
            f"""async () => {{ {PANEL} const context = panel.sessionContext; await context.ready;
                return context.session?.kernel?.status === 'idle' }}""",
            timeout=START_S * 1000,
        )

    def save(self) -> dict[str, Any]:
        """Save the notebook and return the contents of its file."""
        self.page.evaluate(f"async () => {{ {PANEL} await panel.context.save(); }}")
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found

    def outputs(self, number: int) -> list[dict[str, Any]]:
        """A cell's outputs as the notebook will be saved with them."""
        found: list[dict[str, Any]] = self.page.evaluate(
            f"""number => {{ {PANEL} return panel.content.widgets
                .filter(cell => cell.model.type === 'code')[number].model.outputs.toJSON() }}""",
            number,
        )
        return found


@dataclass(frozen=True)
class Lab:
    """A JupyterLab server and a browser to look at it."""

    browser: Browser
    url: str
    token: str
    folder: Path
    """Where its notebooks are."""

    def open(self, name: str, width: int = 1200, height: int = 800, scale: float = 1.0) -> Notebook:
        """Make an empty notebook and open it on a page of this size, in CSS pixels; its kernel is there and idle."""
        path = self.folder / f"{name}.ipynb"
        path.write_text(json.dumps(EMPTY_NOTEBOOK))
        page = self.browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
        page.set_default_timeout(DEADLINE_MS)
        page.goto(f"{self.url}/lab/tree/{path.name}?token={self.token}&reset", timeout=START_S * 1000)
        page.locator("#jupyterlab-splash").wait_for(state="detached", timeout=START_S * 1000)
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=START_S * 1000)
        # The toolbar shows "idle" before there is a kernel, and a cell that is run then is lost.
        ready = page.locator("#jp-main-statusbar").get_by_text("Python 3 (ipykernel) | Idle", exact=True)
        ready.wait_for(timeout=START_S * 1000)
        return Notebook(page, path)

    def reopen(self, notebook: dict[str, Any], name: str) -> Notebook:
        """Open a saved notebook on a new page without a kernel, because the kernel that it names is not installed."""
        path = self.folder / f"{name}.ipynb"
        kernel = {"name": "gone", "display_name": "Gone", "language": "python"}
        path.write_text(json.dumps({**notebook, "metadata": {"kernelspec": kernel}}))
        page = self.browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(DEADLINE_MS)
        page.goto(f"{self.url}/lab/workspaces/{name}/tree/{path.name}?token={self.token}", timeout=START_S * 1000)
        page.locator(".jp-Dialog").get_by_role("button", name="No Kernel").click()
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=START_S * 1000)
        return Notebook(page, path)


def other_kernels(notebook: Notebook, count: int) -> list[str]:
    """Return the ids of the kernels that somebody else has started, as soon as the dialog offers so many."""
    page = notebook.page

    def offered() -> list[str]:
        page.get_by_role("button", name="Python 3 (ipykernel)").first.click()
        found = [
            option.get_attribute("value") for option in page.locator(".jp-Dialog option", has_text="python3 (").all()
        ]
        page.locator(".jp-Dialog").get_by_role("button", name="Cancel").click()
        return [value for value in found if value] if len(found) == count else []  # Lab asks every few seconds

    return eventually(offered, DEADLINE_S, every_s=1.0)


def connect_to(notebook: Notebook, kernel: str) -> None:
    """Connect the notebook to this kernel, as a person does: click, choose, confirm."""
    page = notebook.page
    page.get_by_role("button", name="Python 3 (ipykernel)").first.click()
    page.locator(".jp-Dialog select").select_option(value=kernel)
    page.locator(".jp-Dialog").get_by_role("button", name="Select Kernel").click()
    page.locator("#jp-main-statusbar").get_by_text("Idle").wait_for()


def answer(notebook: Notebook, text: str) -> None:
    """Type an answer to the debugger's question, as soon as it asks."""
    asked = notebook.page.locator(".jp-Stdin-input").last
    expect(asked).to_have_value("", timeout=DEADLINE_MS)
    asked.fill(text)
    asked.press("Enter")


@contextmanager
def _server(dirs: Dirs, prefix: str) -> Iterator[tuple[str, str]]:
    """JupyterLab in this world: its address, with the prefix, and its token.

    It and its kernels end with the block, or with us.
    """
    settings = dirs.config / "labconfig"
    settings.mkdir()
    (settings / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
    token, port = secrets.token_hex(16), free_port()
    url = f"http://127.0.0.1:{port}{prefix.rstrip('/')}"
    command = [
        # A killed test run takes the server along: it gets SIGTERM, and ends its kernels.
        "setpriv", "--pdeathsig", "TERM", "--",
        *quickly("jupyterlab"), "--no-browser", "--allow-root", "--LabApp.expose_app_in_browser=True",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={dirs.work}", "--ServerApp.terminals_enabled=False", f"--ServerApp.base_url={prefix}",
        # Neither looks for language servers nor asks what could be installed.
        "--ServerApp.jpserver_extensions={'jupyter_lsp': False}", "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # A token on the command line could be read by anybody on the machine.
    environment = {**os.environ, **dirs.environment(), "PATH": path, "JUPYTER_TOKEN": token}
    log = dirs.home / "jupyterlab.log"

    def call(path: str, method: str = "GET") -> None:
        request = urllib.request.Request(url + path, method=method, headers={"Authorization": f"token {token}"})
        urllib.request.urlopen(request, timeout=DEADLINE_S).close()

    with log.open("wb") as sink:
        server = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )

    def answers() -> bool:
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab has ended:\n{log.read_text()}")
        try:
            call("/api/status")
        except OSError as error:
            raise AssertionError(f"{error}\n{log.read_text()}") from None
        return True

    try:
        eventually(answers, START_S, every_s=0.1)
        yield url, token
    finally:
        try:
            call("/api/shutdown", "POST")
            server.wait(END_S)
        except (OSError, subprocess.TimeoutExpired):
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@contextmanager
def jupyterlab(dirs: Dirs, prefix: str = "/") -> Iterator[Lab]:
    """JupyterLab in this world, and a browser; no process of theirs is left afterwards.

    `prefix` is the path of its pages, as behind a hub.
    """
    try:
        with _server(dirs, prefix) as (url, token), sync_playwright() as playwright:
            # Without settings on the disk: the desktop's library made a folder of them again after a test's end.
            settings: dict[str, str | float | bool] = {**os.environ, "GSETTINGS_BACKEND": "memory"}
            browser = playwright.chromium.launch(
                executable_path=chromium(), headless=True, args=CHROMIUM_FLAGS, env=settings
            )
            try:
                yield Lab(browser, url, token, dirs.work)
            finally:
                browser.close()
    finally:
        assert_no_inhabitants(dirs.root)


@contextmanager
def drawing_world() -> Iterator[Dirs]:
    """Provide a world in which kernels draw into the notebook, as in an ordinary Jupyter; nothing may be left in it."""
    with isolated("itf-") as dirs, pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)
        yield dirs
        assert_nothing_left(dirs)


def assert_no_inhabitants(root: Path, timeout_s: float = END_S) -> None:
    """No kernel, browser or server of this world is left, or will be gone in time; those that stay are ended."""

    def quiet() -> bool:
        left = inhabitants(root)
        assert not left, f"processes left behind: {left}"
        return True

    try:
        eventually(quiet, timeout_s, every_s=0.1)
    finally:
        for process in inhabitants(root):
            process.kill()


def inhabitants(root: Path) -> list[psutil.Process]:
    """Return processes whose environment or working folder belongs to this world, except our own and the farm's."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE or _is_farm(process.cmdline()):
                continue
            values = [process.cwd(), *process.environ().values()]
            if any(value.startswith(str(root)) for value in values):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
