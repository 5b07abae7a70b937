"""Hostile clients with a valid key, and their attacks; `attacks` runs one in a process of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence

import zmq

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages import PROTOCOL
from ipytaskfarm.core.messages.blob_chunks import PIECE_BYTES
from ipytaskfarm.core.messages.task_types import JobSpec, Needs, Rules, Submission
from ipytaskfarm.system.farm_paths import ConnectionInfo
from ipytaskfarm.transport import wire
from ipytaskfarm.transport.handshake import Hello, Welcome
from ipytaskfarm.transport.reliable_session import HEADER, PACKET_BYTES, PacketKind, list_header
from ipytaskfarm.version import __version__
from tests.support.thorough import some

PATIENCE_MS = 20_000


class RawSession:
    """A session that keeps no rule it does not want to keep."""

    def __init__(self, flood: Flood, name: str, *, reads: bool = True) -> None:
        self.socket = flood.socket(flood.context, rcvhwm=0 if reads else 1)
        self.name = name
        self.number = 0
        self.hello(name)

    def hello(self, name: str) -> None:
        self.socket.send(wire.encode_handshake(Hello(PROTOCOL, __version__, "3", "client", name, None, 0, 0, name)))

    def is_welcome(self) -> bool:
        """Wait until the controller has answered; return whether it let the session in."""
        while self.socket.poll(PATIENCE_MS):
            frame = self.socket.recv()
            if frame[0] == PacketKind.HANDSHAKE:
                return isinstance(wire.decode_handshake(frame), Welcome)
        return False

    def data(self, body: bytes) -> None:
        """Send a packet."""
        self._send(PacketKind.DATA, body)

    def messages(self, bodies: Iterable[bytes]) -> None:
        """Send messages, as many to a packet as fit into it."""
        gathered: list[bytes] = []
        size = 0
        for body in bodies:
            if gathered and size + len(body) > PACKET_BYTES:
                self.data(list_header(len(gathered)) + b"".join(gathered))
                gathered, size = [], 0
            gathered.append(body)
            size += len(body)
        self.data(list_header(len(gathered)) + b"".join(gathered))

    def pieces(self, body: bytes, *, finish: bool = True) -> None:
        """Send one message in pieces; the last one only to finish it."""
        at = 0
        while at < len(body):
            piece = body[at : at + PACKET_BYTES]
            at += len(piece)
            self._send(PacketKind.DATA if finish and at == len(body) else PacketKind.PART, piece)

    def _send(self, kind: PacketKind, body: bytes) -> None:
        self.number += 1
        self.socket.send(HEADER.pack(kind, self.number, 0) + body)

    def beat(self) -> None:
        self.socket.send(HEADER.pack(PacketKind.BEAT, self.number, 0))

    def drain(self) -> None:
        """Throw away what has come, and acknowledge nothing."""
        while self.socket.poll(0):
            self.socket.recv()


class Flood:
    """One hostile process."""

    def __init__(self, info: ConnectionInfo) -> None:
        self.info = info
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sessions: list[RawSession] = []

    def socket(self, context: zmq.Context[zmq.Socket[bytes]], rcvhwm: int = 0) -> zmq.Socket[bytes]:
        """A connection under the key."""
        sock: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        sock.linger = 0
        sock.sndhwm = 0
        sock.rcvhwm = rcvhwm
        sock.curve_publickey, sock.curve_secretkey = self.info.public_key.encode(), self.info.secret_key.encode()
        sock.curve_serverkey = self.info.server_key.encode()
        sock.connect(f"tcp://127.0.0.1:{self.info.port}")
        return sock

    def session(self, name: str = "", *, reads: bool = True) -> RawSession:
        # The controller remembers a session for a minute, with the ids that another attack has not used.
        session = RawSession(self, name or f"flood-{os.getpid()}", reads=reads)
        assert session.is_welcome(), "the controller does not let it in"
        self.sessions.append(session)
        return session

    def close(self) -> None:
        """Cut all connections."""
        self.context.destroy(linger=0)

    def stay(self, again: Callable[[], object] = lambda: None) -> None:
        """Say that the attack is under way, and go on until this process is ended."""
        print("under way", flush=True)
        while True:
            for session in self.sessions:
                session.drain()
                session.beat()
            again()
            time.sleep(0.2)


def ask(number: int, question: m.Question) -> bytes:
    return wire.encode_message(m.AskQuestion(number, question))


def tasks_in_bulk(flood: Flood) -> None:
    """2,000 questions for tables of tasks, in one packet of 116 KiB, again and again."""
    in_bulk(flood, [m.ListTasks()])


def each_question_in_bulk(flood: Flood) -> None:
    """Each kind of question, 2,000 times, from a session of its own."""
    in_bulk(flood, QUESTIONS)


def in_bulk(flood: Flood, questions: Sequence[m.Question], count: int = 2000) -> None:
    numbers = itertools.count()
    sessions = [(flood.session(f"flood{n}"), question) for n, question in enumerate(questions)]

    def again() -> None:
        for session, question in sessions:
            session.messages(ask(next(numbers), question) for _ in range(count))

    again()
    flood.stay(again)


def huge_ids(flood: Flood) -> None:
    """A question with 15 MiB of ids."""
    session = flood.session()
    ids = 3_100_000
    body = (
        list_header(1)
        + b"\x83\xa4type\xa3Ask\xa1n\x01\xa8question\x82\xa4type\xa5Fetch\xa3ids\xdd"
        + ids.to_bytes(4, "big")
    )
    session.pieces(body + b"\xce\x00\x01\x00\x00" * ids)
    flood.stay()


def unfinished(flood: Flood) -> None:
    """120 sessions, or 180, with 15 MiB of a message that never ends: more than the controller may take."""
    piece = bytes(15 << 20)
    for n in range(some(120, 180)):
        flood.session(f"flood{n}").pieces(piece, finish=False)
    flood.stay()


def connections(flood: Flood) -> None:
    """5,000 connections under the key that say nothing."""
    contexts: list[zmq.Context[zmq.Socket[bytes]]] = [zmq.Context() for _ in range(5)]
    sockets = [flood.socket(context) for context in contexts for _ in range(1000)]
    assert len(sockets) == 5000
    flood.stay()


def bare_connections(flood: Flood) -> None:
    """5,000 connections by TCP that say nothing at all, and come again when they are cut."""
    sockets: list[socket.socket] = []

    def again() -> None:
        for sock in sockets:
            sock.close()
        sockets.clear()
        for _ in range(5000):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", flood.info.port))
            sockets.append(sock)

    again()
    flood.stay(again)


def half_frames(flood: Flood) -> None:
    """8,000 connections without a key, each with most of a large frame, and again when they are cut."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    half = greeting + b"\x06" + (PACKET_BYTES).to_bytes(8, "big") + bytes(PACKET_BYTES - 4096)
    unsent: dict[socket.socket, memoryview] = {}

    def again() -> None:
        for sock in unsent:
            sock.close()
        unsent.clear()
        for _ in range(8000):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", flood.info.port))
            unsent[sock] = memoryview(half)
        for _ in range(20):
            for sock, left in unsent.items():
                with contextlib.suppress(OSError):  # it is not connected yet, or was cut
                    unsent[sock] = left[sock.send(left) :]

    again()
    flood.stay(again)


