"""Completion of the magics: what to do, options, farms, ids."""

from __future__ import annotations

import contextlib
from typing import Any

from ..doors.runtime import list_farms
from . import connection

_FARM = ("start", "stop", "status", "connect")
_FARM_OPTIONS = ("-n", "--startup", "--fresh", "--drain", "--wait", "--force")
_TASK_OPTIONS = (
    "--pull", "--push", "--retries", "--depend", "--time-limit", "--clear-before", "--clear-after", "--name",
    "--priority", "--targets", "--out", "--block",
)  # fmt: skip
_TASKS_OPTIONS = ("--state", "--name", "--last")
_STATES = ("scheduled", "running", "succeeded", "failed", "unfinished", "finished")
RECENT = 20

_PATTERNS = (r"%?taskfarm\b", r"%task\b", r"%%task\b", r"%%taskmap\b", r"%tasks\b")


def register_completion(shell: Any) -> None:
    """Have the shell ask us about lines that begin with one of our magics."""
    for pattern in _PATTERNS:
        shell.set_hook("complete_command", _complete, re_key=rf"\s*{pattern}")


def remove_completion(shell: Any) -> None:
    """Not any more."""
    dispatcher = shell.strdispatchers.get("complete_command")
    if dispatcher is not None:
        for pattern in [p for p in dispatcher.regexs if any(p.pattern == rf"\s*{mine}" for mine in _PATTERNS)]:
            del dispatcher.regexs[pattern]


def _complete(shell: Any, event: Any) -> list[str]:
    line = event.line.lstrip().splitlines()[0] if event.line.strip() else ""
    words = line.split()
    last = "" if line.endswith(" ") else words[-1] if words else ""
    before = words[: len(words) - bool(last)]
    offers: list[str] = []
    with contextlib.suppress(Exception):  # a completion that fails is none; it never disturbs who types
        offers = _offers(shell, before, last)
    return [offer for offer in offers if offer.startswith(last)]


def _offers(shell: Any, before: list[str], last: str) -> list[str]:
    magic = before[0].lstrip("%") if before else ""
    option = before[-1] if len(before) > 1 else ""
    if option in ("-t", "--targets"):
        return [str(i) for i in connection.engine_client(shell).get_ids()]
    if option == "--state":
        return list(_STATES)
    if option in ("--push", "--depend"):
        return [name for name in shell.user_ns if not name.startswith("_")]
    if magic == "taskfarm":
        if last.startswith("-"):
            return list(_FARM_OPTIONS)
        return list(_FARM) if len(before) == 1 else [farm.name for farm in list_farms()]
    if magic == "tasks":
        return list(_TASKS_OPTIONS)
    if magic == "task" and before[0] == "%task":
        return _task_words(shell, before)
    return list(_TASK_OPTIONS)


def _task_words(shell: Any, before: list[str]) -> list[str]:
    from .task_magics import ACTIONS

    if len(before) == 1:
        return list(ACTIONS)
    state = {"abort": "unfinished", "stack": "running", "retry": "failed", "failures": "failed"}.get(before[1])
    return [str(i) for i in connection.task_client(shell).tasks(state=state).ids[-RECENT:]]
