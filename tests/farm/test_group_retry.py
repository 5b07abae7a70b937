"""A group of failed tasks is submitted again once, whoever asks how often."""

from __future__ import annotations

import asyncio

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.core import messages
from ipytaskfarm.deployment.light_client import Questioner, connect
from ipytaskfarm.system.farm_paths import connection_reader
from ipytaskfarm.web import questions
from ipytaskfarm.web.feed import FarmFeed
from tests.support.polling import eventually


def both(first: Questioner, second: Questioner, ids: list[int]) -> list[messages.Retried]:
    """Ask from two sessions at once, as two pages do."""
    replies: list[messages.Retried] = []

    def answered(reply: messages.Reply) -> None:
        assert isinstance(reply, messages.Retried)
        replies.append(reply)

    for each in (first, second):
        each.ask(messages.RetryTasks(ids, once=True), answered)

    def done() -> bool:
        first.step()
        second.step()
        return len(replies) == 2

    eventually(done, 30.0, every_s=0.01, what="two answers")
    return replies


def test_two_sessions_at_once_submit_each_task_once(farm: Farm, tc: TaskClient) -> None:
    ids = [tc.run(Task("raise ValueError('once')")) for _ in range(20)]
    tc.barrier(ids)
    with connect(str(farm.connection_file)) as first, connect(str(farm.connection_file)) as second:
        replies = both(first, second, ids)
        assert sorted(old for reply in replies for old, _ in reply.ids) == ids
        assert [reply.ids for reply in both(first, second, ids)] == [[], []]
    assert len(tc.retry(ids[0:1])) == 1, "whoever names a task submits it again"


def test_a_group_that_fails_again_does_not_grow_by_what_was_submitted_again(farm: Farm, tc: TaskClient) -> None:
    ids = [tc.run(Task("raise KeyError('grows')", name="grows")) for _ in range(3)]
    tc.barrier(ids)

    async def press() -> list[str]:
        feed = FarmFeed(farm.name, connection_reader(str(farm.connection_file)), True)
        said = []
        try:
            for _ in range(3):
                await feed.first_picture()
                causes = feed.fold.picture.data["causes"]
                (key,) = [key for key, cause in causes.items() if cause["etype"] == "KeyError"]
                said.append((await questions.act(feed, "retry_group", {"cause": key}))["text"])
                await asyncio.to_thread(settle)
        finally:
            await feed.stop()
        return said

    def settle() -> None:
        eventually(lambda: not tc.tasks(state="unfinished").rows, 30.0, what="all have ended")

    assert asyncio.run(press()) == ["3 tasks submitted again"] * 3
    assert len([row for row in tc.tasks(state="failed").rows if row.name == "grows"]) == 12
