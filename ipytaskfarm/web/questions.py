"""What a page may ask of a farm, and what it may do, with JSON values on both sides.

Everything that comes from tasks is text: it is cut, marked, and never interpreted, here or in the page.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from ipytaskfarm.core import errors, messages
from ipytaskfarm.core.arguments import INT_MAX, INT_MIN
from ipytaskfarm.core.messages import Question, view
from ipytaskfarm.core.messages.pages import following
from ipytaskfarm.core.messages.payload import FailureBody, ResultBody, StringWork, Work, packed_bytes
from ipytaskfarm.core.messages.tables import EventTable
from ipytaskfarm.core.messages.task_types import Final, Rules
from ipytaskfarm.core.states import state_word
from ipytaskfarm.core.text import is_of_library, text_of
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.display.text import redrawn
from ipytaskfarm.system import farm_paths
from ipytaskfarm.system.files import tail
from ipytaskfarm.view.fold import cause_entry, cut, engine_entry, stretch_row

from .feed import FarmFeed
from .profiles import profile, switch_sampler

OUTPUT_MAX = 100_000
"""The largest number of characters of a task's output, traceback or code on a page."""
LINE_MAX = 2_000
HISTORY_MAX = 200
VARIABLES_FRAMES = 3
"""The number of innermost frames of a failure of which a page shows the local variables: of the user's own ones."""
LOG_BYTES = 128 * 1024
AT_ONCE = 2_000
"""How many tasks of a group are tried again by one request."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")

Arguments = dict[str, Any]


def long_text(text: str) -> str:
    """Return output as a terminal shows it in the end: without escape sequences, its long lines and middle cut."""
    text = redrawn(text)
    kept = text if len(text) <= 2 * OUTPUT_MAX else text[:OUTPUT_MAX] + text[-OUTPUT_MAX:]
    plain = _ESCAPES.sub("", kept)
    lines = []
    for line in plain.split("\n"):
        shown = line if len(line) <= LINE_MAX else f"{line[:LINE_MAX]}… ({len(line) - LINE_MAX:,} characters left out)"
        lines.append(shown)
    plain = "\n".join(lines)
    if len(text) > 2 * OUTPUT_MAX or len(plain) > OUTPUT_MAX:
        half = OUTPUT_MAX // 2
        plain = f"{plain[:half]}\n… ({len(text):,} characters in all; the middle is left out) …\n{plain[-half:]}"
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in plain)


async def ask(feed: FarmFeed, what: Any, arguments: Any) -> Any:
    """Answer a question of a page.

    Raises:
        ValueError: there is no such question, or its arguments do not fit.
        Exception: an error of the farm.
    """
    answer = QUESTIONS.get(what) if isinstance(what, str) else None
    if answer is None or not isinstance(arguments, dict):
        raise ValueError(f"a page cannot ask {text_of(what)[:80]!r}: {', '.join(QUESTIONS)} were expected")
    return await answer(feed, arguments)


async def act(feed: FarmFeed, what: Any, arguments: Any) -> Any:
    """Do something for a page.

    Raises:
        SecurityError: pages may only look.
        ValueError: there is no such action, or its arguments do not fit.
        Exception: an error of the farm.
    """
    action = ACTIONS.get(what) if isinstance(what, str) else None
    if action is None or not isinstance(arguments, dict):
        raise ValueError(f"a page cannot do {text_of(what)[:80]!r}: {', '.join(ACTIONS)} were expected")
    if not feed.control:
        raise errors.SecurityError(
            "this page may look and change nothing: it has a reader's key. `ipytaskfarm web --control` has a client's"
        )
    return await action(feed, arguments)


def _question(kind: type[Any], arguments: Arguments, *names: str) -> Any:
    """Return a question made of these arguments.  Raises ValueError if one does not fit."""
    given = {name: arguments[name] for name in names if arguments.get(name) is not None}
    try:
        return msgspec.convert({"type": kind.__struct_config__.tag, **given}, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def _id(arguments: Arguments) -> int:
    task = arguments.get("id")
    if not isinstance(task, int) or isinstance(task, bool):
        raise ValueError(f"a task's id was expected, not {text_of(task)[:80]!r}")
    return task


# -- questions


async def _tasks(feed: FarmFeed, arguments: Arguments) -> Any:
    names = ("state", "text", "job", "engine_id", "before", "count", "oldest_first")
    question: view.ReadTaskPage = _question(view.ReadTaskPage, arguments, *names)
    key = arguments.get("cause")
    if key is not None:
        cause = feed.fold.cause(str(key))
        if cause is None:
            raise ValueError("this group of failures is not there any more")
        question = msgspec.structs.replace(question, cause=(cause.reason, cause.etype, cause.place))
    page = await feed.answer_for(question, view.TaskPage)
    return {"rows": [task_line(row) for row in page.rows], "next": page.next, "full": page.full}


def task_line(row: view.PageRow) -> dict[str, Any]:
    """Return a line of a table of tasks for a page."""
    found = {name: getattr(row, name) for name in row.__struct_fields__}
    found["state"] = state_word(row.state)
    for name in ("name", "job", "etype", "text", "place", "reason"):
        found[name] = cut(found[name])
    return found


async def _causes(feed: FarmFeed, arguments: Arguments) -> Any:
    table = await feed.answer_for(_question(view.ReadCauses, arguments, "job", "count"), view.CauseTable)
    return {"rows": [cause_entry(row) for row in table.rows], "more": table.more, "complete": table.complete}


async def _stretches(feed: FarmFeed, arguments: Arguments) -> Any:
    question = _question(view.ReadStretches, arguments, "since_s", "until_s", "before", "job")
    table = await feed.answer_for(question, view.StretchTable)
    return {"rows": [stretch_row(row) for row in table.rows], "next": table.next, "first_s": table.first_s}


async def _engines(feed: FarmFeed, arguments: Arguments) -> Any:
    page = await feed.answer_for(
        _question(view.ReadEngines, arguments, "first", "count", "state", "node"), view.EnginePage
    )
    return {"rows": {str(row.id): engine_entry(row) for row in page.rows}, "total": page.total}


async def _task(feed: FarmFeed, arguments: Arguments) -> Any:
    """Return all that is known of one task."""
    task = _id(arguments)
    why = await feed.answer_for(messages.ExplainTasks(task), messages.TextReply)
    fetched = await feed.answer_for(messages.FetchResults([task]), messages.Fetched)
    history = await feed.answer_for(messages.ReadHistory(ids=[task], last=HISTORY_MAX), EventTable)
    found: dict[str, Any] = {
        "id": task,
        "why": [cut(line) for line in why.text.splitlines()],
        "history": [
            [at_s, cut(what), engine if engine >= 0 else None, cut(more)]
            for at_s, _, _, what, engine, more in history.rows
        ],
        "end": _end(fetched.finals[0]) if fetched.finals else None,
    }
    try:
        found["input"] = _input(await feed.answer_for(view.ReadTaskInput(task), view.TaskInput))
    except IndexError:  # a refused task was never stored
        found["input"] = None
    return found


def _end(final: Final) -> dict[str, Any]:
    """Return a task's end for a page.  Values stay packed: only clients and engines unpack them."""
    body = ResultBody()
    if final.body:
        try:
            body = msgspec.msgpack.decode(final.body, type=ResultBody)
        except (msgspec.MsgspecError, ValueError):
            pass  # of another version: the rest is shown
    failure = body.failure
    return {
        "reason": final.reason,
        "engine_id": final.engine_id,
        "node": cut(final.node),
        "attempts": final.attempts,
        "submitted_s": final.submitted_s,
        "started_s": final.started_s,
        "run_s": final.run_s,
        "completed_s": final.completed_s,
        "etype": cut(final.failure.etype) if final.failure else "",
        "text": cut(final.failure.value, 2000) if final.failure else "",
        "place": cut(final.failure.place) if final.failure else "",
        "traceback": long_text(failure.traceback) if failure else "",
        "variables": long_text(_variables(failure)) if failure else "",
        "stdout": long_text(body.stdout),
        "stderr": long_text(body.stderr),
        "value_bytes": packed_bytes(body.value) if body.value is not None else None,
        "displays": len(body.outputs),
    }


