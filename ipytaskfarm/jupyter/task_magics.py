"""The magics about tasks: ``%%task``, ``%%taskmap``, ``%task`` and ``%tasks``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from ..client import Job, StringTask, TaskClient, TaskResult
from ..client.ids import id_list
from ..client.tables import FailureGroups, TaskTable
from ..client.waits import wait_for_tasks
from ..core.parsing import parse_ids
from ..core.states import ACCEPTED_STATES, ASKED_STATES
from ..core.text import error_line, shown
from . import connection
from .arguments import check_variable, parse_intermixed_line, parse_line
from .handles import TaskHandle
from .task_actions import ACTIONS, ActionArguments, check
from .tracebacks import cell_place, short_errors


def task_arguments(magic: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that ``%%task`` and ``%%taskmap`` share to a magic."""
    for decorate in reversed(
        (
            argument("--pull", default="", metavar="A,B", help="names to return"),
            argument("--push", default="", metavar="X,Y", help="names of this notebook to send with the task"),
            argument(
                "--retries", type=int, default=0, metavar="N", help="how often the task is retried after a failure"
            ),
            argument("--retry-delay", type=float, default=0.0, metavar="S", help="seconds before a retry"),
            argument(
                "--after", default="", metavar="IDS", help="run it after these tasks have ended: 5,7-9, or variables"
            ),
            argument(
                "--depend", metavar="F", help="a function of an engine's properties: run only where it returns true"
            ),
            argument(
                "--env", metavar="E", help="an environment: it is set up once on the engine, and is `env` in the cell"
            ),
            argument("--time-limit", type=float, metavar="S", help="seconds that one run may take"),
            argument("--clear-before", action="store_true", help="clear the engine's namespace before the run"),
            argument("--clear-after", action="store_true", help="clear it after the run"),
            argument("--name", help="a name for tables"),
            argument("--priority", type=int, default=0, help="tasks with a higher priority start first"),
            argument("-t", "--targets", metavar="IDS", help="run only on these engines: 0,2"),
            argument(
                "-o", "--out", metavar="VAR", help="bind the handle (%%taskmap: the list of results) to this name"
            ),
        )
    ):
        magic = decorate(magic)
    return magic


def called(name: str) -> Callable[[Any], Any]:
    """Return a decorator that sets a magic's name in its own help; IPython puts a percent sign before it."""

    def decorate(magic: Any) -> Any:
        magic.argcmd_name = name
        return magic

    return decorate


