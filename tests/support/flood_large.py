"""Attacks of `flood` with long texts and long lists, which a controller would keep, repeat in rows, or work through."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import Function, JobSpec, Needs, Rules, Submission
from ipytaskfarm.core.requirements import Asks, Condition
from ipytaskfarm.transport import wire
from ipytaskfarm.transport.reliable_session import CLIENT_MESSAGE_BYTES, list_header
from tests.support.flood import Flood, RawSession, ask, block_of

LONG = 1_000_000
_JOB = [JobSpec("held", "held", 10**6)]


def large(session: RawSession, message: m.ClientMessage) -> None:
    """Send one message, in pieces."""
    session.pieces(list_header(1) + wire.encode_message(message))


def task(task_id: int, rules: Rules | None, needs: Needs | None = None) -> Submission:
    return Submission(task_id, b"a = 1", 1.0, None, rules, (), needs)


def held(session: RawSession) -> Iterator[int]:
    """Pause a job, and yield ids for its tasks."""
    ids = iter(block_of(session))
    first = m.Submit([task(next(ids), Rules(job="held"))], [], _JOB)
    session.messages([wire.encode_message(first), ask(1, m.PauseJobs(["held"]))])
    return ids


def long_reasons(flood: Flood) -> None:
    """Two thousand tasks are aborted for a reason of a million characters, and others are marked with one."""
    session = flood.session()
    ids = held(session)
    numbers = itertools.count(2)

    def again() -> None:
        some = list(itertools.islice(ids, 2000))
        if some:
            tasks = [task(task_id, Rules(job="held")) for task_id in some]
            session.messages([wire.encode_message(m.Submit(tasks, [], _JOB))])
            large(session, m.AskQuestion(next(numbers), m.MarkTasksFailed(some[0], "x" * LONG)))
            large(session, m.AskQuestion(next(numbers), m.AbortTasks(some, reason="x" * LONG)))

    again()
    flood.stay(again)


def long_names(flood: Flood) -> None:
    """Tasks, jobs, keys and groups with names of a million characters, which tables and refusals would repeat."""
    session = flood.session()
    ids = held(session)
    numbers = itertools.count()

    def again() -> None:
        name = f"{next(numbers)}{'N' * LONG}"
        specs = [JobSpec(name, "n", 10**6, unique="u"), JobSpec(f"other{name}", name, 10**6)]
        rules = [Rules(job="held", name=name), Rules(job=name), Rules(job="held", asks=Asks(group=name))]
        rules += [Rules(job="held", unique=name), Rules(job="held", retry_on=(name,) * 3)]
        for each, task_id in zip(rules, itertools.islice(ids, len(rules)), strict=False):
            large(session, m.Submit([task(task_id, each)], [], specs))
        refused = [task(task_id, Rules(job="b")) for task_id in itertools.islice(ids, 100)]
        session.messages([wire.encode_message(m.Submit(refused, [], [JobSpec("b", "b", 10**6, unique="u")]))])
        session.messages([ask(next(numbers), each) for each in (m.ListTasks(), m.FindJobs(tasks=True))])

    again()
    flood.stay(again)


def heavy_rules(flood: Flood) -> None:
    """Tasks that wait, with a megabyte of rules each, and with ten thousand edges each."""
    session = flood.session()
    ids = held(session)
    before = list(itertools.islice(ids, 10_000))
    session.messages([wire.encode_message(m.Submit([task(each, Rules(job="held")) for each in before], [], _JOB))])
    words = tuple("w" * 900 + f"{n:03d}" for n in range(1000))

    def again() -> None:
        for task_id in itertools.islice(ids, 20):
            asks = Asks(requires=(Condition("hostname", "in", (f"{task_id}", *words[1:])),))
            large(session, m.Submit([task(task_id, Rules(job="held", asks=asks))], [], _JOB))
            session.drain()
        for task_id in itertools.islice(ids, 20):
            edges = Needs(after=tuple(before))
            large(session, m.Submit([task(task_id, Rules(job="held"), edges)], [], _JOB))
            session.drain()

    again()
    flood.stay(again)


def long_lists(flood: Flood) -> None:
    """Messages with hundreds of thousands of functions, tasks, texts to a task, nodes, or words of a condition."""
    sessions = [flood.session(f"flood{n}") for n in range(5)]
    ids = [held(session) for session in sessions]
    to = next(ids[2])
    sessions[2].messages([wire.encode_message(m.Submit([task(to, Rules(job="held"))], [], _JOB))])
    numbers = itertools.count(2)

    def words() -> m.Submit:
        values = tuple(f"{next(numbers)}_{n:05d}" for n in range(900_000))
        return m.Submit([task(next(ids[4]), Rules(asks=Asks(requires=(Condition("hostname", "in", values),))))])

    makers: list[Callable[[], m.ClientMessage]] = [
        lambda: m.Submit([], [Function(f"{next(numbers)}.{n}", b"") for n in range(300_000)]),
        lambda: m.Submit([task(task_id, None) for task_id in itertools.islice(ids[1], 60_000)]),
        lambda: m.AskQuestion(next(numbers), m.SendToTask(to, [b"x"] * 300_000, f"me:{next(numbers)}")),
        lambda: m.AskQuestion(next(numbers), m.DrainNode([f"{next(numbers)}.{n}" for n in range(900_000)])),
        words,
    ]
    messages = [wire.encode_message(make()) for make in makers]

    def again() -> None:
        for session, message in zip(sessions, messages, strict=True):
            session.pieces(list_header(1) + message)

    again()
    flood.stay(again)


def own_classes(flood: Flood) -> None:
    """Tasks by the ten thousand of which each has requirements of its own, so that each waits in a class of its own."""
    session = flood.session()
    ids = iter(block_of(session))

    def again() -> None:
        for _ in range(20):
            tasks = []
            for task_id in itertools.islice(ids, 1000):
                asks = Asks(requires=(Condition("model", "==", f"{task_id}"),))
                tasks.append(task(task_id, Rules(priority=-1, asks=asks)))
            if tasks:
                large(session, m.Submit(tasks))

    again()
    flood.stay(again)


def functions_alone(flood: Flood) -> None:
    """Functions under long digests, which no task needs."""
    session = flood.session()
    numbers = itertools.count()

    def again() -> None:
        for _ in range(5):
            digests = [f"{next(numbers)}{'d' * 9900}" for _ in range(5000)]
            large(session, m.Submit([], [Function(digest, b"") for digest in digests]))

    again()
    flood.stay(again)


def unmet_at_once(flood: Flood) -> None:
    """Tasks by the thousand that fail at once because no engine can serve them, for reasons of many words."""
    session = flood.session()
    ids = iter(block_of(session))
    rules = Rules(asks=Asks(fail_if_unmet=True, requires=(Condition("model", "==", "x" * 2000),)))

    def again() -> None:
        for _ in range(5):
            tasks = [task(task_id, rules) for task_id in itertools.islice(ids, 2000)]
            if tasks:
                large(session, m.Submit(tasks))

    again()
    flood.stay(again)


def large_values(flood: Flood) -> None:
    """Messages with as much for the store as one may have: a value, a function, many values, a text to a task."""
    session = flood.session()
    ids = held(session)
    to = next(ids)
    large(session, m.Submit([task(to, Rules(job="held"))], [], _JOB))
    numbers = itertools.count(2)
    value = bytes(range(256)) * (((CLIENT_MESSAGE_BYTES >> 20) - 1) << 12)

    def again() -> None:
        one, other, *some = itertools.islice(ids, 22)
        digest = f"{next(numbers):064}"
        rules = Rules(job="held")
        for message in (
            m.Submit([Submission(one, value, 1.0, None, rules)]),
            m.Submit([Submission(other, b"", 1.0, digest, rules)], [Function(digest, value)]),
            m.Submit([Submission(task_id, value[: 1 << 20], 1.0, None, rules) for task_id in some]),
            m.AskQuestion(next(numbers), m.SendToTask(to, [value], f"me:{next(numbers)}")),
        ):
            large(session, message)

    again()
    flood.stay(again)
