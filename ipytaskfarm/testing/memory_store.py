"""A store in memory: it applies saves like the real one, and checks more than SQL could."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import msgspec

from ..core import saves as s
from ..core.limits import PAYLOAD_BYTES
from ..core.messages.tables import TaskRow
from ..core.messages.task_types import AttemptRow, Final, Submission, code_of
from ..core.scheduler.decision import Wanted
from ..core.scheduler.events import Cached
from ..core.scheduler.task import with_priority
from ..core.states import State


@dataclass
class MemoryStore:
    """The content of the disk. An AssertionError means that the scheduler has saved something invalid."""

    tasks: dict[int, s.SaveTask] = field(default_factory=dict)
    progress: dict[int, s.SaveRequeue] = field(default_factory=dict)
    history: dict[int, list[AttemptRow]] = field(default_factory=dict)
    finals: dict[int, Final] = field(default_factory=dict)
    handouts: dict[int, s.SaveHandOut] = field(default_factory=dict)
    agents: dict[str, s.SaveAgent] = field(default_factory=dict)
    blocks: dict[int, list[int | str]] = field(default_factory=dict)
    settings: dict[str, int | float | str | None] = field(default_factory=dict)
    sticky: dict[str, s.SaveSticky] = field(default_factory=dict)
    kept: dict[int, s.SaveKept] = field(default_factory=dict)
    kept_on: dict[tuple[int, int], s.SaveKeptOn] = field(default_factory=dict)
    refusals: dict[int, tuple[str, str]] = field(default_factory=dict)
    functions: dict[str, bytes] = field(default_factory=dict)
    cleared: set[int] = field(default_factory=set)
    jobs: dict[str, s.SaveJob] = field(default_factory=dict)
    separate: set[tuple[int, int]] = field(default_factory=set)
    priorities: list[s.SavePriority] = field(default_factory=list)
    mail: list[s.SaveMail] = field(default_factory=list)
    results: dict[str, bytes] = field(default_factory=dict)
    """The result cache: full key -> result."""
    epoch: int = 0

    def chunk_of(self, task_id: int) -> int:
        """Return the chunk of a map to which an item belongs; the id itself, if it is a task."""
        return next((i for i, task in self.tasks.items() if i < task_id <= i + task.items), task_id)

    def look_up(self, wanted: Wanted) -> Cached:
        """Return what the result cache has for a task."""
        key = self._full_key(wanted.key, wanted.inputs)
        return Cached(wanted.task, key, self.results.get(key) if key and wanted.takes else None)

    def _full_key(self, key: str, inputs: Sequence[int]) -> str:
        """Return a key with the results of other tasks in it; "" if one of them failed or is gone."""
        ends = [self.finals.get(i) or self.finals.get(self.chunk_of(i)) for i in inputs]
        if any(end is None or end.reason for end in ends):
            return ""
        return "/".join([key, *(f"{end.body!r}" for end in ends if end is not None)])

    def forget_result(self, task_id: int) -> None:
        """Remove what the result cache has for a task."""
        task = self.tasks.get(task_id)
        if task is not None and task.cache is not None:
            inputs = [source for _, source in task.needs.inputs] if task.needs is not None else []
            self.results.pop(self._full_key(task.cache.key, inputs), None)

    def commit(self, saves: list[s.Save]) -> None:
        """Apply a turn's saves."""
        for save in saves:
            getattr(self, "_" + re.sub(r"(?<!^)(?=[A-Z])", "_", type(save).__name__).lower())(save)

    def _save_block(self, save: s.SaveBlock) -> None:
        known = self.blocks.setdefault(save.first, [save.first, save.last, save.first - 1, save.session])
        assert known[3] == save.session
        assert int(known[2]) <= save.last
        known[1] = save.last

    def _save_left(self, save: s.SaveLeft) -> None:
        assert save.last >= int(self.blocks[save.first][2]), "ids that were used are given again"
        if save.last < save.first:
            del self.blocks[save.first]
        else:
            self.blocks[save.first][1] = save.last
            self.blocks[save.first][3] = ""

    def _save_accepted(self, save: s.SaveAccepted) -> None:
        self.blocks[save.block_first][2] = save.upto

    def _save_task(self, save: s.SaveTask) -> None:
        assert save.id not in self.tasks, f"task {save.id} was accepted twice"
        assert save.id not in self.cleared, f"task {save.id} came back after it was cleared"
        self.tasks[save.id] = save
        if save.part is not None:
            assert save.part[0] in self.tasks, f"the payload of task {save.id} is gone"
            if save.id == save.part[0] + 1 + save.part[1]:
                self.separate.add(save.part)

    def _save_function(self, save: s.SaveFunction) -> None:
        self.functions[save.digest] = save.code

    def _drop_functions(self, save: s.DropFunctions) -> None:
        for digest in save.digests:
            used = [t.id for t in self.tasks.values() if digest in code_of(t.function, t.rules)]
            assert not used, f"code was dropped that tasks {used} need"
            del self.functions[digest]

    def _save_hand_out(self, save: s.SaveHandOut) -> None:
        self.handouts[save.number] = save

    def _drop_hand_out(self, save: s.DropHandOut) -> None:
        self.handouts.pop(save.number, None)

    def _save_agent(self, save: s.SaveAgent) -> None:
        self.agents[save.session] = save

    def _drop_agent(self, save: s.DropAgent) -> None:
        self.agents.pop(save.session, None)

    def _has_runs(self, session: str) -> bool:
        return any(handout.engine.rpartition(".")[0] == session for handout in self.handouts.values())

    def _save_attempt(self, save: s.SaveAttempt) -> None:
        assert save.task not in self.finals, f"task {save.task} went on after its end"
        self.history.setdefault(save.task, []).append(save.row)

    def _save_requeue(self, save: s.SaveRequeue) -> None:
        assert save.task in self.tasks
        assert save.task not in self.finals, f"task {save.task} was queued after its end"
        self.progress[save.task] = save

    def _save_priority(self, save: s.SavePriority) -> None:
        assert save.task not in self.finals, f"task {save.task} got a priority after its end"
        self.priorities.append(save)
        task = self.tasks[save.task]
        self.tasks[save.task] = msgspec.structs.replace(task, rules=with_priority(task.rules, save.priority))

    def _save_reopen(self, save: s.SaveReopen) -> None:
        end = self.finals.pop(save.task)
        assert not end.reason, f"task {save.task} was reopened and had failed"
        ended_s = end.started_s + end.run_s
        row = AttemptRow(end.attempts, end.engine_id, end.node, end.started_s, ended_s, save.outcome)
        self.history.setdefault(save.task, []).append(row)
        known = self.progress.get(save.task)
        trial, received = (known.trial, known.received) if known is not None else (1, 0)
        self.progress[save.task] = s.SaveRequeue(
            save.task, save.queue_seq, save.attempt, save.errors, save.losses, save.recovery, trial=trial,
            received=received,
        )  # fmt: skip

    def _save_mail(self, save: s.SaveMail) -> None:
        assert save.task in self.tasks
        before = [x.seq for x in self.mail if (x.task, x.outgoing) == (save.task, save.outgoing)]
        assert save.seq == len(before) + 1, f"message {save.seq} of task {save.task} is out of order"
        self.mail.append(save)

    def _save_final(self, save: s.SaveFinal) -> None:
        assert save.final.id in self.tasks
        assert save.final.id not in self.finals, f"task {save.final.id} ended twice"
        self.finals[save.final.id] = save.final

    def _save_clear(self, save: s.SaveClear) -> None:
        for task_id in save.ids:
            assert task_id in self.finals or task_id in self.refusals
            self.cleared.add(task_id)
            assert all(t.part is None or t.part[0] != task_id or t.id in save.ids for t in self.tasks.values())
            self.separate = {part for part in self.separate if part[0] != task_id}
            for table in (self.tasks, self.finals, self.progress, self.history, self.refusals):
                table.pop(task_id, None)

    def _save_separate(self, save: s.SaveSeparate) -> None:
        assert save.chunk in self.finals, f"items of chunk {save.chunk} were cleared before its end"
        self.separate.update((save.chunk, index) for index in save.indexes)
        # The chunk may be reopened, without these items.
        self.cleared.update(save.chunk + 1 + index for index in save.indexes)

    def _save_refusal(self, save: s.SaveRefusal) -> None:
        self.refusals[save.task] = (save.etype, save.text)

    def _save_setting(self, save: s.SaveSetting) -> None:
        self.settings[save.key] = save.value

    def _save_job(self, save: s.SaveJob) -> None:
        self.jobs[save.spec.id] = save

    def _save_sticky(self, save: s.SaveSticky) -> None:
        self.sticky[save.key] = save

    def _drop_sticky(self, save: s.DropSticky) -> None:
        for key in list(self.sticky) if save.keys is None else save.keys:
            self.sticky.pop(key, None)

    def _save_kept(self, save: s.SaveKept) -> None:
        assert self.kept.get(save.number, save) == save, f"kept command {save.number} has changed"
        self.kept[save.number] = save

    def _save_kept_on(self, save: s.SaveKeptOn) -> None:
        assert save.why or save.number in self.kept
        self.kept_on[save.engine_id, save.number] = save
        self._drop_unused()

    def _drop_kept(self, save: s.DropKept) -> None:
        for key in list(self.kept_on):
            if key[0] == save.engine_id and (save.numbers is None or key[1] in save.numbers):
                del self.kept_on[key]
        self._drop_unused()

    def _drop_unused(self) -> None:
        used = {number for (_, number), place in self.kept_on.items() if not place.why}
        self.kept = {number: command for number, command in self.kept.items() if number in used}

    def load(self) -> s.StoredState:
        """Return the state with which a new controller begins."""
        self.epoch += 1
        agents = sorted(self.agents.items())
        self.agents = {session: agent for session, agent in agents if self._has_runs(session)}
        return s.StoredState(
            epoch=self.epoch,
            farm="farm",
            next_id=max((int(b[1]) for b in self.blocks.values()), default=-1) + 1,
            next_queue_seq=1
            + max([t.queue_seq for t in self.tasks.values()] + [p.queue_seq for p in self.progress.values()] + [-1]),
            next_handout=max(self.handouts, default=0) + 1,
            blocks=[(int(b[0]), int(b[1]), int(b[2]), str(b[3])) for _, b in sorted(self.blocks.items())],
            tasks=[self._record(t) for i, t in sorted(self.tasks.items()) if i not in self.finals],
            finals=[
                s.FinalRecord(f.id, f.reason, None, False, t.queue_seq, t.items, t.part)
                for f, t in ((f, self.tasks[i]) for i, f in sorted(self.finals.items()))
            ],
            refusals=[(i, *r) for i, r in sorted(self.refusals.items())],
            handouts=[h for _, h in sorted(self.handouts.items())],
            agents=[agent for _, agent in agents],
            functions=sorted(self.functions),
            settings=dict(self.settings),
            sticky=list(self.sticky.values()),
            kept=[command for _, command in sorted(self.kept.items())],
            kept_on=[place for _, place in sorted(self.kept_on.items())],
            jobs=list(self.jobs.values()),
            children=self.children(self.tasks.keys() - self.finals.keys()),
            mail=self.mail_counts(self.tasks.keys() - self.finals.keys()),
            separate=sorted(self.separate),
        )

    def children(self, parents: Collection[int]) -> list[tuple[int, str, int]]:
        """Return the children of these tasks, as `StoredState` has them."""
        return [
            (t.parent, t.spawn, i)
            for i, t in sorted(self.tasks.items())
            if t.parent is not None and t.spawn is not None and t.parent in parents
        ]

    def mail_counts(self, tasks: Collection[int]) -> list[tuple[int, int, int, str]]:
        """Return the counts of messages of these tasks, as `StoredState` has them."""
        found: dict[tuple[int, int], list[s.SaveMail]] = {}
        for save in self.mail:
            if save.task in tasks:
                found.setdefault((save.task, int(save.outgoing)), []).append(save)
        return [(*key, len(x), msgspec.json.encode([y.mark for y in x]).decode()) for key, x in sorted(found.items())]

    def with_dependents(self, ids: Sequence[int]) -> list[int]:
        """Return these tasks, and all that depend on their results."""
        found: dict[int, None] = {}
        waiting = list(ids)
        while waiting:
            task_id = waiting.pop()
            if task_id not in found:
                found[task_id] = None
                waiting += [i for i, t in self.tasks.items() if t.needs is not None and task_id in t.needs.after]
        return list(found)

    def ended(self, ids: Sequence[int], dependents: bool) -> list[s.TaskRecord]:
        """Return records of the given tasks that have succeeded, for another run."""
        wanted = self.with_dependents(ids) if dependents else ids
        records = []
        for task_id in wanted:
            end = self.finals.get(task_id)
            if end is not None and not end.reason:
                row = AttemptRow(end.attempts, end.engine_id, end.node, end.started_s, end.started_s, "")
                record = self._record(self.tasks[task_id])
                records.append(msgspec.structs.replace(record, attempt=end.attempts, history=[*record.history, row]))
        return records

    def _record(self, task: s.SaveTask) -> s.TaskRecord:
        p = self.progress.get(task.id)
        size = len(p.payload if p and p.payload is not None else task.payload)
        return s.TaskRecord(
            task.id,
            p.queue_seq if p else task.queue_seq,
            p.function if p and p.recovery else task.function,
            task.rules,
            task.submitted_s,
            task.session,
            p.attempt if p else 0,
            p.errors if p else 0,
            p.losses if p else 0,
            p.recovery if p else 0,
            list(self.history.get(task.id, [])),
            task.needs,
            p.until_s if p else None,
            p.trial if p else 1,
            p.began_s if p else None,
            p.received if p else 0,
            task.parent,
            task.spawn,
            task.queue_seq,
            task.items,
            task.part,
            task.cache,
            size if size >= PAYLOAD_BYTES else 0,
        )


