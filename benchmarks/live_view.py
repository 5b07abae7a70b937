"""Measure what the live view costs, and how soon it shows something.

``python -m benchmarks.live_view [PICTURE]``: throughput with five open pages against none, in turns; the kilobytes that
a page receives; filters and first paint with a million tasks; a page with 10,000 simulated engines, of which a picture
is written. Pages are the sockets of a page without a browser, which would compute on another machine; first paint is
measured in Chromium.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from playwright.sync_api import Browser, sync_playwright
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from benchmarks.agents import ENGINES, crowded
from benchmarks.harness import farm_with_client
from ipytaskfarm import Farm, StringTask, TaskClient
from ipytaskfarm.core import saves
from ipytaskfarm.core.messages import Refusal
from ipytaskfarm.core.messages.task_types import FailureSummary, Final, Rules
from ipytaskfarm.core.messages.view import ReadTaskPage
from ipytaskfarm.deployment.home import STORE_NAME, Home
from ipytaskfarm.storage.store import Store
from ipytaskfarm.storage.task_tables import TaskTables
from tests.conftest import isolated
from tests.support.browser import CHROMIUM_FLAGS, chromium
from tests.support.store_model import task

PAGES = 5
ROUNDS = 9
TASKS = 20_000
MILLION = 1_000_000
RARE = 997
"""One task in so many has failed."""
AGENTS = 200
WATCH_S = 8.0
PAINTS = 5


def main() -> None:
    """Print the figures."""
    if sys.argv[1:2] == ["look"]:
        asyncio.run(_look(sys.argv[2], sys.argv[3], int(sys.argv[4])))
        return
    began_s = time.monotonic()
    five_pages()
    million()
    many_engines(Path(sys.argv[1]) if sys.argv[1:] else Path(tempfile.gettempdir()) / "live-view-10000-engines.png")
    print(f"measured in {time.monotonic() - began_s:.0f} s")


# -- five pages


def five_pages() -> None:
    """Compare rounds with and without pages, in turns."""
    ratios, rates, controllers, plain, views = [], [], [], [], []
    received: list[float] = []
    with farm_with_client(2) as (farm, tc), _server(str(farm.connection_file)) as (url, server):
        controller = psutil.Process(json.loads(Path(farm.connection_file).read_text())["controller_pid"])
        _rate(tc)
        for turn in range(ROUNDS):
            found: dict[bool, float] = {}
            used: dict[bool, float] = {}
            for watched in (True, False) if turn % 2 else (False, True):
                with _pages(url, farm.name, PAGES) if watched else nullcontext(list[float]()) as told:
                    began = _cpu_s(controller), _cpu_s(server)
                    found[watched] = _rate(tc)
                    used[watched] = _cpu_s(controller) - began[0]
                    if watched:
                        views.append(_cpu_s(server) - began[1])
                received += told
            controllers.append(used[True] / used[False])
            plain.append(used[False])
            ratios.append(found[True] / found[False])
            rates.append(found[False])
    print(
        f"throughput with {PAGES} pages: {statistics.median(ratios):.3f} of {statistics.median(rates):,.0f} tasks/s "
        f"without (median of {ROUNDS} pairs, from {min(ratios):.3f} to {max(ratios):.3f}); at least 0.98 is wanted"
    )
    print(
        f"CPU time of the controller with {PAGES} pages: {statistics.median(controllers):.3f} "
        f"of the {statistics.median(plain):.2f} s without; "
        f"the pages' server used {statistics.median(views):.2f} s for {TASKS:,} tasks"
    )
    print(f"each page received {_kilobytes(received)} at this speed; at most 30 kB/s are wanted")


def _kilobytes(per_s: list[float]) -> str:
    return f"{statistics.median(per_s) / 1e3:.1f} kB/s (median of {len(per_s)}, at most {max(per_s) / 1e3:.1f})"


def _cpu_s(process: psutil.Process) -> float:
    """Return the seconds of CPU work of a process until now."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _rate(tc: TaskClient) -> float:
    """Return tasks per second."""
    began_s = time.perf_counter()
    ids = [tc.run(StringTask(f"a = {n}")) for n in range(TASKS)]
    tc.barrier(ids)
    taken_s = time.perf_counter() - began_s
    tc.clear()
    return TASKS / taken_s


@contextmanager
def _server(connection: str) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "ipytaskfarm", "web", "--farm", connection]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = next(line.strip() for line in iter(server.stdout.readline, "") if "http://" in line)
            yield url, psutil.Process(server.pid)
        finally:
            server.terminate()


