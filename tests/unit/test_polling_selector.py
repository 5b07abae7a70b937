"""The selector of the agent's event loop: what it returns, and that it polls between events that follow at once."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from ipytaskfarm.agent.polling_selector import PollingSelector, polling_loop


def test_readers_timers_and_threads_wake_the_loop() -> None:
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        came: list[str] = []
        bell, rung = os.eventfd(0, os.EFD_NONBLOCK), asyncio.Event()

        def on_bell() -> None:
            os.eventfd_read(bell)
            came.append("bell")
            rung.set()

        loop.add_reader(bell, on_bell)
        for _ in range(3):
            rung.clear()
            os.eventfd_write(bell, 1)
            await rung.wait()
        came.append(await asyncio.to_thread(lambda: "thread"))
        await asyncio.sleep(0.001)
        loop.remove_reader(bell)
        os.close(bell)
        return came

    with asyncio.Runner(loop_factory=polling_loop) as runner:
        assert runner.run(main()) == ["bell", "bell", "bell", "thread"]


def test_it_waits_for_its_time_and_no_longer() -> None:
    selector = PollingSelector()
    began_s = time.monotonic()
    assert selector.select(0.02) == []
    assert time.monotonic() - began_s >= 0.02
    assert selector.select(0) == selector.select(-1) == []
    selector.close()


def test_it_polls_while_events_follow_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    selector = PollingSelector()
    here, there = os.pipe()
    selector.register(here, 1)
    yields = 0

    def come() -> None:
        nonlocal yields
        yields += 1
        os.write(there, b"x")

    monkeypatch.setattr(os, "sched_yield", come)
    selector._short_poll._credit = 1
    for n in range(1, 4):
        assert [key.fd for key, _ in selector.select(60.0)] == [here]
        assert yields == n
        os.read(here, 1)
    selector.close()
    os.close(here)
    os.close(there)
