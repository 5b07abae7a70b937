"""A feed of the live view: what a page finds that is opened after others have asked or looked."""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.core import messages
from ipytaskfarm.core.errors import FarmNotRunning
from ipytaskfarm.core.messages.view import TaskPage
from ipytaskfarm.system.farm_paths import ConnectionInfo, connection_reader
from ipytaskfarm.view.picture import Delta
from ipytaskfarm.web import feed as feeds
from ipytaskfarm.web.feed import FarmFeed
from ipytaskfarm.web.server import WebServer
from tests.support.polling import DEADLINE_S


class Page:
    """A page that only looks."""

    def tell(self, delta: Delta) -> None:
        pass

    def show(self) -> None:
        pass


def nowhere() -> ConnectionInfo:
    raise FarmNotRunning("it is somewhere else")


def test_a_farm_that_is_not_there_is_said_at_once() -> None:
    async def asked() -> None:
        feed = FarmFeed("lost", nowhere, control=False)
        async with asyncio.timeout(DEADLINE_S):
            found = await feed.numbers(2 * DEADLINE_S)
        assert found["status"] == {"state": "gone", "text": "it is somewhere else"}
        assert "counts" not in found
        await feed.stop()

    asyncio.run(asked())


def test_a_farm_that_is_there_again_answers_at_once_and_is_not_judged_by_its_last_trouble(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "LINGER_S", 0.3)
    monkeypatch.setattr(feeds, "RETRY_S", 0.1)
    there = connection_reader(str(farm.connection_file))
    is_there = False

    async def asked() -> None:
        nonlocal is_there
        feed = FarmFeed(farm.name, lambda: there() if is_there else nowhere(), control=True)
        for turn in range(2):
            is_there = False
            monkeypatch.setattr(feeds, "AWAY_S", 0.2)
            with pytest.raises(FarmNotRunning, match="somewhere else"):
                await feed.answer(messages.QueueStatus())
            assert turn == 0 or feed.fold.picture.data["status"]["seen_s"] > 0
            await asyncio.wait_for(asyncio.shield(feed._task), DEADLINE_S)  # type: ignore[arg-type]
            is_there = True
            monkeypatch.setattr(feeds, "AWAY_S", DEADLINE_S)
            await feed.answer(messages.QueueStatus())
            page = Page()
            feed.open(page)
            async with asyncio.timeout(DEADLINE_S):
                while feed.fold.picture.data["status"] != {"state": "up", "text": ""}:
                    await asyncio.sleep(0.02)
            feed.close(page)
            await feed.stop()

    asyncio.run(asked())


def test_a_question_that_nobody_waits_for_any_more_is_not_asked_of_the_next_controller(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked() -> None:
        feed = FarmFeed(farm.name, connection_reader(str(farm.connection_file)), control=True)
        await feed.answer(messages.QueueStatus())
        monkeypatch.setattr(feeds, "ASKED_S", 0.0)
        questioner = feed._questioner
        assert questioner is not None
        monkeypatch.setattr(questioner, "step", lambda: None)  # a controller that is silent
        with pytest.raises(FarmNotRunning, match="does not answer within"):
            await feed.answer(messages.SetWanted(7))
        assert not questioner._asked
        await feed.stop()

    asyncio.run(asked())


def test_a_question_that_waits_holds_no_other_of_its_page_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def asked() -> None:
        gate = asyncio.Event()

        async def answer(question: messages.Question) -> messages.Reply:
            if not isinstance(question, messages.Stack):
                return TaskPage([])
            await gate.wait()
            return messages.TextReply("somewhere")

        feed = FarmFeed("lost", nowhere, control=False)
        monkeypatch.setattr(feed, "answer", answer)
        server = WebServer(feed)
        server.listen()
        url = f"ws://127.0.0.1:{server.port}/socket"
        socket = await websocket_connect(HTTPRequest(url, headers={"Authorization": f"Bearer {server.token}"}))
        for n, what in enumerate(["stack", "tasks"]):
            await socket.write_message(json.dumps({"type": "ask", "n": n, "what": what, "arguments": {"id": 1}}))
        found = []
        for _ in range(2):
            found.append(json.loads(await socket.read_message() or "")["n"])
            gate.set()
        assert found == [1, 0]
        socket.close()
        await server.stop()

    asyncio.run(asyncio.wait_for(asked(), DEADLINE_S))


async def until_shown(feed: FarmFeed, runs: int) -> None:
    """Wait until the stream has this number of runs."""
    async with asyncio.timeout(DEADLINE_S):
        while _runs(feed) != runs:
            await asyncio.sleep(0.02)


def _runs(feed: FarmFeed) -> int:
    return sum(row[5] for row in feed.fold.picture.data["stretches"])


def test_runs_of_a_time_in_which_nobody_looked_are_in_the_stream_once(
    farm: Farm, tc: TaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "LINGER_S", 0.3)

    async def run(count: int) -> None:
        await asyncio.to_thread(lambda: tc.barrier([tc.run(Task("a = 1")) for _ in range(count)]))

    async def looked() -> None:
        feed = FarmFeed(farm.name, connection_reader(str(farm.connection_file)), control=True)

        # The panel of JupyterLab asks for numbers again and again, and so keeps the connection without following.
        async def panel() -> None:
            while True:
                await feed.answer(messages.QueueStatus())
                await asyncio.sleep(0.05)

        await feed.answer(messages.QueueStatus())
        asking = asyncio.create_task(panel())
        try:
            await run(3)
            page = Page()
            feed.open(page)
            await until_shown(feed, 3)
            await run(2)
            await until_shown(feed, 5)
            feed.close(page)
            async with asyncio.timeout(DEADLINE_S):
                while feed._follows:
                    await asyncio.sleep(0.02)
            await run(4)
            feed.open(page)
            await until_shown(feed, 9)
        finally:
            asking.cancel()
            await feed.stop()

    asyncio.run(looked())