@contextmanager
def _pages(url: str, farm: str, count: int) -> Iterator[list[float]]:
    """Open pages in a process of their own. The list has the bytes per second that each received, after the block."""
    command = [sys.executable, "-m", "benchmarks.live_view", "look", url, farm, str(count)]
    received: list[float] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as pages:
        assert pages.stdout is not None
        assert pages.stdin is not None
        try:
            assert pages.stdout.readline() == "open\n"
            yield received
            pages.stdin.close()
            received += json.loads(pages.stdout.readline())
        finally:
            pages.terminate()


async def _look(url: str, farm: str, count: int) -> None:
    """Open pages, receive what they get until standard input ends, and print the bytes per second."""
    sockets = [await _page(url, farm) for _ in range(count)]
    print("open", flush=True)
    begun, began_s = [_wire_bytes(socket) for socket in sockets], time.monotonic()

    async def receive(socket: WebSocketClientConnection) -> None:
        while await socket.read_message() is not None:
            pass

    receiving = asyncio.gather(*map(receive, sockets))
    await asyncio.to_thread(sys.stdin.read)
    took_s = time.monotonic() - began_s
    print(json.dumps([(_wire_bytes(socket) - first) / took_s for socket, first in zip(sockets, begun, strict=True)]))
    receiving.cancel()
    with suppress(asyncio.CancelledError):
        await receiving


async def _page(url: str, farm: str) -> WebSocketClientConnection:
    """Open the socket of a page, as a browser does: with the cookie, and compressed. Wait until the farm is shown."""
    base, _, token = url.partition("#token=")
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    browser.open(f"{base}login", json.dumps({"token": token}).encode()).close()
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)
    place = urlsplit(base).netloc
    request = HTTPRequest(f"ws://{place}/socket?farm={farm}", headers={"Cookie": cookies, "Origin": base[:-1]})
    socket = await websocket_connect(request, compression_options={}, max_message_size=64 << 20)
    await socket.write_message(json.dumps({"type": "hello", "picture": None, "number": None}))
    while '"counts"' not in str(said := await socket.read_message()):
        assert said is not None
    return socket


def _wire_bytes(socket: WebSocketClientConnection) -> int:
    """Return the bytes that have come, as they were compressed."""
    return int(socket.protocol._wire_bytes_in)  # type: ignore[union-attr]  # tornado counts them for nobody


# -- a million tasks


QUESTIONS: dict[str, dict[str, Any]] = {
    "no filter": {},
    "failed": {"state": "failed"},
    "a frequent name": {"text": "fit 3"},
    "a rare name": {"text": "needle"},
    "a name that is not there": {"text": "nowhere"},
    "an engine": {"engine_id": 3},
    "a job": {"job": "last"},
    "the oldest": {"oldest_first": True},
}


def million() -> None:
    """Measure filters and first paint with a million tasks: of the store alone, then of a farm and its page."""
    with isolated("itf-"):
        with Farm(n=2, name="million", drain=0):
            pass
        path = Home.of("million").folder / STORE_NAME
        failed = _fill(path)
        _store_filters(path, failed)
        with Farm(n=2, name="million", drain=0), _server("million") as (url, _):
            asyncio.run(_page_filters(url))
            _first_paint(url, f"with {MILLION:,} tasks")


def _store_filters(path: Path, failed: int) -> None:
    with closing(TaskTables(path)) as tables:
        cause = ReadTaskPage("failed", cause=("error", "KeyError", "b.py:9 in g"))
        asked = {name: ReadTaskPage(**arguments) for name, arguments in QUESTIONS.items()} | {"a cause": cause}
        print(f"first page of {MILLION:,} tasks, {failed:,} of them failed, in the store; at most 200 ms are wanted")
        for name, question in asked.items():
            taken_s = []
            for _ in range(5):
                began_s = time.perf_counter()
                found = tables.page(question, failed)
                taken_s.append(time.perf_counter() - began_s)
            assert not isinstance(found, Refusal)
            _print_filter(name, taken_s, len(found[0].rows), found[0].full)