def _variables(failure: FailureBody) -> str:
    """Return the local variables of the innermost frames of a failure, as `client.results.Failure.variables`."""
    indexes = failure.links[0].frames if failure.links else ()
    places = [failure.places[index] for index in indexes if 0 <= index < len(failure.places)]
    told = [place for place in places if place.values]
    told = ([place for place in told if not is_of_library(place.filename)] or told)[-VARIABLES_FRAMES:]
    return "\n".join(
        f"in {place.name}, line {place.line}:\n" + "\n".join(f"    {name} = {value}" for name, value in place.values)
        for place in told
    )


_decode_work = msgspec.msgpack.Decoder(Work).decode


def _input(given: view.TaskInput) -> dict[str, Any]:
    """Return what was submitted for a page: code as text, rules, sizes. Arguments stay packed."""
    code, size = "", given.payload_bytes
    if given.payload:
        with contextlib.suppress(msgspec.MsgspecError, ValueError):
            work = _decode_work(given.payload)
            code, values = (work.code, work.push) if isinstance(work, StringWork) else ("", work.arguments)
            size += packed_bytes(values) - len(values or b"")
    return {
        "code": long_text(code),
        "function": given.function,
        "rules": _rules(given.rules),
        "bytes": size,
        "submitted_s": given.submitted_s,
    }


