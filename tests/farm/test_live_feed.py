"""A feed of the live view: what a page finds that is opened after others have asked or looked."""

from __future__ import annotations

import asyncio

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.core import messages
from ipytaskfarm.system.farm_paths import connection_reader
from ipytaskfarm.view.pages import Delta
from ipytaskfarm.web import feed as feeds
from ipytaskfarm.web.feed import FarmFeed
from tests.support.polling import DEADLINE_S


class Page:
    """A page that only looks."""

    def tell(self, delta: Delta) -> None:
        pass

    def show(self) -> None:
        pass


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
