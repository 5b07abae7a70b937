"""Tells that a job, or a task, is retried with a function that the program has defined anew since."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from ..core.messages import ReadTask, TaskCopy
from ..serialization.pack import unpack_function
from ..system.user_code import tell_user
from .questions import AsksController

_JOBS_KEPT = 256
_FUNCTIONS_KEPT = 16
_TASKS_LOOKED_AT = 8
"""Each costs a question."""


class _SubmittedCode(NamedTuple):
    module: str
    name: str
    code: types.CodeType


_submitted: OrderedDict[str, dict[types.CodeType, _SubmittedCode]] = OrderedDict()
"""Job -> the definitions of its functions. The code alone: a function would keep alive what it refers to."""


def note_functions(job: str, functions: Iterable[object]) -> None:
    """Remember the definitions of functions with which tasks of a job were submitted, as far as they have a name."""
    found = _submitted.setdefault(job, {})
    for function in functions:
        if len(found) == _FUNCTIONS_KEPT:
            break
        if type(function) is types.FunctionType and "<" not in function.__qualname__:
            found[function.__code__] = _SubmittedCode(function.__module__, function.__qualname__, function.__code__)
    while len(_submitted) > _JOBS_KEPT:
        _submitted.popitem(last=False)


def tell_of_edited(job: str) -> bool:
    """Tell if the program has another function now under the name of one with which the job was submitted.

    Returns: whether this program has submitted the job, and so knows its functions.
    """
    edited = [each.name for each in _submitted.get(job, {}).values() if _is_edited(each)]
    if edited:
        _tell(edited, f"job.retry_failed({edited[0]})")
    return job in _submitted


def tell_of_edited_tasks(session: AsksController, ids: Iterable[int]) -> None:
    """Tell if the program has another function now under the name of one that these tasks call.

    The functions are those that the farm has, so it does not matter which program has submitted them.  Of many tasks
    only the first ones are looked at.
    """
    edited: dict[str, None] = {}
    seen: set[str | None] = {None}
    for task_id in list(ids)[:_TASKS_LOOKED_AT]:
        # Retrying does not depend on it: a module that the function needs may be missing here.
        with suppress(Exception):
            copy = session.ask(ReadTask(task_id))
            if isinstance(copy, TaskCopy) and copy.task.function not in seen:
                seen.add(copy.task.function)
                code = next(each.code for each in copy.functions if each.digest == copy.task.function)
                sent = unpack_function(code)
                sent = vars(sent).get("__wrapped__", sent)
                if type(sent) is types.FunctionType and "<" not in sent.__qualname__:
                    found = _definition(sent.__module__, sent.__qualname__)
                    if found is not None and not _do_the_same(found.__code__, sent.__code__):
                        edited[sent.__qualname__] = None
    if edited:
        _tell(list(edited), f"tc.retry(ids, {next(iter(edited))})")


def _tell(edited: list[str], remedy: str) -> None:
    what = f"{edited[0]} has" if len(edited) == 1 else f"{' and '.join(edited)} have"
    tell_user(
        f"{what} been defined anew since these tasks were submitted; they run again as they were. For the new "
        f"definition: {remedy}"
    )


def _is_edited(definition: _SubmittedCode) -> bool:
    found = _definition(definition.module, definition.name)
    return found is not None and found.__code__ != definition.code


def _definition(module: str, qualname: str) -> types.FunctionType | None:
    """Return the function that the program has now under this name."""
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(name)  # a module's own __getattr__ may do anything
    return found if type(found) is types.FunctionType else None


def _do_the_same(one: types.CodeType, other: types.CodeType) -> bool:
    """Return whether two codes differ in their files and lines at most."""
    names = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags", "co_argcount")
    if any(getattr(one, name) != getattr(other, name) for name in names) or len(one.co_consts) != len(other.co_consts):
        return False
    return all(
        _do_the_same(mine, its)
        if isinstance(mine, types.CodeType) and isinstance(its, types.CodeType)
        else type(mine) is type(its) and mine == its
        for mine, its in zip(one.co_consts, other.co_consts, strict=True)
    )
