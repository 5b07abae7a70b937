"""``ipytaskfarm top``: a live screen of one farm, with keys to abort and to retry tasks."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from traitlets import Float

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, Command, flag, switch
from ipytaskfarm.cli.jobs import jobs_of
from ipytaskfarm.cli.status import farm_state, head_lines
from ipytaskfarm.core import errors, messages
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.states import State
from ipytaskfarm.deployment.light_client import Questioner, connect
from ipytaskfarm.display.farm_tables import engine_table, job_table, task_table
from ipytaskfarm.display.tables import Table, redraws
from ipytaskfarm.display.text import safe, with_local_times

TASKS_ASKED = 200
"""Largest number of running tasks, of unfinished tasks, and of failed tasks, that are read."""
HELP = "↑ ↓ select · a abort · r retry · q quit"
RESIZED_S = 0.25
"""How soon the screen is drawn again in a terminal of another size."""
LEAST_S = 0.2
"""Least time in seconds between two screens."""


@dataclass
class Look:
    """The answers of the farm to one round of questions."""

    state: tables.FarmState
    jobs: list[tables.JobRow]
    unfinished: list[tables.TaskRow]
    failed: list[tables.TaskRow]
    why: list[str] = field(default_factory=list)
    """The explanation of the selected task, or of the first task that waits for an engine."""
    at_s: float = field(default_factory=time.time)
    """When (wall clock) the farm was asked."""

    @property
    def tasks(self) -> list[tables.TaskRow]:
        """Return the tasks that can be selected: running, waiting by priority, and failed, the latest first."""
        running = [row for row in self.unfinished if row.state == State.PENDING]
        waiting = [row for row in self.unfinished if row.state != State.PENDING]
        return [*running, *sorted(waiting, key=lambda row: -(row.priority or 0)), *self.failed]


def look(questioner: Questioner, selected: int | None = None) -> Look:
    """Ask the farm; `selected` is the task to explain (None: the first that waits for an engine)."""
    state = farm_state(questioner)
    found = Look(
        state,
        [row for row in jobs_of(questioner, None) if row.unfinished],
        _unfinished(questioner, [engine.task for engine in state.engines if engine.task is not None]),
        _tasks(questioner, "failed")[::-1],
    )
    if selected is None:
        selected = next((row.id for row in found.tasks if _waits(row)), None)
    if selected is not None:
        try:
            reply = questioner.answer_for(messages.ExplainTasks(selected), messages.TextReply)
        except IndexError:  # the task was cleared in the meantime
            return found
        found.why = with_local_times(reply.text).splitlines()
    return found


def _waits(row: tables.TaskRow) -> bool:
    return row.state == State.SCHEDULED and row.engine_id is None


def _unfinished(questioner: Questioner, running: list[int]) -> list[tables.TaskRow]:
    """Return the rows of the tasks that engines run, which may be older than all that wait, and the latest others."""
    first = _tasks(questioner, "running", running[:TASKS_ASKED]) if running else []
    there = {row.id for row in first}
    return [*first, *(row for row in _tasks(questioner, "unfinished") if row.id not in there)]


def _tasks(questioner: Questioner, state: str, ids: list[int] | None = None) -> list[tables.TaskRow]:
    return questioner.answer_for(
        messages.ListTasks(ids, None, state, TASKS_ASKED, unretried=True), tables.TaskRows
    ).rows


# -- What is shown


def screen(
    seen: Look, width: int, height: int | None, selected: int | None = None, note: str = "", trouble: str = ""
) -> list[str]:
    """Return the lines of a screen.

    Args:
        seen: the answers of the farm.
        width: the number of columns.
        height: the largest number of lines; None: all lines.
        selected: the task to mark.
        note: the effect of the last key.
        trouble: why the farm does not answer, so that what is shown is from before.
    """
    # Each part gets at most this share; the tasks get the remaining lines.
    room = None if height is None else height - 2 - 2
    lines = [safe(line, width) for line in head_lines(seen.state)]
    if trouble:
        at = time.strftime("%H:%M:%S", time.localtime(seen.at_s))
        lines[0] = safe(f"farm {seen.state.name!r}, as it was at {at}: {trouble}", width)
    lines += _part(
        "engines", engine_table(seen.state.engines, seen.at_s if trouble else None), width, _share(room, 0.25)
    )
    if seen.jobs:
        lines += _part("jobs", job_table(seen.jobs, {}), width, _share(room, 0.2))
    why = [safe(line, width) for line in seen.why[: _share(room, 0.25)]]
    left = None if height is None else max(3, height - len(lines) - len(why) - 4)
    lines += ["", *_task_lines(seen.tasks, width, left, selected)]
    if why:
        lines += ["", *why]
    if height is None:
        return lines
    lines = lines[: height - 1]
    return [*lines, *[""] * (height - 1 - len(lines)), safe(note or HELP, width)]


def _share(room: int | None, part: float) -> int | None:
    return None if room is None else max(3, int(room * part))


def _part(title: str, table: Table, width: int, most: int | None) -> list[str]:
    lines = table.written_to(sys.stdout).text(width).splitlines()
    if most is not None and len(lines) > most:
        lines = [*lines[: most - 1], f"… and {len(lines) - most + 1} more {title}"]
    return ["", *lines]


def _task_lines(rows: list[tables.TaskRow], width: int, most: int | None, selected: int | None) -> list[str]:
    if not rows:
        return ["no task runs, waits or has failed"]
    chosen = next((position for position, row in enumerate(rows) if row.id == selected), 0)
    first = 0 if most is None else max(0, min(chosen - most // 2, len(rows) - (most - 1)))
    shown = rows[first : None if most is None else first + most - 1]
    text = task_table(shown, omitted=0).written_to(sys.stdout).text(width - 2).splitlines()
    heading, body = text[-len(shown) - 1], text[-len(shown) :]
    marked = [f"{'>' if row.id == selected else ' '} {line}" for row, line in zip(shown, body, strict=True)]
    return [f"  {heading}", *marked]


# -- The command


class Top(Command):
    """``ipytaskfarm top``"""

    name = "top"
    description = """