def _rules(text: str) -> str:
    """Return the rules that differ from the defaults, one on each line."""
    try:
        rules = msgspec.json.decode(text, type=Rules) if text else Rules()
    except (msgspec.MsgspecError, ValueError):
        return cut(text, 2000)
    default = Rules()
    changed = {
        name: value
        for name in rules.__struct_fields__
        if name not in ("recovery", "job") and (value := getattr(rules, name)) != getattr(default, name)
    }
    return cut("\n".join(f"{name.removesuffix('_s')}: {_plain(value)}" for name, value in changed.items()), 2000)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


async def _logs(feed: FarmFeed, arguments: Arguments) -> Any:
    """Return the end of one log, and the names of all; a farm of another machine, or another user's, has none here."""
    folder = Home.of(feed.name).logs if _is_here(feed) else Path()
    files = sorted(path for path in folder.glob("*.log") if path.is_file()) if folder.name else []
    wanted = arguments.get("name")
    chosen = next((path for path in files if path.stem == wanted), files[0] if files and wanted is None else None)
    return {
        "names": [path.stem for path in files],
        "text": _end_of_log(chosen) if chosen is not None else "",
    }


def _is_here(feed: FarmFeed) -> bool:
    """Return whether the farm of this name here is the one that the page shows, and not another of that name."""
    try:
        record = farm_paths.read_farm_record(Home.of(feed.name).folder)
    except (errors.TaskFarmError, OSError, ValueError):
        return True  # its record is damaged, and is made again at the next start
    return record is None or feed.incarnation in ("", record.incarnation)


def _end_of_log(path: Path) -> str:
    text, size = long_text(tail(path, LOG_BYTES)), path.stat().st_size
    return text if size <= LOG_BYTES else f"… ({size:,} bytes in all; what is before is left out) …\n{text}"


async def _profile(feed: FarmFeed, arguments: Arguments) -> Any:
    """Return the flame graph of an engine, or of the first engines."""
    engine = arguments.get("engine_id")
    if engine is not None and (type(engine) is not int or engine < 0):
        raise ValueError(f"an engine's id was expected, not {text_of(engine)[:80]!r}")
    return await profile(feed, engine)


async def _stack(feed: FarmFeed, arguments: Arguments) -> Any:
    """Return where a running task is now."""
    reply = await feed.answer_for(messages.Stack(_id(arguments)), messages.TextReply)
    return {"text": long_text(reply.text)}


async def _output(feed: FarmFeed, arguments: Arguments) -> Any:
    """Return the end of what a running task has written."""
    texts = await feed.latest_output(_id(arguments))
    stdout, stderr = map(long_text, texts or ("", ""))
    return {"answered": texts is not None, "stdout": stdout, "stderr": stderr}


QUESTIONS: dict[str, Callable[[FarmFeed, Arguments], Awaitable[Any]]] = {
    "tasks": _tasks,
    "causes": _causes,
    "stretches": _stretches,
    "engines": _engines,
    "task": _task,
    "logs": _logs,
    "profile": _profile,
    "stack": _stack,
    "output": _output,
}


# -- actions


async def _abort(feed: FarmFeed, arguments: Arguments) -> Any:
    question = messages.AbortTasks([_id(arguments)], True, "aborted from the live view")
    reply = await feed.answer_for(question, messages.Aborted)
    return {"text": f"task {reply.outcomes[0][0]}: {reply.outcomes[0][1]}"}


async def _retry(feed: FarmFeed, arguments: Arguments) -> Any:
    reply = await feed.answer_for(messages.RetryTasks([_id(arguments)]), messages.Retried)
    if reply.missing:
        return {"text": f"task {reply.missing[0]} was not tried again: it has been cleared"}
    if not reply.ids:
        return {"text": "it was not tried again: only failed tasks are"}
    return {"text": f"submitted again as task {reply.ids[0][1]}", "id": reply.ids[0][1]}


