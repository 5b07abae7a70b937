"""A client that asks for the stack of a task again and again: its engine is not kept from its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages import Answer, TextReply
from ipytaskfarm.system.farm_paths import read_connection_file
from ipytaskfarm.transport import wire
from ipytaskfarm.transport.reliable_session import HEADER, PacketKind
from tests.support.farms import until_running
from tests.support.flood import PATIENCE_MS, Flood, RawSession, ask
from tests.support.hostile import processes

pytestmark = pytest.mark.farm

QUESTIONS = 90
READINGS_MAX = 20
"""Each one interrupts the engine."""


def test_questions_for_one_stack_share_it(farm: Farm, tc: TaskClient) -> None:
    task = tc.run(Task("import time\nfor _ in range(10_000): time.sleep(0.01)"))
    until_running(tc, task)
    flood = Flood(read_connection_file(farm.connection_file))
    try:
        session = flood.session()
        session.messages(ask(n, m.Stack(task)) for n in range(QUESTIONS))
        texts = answers_to(session, QUESTIONS)
        files = {each.path for process in processes(farm) for each in process.open_files()}
        written = [Path(path).read_text() for path in files if path.endswith(".stack")]
    finally:
        flood.close()
        tc.abort([task])
    assert set(texts) == set(range(QUESTIONS))
    assert all("line 2" in text for text in texts.values())
    assert 1 <= sum(text.count("most recent call first") for text in written) <= READINGS_MAX


def answers_to(session: RawSession, count: int) -> dict[int, str]:
    texts: dict[int, str] = {}
    while len(texts) < count and session.socket.poll(PATIENCE_MS):
        frame = session.socket.recv()
        if frame[0] == PacketKind.DATA:
            for each in wire.to_client().decode(frame[HEADER.size :]):
                if isinstance(each, Answer) and isinstance(each.reply, TextReply):
                    texts[each.n] = each.reply.text
    return texts
