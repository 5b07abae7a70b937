"""``ipytaskfarm logs`` shows logs of a farm, or the log lines about one task; ``ipytaskfarm history`` its events."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from traitlets import Int, Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, JsonCommand, UsageError, flag, no_such_farm, switch
from ipytaskfarm.cli.jobs import LONG_S, ids_given, refuse_unknown, task_rows_of
from ipytaskfarm.cli.json_output import event_shape, print_json
from ipytaskfarm.core import messages
from ipytaskfarm.core.arguments import INT_MAX
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.messages.payload import ResultBody
from ipytaskfarm.core.parsing import SHARED, agent_name, owner, parse_since
from ipytaskfarm.core.text import did_you_mean
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.light_client import Questioner, connect
from ipytaskfarm.display.farm_tables import event_table

LOGS = ("controller", "agent", "supervisor")
FOLLOW_S = 0.2
BLOCK_BYTES = 1 << 16
"""How much of the end of a log is read at first."""
EVENTS_MAX = 1000
_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")


class Logs(JsonCommand):
    """``ipytaskfarm logs``"""

    name = "logs"
    arguments = "[controller | agent | supervisor | engine N]"
    description = """
Shows the end of a log (default: the controller's), also of a stopped farm. With --task ID it shows all lines about
that task in all logs of the farm, what happened to the task, and what it printed.
"""
    examples = """
        ipytaskfarm logs
        ipytaskfarm logs agent -f
        ipytaskfarm logs engine 3 --lines 500
        ipytaskfarm logs --task 12
    """
    follow = switch("also show new lines, until Ctrl-C", "f follow")
    lines = flag("N", Int(100, min=0, help="show the last N lines (default: 100)"))
    task = flag("ID", Int(None, allow_none=True, help="show all lines about this task, and what it printed"))

    def carry_out(self) -> int:
        home = self.home()
        if self.follow and (self.json or self.task is not None):
            raise UsageError("--follow shows one log as text, so it cannot be combined with --json or --task")
        if self.task is not None:
            if self.extra_args:
                raise UsageError("--task searches all logs, so no log can be named with it")
            return self._about_task(home, self.task)
        paths = [path for path in self._candidates(home) if path.exists() and path.stat().st_size]
        if not home.folder.exists():
            raise no_such_farm(home.name)
        if not paths:
            if self.extra_args[:1] == ["engine"]:
                raise FileNotFoundError(
                    f"engine {self.extra_args[1]} has printed nothing outside of tasks; `ipytaskfarm logs --task ID`"
                    " shows what a task has printed"
                )
            raise FileNotFoundError(f"farm {self.farm!r} has no such log yet; its logs are in {home.logs}")
        ends = [_tail(path, self.lines) for path in paths]
        if self.json:
            print_json([
                {"log": path.name, "path": str(path), "lines": lines}
                for path, (lines, _) in zip(paths, ends, strict=True)
            ])  # fmt: skip
            return OK
        for path, (lines, _) in zip(paths, ends, strict=True):
            if len(paths) > 1:
                print(f"==> {path} <==")
            _print_lines(lines)
        if self.follow:
            _follow(paths[-1], ends[-1][1])
        return OK

    def _candidates(self, home: Home) -> list[Path]:
        what, *rest = self.extra_args or ["controller"]
        if what == "engine" and len(rest) == 1 and rest[0].isdecimal():
            return [self._engine_output(home, int(rest[0]))]
        if rest or what not in LOGS:
            raise UsageError(
                "which log? One of controller, agent, supervisor, or engine and its id; --task ID: all about a task"
                + did_you_mean(what, LOGS)
            )
        kind = "agent-0" if what == "agent" else what
        # Output beside the log: most importantly the traceback of a crash.
        return [home.output(kind), home.log(kind)]

    def _engine_output(self, home: Home, engine: int) -> Path:
        """Return an engine's output outside of tasks.

        It is removed with the engine; the agent's log keeps the last lines.
        """
        with connect(self.farm) as questioner:
            table = questioner.answer_for(messages.ListEngines(), tables.EngineTable)
        row = next((row for row in table.rows if row.id == engine), None)
        if row is None:
            raise IndexError(
                f"farm {home.name!r} has no engine {engine} now; `ipytaskfarm logs agent` tells of lost ones"
            )
        if (agent := agent_name(owner(row.engine))) != SHARED:
            raise FileNotFoundError(
                f"engine {engine} is one of agent {agent} on node {row.node}, whose files are there;"
                " `ipytaskfarm logs --task ID` shows what a task has printed"
            )
        counter = row.engine.rpartition(".")[2]
        return home.agent_folder(0) / f"engine-{counter}.out"

    # -- information about one task

    def _about_task(self, home: Home, task: int) -> int:
        lines = lines_about(home.logs, task)
        known = self._known(home, task)
        if known is None and not lines:
            raise IndexError(f"nothing is known of task {task}: it was never submitted, or was removed")
        happened, so_far, body = known or ([], [], ResultBody())
        if self.json:
            print_json({
                "task": task,
                "lines": [line._asdict() for line in lines],
                "events": [event_shape(row) for row in happened],
                "stdout": body.stdout,
                "stderr": body.stderr,
            })  # fmt: skip
            return OK
        for line in lines:
            _print_lines([f"{line.log}: {line.text}"])
        if happened:
            printing.print_table(event_table(happened))
        for name, text in (("stdout", body.stdout), ("stderr", body.stderr)):
            if text:
                print(f"==> {name} <==")
                _print_lines(text.splitlines())
        _print_lines(so_far)
        return OK

    def _known(self, home: Home, task: int) -> tuple[list[tables.EventRow], list[str], ResultBody] | None:
        """Return a task's history, lines about it if it has not ended, and its result; None if the farm does not know
        it or does not run.
        """
        if home.living_info() is None:
            print(f"farm {home.name!r} does not run: only its logs are looked through", file=sys.stderr)
            return None
        with connect(self.farm) as questioner:
            fetched = questioner.answer_for(messages.FetchResults([task]), messages.Fetched)
            if fetched.unknown:
                return None
            happened = events(questioner, messages.ReadHistory([task], last=EVENTS_MAX))
            so_far = questioner.latest_output(task) if fetched.unfinished else []
        if fetched.unfinished:
            so_far.append(f"it has not ended: `tc.barrier({task}, stream=True)` shows what it prints meanwhile")
        body = fetched.finals[0].body if fetched.finals else None
        decoded = msgspec.msgpack.decode(body, type=ResultBody) if body else ResultBody()
        return happened, so_far, decoded


class LogLine(NamedTuple):
    """A record of a log; a traceback has several lines."""

    log: str
    text: str


def lines_about(folder: Path, task: int) -> list[LogLine]:
    """Return the records in all logs of a folder, including rotated ones, that mention the task, in order of time."""
    speaks = re.compile(rf"\btasks? \[?(?:\d+, )*{task}\b")
    found = [
        LogLine(path.name, record)
        for path in sorted(folder.glob("*"))
        if path.is_file()
        for record in _records(path)
        if speaks.search(record)
    ]
    found.sort(key=lambda line: line.text[:23] if _STAMP.match(line.text) else "~")
    return found


def _records(path: Path) -> Iterator[str]:
    """Yield the records of a log. Lines without a time in front are records of their own."""
    record = ""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if record and _STAMP.match(record) and not _STAMP.match(line):
                record += line
                continue
            if record:
                yield record.rstrip("\n")
            record = line
    if record:
        yield record.rstrip("\n")


def _tail(path: Path, lines: int) -> tuple[list[str], int]:
    """Return the last lines, and the position of the end of the file."""
    with open(path, "rb") as file:
        end = begin = file.seek(0, os.SEEK_END)
        text = b""
        while begin and text.count(b"\n") <= lines:
            begin = max(0, end - max(BLOCK_BYTES, 2 * len(text)))
            file.seek(begin)
            text = file.read(end - begin)
    found = text.decode(errors="replace").removesuffix("\n").split("\n")
    return found[-lines:] if lines and text else [], end


def _follow(path: Path, end: int) -> None:
    """Print what comes behind this position of a log, and of those that take its place."""
    file = open(path, "rb")  # noqa: SIM115 - it may be another one later
    file.seek(end)
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    while True:
        text = file.read()
        if not text:
            time.sleep(FOLLOW_S)
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                if found.st_ino != os.fstat(file.fileno()).st_ino:
                    text = file.read()  # what was written before it was renamed
                    file.close()
                    file = open(path, "rb")  # noqa: SIM115
                elif found.st_size < file.tell():
                    file.seek(0)
        sys.stdout.write("\n".join(_visible(line) for line in decode(text).split("\n")))
        sys.stdout.flush()


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        print("\n".join(map(_visible, line.split("\n"))))


def _visible(line: str) -> str:
    return "".join(char if char.isprintable() or char == "\t" else "·" for char in line)


class History(JsonCommand):
    """``ipytaskfarm history``"""

    name = "history"
    description = """
Shows what happened to tasks, ordered by time: accepted, started, succeeded, failed with the reason, deferred. It shows
the last 100 events, or more with --last. Removed tasks have no history.
"""
    arguments = "[ID…]"
    examples = """
        ipytaskfarm history 12
        ipytaskfarm history --what failed --since 2h
        ipytaskfarm history --name fit --since 2026-11-21T10:00 --json
    """
    named = flag("NAME", Unicode("", help="only tasks of this name"), "name")
    what = flag("TEXT", Unicode("", help="only events that contain this text: started, failed, engine lost"))
    since = flag("WHEN", Unicode("", help="only events after this time: 90s, 10m, 2h or 1d ago, or 2026-11-21T10:00"))
    last = flag("N", Int(100, min=0, max=INT_MAX, help="the last N events; 0: all (default: 100)"))

    def carry_out(self) -> int:
        ids = ids_given(self)
        try:
            since_s = parse_since(self.since, time.time()) if self.since else 0.0
        except ValueError as error:
            raise UsageError(f"--since: {error}") from None
        question = messages.ReadHistory(ids, self.named or None, self.what or None, since_s, self.last or INT_MAX)
        with connect(self.farm) as questioner:
            rows = events(questioner, question)
            unknown = [] if rows or ids is None else task_rows_of(questioner, ids).unknown
        if self.json:
            print_json([event_shape(row) for row in rows])
        elif rows:
            more = "; --last N shows more" if len(rows) == question.last else ""
            above = [f"{printing.number(len(rows), 'event')}, the newest last{more}"] if len(rows) > 1 else []
            printing.print_table(event_table(rows, above=above))
        else:
            print("nothing happened", file=sys.stderr if unknown else sys.stdout)
        refuse_unknown(unknown)
        return OK


def events(questioner: Questioner, question: messages.ReadHistory) -> list[tables.EventRow]:
    """Return the events in order of time."""
    return questioner.answer_for(question, tables.EventTable, timeout_s=LONG_S).rows