async def _page_filters(url: str) -> None:
    """Ask as a page does: by its socket, its server, the controller and the store."""
    socket = await _page(url, "million")
    print("… the same asked by a page's socket, of a farm with these tasks; at most 200 ms are wanted")
    for number, (name, arguments) in enumerate(QUESTIONS.items()):
        taken_s = []
        for turn in range(5):
            asked = {"type": "ask", "n": number * 10 + turn, "what": "tasks", "arguments": {**arguments, "count": 25}}
            began_s = time.perf_counter()
            await socket.write_message(json.dumps(asked))
            while (said := json.loads(await socket.read_message() or "null"))["type"] != "answer":
                pass
            taken_s.append(time.perf_counter() - began_s)
        assert "error" not in said, said
        _print_filter(name, taken_s, len(said["value"]["rows"]), said["value"]["full"])
    socket.close()


def _print_filter(name: str, taken_s: list[float], rows: int, full: bool) -> None:
    whole = "" if full else ", and goes on"
    most = f"{max(taken_s) * 1e3:6.1f} at most"
    print(f"  {name:<26} {statistics.median(taken_s) * 1e3:6.1f} ms, {most}, {rows} rows{whole}")


def _fill(path: Path) -> int:
    """Make a store of a million ended tasks; return how many failed."""
    causes = [
        FailureSummary("ValueError", "no such thing", "a.py:3 in f"),
        FailureSummary("KeyError", "'x'", "b.py:9 in g"),
    ]
    failed = 0
    with closing(Store.open(path)) as store:
        for begin in range(0, MILLION, 20_000):
            ids = range(begin, begin + 20_000)
            made: list[saves.Save] = []
            for n in ids:
                name = "needle" if n == 4_321 else f"fit {n % 7}"
                made.append(task(n, rules=Rules(name=name, job="last" if n > 999_000 else None)))
            store.commit(made)
            ended: list[saves.Save] = []
            for n in ids:
                cause = causes[n % 2] if n % RARE == 0 else None
                failed += cause is not None
                at_s = 1e9 + n / 100
                final = Final(n, "error" if cause else "", n % 4, "n", 1, at_s, at_s, 0.01, at_s + 0.01, cause, b"b")
                ended.append(saves.SaveFinal(final))
            store.commit(ended)
    return failed


# -- in a browser

SHOWN = """
new MutationObserver((changes, observer) => {
    const number = document.querySelector(".tf-totals");
    if (!number) return;
    observer.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => { window.numbersShown = performance.now(); }));
}).observe(document, {childList: true, subtree: true});
"""
"""Notes when the numbers of the farm have been painted, in ms since the navigation began."""
PAINTED_MS = """() => new Promise(done => {
    const look = () => window.numbersShown ? done(window.numbersShown) : requestAnimationFrame(look);
    look();
})"""
FIRST_MS = "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0] ?? null"


@contextmanager
def _chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), headless=True, args=CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def _first_paint(url: str, what: str, look: Callable[[Browser], None] | None = None) -> None:
    """Open the page in fresh contexts, each without anything in its cache."""
    first, numbers = [], []
    with _chromium() as browser:
        for _ in range(PAINTS):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            context.add_init_script(SHOWN)
            page = context.new_page()
            page.goto(url)
            page.locator(".tf-totals").wait_for()
            numbers.append(page.evaluate(PAINTED_MS))
            first.append(page.evaluate(FIRST_MS) or numbers[-1])
            context.close()
        if look is not None:
            look(browser)
    print(
        f"first paint {what}: {statistics.median(first):.0f} ms, with the farm's numbers "
        f"{statistics.median(numbers):.0f} ms (median of {PAINTS}, at most {max(numbers):.0f}); "
        "at most 500 ms are wanted"
    )


# -- many engines


def many_engines(picture: Path) -> None:
    """Open the page of a farm with 10,000 busy engines, which are simulated, and take a picture of it."""
    service_s = 5.0
    with crowded(AGENTS) as world, _server(str(world.client_file)) as (url, server):
        world.register(service_s)
        engines = AGENTS * ENGINES
        world.submit(int(engines * (4 * WATCH_S / service_s + 4)))
        with _pages(url, "crowded", 1) as received:
            began_s = _cpu_s(server)
            time.sleep(WATCH_S)
            used_s = _cpu_s(server) - began_s
        print(
            f"a page with {engines:,} busy engines of {AGENTS} nodes received {_kilobytes(received)}; at most 30 kB/s "
            f"are wanted; its server used {used_s / WATCH_S:.1%} of a core"
        )

        def look(browser: Browser) -> None:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(url)
            page.locator(".tf-totals").wait_for()
            page.wait_for_timeout(4000)
            page.screenshot(path=picture, full_page=True)

        _first_paint(url, f"with {engines:,} engines", look)
        print(f"  a picture of the page: {picture}")


if __name__ == "__main__":
    main()
