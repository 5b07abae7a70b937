"""Commands about a farm's store and its event log: backup, check, compact, replay."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from traitlets import Int

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import FAILED, OK, Command, UsageError, flag, no_such_farm
from ipytaskfarm.core import errors, messages, saves
from ipytaskfarm.core.states import state_counts
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.display.text import counts_text
from ipytaskfarm.storage import backup
from ipytaskfarm.storage.result_cache import cache_file, entries_in

COMPACT_S = 3600.0


class Backup(Command):
    """``ipytaskfarm backup``"""

    name = "backup"
    description = """
Writes a copy of a farm's store in its present state, running or not: waiting tasks, all results, and their large
values in a folder beside it. To restore it, stop the farm and replace its store and its folder by the copies. The
results that are kept for equal tasks (ipytaskfarm cache) are not part of it.
"""
    arguments = "FILE"
    examples = "ipytaskfarm backup --farm nightly ~/backups/nightly.sqlite"

    def carry_out(self) -> int:
        target = _one_path(self.extra_args, "the backup").absolute()
        store = _store_path(self.home())
        size = backup.backup(store, target)
        print(f"{target}: {printing.size(size)}")
        if kept := entries_in(cache_file(store)):
            what = "1 result of the result cache is" if kept == 1 else f"{kept:,} results of the result cache are"
            print(f"{what} not in it: after the backup has been put back, equal tasks run again")
        return OK


class Check(Command):
    """``ipytaskfarm check``"""

    name = "check"
    description = """
Checks a farm's whole store, running or not. It prints a line for each error; exit code 1 means that there are any.
"""
    examples = "ipytaskfarm check --farm nightly"

    def carry_out(self) -> int:
        path = _store_path(self.home())
        found = backup.check(path)
        print("\n".join(found) or f"{path}: no errors found")
        return FAILED if found else OK


class Compact(Command):
    """``ipytaskfarm compact``"""

    name = "compact"
    description = """
Returns the space that cleared tasks have left in a farm's store to the disk. A running farm does this in small steps
beside its work. The store of a stopped farm is written again as a whole, which needs as much space again meanwhile.
"""
    examples = "ipytaskfarm compact"

    def carry_out(self) -> int:
        home = self.home()
        if home.living_info() is None:
            return self._compact_stopped(home)
        with connect(home.name) as questioner:
            reply = questioner.answer_for(messages.CompactStore(), messages.TextReply, timeout_s=COMPACT_S)
        print(reply.text)
        return OK

    def _compact_stopped(self, home: Home) -> int:
        from ipytaskfarm.storage.store import Store

        path = _store_path(home)
        with home.lock():
            store = Store.open(path)
            try:
                before = store.size_bytes()
                store.compact()
            finally:
                store.close()
        print(f"{printing.size(before)} before, {printing.size(path.stat().st_size)} now")
        return OK


class Replay(Command):
    """``ipytaskfarm replay``"""

    name = "replay"
    description = """
Replays an event log that `ipytaskfarm start --record FILE` has written: the scheduler repeats its decisions, with all
checks enabled. Exit code 1 means that a decision differs, or that a check fails; the turn is named.
"""
    arguments = "FILE"
    examples = """
        ipytaskfarm replay events.log
        ipytaskfarm replay events.log --task 12
    """
    concerns_a_farm = False
    task = flag("ID", Int(None, allow_none=True, help="show each turn that saved a change of this task"))

    def carry_out(self) -> int:
        from ipytaskfarm.controller.replay import Played, play

        path = _one_path(self.extra_args, "the event log")
        heard: Counter[str] = Counter()
        other: list[int] = []
        last: Played | None = None
        try:
            for last in play(path):
                heard.update(type(event).__name__ for _, event in last.events)
                if not last.same:
                    other.append(last.number)
                if self.task is not None:
                    _show_task(self.task, last.now.wall_s, last.number, last.out.saves)
        except AssertionError as broken:
            turn = 0 if last is None else last.number + 1
            raise errors.StoreError(f"turn {turn} of {path} breaks a rule of the scheduler: {broken}") from broken
        if last is None:
            print("this event log has no turn")
            return OK
        counts = counts_text(state_counts(last.scheduler.farm.tasks.counts))
        print(f"{printing.number(last.number + 1, 'turn')}, at the end: {counts or 'no tasks'}")
        print(", ".join(f"{count} {kind}" for kind, count in heard.most_common()))
        if other:
            print(f"{printing.number(len(other), 'turn')} decided otherwise than then, turn {other[0]} first")
        return FAILED if other else OK


def _show_task(task: int, wall_s: float, number: int, saved: Sequence[saves.Save]) -> None:
    for save in saved:
        said = _said_of(task, save)
        if said is not None:
            print(f"turn {number} {time.strftime('%H:%M:%S', time.localtime(wall_s))} {said}")


def _said_of(task: int, save: saves.Save) -> str | None:
    """Return the part of a save that concerns this task; None if there is none."""
    match save:
        case saves.SaveTask(id=found) if found == task:
            return "accepted"
        case saves.SaveHandOut(runs=runs, engine_id=engine) if run := next((r for r in runs if r[0] == task), None):
            return f"attempt {run[1]} handed to engine {engine}"
        case saves.SaveAttempt(task=found, row=row) if found == task:
            return f"attempt {row.number} ended: {row.outcome}"
        case saves.SaveRequeue(task=found) if found == task:
            return "queued again"
        case saves.SavePriority(task=found, before=before, priority=priority) if found == task:
            return f"priority {before} → {priority}"
        case saves.SaveFinal(final=final) if final.id == task:
            return f"failed: {final.reason}" if final.reason else "succeeded"
        case saves.SaveClear(ids=ids) if task in ids:
            return "cleared"
        case _:
            return None


def _one_path(words: list[str], what: str) -> Path:
    if len(words) != 1:
        raise UsageError(f"which file is {what}? Give one")
    return Path(words[0]).expanduser()


def _store_path(home: Home) -> Path:
    path = home.store_path()
    if path is None:
        raise no_such_farm(home.name)
    return path