class MemoryReader:
    """Reads a `MemoryStore` for `controller.replies`, with the methods of the real store."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def finals(self, ids: Sequence[int]) -> list[Final]:
        """Return the ends of these tasks, with their history."""
        store = self._store
        found = [store.finals[i] for i in ids if i in store.finals]
        return [
            msgspec.structs.replace(
                final,
                history=list(store.history.get(final.id, [])),
                separate=tuple(sorted(index for chunk, index in store.separate if chunk == final.id)),
            )
            for final in found
        ]

    def task_rows(self, ids: Sequence[int]) -> list[TaskRow]:
        """Return lines of a table for the given tasks that have ended."""
        return [self._row(final) for final in self.finals(ids)]

    def _row(self, final: Final) -> TaskRow:
        rules = self._store.tasks[final.id].rules
        return TaskRow(
            final.id,
            State.FAILED if final.reason else State.SUCCEEDED,
            final.reason,
            rules.name if rules is not None else None,
            final.engine_id if final.engine_id >= 0 else None,
            final.attempts,
            final.submitted_s,
            final.started_s,
            final.run_s,
            final.completed_s,
            final.failure,
        )

    def original(self, ids: Sequence[int]) -> list[Submission]:
        """Return these tasks as they were submitted."""
        found = [self._store.tasks[i] for i in ids if i in self._store.tasks]
        return [
            Submission(t.id, t.payload, 0.0, t.function, t.rules, t.blobs, t.needs, t.items, t.part, t.cache)
            for t in found
        ]

    def ended(self, ids: Sequence[int], dependents: bool) -> list[s.TaskRecord]:
        """Return records of the given tasks that have succeeded, for another run."""
        return self._store.ended(ids, dependents)

    def conversations(self, ids: Sequence[int]) -> tuple[list[tuple[int, str, int]], list[tuple[int, int, int, str]]]:
        """Return the children of these tasks and the counts of their messages."""
        return self._store.children(ids), self._store.mail_counts(ids)

    def mail(self, task: int, outgoing: bool, after: int, count: int) -> list[tuple[int, str, float, bytes]]:
        """Return the messages to a task after number `after`; `outgoing`: from the task."""
        found = [x for x in self._store.mail if (x.task, x.outgoing) == (task, outgoing) and x.seq > after]
        return [(x.seq, x.sender, x.at_s, x.body) for x in found[:count]]

    def jobs_with_tasks(self, jobs: Sequence[str]) -> set[str]:
        """Return the given jobs that have tasks."""
        return {job for job in jobs if self.tasks_of_job(job, -1, 1)}

    def tasks_of_job(self, job: str, after: int, count: int) -> list[s.TaskOfJob]:
        """Return the first `count` of a job's tasks with higher ids than `after`."""
        found = [t for i, t in sorted(self._store.tasks.items()) if t.rules is not None and t.rules.job == job]
        return [
            s.TaskOfJob(t.id, t.items, t.part is not None, t.rules.retry_of if t.rules is not None else None)
            for t in found
            if t.id > after
        ][:count]

    def place_in_map(self, task: int) -> s.MapPlace | None:
        """Return None: a simulated farm has no maps."""
        return None

    def latest_retries(self, ids: Sequence[int]) -> dict[int, int]:
        """Return the latest retry of each given task that was submitted again."""
        origin = {i: i for i in ids}
        for task in sorted(self._store.tasks):
            rules = self._store.tasks[task].rules
            if rules is not None and rules.retry_of is not None:
                for first, latest in origin.items():
                    if latest == rules.retry_of:
                        origin[first] = task
        return {first: latest for first, latest in origin.items() if latest != first}

    def within(self, ids: Sequence[int], size_bytes: int) -> tuple[list[int], list[int]]:
        """Divide ids of ended tasks by the bytes of their results, as the store does."""
        total = 0
        for place, task in enumerate(ids):
            final = self._store.finals.get(task)
            total += len(final.body or b"") if final is not None else 0
            if total > size_bytes and place:
                return list(ids[:place]), list(ids[place:])
        return list(ids), []
