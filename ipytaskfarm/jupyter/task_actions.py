"""The actions of ``%task``: each one is a call of `TaskClient` with some options.

To add an action, write its function, name it in `ACTIONS`, and describe it in ``docs/magics.md`` (a test checks that)
and in the docstring of ``%task``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from IPython.core.error import UsageError

from ..client import TaskClient
from ..client.debugging import raised_by_task
from ..client.ids import not_registered
from ..client.operate import find_job
from ..client.tables import FailureGroups
from ..core.messages import ListTasks
from ..core.messages.tables import TaskRows
from ..core.parsing import parse_since
from ..display.text import CELL_MAX, number, safe


@dataclass
class ActionArguments:
    """The arguments of an action."""

    ids: list[int]
    words: list[str]
    """The ids as they were typed; for some actions these are names of jobs or nodes."""
    options: Any
    """The options from the parser."""
    value_of: Callable[[str], Any]
    """Function that evaluates an expression in the shell."""


class Action(NamedTuple):
    """One action of ``%task``."""

    call: Callable[[TaskClient, ActionArguments], Any]
    words: str = "tasks"
    """The kind of its words: tasks, job, nodes, or "" for none."""
    least: int = 1
    """Least number of words, unless an option names the tasks."""
    options: tuple[str, ...] = ()
    """The options that it takes."""


def _status(client: TaskClient, asked: ActionArguments) -> Any:
    return client.status(asked.ids[0]) if len(asked.ids) == 1 else client.tasks(ids=asked.ids)


def _result(client: TaskClient, asked: ActionArguments) -> Any:
    return _one([client.get_task_result(i, block=False, raw=False) or client.status(i) for i in asked.ids])


def _abort(client: TaskClient, asked: ActionArguments) -> None:
    interrupt, reason = not asked.options.no_interrupt, asked.options.reason or ""
    if asked.options.job:
        client.job(asked.options.job).abort(reason, interrupt)
        print(f"{_held(client, asked)} is aborted")
        return
    aborted = client.abort(asked.ids[0] if len(asked.ids) == 1 else asked.ids, interrupt, reason)
    if left := len(asked.ids) - len(aborted):
        print(f"{number(len(aborted), 'task')} aborted; {left:,} had ended")
    else:
        print(f"{number(len(aborted), 'task')} aborted")


def _retry(client: TaskClient, asked: ActionArguments) -> list[int]:
    return client.job(asked.options.job).retry() if asked.options.job else client.retry(asked.ids)


def _restart(client: TaskClient, asked: ActionArguments) -> list[int]:
    return client.job(asked.options.job).retry(failed=False) if asked.options.job else client.restart(asked.ids)


def _remove(client: TaskClient, asked: ActionArguments) -> int:
    if asked.options.all:
        return client.clear()
    # A job's own ids are those of the last retries.
    return client.clear(find_job(client.session, asked.options.job).task_ids() if asked.options.job else asked.ids)


def _priority(client: TaskClient, asked: ActionArguments) -> None:
    priority = asked.options.to
    if priority is None:
        raise UsageError("%task priority: which priority? --to N; tasks with a higher one start first, 0 is usual")
    if asked.options.job:
        changed = client.job(asked.options.job).set_priority(priority)
    else:
        changed = len(client.set_priority(asked.ids[0] if len(asked.ids) == 1 else asked.ids, priority))
    print(f"{number(changed, 'unfinished task')} of priority {priority}")


def _pause(client: TaskClient, asked: ActionArguments) -> None:
    client.pause(asked.options.job)
    print(f"{_held(client, asked)} is paused; running tasks continue")


def _resume(client: TaskClient, asked: ActionArguments) -> None:
    client.resume(asked.options.job)
    print(f"{_held(client, asked)} is resumed")


def _held(client: TaskClient, asked: ActionArguments) -> str:
    return f"job {safe(asked.options.job, CELL_MAX)!r}" if asked.options.job else f"farm {client.farm!r}"


def _drain(client: TaskClient, asked: ActionArguments) -> None:
    client.drain(asked.words, on=not asked.options.off)
    named = ", ".join(safe(word, CELL_MAX) for word in asked.words)
    print(f"{named}: {'gets tasks again' if asked.options.off else 'drained; running tasks continue to their end'}")


def _history(client: TaskClient, asked: ActionArguments) -> Any:
    options = asked.options
    try:
        since = parse_since(options.since, time.time()) if options.since else None
    except ValueError as error:
        raise UsageError(f"--since: {error}") from None
    return client.history(
        _known(client, asked.ids) or None,
        options.name,
        options.what,
        since,
        1000 if options.last is None else options.last,
    )


def _known(client: TaskClient, ids: list[int]) -> list[int]:
    """Return these ids.  Raises IndexError for one that the farm does not know: of such a task nothing can be shown."""
    if ids and (unknown := client.session.ask_for(ListTasks(ids), TaskRows).unknown):
        raise not_registered(unknown)
    return ids


def _mark_done(client: TaskClient, asked: ActionArguments) -> None:
    result = None if asked.options.result is None else asked.value_of(asked.options.result)
    for task_id in asked.ids:
        client.mark_done(task_id, result)
    print(f"{number(len(asked.ids), 'task')} marked as succeeded")


def _mark_failed(client: TaskClient, asked: ActionArguments) -> Any:
    return _one([client.mark_failed(task_id, asked.options.reason or "") for task_id in asked.ids])


def _messages(client: TaskClient, asked: ActionArguments) -> None:
    """Print messages as they arrive; the stop button ends the printing, not the task."""
    for task_id in asked.ids:
        try:
            for message in client.messages(task_id):
                at = time.strftime("%H:%M:%S", time.localtime(message.at_s))
                print(f"{at} {safe(message.sender, CELL_MAX)}: {safe(repr(message.value), CELL_MAX)}", flush=True)
        except KeyboardInterrupt:
            return


def _failures(client: TaskClient, asked: ActionArguments) -> FailureGroups:
    return client.failures(_known(client, asked.ids) or None, job=asked.options.job)


def _debug(client: TaskClient, asked: ActionArguments) -> None:
    """Open the debugger where a task failed; see `TaskClient.debug` for --here and --frames."""
    if asked.options.here and asked.options.frames:
        raise UsageError("%task debug: --here runs the task, --frames does not: not both")
    run = False if asked.options.frames else asked.options.here or None
    for task_id in asked.ids:
        try:
            client.debug(task_id, run=run)
        except ValueError as error:
            if raised_by_task(error):
                raise
            raise UsageError(f"%task debug {task_id}: {error}") from None


def _one(found: list[Any]) -> Any:
    return found[0] if len(found) == 1 else found


ACTIONS: dict[str, Action] = {
    "status": Action(_status),
    "result": Action(_result),
    "barrier": Action(lambda client, asked: client.barrier(asked.ids or None), least=0),
    "abort": Action(_abort, options=("job", "reason", "no_interrupt")),
    "explain": Action(lambda client, asked: _one([client.explain(i) for i in asked.ids])),
    "retry": Action(_retry, options=("job",)),
    "restart": Action(_restart, options=("job",)),
    "remove": Action(_remove, options=("job", "all")),
    "failures": Action(_failures, least=0, options=("job",)),
    "debug": Action(_debug, options=("here", "frames")),
    "frozen": Action(lambda client, asked: client.frozen(), words="", least=0),
    "release": Action(lambda client, asked: client.release(asked.ids or None), least=0),
    "stack": Action(lambda client, asked: _one([client.stack(i) for i in asked.ids])),
    "history": Action(_history, least=0, options=("name", "what", "since", "last")),
    "progress": Action(lambda client, asked: client.progress_of(_known(client, asked.ids))),
    "messages": Action(_messages),
    "mark-done": Action(_mark_done, options=("result",)),
    "mark-failed": Action(_mark_failed, options=("reason",)),
    "jobs": Action(lambda client, asked: client.jobs(), words="", least=0),
    "job": Action(lambda client, asked: client.job(asked.words[0]), words="job"),
    "priority": Action(_priority, options=("job", "to")),
    "pause": Action(_pause, words="", least=0, options=("job",)),
    "resume": Action(_resume, words="", least=0, options=("job",)),
    "drain": Action(_drain, words="nodes", options=("off",)),
}
"""In the order in which Tab offers them."""

OPTIONS = (
    "job", "to", "reason", "no_interrupt", "all", "off", "name", "what", "since", "last", "result", "here", "frames"
)  # fmt: skip
"""All options that some action takes."""


def check(action: str, words: list[str], options: Any) -> Action:
    """Return the action if these words and options fit it.  Raises UsageError, which names what fits."""
    chosen = ACTIONS[action]
    for option in OPTIONS:
        if getattr(options, option) not in (None, False) and option not in chosen.options:
            takes = ", ".join(_flag(each) for each in chosen.options) or "no options"
            raise UsageError(f"%task {action} does not take {_flag(option)}; it takes {takes}")
    named_otherwise = any(getattr(options, option) for option in ("job", "all") if option in chosen.options)
    if words and (not chosen.words or named_otherwise):
        what = "--job NAME or --all, or ids: not both" if chosen.words else f"what is {words[0]!r} for?"
        raise UsageError(f"%task {action}: {what}")
    if len(words) < chosen.least and not named_otherwise:
        raise UsageError(f"%task {action}: {_MISSING[chosen.words]}")
    if chosen.words == "job" and len(words) > 1:
        raise UsageError(f"%task {action}: one job at a time")
    return chosen


_MISSING = {
    "tasks": "of which task?  %tasks shows them",
    "job": "which job?  %task jobs shows them",
    "nodes": "which nodes?  %taskfarm status shows them",
}


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