@magics_class
class TaskMagics(Magics):
    """The magics about tasks."""

    shell: Any

    @magic_arguments()
    @called("%task")
    @task_arguments
    @argument("--unique", metavar="KEY", help="refuse the task while an unfinished task has this key")
    @argument("-b", "--block", action="store_true", help="wait, show its output, and bind the pulled names here")
    @cell_magic("task")  # type: ignore[arg-type]
    def task_cell(self, line: str, cell: str) -> None:
        """Submit the cell as a task.

        Without -b a handle is shown at once, and is replaced by the result.  -o h binds the handle to h: use h.ns.a,
        h.result() or await h.  With -b the magic waits, and binds the pulled names here if the task has succeeded.
        """
        given = parse_line(self.task_cell, "%%task", line)
        check_variable(given.out)
        with short_errors():
            client = connection.task_client(self.shell)
            rules = {**self._rules(given, client.farm), "unique": _unquoted(given.unique)}
            task = StringTask(cell, _names(given.pull), self._pushed(given.push), **rules)
            task_id = client.run(task.stands_in(cell_place(self.shell, cell)))
            handle = TaskHandle(client, task_id)
            if given.out:
                self.shell.user_ns[given.out] = handle
            if given.block:
                self.shell.user_ns.update(self._shown(client, task_id).results)
            else:
                self._show_live(handle)

    @magic_arguments()
    @called("%taskmap")
    @task_arguments
    @cell_magic
    def taskmap(self, line: str, cell: str) -> None:
        """Submit the cell as a task for each item, and wait: ``%%taskmap n in range(100) --pull y -o ys``.

        -o binds a list of results: the values of the pulled name, tuples for several names, or TaskResults without
            --pull.
        The list contains the exceptions of failed tasks, and the first exception is raised.
        """
        targets, expression, options = split_map(line, self.taskmap.parser)
        given = parse_line(self.taskmap, "%%taskmap", options)
        check_variable(given.out)
        with short_errors():
            items = self.shell.ev(expression)
            client = connection.task_client(self.shell)
            pull, push, rules = _names(given.pull), self._pushed(given.push), self._rules(given, client.farm)
            job = client.create_job(given.name or "taskmap")
            place = cell_place(self.shell, cell)
            for number, item in enumerate(items):
                task = StringTask(cell, pull, push | _bound(targets, item, number), **rules)
                job.add_task(task.stands_in(place))
            ids = job.submit() if len(job) else []
            wait_for_tasks(client.session, set(ids), None, bool(client.progress), stream=True, ended_too=True)
            values, first = _collected(client, ids, pull)
            if given.out:
                self.shell.user_ns[given.out] = values
            if first is not None:
                groups = client.failures(ids)
                print(f"{sum(map(len, groups))} of {len(ids)} tasks failed:\n{_brief(groups)}", file=sys.stderr)
                raise first

    @magic_arguments()
    @called("task")
    @argument("action", choices=ACTIONS, help="what to do")
    @argument("words", nargs="*", help="task ids (5 7-9 11,12), or names of ids, handles, jobs or lists; a job; nodes")
    @argument(
        "--job", metavar="NAME", help="failures, abort, retry, restart, remove, priority, pause, resume: this job"
    )
    @argument("--to", type=int, metavar="N", help="priority: the new one; a higher one starts first")
    @argument("--reason", metavar="TEXT", help="abort, mark-failed: the reason")
    @argument("--no-interrupt", action="store_true", help="abort: let running tasks end, and drop their results")
    @argument("--all", action="store_true", help="remove: all ended tasks")
    @argument("--off", action="store_true", help="drain: start tasks there again")
    @argument("--result", metavar="EXPR", help="mark-done: the result; for a task of code, a dict of the pulled names")
    @argument("--here", action="store_true", help="debug: run it here, although an engine is frozen for it")
    @argument("--frames", action="store_true", help="debug: run nothing; open the frames that came with the failure")
    @argument("--name", help="history: only tasks of this name")
    @argument("--what", metavar="TEXT", help="history: only events that contain this text")
    @argument(
        "--since",
        metavar="WHEN",
        help="history: only events after this time: 90s, 10m, 2h or 1d ago, or 2026-11-21T10:00",
    )
    @argument("--last", type=int, metavar="N", help="history: the last N events (default: 1000; 0: all)")
    @line_magic("task")  # type: ignore[arg-type]
    def task_line(self, line: str) -> Any:
        """Act on submitted tasks: ``%task result 5``.

        status: show their state.  result: show their results.  barrier: wait for them (without ids: for all of this
        session).  abort: abort them.  explain: show what happened, and why they wait.  retry: submit failed ones again
        as new tasks.  restart: submit any ended ones again.  remove: delete the results of ended ones.  failures: show
        failed ones in groups.  debug: open the debugger where one failed: on the engine that is frozen for it, or here,
        where it runs again with its inputs; --frames: only open the frames that came with the failure.  frozen: show
        the frozen engines.  release: end the engines frozen for these tasks, or all.  stack: show the stack of running
        ones.  history: show their events with times.  progress: show their reported progress.  messages: show their
        messages until they end.  mark-done, mark-failed: make them count as succeeded or failed.  jobs: list all jobs.
        job: show one job, by its name.  priority: let tasks start earlier or later than others.  pause, resume: start
        no more tasks of the farm or of a job, or start them again.  drain: give the engines of these nodes no more
        tasks.
        """
        given = parse_intermixed_line(self.task_line, "%task", line)
        for option in vars(given).keys() - {"action", "words"}:
            setattr(given, option, _unquoted(getattr(given, option)))
        action = check(given.action, given.words, given)
        with short_errors():
            client = connection.task_client(self.shell)
            ids = [i for word in given.words for i in self._ids(word, client.farm)] if action.words == "tasks" else []
            return action.call(client, ActionArguments(ids, given.words, given, self.shell.ev))

    @magic_arguments()
    @argument("--state", choices=ACCEPTED_STATES, metavar="STATE", help=f"one of {', '.join(ASKED_STATES)}")
    @argument("--name", help="only tasks of this name")
    @argument("--job", metavar="NAME", help="only tasks of this job, by its name or id")
    @argument("--last", type=int, default=50, metavar="N", help="the last N tasks (default: 50; 0: all)")
    @line_magic
    def tasks(self, line: str) -> TaskTable:
        """Return a table of tasks with their states."""
        given = parse_line(self.tasks, "%tasks", line)
        with short_errors():
            client = connection.task_client(self.shell)
            job = _unquoted(given.job) if given.job else None
            return client.tasks(given.name, given.state, last=given.last, job=job)

    # -- helpers

    def _pushed(self, text: str) -> dict[str, Any]:
        namespace = self.shell.user_ns
        pushed = {}
        for name in _names(text):
            if name not in namespace:
                raise UsageError(f"--push {name}: there is no such name here")
            pushed[name] = namespace[name]
        return pushed

    def _rules(self, given: Any, farm: str) -> dict[str, Any]:
        return {
            "retries": given.retries,
            "retry_delay": given.retry_delay,
            "after": [i for word in _names(given.after) for i in self._ids(word, farm)],
            "depend": None if given.depend is None else self.shell.ev(given.depend),
            "time_limit": given.time_limit,
            "clear_before": given.clear_before,
            "clear_after": given.clear_after,
            "name": given.name,
            "priority": given.priority,
            "targets": _engines(given.targets),
            **({} if given.env is None else {"environment": self.shell.ev(given.env)}),
        }

    def _ids(self, word: str, farm: str) -> list[int]:
        """Parse ``5``, ``7-9``, ``11,12``, or evaluate an expression: a job, an id, a future, a handle, or several of
        them.
        """
        if re.fullmatch(r"[\d,-]+", word):
            try:
                return parse_ids([word])
            except ValueError as error:
                raise UsageError(str(error)) from None
        value = self.shell.ev(word)
        return value.ids if isinstance(value, Job) else id_list(value, farm)

    def _shown(self, client: TaskClient, task_id: int) -> TaskResult:
        """Wait for a task, and show its output while it runs; raise its exception if it failed."""
        session, shows = client.session, bool(client.progress)
        wait_for_tasks(session, {task_id}, None, shows, stream=True, labelled=False, ended_too=True)
        result: TaskResult = client.get_task_result(task_id, block=True, raw=False)
        result.raise_exception()
        return result

    def _show_live(self, handle: TaskHandle) -> None:
        if getattr(self.shell, "kernel", None) is None:  # a terminal cannot replace what it has shown
            print(f"task {handle.id}: submitted.  %task result {handle.id} shows its result")
            return
        handle.show_live()