def many_sessions(flood: Flood) -> None:
    """20,000 sessions of one key."""
    connection = flood.session()
    numbers = itertools.count()

    def again() -> None:
        for _ in range(20_000):
            connection.hello(f"flood{next(numbers)}")

    again()
    flood.stay(again)


def slow_reader(flood: Flood) -> None:
    """Questions with large answers, and nobody reads them."""
    session = flood.session(reads=False)
    numbers = itertools.count()
    print("under way", flush=True)
    while True:
        session.messages(ask(next(numbers), m.ListTasks()) for _ in range(2000))
        session.beat()
        time.sleep(0.2)


def block_of(session: RawSession) -> range:
    """Return the ids of a large block."""
    session.messages([wire.encode_message(m.NeedIds())] * 4)
    while session.socket.poll(PATIENCE_MS):
        frame = session.socket.recv()
        if frame[0] == PacketKind.DATA:
            blocks = [each for each in wire.to_client().decode(frame[HEADER.size :]) if isinstance(each, m.IdBlock)]
            if blocks and blocks[-1].last - blocks[-1].first > 60_000:
                return range(blocks[-1].first, blocks[-1].last)
    raise AssertionError("the controller gives no ids")


def paused_tasks(flood: Flood, count: int) -> range:
    """Submit tasks of a job that is paused, and return their ids."""
    session = flood.session("filler")
    ids = block_of(session)[:count]
    job = [JobSpec("paused", "paused", count)]
    rules = Rules(job="paused")
    made = [Submission(task_id, b"a = 1", 1.0, None, rules) for task_id in ids]
    session.messages([wire.encode_message(m.Submit(made[:1], [], job)), ask(1, m.PauseJobs(["paused"]))])
    for at in range(1, count, 1000):
        session.messages([wire.encode_message(m.Submit(made[at : at + 1000], [], job))])
    return ids


