"""The wire over real sockets: what crosses it, what is made good, and who is turned away."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import select
import socket
import time
from collections.abc import Iterator
from itertools import pairwise

import msgspec
import pytest

from ipytaskfarm.core import errors
from ipytaskfarm.core.limits import PeerLimits
from ipytaskfarm.core.messages import Answer, FlagReply, IdBlock, NeedIds, StackText, StartEngine, Submit, TextReply
from ipytaskfarm.core.messages.running_task import Post, TaskCall
from ipytaskfarm.core.messages.task_types import KeptResults
from ipytaskfarm.system.farm_paths import ConnectionInfo
from ipytaskfarm.transport import hub_session, peer as peer_module, wire
from ipytaskfarm.transport.hub import GONE_S
from ipytaskfarm.transport.hub_session import PeerGone, PeerNewEpoch, PeerSilent, PeerUp
from ipytaskfarm.transport.peer import Acked, Link, Lost, NewEpoch, Refused, Resumed
from ipytaskfarm.transport.reliable_session import CLIENT_MESSAGE_BYTES, PacketKind, ReliableSession
from tests.support.polling import DEADLINE_S, eventually
from tests.support.wire_world import AGENT_STATE, World, numbers, submit, world


@pytest.fixture(params=["tcp", "unix"])
def w(request: pytest.FixtureRequest) -> Iterator[World]:
    with world(by_unix=request.param == "unix") as it:
        yield it


def answers(messages: list[object]) -> list[int]:
    return [message.n for message in messages if isinstance(message, Answer)]


# ------------------------------------------------------------------------------------------------ what crosses it


def test_a_link_comes_up_and_messages_cross_both_ways(w: World) -> None:
    link = w.link()
    w.until(lambda: link.is_up)
    (again,) = w.of(link, NewEpoch)
    assert (again.welcome.farm, again.welcome.name, again.welcome.epoch) == ("farm-1", "default", 1)
    assert (link.farm, link.epoch, link.problem) == ("farm-1", 1, "")
    (peer, first), *_ = w.heard
    assert isinstance(first, PeerNewEpoch)
    assert (peer.session, peer.role, peer.name, peer.title) == ("s1", "client", "tester", "client")
    link.send(NeedIds(), "token")
    assert w.hub.send("s1", IdBlock(1, 1024))
    w.until(lambda: w.told(link))
    assert w.told(link) == [IdBlock(1, 1024)]
    assert w.until(lambda: w.of(link, Acked)) == [Acked("token")]
    assert w.said()[1:] == [NeedIds()]
    assert link.unacked_bytes == 0
    w.pass_time(0.2, step_s=0.05)
    assert w.hub.backlog_bytes("s1") == 0
    assert w.hub.peers() == [(peer, True)]


def test_the_controllers_machine_may_have_the_name_of_this_one() -> None:
    with world() as w:
        info = msgspec.structs.replace(w.info(), host="127.0.0.2", location="127.0.0.1", node=socket.gethostname())
        link = w.link(read=lambda: info)
        w.until(lambda: link.is_up)


def test_an_agent_speaks_its_own_language(w: World) -> None:
    link = w.up("agent:a1", "agent")
    link.send(AGENT_STATE)
    w.hub.send("agent:a1", StartEngine(3))
    w.until(lambda: w.told(link) == [StartEngine(3)] and w.said("agent:a1") == [AGENT_STATE])


def test_nothing_is_acknowledged_before_the_commit(w: World) -> None:
    link = w.up()
    w.committing = False
    link.send(NeedIds(), "token")
    w.until(lambda: w.said() == [NeedIds()])
    w.pass_time(3.0)
    assert not w.of(link, Acked)
    w.committing = True
    w.until(lambda: w.of(link, Acked))


def test_what_is_sent_before_the_commit_acknowledges_nothing(w: World) -> None:
    link = w.up()
    w.committing = False
    link.send(NeedIds(), "token")
    w.until(lambda: w.said() == [NeedIds()])
    early, late = KeptResults([]), Answer(1, FlagReply(True))
    w.hub.send_now("s1", early)
    w.hub.send("s1", late)
    w.until(lambda: w.told(link) == [early])
    w.pass_time(1.0)
    assert w.told(link) == [early]
    assert not w.of(link, Acked)
    w.committing = True
    w.until(lambda: w.told(link) == [early, late])
    w.until(lambda: w.of(link, Acked))
    w.hub.send_now("nobody", early)


def test_messages_of_megabytes_cross_in_pieces(w: World) -> None:
    link = w.up()
    link.send(submit(1, 3 << 20), "large")
    link.send(submit(2))
    w.hub.send("s1", Answer(1, TextReply("y" * (3 << 20))))
    w.hub.send("s1", Answer(2, FlagReply(True)))
    w.until(lambda: numbers(w.said()) == [1, 2] and answers(w.told(link)) == [1, 2])
    w.until(lambda: w.of(link, Acked))
    first = w.said()[0]
    assert isinstance(first, Submit)
    assert len(first.tasks[0].payload) == 3 << 20


def test_a_message_too_large_is_refused_to_its_sender(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    link = w.up()
    monkeypatch.setattr(wire, "message_bytes_max", lambda role: 1000)
    with pytest.raises(errors.ResultTooLarge, match=r"Submit has 1,0\d\d bytes, more than the 1,000"):
        link.send(submit(1, 1000))
    with pytest.raises(errors.ResultTooLarge):
        w.hub.send("s1", Answer(1, TextReply("y" * 1000)))
    link.send(submit(2))
    w.until(lambda: numbers(w.said()) == [2])


def test_what_a_task_asks_is_as_small_as_what_a_client_sends(w: World) -> None:
    """Both go into the store in one commit; a result whose file cannot be written may be larger."""
    link = w.link("agent", "agent")
    call = TaskCall("e", (1, 1), 1, Post(1, [bytes(CLIENT_MESSAGE_BYTES)]))
    with pytest.raises(errors.ResultTooLarge, match="TaskCall has"):
        link.send(call)
    link.send(StackText(1, "x" * CLIENT_MESSAGE_BYTES))


def test_a_slow_client_costs_a_window_and_others_nothing(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_session, "ReliableSession", functools.partial(ReliableSession, window_bytes=1 << 20))
    slow = w.up("slow")
    quick = w.up("quick")
    events = w.events.pop(slow)
    for n in range(40):
        w.hub.send("slow", Answer(n, TextReply("y" * 100_000)))
    w.hub.send("quick", Answer(7, FlagReply(True)))
    w.until(lambda: answers(w.told(quick)) == [7])
    assert w.hub.backlog_bytes("slow") > 4_000_000
    w.events[slow] = events
    w.until(lambda: len(w.told(slow)) == 40)
    assert answers(w.told(slow)) == list(range(40))


def test_who_holds_too_much_is_told_to_come_later_and_everything_arrives() -> None:
    """A small farm: one of two large messages has room at a time."""
    with world(limits=PeerLimits(incoming=9 << 20)) as w:
        one, two = w.up("one"), w.up("two")
        for link, number in ((one, 1), (two, 2)):
            link.send(submit(number, 5 << 20), number)

        def both() -> bool:
            for link, number in ((one, 1), (two, 2)):
                if w.of(link, NewEpoch):  # everything that was not acknowledged is reported again
                    w.events[link] = [event for event in w.events[link] if not isinstance(event, NewEpoch)]
                    link.send(submit(number, 5 << 20), number)
            return {*numbers(w.said("one")), *numbers(w.said("two"))} == {1, 2}

        w.until(both, pace_s=0.1)
        assert w.hub.rejected["too many bytes"]
        w.until(lambda: not w.hub._incoming.total)
        assert w.of(one, Refused) == w.of(two, Refused) == []


def test_who_takes_nothing_loses_what_was_said_and_begins_anew() -> None:
    with world(limits=PeerLimits(outgoing=8 << 20)) as w:
        slow, quick = w.up("slow"), w.up("quick")
        events = w.events.pop(slow)
        for n in range(12):
            w.hub.send("slow", Answer(n, TextReply("y" * (1 << 20))))
            assert w.hub.backlog_bytes("slow") <= 5 << 20
        assert w.hub.rejected["slow reader"]
        w.hub.send("quick", Answer(7, FlagReply(True)))
        w.until(lambda: answers(w.told(quick)) == [7])
        w.events[slow] = events
        w.until(lambda: w.of(slow, NewEpoch), pace_s=0.1)


def test_a_session_that_says_nothing_gives_its_place_to_a_newcomer() -> None:
    with world(limits=PeerLimits(sessions=3)) as w:
        used = w.up("used")
        used.send(NeedIds())
        w.until(lambda: w.said("used"))
        for n in range(10):
            link = w.link(f"new{n}")
            w.until(lambda link=link: link.is_up)  # type: ignore[misc]
        names = [peer.session for peer, _ in w.hub.peers()]
        assert len(names) == 3
        assert {"used", "new9"} <= {*names}
        for link in list(w.events)[-2:]:
            link.send(NeedIds())
        w.until(lambda: w.said("new8") and w.said("new9"), pace_s=0.05)
        full = w.link("late")
        w.until(lambda: "the most of one key (max_sessions)" in full.problem, pace_s=0.1)
        used.close()
        del w.events[used]
        w.until(lambda: full.is_up, pace_s=0.1)


def test_an_acknowledgement_that_opens_the_window_is_used_at_once(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "ReliableSession", functools.partial(ReliableSession, window_packets=1))
    link = w.up()
    del w.events[link]
    for number in range(5):
        link.send(submit(number, 200_000))
    link.step(w.now())
    for heard in range(1, 5):
        w.until(lambda heard=heard: len(w.said()) == heard)  # type: ignore[misc]
        w.until(lambda: readable(link))
        link.step(w.now())
    w.until(lambda: numbers(w.said()) == list(range(5)))
    w.events[link] = []


def test_closing_waits_for_acknowledgements_and_says_good_bye(w: World) -> None:
    link = w.up()
    link.send(NeedIds())
    assert link.close(0.05) is False  # nobody turns the hub's loop
    del w.events[link]
    w.until(lambda: PeerGone(said=True) in w.said())
    assert w.said()[0] == NeedIds()
    assert w.hub.peers() == []
    assert w.hub.send("s1", IdBlock(1, 2)) is False
    assert w.hub.backlog_bytes("s1") == 0


def test_a_good_bye_is_heard_though_the_hub_has_noticed_the_end_of_the_connection(w: World) -> None:
    """The hub speaks to a peer that has left before it reads what the peer said last."""
    link = w.up()
    link.send(NeedIds())
    link.close()
    del w.events[link]

    def noticed() -> bool:
        w.proxy.turn()
        w.hub.send("s1", IdBlock(1, 2))
        w.hub.flush(w.now())
        return w.hub._states["s1"].connection is None

    eventually(noticed, every_s=0.001, what="the end of the connection")
    w.until(lambda: PeerGone(said=True) in w.said())
    assert w.said() == [NeedIds(), PeerGone(said=True)]
    assert w.hub._by_connection == {}


def test_a_link_that_has_said_all_closes_at_once(w: World) -> None:
    link = w.up()
    began = time.monotonic()
    assert link.close(120.0) is True
    assert time.monotonic() - began < DEADLINE_S
    del w.events[link]


# ---------------------------------------------------------------------------------------------- what is made good


def test_a_storm_of_resets_loses_and_doubles_nothing(w: World) -> None:
    chance = random.Random(7)
    link = w.up()
    total = resets = 0
    while resets < 25:
        for _ in range(chance.randrange(12)):
            link.send(submit(total, chance.choice([1, 1000, 50_000, 400_000])), total)
            w.hub.send("s1", Answer(total, TextReply("y" * chance.choice([1, 1000, 50_000]))))
            total += 1
        w.turn()
        if chance.random() < 0.3:
            resets += 1
            w.proxy.reset()
            w.until(lambda: not link.is_up)
            if chance.random() < 0.8:  # else the next one hits while it dials
                w.until(lambda: link.is_up, pace_s=0.025)
    w.until(lambda: not link.unacked_bytes and len(w.told(link)) == total)
    tokens = [event.token for event in w.of(link, Acked) if isinstance(event.token, int)]
    assert numbers(w.said()) == answers(w.told(link)) == tokens == list(range(total))
    assert 10 < len(w.of(link, Lost)) == len(w.of(link, Resumed)) <= resets
    assert not w.of(link, NewEpoch)


def test_a_cut_is_noticed_at_once_and_healed_with_a_resend(w: World) -> None:
    link = w.up()
    w.committing = False
    for number in range(50):
        link.send(submit(number))
    w.until(lambda: len(w.said()) == 50)
    w.proxy.reset()
    began = time.monotonic()
    w.until(lambda: w.of(link, Lost))
    assert "cut" in link.problem
    w.committing = True
    w.until(lambda: w.of(link, Resumed))
    assert time.monotonic() - began < 2.0
    w.until(lambda: not link.unacked_bytes)
    assert numbers(w.said()) == list(range(50))
    assert PeerUp() in w.said()


@pytest.mark.parametrize("way", ["swallow_up", "swallow_down", "both"])
def test_a_half_open_connection_is_replaced(w: World, way: str) -> None:
    link = w.up()
    for swallow in ("swallow_up", "swallow_down") if way == "both" else (way,):
        setattr(w.proxy, swallow, True)
    link.send(submit(1))
    w.hub.send("s1", Answer(1, FlagReply(True)))
    w.pass_time(12.0)
    assert not link.is_up
    assert w.of(link, Lost)
    if way != "swallow_down":
        assert PeerSilent() in w.said()
    w.proxy.swallow_up = w.proxy.swallow_down = False
    w.until(lambda: link.is_up, pace_s=0.125)
    w.until(lambda: not link.unacked_bytes and w.told(link))
    assert numbers(w.said()) == answers(w.told(link)) == [1]
    assert w.of(link, Resumed)


def test_a_controller_that_is_restarted_begins_a_new_epoch(w: World) -> None:
    link = w.up()
    w.committing = False
    link.send(submit(1), "old")
    w.until(lambda: numbers(w.said()) == [1])
    w.hub.close()
    w.start_hub()
    w.committing = True
    w.until(lambda: w.of(link, NewEpoch))
    assert link.epoch == 2
    assert link.unacked_bytes == 0
    link.send(submit(1), "again")
    assert w.until(lambda: w.of(link, Acked)) == [Acked("again")]
    assert [event for event in w.events[link] if isinstance(event, Lost)]


def test_a_client_silent_for_a_minute_is_forgotten_and_comes_back_anew(w: World) -> None:
    link = w.up()
    events = w.events.pop(link)
    w.pass_time(10.0)
    assert w.said() == [PeerSilent()]
    w.pass_time(60.0)
    assert w.said() == [PeerSilent(), PeerGone()]
    w.events[link] = events
    w.until(lambda: w.of(link, NewEpoch), pace_s=0.125)
    assert link.epoch == 1


def test_an_agent_is_forgotten_when_the_controller_says_so_or_after_an_hour(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = w.up("agent:a1", "agent")
    events = w.events.pop(link)
    w.pass_time(100.0, step_s=2.0)
    assert w.said("agent:a1") == [PeerSilent()]
    w.hub.send("agent:a1", StartEngine(1))
    w.events[link] = events
    w.until(lambda: w.told(link), pace_s=0.125)
    assert PeerUp() in w.said("agent:a1")
    w.hub.forget("agent:a1")
    w.until(lambda: w.of(link, NewEpoch), pace_s=0.125)
    w.events.pop(link)
    monkeypatch.setitem(GONE_S, "agent", 120.0)
    w.pass_time(115.0, step_s=2.0)
    assert w.said("agent:a1")[-1] == PeerSilent()
    w.pass_time(10.0, step_s=2.0)
    assert w.said("agent:a1")[-1] == PeerGone()
    link.close()


def test_beats_keep_an_idle_conversation(w: World) -> None:
    link, agent = w.up("s1"), w.up("agent:a1", "agent")
    w.pass_time(120.0)
    assert not w.events[link]
    assert not w.events[agent]
    assert not w.heard


def test_a_suspended_machine_expires_nobody(w: World) -> None:
    link, agent = w.up("s1"), w.up("agent:a1", "agent")
    for _ in range(3):
        w.stall(30.0)
        w.pass_time(1.0)
    assert not w.events[link]
    assert not w.events[agent]
    assert not w.heard


def test_a_packet_that_is_lost_within_a_connection_is_sent_again(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    link = w.up()
    put = link._put
    lost: list[bytes] = []

    def lossy(frame: bytes) -> bool:
        if frame[0] == PacketKind.DATA and not lost:
            lost.append(frame)
            return True
        return put(frame)

    monkeypatch.setattr(link, "_put", lossy)
    link.send(submit(1))
    w.turn()
    link.send(submit(2))
    w.until(lambda: not link.unacked_bytes)
    assert len(lost) == 1
    assert numbers(w.said()) == [1, 2]
    assert w.hub.rejected["gap"] >= 1


def test_reconnecting_leaks_no_descriptors(w: World) -> None:
    link = w.up()

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def reconnect() -> None:
        w.events[link].clear()
        w.proxy.reset()
        w.until(lambda: w.of(link, Resumed), pace_s=0.025)

    for _ in range(3):
        reconnect()
    before = descriptors()
    for _ in range(20):
        reconnect()
    eventually(lambda: descriptors() <= before + 2)


# -------------------------------------------------------------------------------------------- how it is waited on


def readable(link: Link) -> bool:
    (fd,) = link.fds()
    return bool(select.select([fd], [], [], 0)[0])


def test_a_link_works_where_gevent_has_taken_epoll_away(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.delattr(select, "epoll")
        link = w.up()
        assert not hasattr(select, "epoll")
    w.hub.send("s1", Answer(1, FlagReply(True)))
    w.until(lambda: readable(link))


def test_the_descriptor_tells_of_messages_and_then_is_quiet(w: World) -> None:
    link = w.up()
    (before,) = link.fds()
    w.until(lambda: not readable(link))
    del w.events[link]
    for n in range(3):
        w.hub.send("s1", Answer(n, FlagReply(True)))
        w.until(lambda: readable(link))
        if w.socket_path is not None:
            assert link.step(w.now(), readable=False) == [], "who was told that nothing is there reads nothing"
            assert not link.is_due(w.now())
        events = link.step(w.now())
        assert [type(event).__name__ for event in events] == ["ReceivedMessage"]
        assert not readable(link)
        assert link.next_deadline() <= w.now() + wire.ACK_WITHIN_S
        link.step(link.next_deadline())
    w.events[link] = []
    w.proxy.reset()
    w.until(lambda: w.of(link, Resumed))
    assert link.fds() == [before]
    w.until(lambda: not readable(link))
    assert link.next_deadline() > w.now()


def test_an_asyncio_loop_can_wait_on_it(w: World) -> None:
    link = w.up()
    del w.events[link]

    async def wait() -> object:
        loop = asyncio.get_running_loop()
        told: asyncio.Future[object] = loop.create_future()

        def step() -> None:
            for event in link.step(time.monotonic()):
                if not told.done():
                    told.set_result(event)

        loop.add_reader(link.fds()[0], step)
        w.hub.send("s1", Answer(1, FlagReply(True)))
        w.hub.flush(time.monotonic())
        while not told.done():
            w.turn()
            await asyncio.sleep(0)
        loop.remove_reader(link.fds()[0])
        return told.result()

    assert type(asyncio.run(wait())).__name__ == "ReceivedMessage"
    w.events[link] = []


def test_the_hub_waits_for_other_descriptors_too(w: World) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert w.hub.poll(0.0, [ours.fileno()]) == set()
        theirs.send(b"x")
        assert w.hub.poll(5.0, [ours.fileno()]) == {ours.fileno()}


def test_a_step_takes_a_bounded_number_of_packets(w: World) -> None:
    link = w.up()
    del w.events[link]
    for n in range(300):
        w.hub.send("s1", Answer(n, FlagReply(True)))
        w.hub.flush(w.now())
    told: list[object] = []
    w.until(lambda: readable(link))

    def step() -> bool:
        told.extend(link.step(w.now()))
        return len(told) == 300

    eventually(step)
    assert link.next_deadline() > 0
    w.events[link] = []


def test_a_link_retries_until_there_is_a_farm(w: World) -> None:
    calls = 0

    def read() -> ConnectionInfo:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise errors.FarmNotRunning("farm 'default' is not running: start it")
        return w.info()

    link = w.link(read=read)
    w.turn()
    assert link.problem == "farm 'default' is not running: start it"
    w.until(lambda: link.is_up, pace_s=0.025)


def test_retries_grow_rarer_and_bear_chance(w: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    dials: list[float] = []

    def read() -> ConnectionInfo:
        dials.append(w.now())
        return msgspec.structs.replace(w.info(), port=port, socket="")

    link = w.link(read=read)
    w.until(lambda: len(dials) >= 10, pace_s=0.05)
    pauses = [later - earlier for earlier, later in pairwise(dials)]
    assert pauses[0] < 0.3
    assert max(pauses) < 5.6
    assert pauses[-1] > 2.4
    assert "nothing listens there" in link.problem
