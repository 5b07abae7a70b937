"""Test keys that are added and revoked while the controller runs, and the sessions of their holders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from ipytaskfarm.core.messages import NeedIds
from ipytaskfarm.transport import session_places, wire
from ipytaskfarm.transport.handshake import Refuse, Welcome
from ipytaskfarm.transport.hub_session import PeerNewEpoch, PeerUp
from ipytaskfarm.transport.keys import FarmKeys, KeyPair, rotated, with_agents, without_agents
from ipytaskfarm.transport.peer import Link, Lost, NewEpoch, Refused, Resumed
from tests.support.wire_world import AGENT_STATE, World, body, hello, numbers, submit, world
from tests.unit.test_wire_refusals import data

ONE, TWO = "agent:slurm-1.0", "agent:slurm-1.1"


@pytest.fixture
def w() -> Iterator[World]:
    with world() as it:
        rekey(it, with_agents(it.keys, ["slurm-1.0", "slurm-1.1"]))
        yield it


def rekey(w: World, keys: FarmKeys) -> tuple[int, list[str]]:
    w.keys = keys
    return w.hub.rekey(keys)


def greet(w: World, pair: KeyPair, role: str, session: str) -> tuple[zmq.Socket[bytes], object]:
    """A raw connection under that key, and what its greeting was answered."""
    sock = w.raw(pair)
    sock.send(wire.encode_handshake(hello(role, session)))
    return sock, wire.decode_handshake(w.answer(sock))


def agent_link(w: World, title: str, session: str) -> Link:
    link = w.link(session, "agent", key=title)
    w.until(lambda: link.is_up and w.hub._states[session].session._proven)
    return link


def test_an_enrolled_agent_may_come_in_at_once_under_its_own_name(w: World) -> None:
    agent_link(w, ONE, "slurm-1.0:a")
    agent_link(w, ONE, "slurm-1.0.gpu:b")
    assert {(peer.session, peer.title, peer.role) for peer, _ in w.hub.peers()} == {
        ("slurm-1.0:a", ONE, "agent"),
        ("slurm-1.0.gpu:b", ONE, "agent"),
    }


@pytest.mark.parametrize(
    ("title", "role", "session"),
    [
        (ONE, "agent", "slurm-1.1:a"),
        (ONE, "agent", "slurm-1.00:a"),
        (ONE, "agent", "slurm-1:a"),
        (ONE, "agent", "agent:a"),
        (ONE, "agent", "s1"),
        (ONE, "agent", ":a"),
        (ONE, "agent", "reader:a"),
        (ONE, "client", "s1"),
        ("agent", "agent", "slurm-1.0:a"),
        ("agent", "agent", "s1"),
        ("reader", "client", "s1"),
        ("reader", "client", "reader.x:s1"),
        ("client", "client", "agent:a"),
        ("client", "client", "reader:a"),
        ("client", "agent", "slurm-1.0:a"),
    ],
)
def test_a_session_is_bound_to_its_key_also_by_a_controller_that_knows_none(
    w: World, title: str, role: str, session: str
) -> None:
    _, answer = greet(w, w.keys.peers()[title], role, session)
    assert isinstance(answer, Refuse)
    assert answer.etype == "SecurityError"
    assert not answer.later
    assert not w.hub.peers()


def test_a_revoked_key_is_cut_at_once_and_opens_the_door_no_more(w: World) -> None:
    link, other = agent_link(w, ONE, "slurm-1.0:a"), agent_link(w, TWO, "slurm-1.1:b")
    w.events[link].clear()
    old = w.keys.agents["slurm-1.0"]
    assert rekey(w, without_agents(w.keys, ["slurm-1.0"])) == (1, ["slurm-1.0:a"])
    (event,) = w.until(lambda: w.of(link, Refused))
    assert "was revoked" in event.refuse.text
    assert "ipytaskfarm keys add" in event.refuse.text
    assert not w.of(link, Lost)
    again = w.link("slurm-1.0:a", "agent", read=lambda: w.info("agent", pair=old))
    (event,) = w.until(lambda: w.of(again, Refused), pace_s=0.125)
    assert "does not know the key" in event.refuse.text
    w.events[other].clear()
    w.heard.clear()
    other.send(AGENT_STATE)
    w.until(lambda: w.said("slurm-1.1:b") == [AGENT_STATE])
    assert not w.said("slurm-1.0:a")


def test_a_revoked_agent_that_is_away_is_forgotten_too(w: World) -> None:
    link = agent_link(w, ONE, "slurm-1.0:a")
    w.events.pop(link)
    w.pass_time(10.0)
    assert rekey(w, without_agents(w.keys, ["slurm-1.0"])) == (0, ["slurm-1.0:a"])
    assert not w.hub.peers()
    link.close()


@pytest.mark.parametrize("role", ["client", "agent"])
def test_who_finds_the_new_key_in_its_file_goes_on_and_loses_nothing(w: World, role: str) -> None:
    session = "s1" if role == "client" else "agent:s1"
    link = w.up(session, role)
    for number in range(200):
        if role == "client":
            link.send(submit(number))
        else:
            link.send(AGENT_STATE)
        if number in (50, 120):
            w.until(lambda: link.is_up)
            cut, over = rekey(w, rotated(w.keys, [role]))
            assert (cut, over) == (1, [])
            w.until(lambda: not link.is_up)
    w.until(lambda: link.is_up and not link.unacked_bytes)
    if role == "client":
        assert numbers(w.said("s1")) == list(range(200))
    else:
        assert w.said(session).count(AGENT_STATE) == 200
    assert {type(event) for event in w.events[link]} >= {Lost, Resumed}
    assert not w.of(link, NewEpoch)
    assert not [event for event in w.said(session) if isinstance(event, PeerNewEpoch)]
    assert PeerUp() in w.said(session)


def test_what_still_comes_under_the_old_key_is_not_heard(w: World) -> None:
    sock, answer = greet(w, w.keys.client, "client", "raw")
    assert isinstance(answer, Welcome)
    rekey(w, rotated(w.keys, ["client"]))
    refuse = wire.decode_handshake(w.answer(sock))
    assert isinstance(refuse, Refuse)
    assert refuse.later
    w.heard.clear()
    for frame in (data(1, body(NeedIds())), wire.encode_handshake(hello(session="raw")), b"nonsense"):
        sock.send(frame)
        refuse = wire.decode_handshake(w.answer(sock))
        assert isinstance(refuse, Refuse)
        assert refuse.later
    assert not w.heard
    assert w.hub.rejected["key of the past"] == 4


def test_a_copied_file_with_an_old_key_is_of_no_use(w: World) -> None:
    copied = w.info()
    rekey(w, rotated(w.keys, ["client"]))
    link = w.link(read=lambda: copied)
    (event,) = w.until(lambda: w.of(link, Refused), pace_s=0.125)
    assert event.refuse.etype == "SecurityError"


def test_one_agents_key_does_not_fill_the_house(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_places, "AGENT_SESSIONS_MAX", 2)
    for n in range(2):
        assert isinstance(greet(w, w.keys.agents["slurm-1.0"], "agent", f"slurm-1.0.{n}:a")[1], Welcome)
    full = greet(w, w.keys.agents["slurm-1.0"], "agent", "slurm-1.0.2:a")[1]
    assert isinstance(full, Refuse)
    assert full.later
    assert "there are 2 sessions under the key of agent:slurm-1.0 already" in full.text
    w.hub.forget("slurm-1.0.0:a")
    assert isinstance(greet(w, w.keys.agents["slurm-1.0"], "agent", "slurm-1.0.2:a")[1], Welcome)
    assert isinstance(greet(w, w.keys.agents["slurm-1.1"], "agent", "slurm-1.1:a")[1], Welcome)