def many_tasks(flood: Flood) -> None:
    """Tasks with rules of their own, as many as the connection takes."""
    session = flood.session()
    block = block_of(session)
    first = block[0]
    ids = iter(block)

    def again() -> None:
        for _ in range(10):
            tasks = []
            for task_id in itertools.islice(ids, 1000):
                rules = Rules(name="x" * 300, priority=-task_id - 1, time_limit_s=float(task_id + 1))
                needs = Needs(after=(task_id - 1,)) if task_id > first else None
                tasks.append(Submission(task_id, b"a = 1", 1.0, None, rules, (), needs))
            if tasks:
                jobs = [JobSpec(f"flood{task.id}", "x" * 10_000, 5) for task in tasks[:20]]
                session.messages([wire.encode_message(m.Submit(tasks, [], jobs))])

    again()
    flood.stay(again)


def ids_without_end(flood: Flood) -> None:
    """Blocks of ids, again and again."""
    session = flood.session()

    def again() -> None:
        session.messages([wire.encode_message(m.NeedIds())] * 2000)

    again()
    flood.stay(again)


def commands(flood: Flood) -> None:
    """Pushes of much data to engines that are busy with other pushes."""
    session = flood.session()
    numbers = itertools.count()

    def again() -> None:
        for _ in range(4):
            session.pieces(
                list_header(1) + wire.encode_message(m.SendCommand(next(numbers), None, "push", bytes(1 << 20)))
            )

    again()
    flood.stay(again)


def pages_of_everything(flood: Flood) -> None:
    """Each question about all tasks, again and again, from several sessions."""
    questions: list[m.Question] = [
        m.ListTasks(), m.ListTasks(last=2**62), m.ListTasks(name="no such name", last=1), m.QueueStatus(True),
        m.FindJobs(tasks=True), m.ReadHistory(last=2**62), m.FetchResults(list(range(1000))),
        m.ListTasks(state="failed", last=1),
    ]  # fmt: skip
    in_bulk(flood, questions * 2, 100)


def aborts(flood: Flood) -> None:
    """Tasks by the thousand, which are aborted, retried and cleared again at once."""
    session = flood.session("aborter")
    ids = iter(block_of(session))
    numbers = itertools.count()

    def again() -> None:
        some = list(itertools.islice(ids, 2000))
        tasks = [Submission(task_id, b"a = 1", 1.0, None, None) for task_id in some]
        messages = [wire.encode_message(m.Submit(tasks[at : at + 1000])) for at in (0, 1000)]
        for question in (m.AbortTasks(some), m.RetryTasks(some), m.AbortTasks(some), m.Clear()):
            messages.append(ask(next(numbers), question))
        session.messages(messages)

    again()
    flood.stay(again)