def _unquoted(value: Any) -> Any:
    """Remove quotes: IPython leaves them around a word with spaces."""
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


def _names(text: str) -> list[str]:
    """Split ``a,b c`` into [a, b, c]; quotes around the text are dropped."""
    return [name for name in re.split(r"[,\s]+", _unquoted(text)) if name]


def _engines(text: str | None) -> list[int] | None:
    """Return the ids of engines in ``0,2``, or None for ``all``."""
    words = _names(text or "all")
    if words == ["all"]:
        return None
    if not words or not all(word.isdecimal() for word in words):
        raise UsageError(f"--targets {text}: engine ids, like 0 or 0,2, or all")
    return [int(word) for word in words]


def split_map(line: str, parser: Any) -> tuple[list[str], str, str]:
    """Split ``n in range(10 - 1) --pull y`` into the names, the expression and the options.

    The expression ends before the first ``-x`` from which on the rest parses as options.  If that is not meant,
    parentheses around the expression help.
    """
    match = re.match(r"\s*([A-Za-z_]\w*(?:\s*,\s*[A-Za-z_]\w*)*)\s+in\s+(.+)", line, re.DOTALL)
    if match is None:
        raise UsageError("%%taskmap NAME in ITERABLE [options], for example: %%taskmap n in range(100) --pull y -o ys")
    names, rest = _names(match[1]), match[2]
    ends = [found.start() for found in re.finditer(r"\s--?[A-Za-z]", rest)]
    parts = [(rest[:end].strip(), rest[end:].strip()) for end in [*ends, len(rest)]]
    parts = [(expression, options) for expression, options in parts if _is_expression(expression)]
    for expression, options in parts:
        # `range(3) --pul` is an expression too, but nobody writes two minus signs so: the parser reports the flag.
        if options.startswith("--") or _are_options(options, parser):
            return names, expression, options
    if parts:
        return names, *parts[0]  # the parser will report what is wrong with the options
    raise UsageError(f"%%taskmap: {rest.strip()!r} is not an expression")


def _is_expression(text: str) -> bool:
    try:
        compile(text, "<taskmap>", "eval")
    except SyntaxError:
        return False
    return True


def _are_options(text: str, parser: Any) -> bool:
    try:
        parser.parse_argstring(text)
    except UsageError:
        return False
    return True


def _bound(names: list[str], item: Any, number: int) -> dict[str, Any]:
    if len(names) == 1:
        return {names[0]: item}
    expected = f"%%taskmap: each item has {len(names)} values, for {', '.join(names)}"
    if not isinstance(item, Iterable):
        raise UsageError(f"{expected}; item {number} is {shown(item, 40)}")
    values = list(item)
    if len(values) != len(names):
        raise UsageError(f"{expected}; item {number} has {len(values)}: {shown(item, 40)}")
    return dict(zip(names, values, strict=True))


def _collected(client: TaskClient, ids: list[int], pull: list[str]) -> tuple[list[Any], Exception | None]:
    """Return the results in order, with exceptions for failed tasks, and the first exception."""
    values: list[Any] = []
    first: Exception | None = None
    for task_id in ids:
        try:
            result = client.get_task_result(task_id, raw=False)
            result.raise_exception()
        except Exception as error:
            values.append(error)
            first = first or error
            continue
        pulled = [result[name] for name in pull]
        values.append(result if not pull else pulled[0] if len(pull) == 1 else tuple(pulled))
    return values, first


def _brief(groups: FailureGroups) -> str:
    lines = []
    for group in groups[:5]:
        some = ", ".join(map(str, group.ids[:5])) + (", …" if len(group.ids) > 5 else "")
        ids = f"tasks {some}" if len(group.ids) > 1 else f"task {some}"
        lines.append(f"  {len(group.ids)} × {error_line(group.etype, group.message[:100])}  ({ids})")
    return "\n".join(lines)
