"""Complete the magics: actions, options, farms, ids.

One matcher serves terminals and notebooks.  It uses IPython's newer matcher interface, which can suppress other
matchers.  With the older one (``complete_command``) Python's keywords would come before our words in a notebook.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from ..client import Job
from ..core import messages
from ..core.messages import tables
from ..core.states import RUNNING, state_counts
from ..deployment.light_client import connect as question
from ..system.farm_paths import list_farms
from . import connection
from .farm_magics import FarmMagics
from .handles import TaskHandle
from .task_actions import ACTIONS
from .task_magics import TaskMagics

_R = TypeVar("_R")

IDENTIFIER = "ipytaskfarm.magics"
ANSWER_S = 1.0
"""Seconds to wait for the farm: the user has pressed a key and waits."""
ROWS = 1000
"""Number of tasks above which their table is not read for a completion."""
RECENT = 20
POLICIES = ("FIFO", "LIFO", "FairShare", "FairShareJobs")

_LINE = re.compile(
    r"\s*(?:[\w,. ]+=\s*)?(?P<magic>%%taskmap|%%task|%?taskfarm|%?tasks|%?task)\s(?P<rest>.*)", re.DOTALL
)
_PARSERS: dict[str, Any] = {
    "taskfarm": FarmMagics.taskfarm,
    "task": TaskMagics.task_line,
    "tasks": TaskMagics.tasks,
    "%%task": TaskMagics.task_cell,
    "%%taskmap": TaskMagics.taskmap,
}
_OF_INTEREST: dict[str, tuple[str | None, ...]] = {
    "abort": ("unfinished", RUNNING),
    "mark-done": ("unfinished", RUNNING),
    "progress": (RUNNING,),
    "restart": ("finished", "failed"),
    "remove": ("finished", "failed"),
    "barrier": ("unfinished", RUNNING),
    "stack": (RUNNING,),
    "debug": ("failed",),
    "retry": ("failed",),
    "failures": ("failed",),
}
"""Action -> states of the tasks to offer, in order of preference; the first state with few enough tasks is used."""
_ALL = (None, "unfinished", "failed", RUNNING)


def register_completion(shell: Any) -> None:
    """Make the shell ask us about lines that begin with one of our magics."""
    remove_completion(shell)
    shell.Completer.custom_matchers.append(_matcher(shell))


def remove_completion(shell: Any) -> None:
    """Stop completing our magics."""
    matchers = shell.Completer.custom_matchers
    matchers[:] = [matcher for matcher in matchers if getattr(matcher, "matcher_identifier", "") != IDENTIFIER]


def _matcher(shell: Any) -> Callable[[CompletionContext], SimpleMatcherResult]:
    @context_matcher(identifier=IDENTIFIER)
    def match(context: CompletionContext) -> SimpleMatcherResult:
        typed = context.text_until_cursor
        found: list[str] = []
        ours = _LINE.fullmatch(typed[: len(typed) - len(context.token)])
        if ours is not None and _is_meant(shell, ours["magic"], context):
            try:
                offers = _offers(shell, ours["magic"], ours["rest"], context.token)
                found = [offer for offer in dict.fromkeys(offers) if offer.startswith(context.token)]
            except Exception:  # the farm is away or a file is unreadable: offer nothing, silently
                found = []
        return {"completions": [SimpleCompletion(text) for text in found], "ordered": True, "suppress": bool(found)}

    return match  # type: ignore[no-any-return]


def _is_meant(shell: Any, magic: str, context: CompletionContext) -> bool:
    if magic.startswith("%%"):
        return context.cursor_line == 0
    return magic.startswith("%") or (bool(shell.automagic) and magic not in shell.user_ns)


def _offers(shell: Any, magic: str, rest: str, token: str) -> Iterable[str]:
    name = magic if magic.startswith("%%") else magic.lstrip("%")
    parser = _PARSERS[name].parser
    words = rest.split()
    while words and words[-1].endswith(","):
        words.pop()  # a list continues: `-t 0,`
    option = parser._option_string_actions.get(words[-1].rstrip("=")) if words else None
    if option is not None and option.nargs != 0:
        return option.choices or _values(shell, option.dest)
    if token.startswith("-"):
        taken = ACTIONS[words[0]].options if name == "task" and words and words[0] in ACTIONS else None
        known = parser._option_string_actions.items()
        return [key for key, what in known if key not in words and (taken is None or what.dest in taken)]
    if name == "taskfarm":
        return _farm_words(words)
    if name == "task":
        return _task_words(shell, words, token)
    # The iterable of %%taskmap is an expression, which IPython completes.
    return [] if name == "%%taskmap" else parser._option_string_actions


def _values(shell: Any, option: str) -> Iterable[str]:
    """Return possible values of an option; nothing: the shell completes it, for example with files."""
    if option == "targets":
        return [str(row.id) for row in _ask(shell, messages.ListEngines(), tables.EngineTable).rows]
    if option in ("push", "depend"):
        space = shell.user_ns
        return [name for name in space if not name.startswith("_") and (option == "push" or callable(space[name]))]
    if option == "farm_option":
        return [farm.name for farm in list_farms()]
    if option == "job":
        return _jobs(shell)
    if option == "after":
        return [name for name, value in shell.user_ns.items() if isinstance(value, TaskHandle | Job)]
    return POLICIES if option == "queue_policy" else ()


def _farm_words(words: list[str]) -> Iterable[str]:
    actions = next(a.choices for a in _PARSERS["taskfarm"].parser._actions if a.dest == "action")
    chosen = next((word for word in words if word in actions), None)
    if chosen is None:
        return list(actions)
    return [farm.name for farm in list_farms() if farm.running or chosen == "start"]


def _task_words(shell: Any, words: list[str], token: str) -> Iterator[str]:
    if not words:
        yield from ACTIONS
        return
    kind = ACTIONS[words[0]].words if words[0] in ACTIONS else ""
    if kind == "job":
        yield from _jobs(shell) if len(words) == 1 else ()
    elif kind == "nodes":
        state = _ask(shell, messages.FarmStatus(), tables.FarmState)
        yield from dict.fromkeys(str(agent["node"]) for agent in state.agents)
    if kind != "tasks":
        return
    yield from (n for n, value in shell.user_ns.items() if isinstance(value, TaskHandle | Job) and n[0] != "_")
    ids = _ids(shell, _OF_INTEREST.get(words[0], _ALL))
    yield from [i for i in map(str, reversed(ids)) if i.startswith(token) and i not in words][:RECENT]


def _jobs(shell: Any) -> list[str]:
    """Return the names of the latest jobs, without names that need quotes."""
    rows = _ask(shell, messages.FindJobs(), tables.JobTable).rows
    return [name for row in reversed(rows) if (name := row.name).isprintable() and not re.search(r"\s", name)][:RECENT]


def _ids(shell: Any, states: Sequence[str | None]) -> list[int]:
    """Return the tasks in the first of these states that has few enough tasks."""
    with question(connection.farm_name(shell)) as questioner:
        counts = state_counts(questioner.answer_for(messages.QueueStatus(), tables.QueueStatusReply, ANSWER_S).counts)
        unfinished = counts["scheduled"] + counts[RUNNING]
        sizes = {state: counts.get(state or "", 0) for state in states}
        sizes |= {None: sum(counts.values()), "unfinished": unfinished}
        sizes["finished"] = sum(counts.values()) - unfinished
        for state in states:
            if sizes[state] <= ROWS:
                table = questioner.answer_for(messages.ListTasks(None, None, state), tables.TaskRows, ANSWER_S)
                return [row.id for row in table.rows]
    return []


def _ask(shell: Any, asked: messages.Question, expected: type[_R]) -> _R:
    with question(connection.farm_name(shell)) as questioner:
        return questioner.answer_for(asked, expected, ANSWER_S)
