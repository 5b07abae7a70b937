"""Measure what the live view costs: throughput with five open pages, and filters of a table of a million tasks.

``python -m benchmarks.live_view``. Pages are the sockets of a page without a browser, which would compute on another
machine.
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
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from benchmarks.harness import farm_with_client
from ipytaskfarm import StringTask, TaskClient
from ipytaskfarm.core import saves
from ipytaskfarm.core.messages import Refusal
from ipytaskfarm.core.messages.task_types import FailureSummary, Final, Rules
from ipytaskfarm.core.messages.view import ReadTaskPage
from ipytaskfarm.storage.store import Store
from ipytaskfarm.storage.task_tables import TaskTables
from tests.support.store_model import task

PAGES = 5
ROUNDS = 9
TASKS = 20_000
MILLION = 1_000_000
RARE = 997
"""One task in so many has failed."""


def main() -> None:
    """Print the figures."""
    if len(sys.argv) > 1:
        asyncio.run(_look(*sys.argv[1:]))
        return
    five_pages()
    filters()


# -- five pages


def five_pages() -> None:
    """Compare rounds with and without pages, in turns."""
    ratios, rates, controllers, plain, views = [], [], [], [], []
    with farm_with_client(2) as (farm, tc), _server(str(farm.connection_file)) as (url, server):
        controller = psutil.Process(json.loads(Path(farm.connection_file).read_text())["controller_pid"])
        _rate(tc)
        for turn in range(ROUNDS):
            found: dict[bool, float] = {}
            used: dict[bool, float] = {}
            for watched in (True, False) if turn % 2 else (False, True):
                with _pages(url, farm.name) if watched else nullcontext():
                    began = _cpu_s(controller), _cpu_s(server)
                    found[watched] = _rate(tc)
                    used[watched] = _cpu_s(controller) - began[0]
                    if watched:
                        views.append(_cpu_s(server) - began[1])
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
def _pages(url: str, farm: str) -> Iterator[None]:
    """Five pages in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.live_view", url, farm]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pages:
        assert pages.stdout is not None
        try:
            assert pages.stdout.readline() == "open\n"
            yield
        finally:
            pages.terminate()


async def _look(url: str, farm: str) -> None:
    """Open the sockets of pages, and receive what they get."""
    base, _, token = url.partition("#token=")
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    browser.open(f"{base}login", json.dumps({"token": token}).encode()).close()
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)
    place = urlsplit(base).netloc
    sockets = []
    for _ in range(PAGES):
        request = HTTPRequest(f"ws://{place}/socket?farm={farm}", headers={"Cookie": cookies, "Origin": base[:-1]})
        socket = await websocket_connect(request)
        await socket.write_message(json.dumps({"type": "hello", "picture": None, "number": None}))
        assert await socket.read_message() is not None
        sockets.append(socket)
    print("open", flush=True)

    async def receive(socket: object) -> None:
        while await socket.read_message() is not None:  # type: ignore[attr-defined]
            pass

    await asyncio.gather(*map(receive, sockets))


# -- a million tasks


def filters() -> None:
    """Measure the first page of each filter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite"
        failed = _fill(path)
        with closing(TaskTables(path)) as tables:
            asked = {
                "no filter": ReadTaskPage(),
                "failed": ReadTaskPage("failed"),
                "a cause": ReadTaskPage("failed", cause=("error", "KeyError", "b.py:9 in g")),
                "a frequent name": ReadTaskPage(text="fit 3"),
                "a rare name": ReadTaskPage(text="needle"),
                "a name that is not there": ReadTaskPage(text="nowhere"),
                "an engine": ReadTaskPage(engine_id=3),
                "a job": ReadTaskPage(job="last"),
                "the oldest": ReadTaskPage(oldest_first=True),
            }
            print(f"first page of {MILLION:,} tasks, {failed:,} of them failed; at most 200 ms are wanted")
            for name, question in asked.items():
                taken_s = []
                for _ in range(5):
                    began_s = time.perf_counter()
                    found = tables.page(question, failed)
                    taken_s.append(time.perf_counter() - began_s)
                assert not isinstance(found, Refusal)
                whole = "" if found[0].full else ", and goes on"
                print(f"  {name:<26} {statistics.median(taken_s) * 1e3:6.1f} ms, {len(found[0].rows)} rows{whole}")


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


if __name__ == "__main__":
    main()