Shows a running farm: its engines, its jobs with unfinished tasks, its running, waiting and failed tasks, and an
explanation of the selected task. Keys: arrows (or j and k) select a task, a aborts it after a question, r retries a
failed one, q quits. Without a terminal, with TERM=dumb, or with --once, the command prints one screen and ends.
"""
    examples = """
        ipytaskfarm top
        ipytaskfarm top --farm nightly --every 5
        ipytaskfarm top --once
    """
    every = flag("SECONDS", Float(1.0, min=LEAST_S, help="time between two updates (default: 1)"))
    once = switch("print one screen and end")

    def carry_out(self) -> int:
        with connect(self.farm) as questioner:
            if self.once or not (sys.stdin.isatty() and redraws(sys.stdout)):
                print("\n".join(screen(look(questioner), printing.terminal_width(sys.stdout) or 10_000, None)))
                return OK
            Live(questioner, self.every).run()
        return OK


class Live:
    """The screen in a terminal, until the user presses q."""

    def __init__(self, questioner: Questioner, every_s: float) -> None:
        self._questioner = questioner
        self._every_s = every_s
        self._selected: int | None = None
        self._asks_about: int | None = None
        """The task whose abort waits for a confirmation with y."""
        self._note = ""
        self._trouble = ""
        """Why the farm did not answer when it was asked last."""

    def run(self) -> None:
        """Draw the screen, ask the farm and handle keys, until q or Ctrl-C is pressed."""
        from rich.console import Console
        from rich.live import Live as RichLive
        from rich.text import Text

        console = Console(highlight=False)
        seen = look(self._questioner)
        with _keys_at_once(), RichLive(console=console, screen=True, auto_refresh=False) as live:
            again_s = time.monotonic() + self._every_s
            while True:
                size = console.size
                lines = screen(seen, size.width, size.height, self._selected, self._note, self._trouble)
                live.update(Text("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)
                key = ""
                while not key and console.size == size and (left_s := again_s - time.monotonic()) > 0:
                    key = _key(min(RESIZED_S, left_s))
                if key in ("q", "\x03", "\x04"):
                    return
                acted = self._heed(key, seen) if key else False
                if acted or time.monotonic() >= again_s:
                    seen = self._look(seen)
                    again_s = time.monotonic() + self._every_s

    def _look(self, before: Look) -> Look:
        try:
            found = look(self._questioner, self._selected)
        except (errors.FarmNotRunning, errors.StoreFull) as error:
            self._trouble = str(error)
            return before
        self._trouble = ""
        return found

    def _heed(self, key: str, seen: Look) -> bool:
        """Handle a key; return whether the farm should be asked at once."""
        tasks = seen.tasks
        position = next((at for at, row in enumerate(tasks) if row.id == self._selected), None)
        if self._asks_about is not None:
            task, self._asks_about = self._asks_about, None
            self._note = self._told(self._abort, task) if key == "y" else f"task {task} goes on"
            return True
        self._note = ""
        step = {"j": 1, "\x1b[B": 1, "\x1bOB": 1, "k": -1, "\x1b[A": -1, "\x1bOA": -1}.get(key)
        if step is not None and tasks:
            at = (0 if step > 0 else len(tasks) - 1) if position is None else position + step
            self._selected = tasks[max(0, min(at, len(tasks) - 1))].id
            return True
        if key in ("a", "r") and position is None:
            self._note = "select a task first: arrows, or j and k"
        elif key == "a":
            self._asks_about = self._selected
            self._note = f"abort task {self._selected}? y aborts it, any other key does not"
        elif key == "r":
            self._note = self._told(self._retry, tasks[position or 0].id)
            return True
        return False

    def _told(self, act: Callable[[int], str], task: int) -> str:
        """Return what an action has done with a task, or that the farm does not answer."""
        try:
            return act(task)
        except (errors.FarmNotRunning, errors.StoreFull) as error:
            return f"task {task}: not known to be done, {error}"

    def _abort(self, task: int) -> str:
        question = messages.AbortTasks([task], True, "aborted from ipytaskfarm top")
        reply = self._questioner.answer_for(question, messages.Aborted)
        return f"task {task}: {reply.outcomes[0][1]}"

    def _retry(self, task: int) -> str:
        reply = self._questioner.answer_for(messages.RetryTasks([task], True), messages.Retried)
        if not reply.ids:
            return f"task {task} has not failed: only failed tasks are tried again"
        return f"task {task}: submitted again as task {reply.ids[0][1]}"


@contextmanager
def _keys_at_once() -> Iterator[None]:
    """Make the terminal deliver each key at once, without echo; also SIGTERM leaves the terminal as it was."""
    before = termios.tcgetattr(sys.stdin)
    handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, handler)


def _key(timeout_s: float) -> str:
    """Return the next key (for an arrow the whole sequence), or "" if no key was pressed in time."""
    if not select.select([sys.stdin], [], [], timeout_s)[0]:
        return ""
    key = os.read(sys.stdin.fileno(), 1).decode(errors="replace")
    while key.startswith("\x1b") and len(key) < 3 and select.select([sys.stdin], [], [], 0.05)[0]:
        key += os.read(sys.stdin.fileno(), 1).decode(errors="replace")
    return key or "q"  # the terminal is gone