def watches(flood: Flood) -> None:
    """Watches of all tasks of others, from many sessions."""
    questions = [m.WatchTasks(list(range(at, at + 4_000))) for at in range(0, 60_000, 4_000)]
    numbers = itertools.count()
    sessions = [flood.session(f"flood{n}") for n in range(20)]

    def again() -> None:
        for session in sessions:
            session.messages(ask(next(numbers), question) for question in questions)

    again()
    flood.stay(again)


def waits_for_messages(flood: Flood) -> None:
    """Waits for messages of a task that sends none, messages to it under names of all kinds, and checks."""
    session = flood.session("reader")
    task_id = block_of(session)[0]
    needs = Needs(after=(task_id + 1,))
    session.messages([wire.encode_message(m.Submit([Submission(task_id, b"a = 1", 1.0, None, None, (), needs)]))])
    numbers = itertools.count(1)

    def again() -> None:
        for _ in range(20):
            questions: list[m.Question] = [m.ReadTaskMessages(task_id), m.CheckTask(None)] * 50
            questions += [m.SendToTask(task_id, [b"x" * 1000], f"{next(numbers)}:1") for _ in range(100)]
            session.messages(ask(next(numbers), question) for question in questions)

    again()
    flood.stay(again)


def sticky_commands(flood: Flood) -> None:
    """Sticky commands under ever new keys."""
    session = flood.session("sticky")
    numbers = itertools.count()

    def again() -> None:
        for _ in range(20):
            key = f"flood{next(numbers)}"
            session.messages([ask(next(numbers), m.SetSticky(key, "execute", b"#" * 200_000))])

    again()
    flood.stay(again)


def uploads(flood: Flood) -> None:
    """Large values that are announced and never end, from many sessions, and pieces without waiting for answers."""
    numbers = itertools.count()
    sessions = [flood.session(f"flood{n}") for n in range(10)]
    piece = bytes(PIECE_BYTES)

    def again() -> None:
        for session in sessions:
            for _ in range(2):
                digest = next(numbers).to_bytes(32, "big")
                session.pieces(list_header(1) + ask(next(numbers), m.WriteBlob(digest, 1 << 34, 0, piece)))
                session.messages([ask(next(numbers), m.WriteBlob(digest, 1 << 34))])

    again()
    flood.stay(again)


def empty_jobs(flood: Flood) -> None:
    """Jobs without tasks, each with a unique key."""
    session = flood.session("jobs")
    numbers = itertools.count()

    def again() -> None:
        for _ in range(5):
            jobs = [JobSpec(f"flood{n}", "x" * 200, 5, unique=f"u{n}") for n in itertools.islice(numbers, 2000)]
            session.messages([wire.encode_message(m.Submit([], [], jobs))])

    again()
    flood.stay(again)


TEXTS = ("(a+)+$" * 1000, "%" * 50_000, "x" * 200_000)
QUESTIONS: list[m.Question] = [
    m.ListTasks(),
    m.ListTasks(name=TEXTS[2]),
    m.QueueStatus(True),
    m.ReadHistory(name=TEXTS[1], last=2**62),
    m.FetchResults(list(range(2000))),
    m.FindJobs(tasks=True),
    m.Outputs(None),
    m.FarmStatus(),
    m.WatchTasks(list(range(2000))),
    m.Stack(1),
    m.SetSticky("flood", "execute", b"pass"),
    m.SendToTask(1, [b"x" * 1000], "flood:1"),
    m.ReadTaskMessages(1),
    m.AbortTasks([1], reason=TEXTS[0]),
    m.RetryTasks([1]),
    m.CheckTask(Rules(name=TEXTS[2])),
]
