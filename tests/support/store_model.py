"""A model of the store without SQL, and saves for tests."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st

from ipytaskfarm.core import saves as s
from ipytaskfarm.core.messages.task_types import AttemptRow, FailureSummary, Final, Needs, Recovery, Rules
from ipytaskfarm.core.scheduler.task import with_priority

FAILURE = FailureSummary("ValueError", "no\x00such 'thing'", "task.py:3 in f")


def task(id: int, payload: bytes = b"work", rules: Rules | None = None, function: str | None = None) -> s.SaveTask:
    return s.SaveTask(id, id, payload, 1_700_000_000.5 + id, function, rules, "session")


def final(id: int, reason: str = "", attempts: int = 1, body: bytes | None = b"body") -> s.SaveFinal:
    failure = FAILURE if reason else None
    times = (1_700_000_000.5 + id, 1_700_000_001.0, 0.25, 1_700_000_001.25)
    return s.SaveFinal(Final(id, reason, 2, "node", attempts, *times, failure, body))


def attempt(number: int, outcome: str = "error") -> AttemptRow:
    return AttemptRow(number, 1, "node", 10.0, 11.5, outcome, FAILURE if outcome else None)


def sql(path: Path, text: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        found = db.execute(text).fetchall()
        db.commit()
    return found


class Model:
    """The contents of the store after saves, without SQL."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[Any]] = {}
        self.tasks: dict[int, s.SaveTask] = {}
        self.progress: dict[int, s.SaveRequeue] = {}
        self.history: dict[int, dict[int, AttemptRow]] = {}
        self.priorities: dict[int, dict[float, s.SavePriority]] = {}
        self.finals: dict[int, Final] = {}
        self.refusals: dict[int, s.SaveRefusal] = {}
        self.handouts: dict[int, s.SaveHandOut] = {}
        self.agents: dict[str, s.SaveAgent] = {}
        self.functions: dict[str, bytes] = {}
        self.settings: dict[str, int | float | str | None] = {}
        self.sticky: dict[str, s.SaveSticky] = {}
        self.kept: dict[int, s.SaveKept] = {}
        self.kept_on: dict[tuple[int, int], s.SaveKeptOn] = {}
        self.mail: dict[tuple[int, bool, int], s.SaveMail] = {}
        self.separate: set[tuple[int, int]] = set()
        """(chunk, index) of items that do not belong to their chunk any more."""

    def apply(self, save: s.Save) -> int | None:
        """The task's id when the save is fenced off."""
        match save:
            case s.SaveBlock(first, last, session):
                self.blocks[first] = [first, last, first - 1, session]
            case s.SaveLeft(first, last):
                if first in self.blocks and last < first:
                    del self.blocks[first]
                elif first in self.blocks:
                    self.blocks[first][1], self.blocks[first][3] = last, ""
            case s.SaveAccepted(first, upto):
                if first in self.blocks:
                    self.blocks[first][2] = max(self.blocks[first][2], upto)
            case s.SaveTask(id):
                if save.part is not None and id == save.part[0] + 1 + save.part[1]:
                    self.separate.add(save.part)
                if id in self.tasks:
                    return id
                self.tasks[id] = save
            case s.SaveFunction(digest, code):
                self.functions.setdefault(digest, code)
            case s.SaveHandOut(number):
                known = self.handouts.get(number)
                self.handouts[number] = save if known is None else msgspec.structs.replace(known, runs=save.runs)
            case s.DropHandOut(number):
                self.handouts.pop(number, None)
            case s.SaveAgent(session):
                self.agents[session] = save
            case s.DropAgent(session):
                self.agents.pop(session, None)
            case s.SaveAttempt(id, row):
                if id not in self.tasks or row.number in self.history.get(id, {}):
                    return id
                self.history.setdefault(id, {})[row.number] = row
            case s.SaveRequeue():
                return self.requeue(save)
            case s.SavePriority(id):
                if id not in self.tasks or id in self.finals:
                    return id
                task = self.tasks[id]
                self.tasks[id] = msgspec.structs.replace(task, rules=with_priority(task.rules, save.priority))
                changes = self.priorities.setdefault(id, {})
                changes[save.at_s] = msgspec.structs.replace(save, before=changes.get(save.at_s, save).before)
            case s.SaveReopen():
                return self.reopen(save)
            case s.SaveFinal(end):
                earlier = self.progress.get(end.id)
                late = earlier is not None and earlier.attempt > end.attempts
                if end.id not in self.tasks or end.id in self.finals or late:
                    return end.id
                self.finals[end.id] = end
            case s.SaveRefusal(id):
                if id in self.refusals:
                    return id
                self.refusals[id] = save
            case _:
                self.small(save)
        return None

    def requeue(self, save: s.SaveRequeue) -> int | None:
        earlier = self.progress.get(save.task)
        if save.task not in self.tasks or save.task in self.finals:
            return save.task
        if earlier is not None and earlier.attempt > save.attempt:
            return save.task
        if earlier is not None and save.payload is None and earlier.recovery == save.recovery:
            save = msgspec.structs.replace(save, payload=earlier.payload, function=earlier.function)
        if earlier is not None and save.state is None:
            save = msgspec.structs.replace(save, state=earlier.state)
        self.progress[save.task] = save
        return None

    def reopen(self, save: s.SaveReopen) -> int | None:
        end = self.finals.pop(save.task, None)
        if end is None:
            return save.task
        times = (end.started_s, end.started_s + end.run_s)
        row = AttemptRow(end.attempts, end.engine_id, end.node, *times, save.outcome)
        self.history.setdefault(save.task, {}).setdefault(end.attempts, row)
        fresh = s.SaveRequeue(save.task, 0, 0, save.errors, save.losses, save.recovery)
        earlier = self.progress.get(save.task, fresh)
        self.progress[save.task] = msgspec.structs.replace(
            earlier, queue_seq=save.queue_seq, attempt=save.attempt, until_s=None
        )
        return None

    def small(self, save: s.Save) -> None:
        match save:
            case s.SaveClear(ids):
                for id in ids:
                    self.refusals.pop(id, None)
                    if id in self.finals:
                        for table in (self.tasks, self.finals, self.progress, self.history, self.priorities):
                            table.pop(id, None)
                        for letter in [letter for letter in self.mail if letter[0] == id]:
                            del self.mail[letter]
                    if id not in self.tasks:
                        self.separate = {part for part in self.separate if part[0] != id}
            case s.SaveSeparate(chunk, indexes):
                self.separate.update((chunk, index) for index in indexes)
            case s.SaveMail(id, outgoing, seq):
                if id in self.tasks:
                    self.mail.setdefault((id, outgoing, seq), save)
            case s.SaveSetting(key, value):
                self.settings[key] = value
            case s.SaveSticky(key):
                self.sticky[key] = save
            case s.DropSticky(keys):
                for key in list(self.sticky) if keys is None else keys:
                    self.sticky.pop(key, None)
            case s.SaveKept(number):
                first = self.kept.setdefault(number, save)
                self.kept[number] = msgspec.structs.replace(first, blobs={**save.blobs, **first.blobs})
            case s.SaveKeptOn(engine_id, number):
                self.kept_on[engine_id, number] = save
                if save.why:
                    self.drop_unused()
            case s.DropKept(engine_id, numbers):
                for place in list(self.kept_on):
                    if place[0] == engine_id and (numbers is None or place[1] in numbers):
                        del self.kept_on[place]
                self.drop_unused()
            case _:
                raise AssertionError(save)

    def drop_unused(self) -> None:
        used = {number for (_, number), place in self.kept_on.items() if not place.why}
        self.kept = {number: command for number, command in self.kept.items() if number in used}

    def rows(self, id: int) -> list[AttemptRow]:
        return [row for _, row in sorted(self.history.get(id, {}).items())]

    def record(self, id: int) -> s.TaskRecord:
        t, p = self.tasks[id], self.progress.get(id)
        numbers = (0, 0, 0, 0) if p is None else (p.attempt, p.errors, p.losses, p.recovery)
        place = t.queue_seq if p is None else p.queue_seq
        return s.TaskRecord(
            id,
            place,
            self.work(id)[2],
            t.rules,
            t.submitted_s,
            t.session,
            *numbers,
            history=self.rows(id),
            needs=t.needs,
            until_s=None if p is None else p.until_s,
            trial=1 if p is None else p.trial,
            began_s=None if p is None else p.began_s,
            received=0 if p is None else p.received,
            parent=t.parent,
            spawn=t.spawn,
            accepted_seq=t.queue_seq,
            items=t.items,
            part=t.part,
        )

    def letters(self, id: int, outgoing: bool) -> list[tuple[int, str, float, bytes]]:
        found = sorted((key[2], m) for key, m in self.mail.items() if key[:2] == (id, outgoing))
        return [(seq, m.sender, m.at_s, m.body) for seq, m in found]

    def marks(self) -> list[tuple[int, int, int, str]]:
        there = sorted({key[:2] for key in self.mail if key[0] not in self.finals})
        return [
            (
                id,
                int(outgoing),
                self.letters(id, outgoing)[-1][0],
                msgspec.json.encode(self._marks(id, outgoing)).decode(),
            )
            for id, outgoing in there
        ]

    def _marks(self, id: int, outgoing: bool) -> list[str]:
        return [m.mark for _, m in sorted((key[2], m) for key, m in self.mail.items() if key[:2] == (id, outgoing))]

    def snapshot(self, epoch: int, farm: str) -> s.StoredState:
        names = {id: t.rules.name if t.rules else None for id, t in self.tasks.items()}
        seqs = [t.queue_seq for t in self.tasks.values()] + [p.queue_seq for p in self.progress.values()]
        return s.StoredState(
            epoch=epoch,
            farm=farm,
            next_id=max((b[1] for b in self.blocks.values()), default=-1) + 1,
            next_queue_seq=max(seqs, default=-1) + 1,
            next_handout=max([number + 1 for number in self.handouts] + [epoch << 32]),
            blocks=[tuple(b) for _, b in sorted(self.blocks.items())],
            tasks=[self.record(id) for id in sorted(self.tasks) if id not in self.finals],
            finals=[
                s.FinalRecord(
                    id,
                    end.reason,
                    names[id],
                    (needs := self.tasks[id].needs) is not None and needs.keep,
                    self.tasks[id].queue_seq,
                    self.tasks[id].items,
                    self.tasks[id].part,
                )
                for id, end in sorted(self.finals.items())
            ],
            refusals=[(id, r.etype, r.text) for id, r in sorted(self.refusals.items())],
            handouts=[h for _, h in sorted(self.handouts.items())],
            agents=[
                agent
                for _, agent in sorted(self.agents.items())
                if any(handout.engine.startswith(f"{agent.session}.") for handout in self.handouts.values())
            ],
            functions=sorted(self.functions),
            settings=self.settings,
            sticky=list(self.sticky.values()),
            kept=[self.kept[number] for number in sorted(self.kept)],
            kept_on=[self.kept_on[key] for key in sorted(self.kept_on)],
            mail=self.marks(),
            children=[
                (t.parent, t.spawn, id)
                for id, t in sorted(self.tasks.items())
                if t.parent is not None and t.spawn is not None and t.parent in self.tasks.keys() - self.finals.keys()
            ],
            separate=sorted(self.separate),
        )

    def end(self, id: int) -> Final:
        task = self.tasks[id]
        separate = tuple(index for chunk, index in sorted(self.separate) if chunk == id) if task.items else ()
        return msgspec.structs.replace(
            self.finals[id],
            submitted_s=task.submitted_s,
            history=self.rows(id),
            items=task.items,
            separate=separate,
        )

    def work(self, id: int) -> tuple[int, bytes, str | None]:
        t, p = self.tasks[id], self.progress.get(id)
        if p is not None and p.payload is not None:
            return (id, p.payload, p.function)
        chunk = None if t.part is None else self.tasks.get(t.part[0])
        return (id, t.payload if chunk is None else chunk.payload, t.function)

    def chunk_of(self, id: int) -> int | None:
        """The chunk that has this id among those of its items."""
        return next((chunk for chunk, t in self.tasks.items() if chunk < id <= chunk + t.items), None)

    def seen(self) -> list[tuple[int, int]]:
        """What people see as tasks: (id, the id under which it is kept, which is its chunk's for a silent item)."""
        shown = [(id, id) for id, t in self.tasks.items() if not t.items]
        for chunk, t in self.tasks.items():
            shown += [(chunk + 1 + i, chunk) for i in range(t.items) if (chunk, i) not in self.separate]
        return shown

    def events(self, ids: set[int] | None) -> list[tuple[int, str]]:
        """(id, what happened) of these tasks, as people see them; None: of all."""
        found = []
        for id, kept in self.seen():
            if ids is None or id in ids:
                end = self.finals.get(kept)
                what = ["accepted"]
                for row in self.rows(kept):
                    what += ["started", row.outcome or "succeeded"]
                for change in self.priorities.get(kept, {}).values():
                    what.append(f"priority {change.before} → {change.priority}")
                if end is not None:
                    what += ["started", f"failed: {end.reason}" if end.reason else "succeeded"]
                found += [(id, each) for each in what]
        return sorted(found)


