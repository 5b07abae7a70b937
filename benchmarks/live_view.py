"""Measure what the live view costs, and how soon it shows something.

``python -m benchmarks.live_view [PICTURE]``: throughput and CPU time with five open pages against none, in turns; the
kilobytes that a page receives; filters and first paint with a million tasks; a page with 10,000 simulated engines, of
which a picture is written. Pages are the sockets of a page without a browser, which would compute on another machine;
first paint is measured in Chromium.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
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
BLOCKS = 16
TASKS = 20_000
"""Of a round: a second or more, so that pages receive what they are shown four times a second."""
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
    """Compare rounds with and without pages, in blocks of four: without, with, with, without.

    Without pages there is no server either: it follows the farm for a minute after the last page. What the pages' own
    process needs is on another machine in reality, and takes part of this one's cores here.
    """
    blocks: list[_Block] = []
    received: list[float] = []
    with farm_with_client(2) as (farm, tc):
        controller = json.loads(Path(farm.connection_file).read_text())["controller_pid"]
        _rate(tc)
        for _ in range(BLOCKS):
            before = _round(tc, controller)
            with _server(str(farm.connection_file)) as (url, server), _pages(url, farm.name, PAGES) as told:
                began_s = _cpu_s(server.pid)
                watched = [_round(tc, controller), _round(tc, controller)]
                used_s = _cpu_s(server.pid) - began_s
            received += told
            blocks.append(_Block([before, _round(tc, controller)], watched, used_s))
    tasks, many = 2 * TASKS, f"{BLOCKS} blocks of four rounds with {TASKS:,} tasks"
    rates = [block.ratio("wall_s") for block in blocks]
    took_s = statistics.median(each.wall_s for block in blocks for each in block.plain)
    print(
        f"throughput with {PAGES} pages: {_likely([1 / ratio for ratio in rates])} of {TASKS / took_s:,.0f} tasks/s "
        f"without ({many}); at least 0.98 is wanted"
    )
    plain = [sum(each.controller_s for each in block.plain) / tasks * 1e6 for block in blocks]
    farms = [sum(each.farm_s for each in block.plain) / tasks * 1e6 for block in blocks]
    views = [block.server_s / tasks * 1e6 for block in blocks]
    print(
        f"CPU time of the controller with {PAGES} pages: {_likely([block.ratio('controller_s') for block in blocks])} "
        f"of the {statistics.median(plain):.1f} µs per task without; the pages' server takes {_likely(views, 1)} µs "
        f"per task, beside the {statistics.median(farms):.0f} µs of client, controller, agent and engines"
    )
    print(f"each page received {_kilobytes(received)} at this speed; at most 30 kB/s are wanted")


class _Round(NamedTuple):
    """What some tasks took, in seconds."""

    wall_s: float
    controller_s: float
    """CPU time."""
    farm_s: float
    """CPU time of the client and of all processes of the farm."""


class _Block(NamedTuple):
    """Two rounds without pages around two with them, so that a machine that becomes slower affects both alike."""

    plain: list[_Round]
    watched: list[_Round]
    server_s: float
    """CPU time of the pages' server."""

    def ratio(self, what: str) -> float:
        """Return what it took with pages, compared with what it took without."""
        return float(
            sum(getattr(each, what) for each in self.watched) / sum(getattr(each, what) for each in self.plain)
        )


def _round(tc: TaskClient, controller: int) -> _Round:
    ours = [controller, os.getpid(), *(each.pid for each in psutil.Process().children(recursive=True) if _farms(each))]
    began = [_cpu_s(pid) for pid in dict.fromkeys(ours)]
    rate = _rate(tc)
    used = [_cpu_s(pid) - first for pid, first in zip(dict.fromkeys(ours), began, strict=True)]
    return _Round(TASKS / rate, used[0], sum(used))


def _farms(process: psutil.Process) -> bool:
    """Return whether a process is neither the pages' server nor the pages."""
    words = process.cmdline()
    return "web" not in words and "look" not in words


def _likely(values: Sequence[float], digits: int = 3) -> str:
    """Return the median, and the range in which it lies with a probability of 95 %, whatever the distribution is."""
    count, ordered = len(values), sorted(values)
    chance, left_out = 2 * 0.5**count, 0
    while chance + 2 * math.comb(count, left_out + 1) * 0.5**count <= 0.05:
        left_out += 1
        chance += 2 * math.comb(count, left_out) * 0.5**count
    low, high = ordered[left_out], ordered[count - 1 - left_out]
    return f"{statistics.median(values):.{digits}f} (95 %: {low:.{digits}f} to {high:.{digits}f})"


def _kilobytes(per_s: list[float]) -> str:
    return f"{statistics.median(per_s) / 1e3:.1f} kB/s (median of {len(per_s)}, at most {max(per_s) / 1e3:.1f})"


def _cpu_s(pid: int) -> float:
    """Return the seconds of CPU work of a process until now, to the nanosecond: clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


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
    const number = document.querySelector(".tf-total strong");
    if (!number || !/[0-9]/.test(number.textContent)) return;
    observer.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => { window.numbersShown = performance.now(); }));
}).observe(document, {childList: true, characterData: true, subtree: true});
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
            began_s = _cpu_s(server.pid)
            time.sleep(WATCH_S)
            used_s = _cpu_s(server.pid) - began_s
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
