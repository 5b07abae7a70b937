"""Turn the controller's copy of a task back into the `Task` that was submitted, and tell whether the program has
defined its function anew since.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from ..core.messages import Input, ReadTask, TaskCopy
from ..core.messages.payload import CallWork, ResultBody, StringWork, Work
from ..core.messages.task_types import FAIL, Rules
from ..core.requirements import Asks
from ..core.states import ABORTS
from ..serialization.pack import unpack, unpack_called, unpack_environment, unpack_error, unpack_function
from ..serialization.references import Ref, give_inputs
from ..system.user_code import tell_user
from .packing import filled
from .questions import AsksController
from .results import error_named
from .rules import DEFAULTS, HOLD
from .tasks import CallTask, Join, MapTask, StringTask, Task

_decode_work = msgspec.msgpack.Decoder(Work).decode
_decode_body = msgspec.msgpack.Decoder(ResultBody).decode


def task_of(copy: TaskCopy, *, with_values: bool = False) -> Task:
    """Return the task that a copy describes; of an item of a map, a task for this item alone.

    with_values: put the results that the task takes among its arguments; otherwise they stay `Ref` objects.

    Raises:
        BlobMissing, VersionMismatch: a part of it cannot be read here.
        IndexError: a result that it takes was cleared (with_values).
    """
    if copy.task.needs is not None and copy.task.needs.join:
        return Join(copy.task.needs.after, if_failed=copy.task.needs.if_failed)
    give_inputs(_values(copy.inputs) if with_values else _references(copy.inputs))
    try:
        codes = {function.digest: function.code for function in copy.functions}
        made = _made(copy.task.payload, copy.task.function, copy.task.rules, codes, copy.item)
    finally:
        give_inputs(None)
    needs = copy.task.needs
    if needs is not None and not with_values:
        taken = set(needs.takes)
        made.__dict__["after"] = tuple(each for each in needs.after if each not in taken)
        made.__dict__["if_failed"] = needs.if_failed
    return made


def _made(
    payload: bytes, digest: str | None, rules: Rules | None, codes: Mapping[str, bytes], item: int | None = None
) -> Task:
    work = _decode_work(payload)
    made: Task
    if isinstance(work, StringWork):
        made = StringTask(work.code, list(work.pull), unpack(work.push) if work.push is not None else {})
    else:
        made = _call(work, unpack_called(codes[digest or ""], work.values), item)
    clears = {"clear_before": work.clear_before, "clear_after": work.clear_after}
    # The values are those that the checks of the attributes have made.
    made.__dict__.update({name: value for name, value in clears.items() if value})
    ruled = {} if rules is None else _rules(rules, codes)
    made.__dict__.update(ruled)
    if ruled:
        made.__dict__["_ruled"] = True
    return made


def _call(work: CallWork, function: Callable[..., Any], item: int | None) -> CallTask:
    args, kwargs = unpack(work.arguments) if work.arguments is not None else ((), {})
    if work.each:
        items, star, first, _ = args
        each = items[item or 0]
        if first < 0:  # a call of an executor
            args, kwargs = each[0], each[1] if len(each) > 1 else {}
            function = filled(function, each[2]) if len(each) > 2 else function
        else:
            args, kwargs = (tuple(each) if star else (each,)), {}
    kind = MapTask if work.raw else CallTask
    made: CallTask = kind(function, args=tuple(args), kwargs=kwargs)
    return made


def _rules(rules: Rules, codes: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the attributes of a task that differ from their defaults."""
    said: dict[str, Any] = {
        "name": rules.name,
        "priority": rules.priority,
        "retries": rules.retries,
        "lost_retries": rules.lost_retries,
        "time_limit": rules.time_limit_s,
        "targets": rules.targets,
        "depend": _function(rules.depend, codes),
        "grace": rules.grace_s,
        "retry_delay": _delay(rules.retry_delays_s),
        "retry_on": _kinds(rules.retry_on),
        "defer_time": rules.defer_s,
        "defer_max": rules.defer_max_s,
        "warn_after": rules.warn_after_s,
        "unique": rules.unique,
        "on_failure": HOLD if rules.freeze else FAIL,
    }
    if rules.recovery is not None:
        said["recovery_task"] = _made(rules.recovery.payload, rules.recovery.function, rules.recovery.rules, codes)
    if rules.asks is not None:
        said.update(_asked(rules.asks, codes))
    return {name: value for name, value in said.items() if value != DEFAULTS[name]}


def _asked(asks: Asks, codes: Mapping[str, bytes]) -> dict[str, Any]:
    code = codes.get(asks.environment.identity) if asks.environment is not None else None
    return {
        "environment": unpack_environment(code)[0] if code is not None else None,
        "requires": asks.requires,
        "resources": asks.resources,
        "exclusive": asks.exclusive,
        "group": asks.group,
        "max_parallel": asks.max_parallel,
        "max_parallel_per_node": asks.max_parallel_per_node,
        "force": asks.force,
        "fail_if_unmet": asks.fail_if_unmet,
        "placement": asks.placement,
        "locality": _function(asks.locality, codes),
    }


def _function(digest: str | None, codes: Mapping[str, bytes]) -> Callable[..., Any] | None:
    code = codes.get(digest) if digest is not None else None
    return unpack_function(code) if code is not None else None


def _delay(delays_s: Sequence[float]) -> Any:
    if len(delays_s) <= 1:
        return delays_s[0] if delays_s else 0.0
    return lambda attempt: delays_s[min(attempt, len(delays_s)) - 1]


def _kinds(names: Sequence[str]) -> tuple[type[BaseException], ...]:
    """Return exception types by their qualified names; warn of a type that cannot be imported here."""
    found = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            kind = getattr(sys.modules.get(module) or importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError):
            warnings.warn(f"retry_on: {name} is not known here, and was left out", stacklevel=5)
        else:
            found.append(kind)
    return tuple(found)


# --------------------------------------------------------------------------------------------------
# Inputs


def _references(inputs: Sequence[Input]) -> Callable[[int], Any]:
    sources = {each.number: each.task for each in inputs}
    return lambda number: Ref(sources[number])


def _values(inputs: Sequence[Input]) -> Callable[[int], Any]:
    by_number = {each.number: each for each in inputs}
    return lambda number: _value(by_number[number])


def _value(each: Input) -> Any:
    """Return the value of an input; the exception if its task has failed, as the engine does."""
    if each.body is None:
        text = f"the result of task {each.task}, an argument of this one, has been cleared"
        raise IndexError(f"{text}; tc.debug(id, run=False) opens the frames that came with the failure")
    body = _decode_body(each.body) if each.body else ResultBody()
    if not each.reason:
        return unpack(body.value) if body.value is not None else None
    text = f"task {each.task} failed ({each.reason}): {each.failure.value if each.failure is not None else ''}"
    if body.failure is not None and each.reason not in ABORTS:
        return unpack_error(body.failure)
    return error_named("TaskAborted" if each.reason in ABORTS else "DependencyFailed", text)


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