async def _retry_group(feed: FarmFeed, arguments: Arguments) -> Any:
    """Submit the failed tasks of a group again, the latest ones first."""
    cause = feed.fold.cause(str(arguments.get("cause")))
    if cause is None:
        raise ValueError("this group of failures is not there any more")
    key = cause.reason, cause.etype, cause.place
    count, before = 0, None
    while count < AT_ONCE:
        page = await feed.answer_for(view.ReadTaskPage("failed", cause=key, before=before, count=500), view.TaskPage)
        ids = [row.id for row in page.rows]
        if ids:
            reply = await feed.answer_for(messages.RetryTasks(ids, once=True), messages.Retried)
            count += len(reply.ids)
        if page.next is None:
            return {"text": _submitted(count), "more": False}
        before = page.next
    return {"text": f"the latest {count:,} tasks submitted again; more are left", "more": True}


def _submitted(count: int) -> str:
    if not count:
        return "nothing was submitted: all tasks of this group were submitted again before"
    return f"{count:,} task{'' if count == 1 else 's'} submitted again"


async def _priority(feed: FarmFeed, arguments: Arguments) -> Any:
    """Change the priority of a task, or of a job: its unfinished tasks, and those that come later."""
    priority, job = arguments.get("priority"), arguments.get("job")
    if not isinstance(priority, int) or isinstance(priority, bool) or not INT_MIN <= priority <= INT_MAX:
        raise ValueError(f"a priority is a whole number, not {text_of(priority)[:80]!r}")
    if job is None:
        reply = await feed.answer_for(messages.SetPriority([_id(arguments)], priority), messages.PrioritySet)
        return {"text": f"the priority is {priority}" if reply.count else "the task has ended"}
    page: Question | None = messages.SetJobPriority(str(job), priority)
    count = 0
    while page is not None:
        reply = await feed.answer_for(page, messages.PrioritySet)
        count += reply.count
        page = following(page, reply)
    return {"text": f"{count:,} task{'' if count == 1 else 's'} of priority {priority}, and those that come later"}


async def _pause(feed: FarmFeed, arguments: Arguments) -> Any:
    """Pause or resume a job, or the farm (job: None)."""
    job, on = arguments.get("job"), arguments.get("on") is True
    if job is None:
        await feed.answer_for(messages.HoldFarm(on), messages.FlagReply)
    else:
        await feed.answer_for(messages.PauseJobs([str(job)], on), messages.NumberReply)
    return {"text": "paused: nothing is started" if on else "it goes on"}


async def _drain(feed: FarmFeed, arguments: Arguments) -> Any:
    node, on = str(arguments.get("node")), arguments.get("on") is True
    reply = await feed.answer_for(messages.DrainNode([node], on), messages.NumberReply)
    return {"text": f"{node}: {'gets nothing more' if on else 'gets tasks again'} ({reply.value} agents)"}


async def _scale(feed: FarmFeed, arguments: Arguments) -> Any:
    engines = arguments.get("engines")
    if not isinstance(engines, int) or isinstance(engines, bool) or not 0 <= engines <= 100_000:
        raise ValueError("a number of engines was expected")
    reply = await feed.answer_for(messages.SetWanted(engines), messages.NumberReply)
    return {"text": f"{reply.value} engines are wanted"}


async def _release(feed: FarmFeed, arguments: Arguments) -> Any:
    """End the frozen engine of a task."""
    task = _id(arguments)
    await feed.answer_for(messages.ReleaseFrozen([task]), messages.NumberReply)
    return {"text": f"the engine that was frozen for task {task} ends"}


async def _sample(feed: FarmFeed, arguments: Arguments) -> Any:
    """Switch the sampler on or off."""
    on = arguments.get("on") is True
    await switch_sampler(feed, on)
    return {"text": "the engines are sampled" if on else "the engines are not sampled any more; what was seen is kept"}


ACTIONS: dict[str, Callable[[FarmFeed, Arguments], Awaitable[Any]]] = {
    "abort": _abort,
    "retry": _retry,
    "retry_group": _retry_group,
    "priority": _priority,
    "pause": _pause,
    "drain": _drain,
    "scale": _scale,
    "release": _release,
    "sample": _sample,
}