CHUNKS = (10, 20)
"""The ids of chunks of maps.  Those of their items follow."""
ITEMS = 3
parts = st.tuples(st.sampled_from(CHUNKS), st.integers(0, ITEMS - 1))
item_ids = parts.map(lambda part: part[0] + 1 + part[1])
ids = st.integers(0, 4) | st.sampled_from(CHUNKS) | item_ids
small = st.integers(0, 3)
seconds = st.floats(0, 2e9)
texts = st.text(max_size=6)
payloads = st.binary(max_size=8)
keys = st.sampled_from(["a", "b", "c"])
digests = st.none() | keys
failures = st.none() | st.builds(FailureSummary, texts, texts, texts)
rules = st.none() | st.builds(
    Rules,
    name=st.none() | texts,
    priority=st.integers(-5, 5),
    retries=small,
    time_limit_s=st.none() | st.floats(0, 9),
    targets=st.none() | st.tuples(small, small),
    recovery=st.none() | st.builds(Recovery, payloads, digests, st.none() | st.builds(Rules, name=st.none() | texts)),
)
attempt_rows = st.builds(AttemptRow, small, small, texts, seconds, seconds, texts, failures)
ends = st.builds(
    Final, ids, st.sampled_from(["", "error"]), small, texts, small, seconds, seconds, seconds, seconds, failures,
    st.none() | payloads,
)  # fmt: skip
needs = st.none() | st.builds(
    Needs,
    after=st.lists(ids, max_size=3).map(tuple),
    inputs=st.lists(st.tuples(ids, ids), max_size=2).map(tuple),
    if_failed=st.sampled_from(["fail", "skip", "run"]),
    join=st.booleans(),
    keep=st.booleans(),
)
runs = st.lists(st.tuples(ids, small), max_size=3).map(tuple)
tasks = st.builds(
    s.SaveTask, st.integers(0, 4), small, payloads, seconds, digests, rules, texts, needs=needs, parent=st.none() | ids,
    spawn=st.none() | texts, part=st.none() | parts,
).map(lambda each: each if each.parent is not None else msgspec.structs.replace(each, spawn=None))  # fmt: skip
"""Only a task that another one has spawned has a number among that one's."""
chunks = st.builds(
    s.SaveTask, st.sampled_from(CHUNKS), small, payloads, seconds, digests, rules, texts, needs=needs,
    items=st.just(ITEMS),
)  # fmt: skip
separate_items = parts.flatmap(
    lambda part: st.builds(
        s.SaveTask, st.just(part[0] + 1 + part[1]), small, payloads, seconds, digests, rules, texts, part=st.just(part)
    )
)
# fmt: off
some_saves = st.one_of(
    st.builds(s.SaveLeft, st.sampled_from([0, 100, 200]), st.integers(-1, 220)),
    st.builds(s.SaveAccepted, st.sampled_from([0, 100, 200]), st.integers(0, 250)),
    tasks,
    chunks,
    separate_items,
    st.builds(s.SaveSeparate, st.sampled_from(CHUNKS), st.lists(st.integers(0, ITEMS - 1), max_size=2)),
    st.builds(s.SaveReopen, ids, texts, small, small, small, small, small),
    st.builds(s.SaveMail, ids, st.booleans(), small, texts, keys, seconds, payloads),
    st.builds(s.SaveFunction, keys, payloads),
    st.builds(s.SaveHandOut, small, texts, small, runs, seconds),
    st.builds(s.DropHandOut, small),
    st.builds(s.SaveAttempt, ids, attempt_rows),
    st.builds(
        s.SaveRequeue, ids, small, small, small, small, small, st.none() | payloads, digests,
        st.none() | seconds, small, st.none() | seconds, st.none() | payloads, small,
    ),
    st.builds(s.SavePriority, ids, small, st.integers(-(2**63), 2**63 - 1), st.sampled_from([1.5, 2.5])),
    st.builds(s.SaveFinal, ends),
    st.builds(s.SaveClear, st.lists(ids)),
    st.builds(s.SaveRefusal, ids, texts, texts),
    st.builds(s.SaveSetting, keys, st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts),
    st.builds(s.SaveSticky, keys, texts, payloads, texts),
    st.builds(s.DropSticky, st.none() | st.lists(keys)),
    st.builds(
        s.SaveKept, small, texts, small, texts, payloads, texts, st.lists(texts, max_size=2).map(tuple),
        st.dictionaries(keys, small, max_size=2), st.lists(keys, max_size=2).map(tuple),
    ),
    st.builds(s.SaveKeptOn, small, small, st.just("") | texts, texts),
    st.builds(s.DropKept, small, st.none() | st.lists(small)),
)
# fmt: on
all_turns = st.lists(st.lists(some_saves), max_size=8)
