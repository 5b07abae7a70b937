"""Turn the controller's copy of a task back into the `Task` that was submitted."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ..core.messages import Input, TaskCopy
from ..core.messages.payload import CallWork, ResultBody, StringWork, Work
from ..core.messages.task_types import FAIL, Rules
from ..core.requirements import Asks
from ..core.states import ABORTS
from ..serialization.pack import unpack, unpack_environment, unpack_error, unpack_function
from ..serialization.references import Ref, give_inputs
from .results import error_named
from .rules import DEFAULTS, HOLD
from .tasks import CallTask, Join, MapTask, StringTask, Task

_decode_work = msgspec.msgpack.Decoder(Work).decode
_decode_body = msgspec.msgpack.Decoder(ResultBody).decode


def task_of(copy: TaskCopy, *, with_values: bool = False) -> Task:
    """Return the task that a copy describes; of an item of a map, a task for this item alone.

    Args:
        copy: the controller's copy.
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
        made = _call(work, unpack_function(codes[digest or ""]), item)
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
        items, star, _, _ = args
        each = items[item or 0]
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
