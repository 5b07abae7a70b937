"""The rules of a task: attributes that say where, when and how often it runs, and that are checked when they are set.

`Task` and `Job` share them: a rule of a job applies to each of its tasks that does not set this rule itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from inspect import Parameter
from math import isfinite
from numbers import Integral, Real
from typing import Any, TypedDict

from ..core.arguments import (
    INT_MAX,
    INT_MIN,
    as_bool,
    check_count,
    check_int,
    check_name,
    check_number,
    check_seconds,
    check_text,
    one_of,
    wrong,
)
from ..core.messages.result_cache import MODES, ON
from ..core.messages.task_types import FAIL, IF_FAILED, Function, Recovery, Rules
from ..core.requirements import (
    FACTS,
    MEMORY,
    NUMBERS,
    OPERATORS,
    SIZE_MAX,
    SIZES,
    Asks,
    Condition,
    ResourceAmount,
    bytes_of,
)
from ..core.scheduler.settings import PLACEMENTS
from ..core.text import did_you_mean, exactly, shown
from ..environment import TaskEnvironment
from ..serialization.pack import pack_function
from .environments import pack_environment_of

PROPERTY = "property:"
"""Prefix of a property's name in `requires`; names without it are facts."""

HOLD = "hold"
ON_FAILURE = (FAIL, HOLD)
"""What becomes of an engine on which a task fails."""

LOW, BELOW_NORMAL, NORMAL, ABOVE_NORMAL, HIGH = -20, -10, 0, 10, 20
"""Names for priorities; any int is valid."""


class Requirements(TypedDict, total=False):
    """The requirements of a task, or of each task of a job, for its engine and its node.

    environment: a `TaskEnvironment` that is set up on the engine before the task, which uses it under the name ``env``.
    requires: conditions on an engine's facts, ``{"memory": ">= 4 GiB", "hostname": ["a", "b"]}``, and on its
        properties,
        ``{"property:model": "A100"}``.
    resources: what the task reserves on its node while it runs, ``{"cores": 2, "memory": "2 GiB", "gpu": 1}``; a pair
        is (at least, at most).
    exclusive: nothing else runs on the node at the same time.
    group, max_parallel, max_parallel_per_node: the number of tasks of this group that may run at once, on the farm
        and on each node.
    force: start the task even if the load guard forbids it.
    fail_if_unmet: fail at once if no engine can run the task.
    placement: which free engine is taken: default, priority, least_recent, most_recent, random, nearest_environment.
    locality: a function of an engine's properties that returns -1 (never there), 0 (no preference) or a larger number
        (better).
    grace: seconds between the interrupt of a run and the signals that kill its engine.
    lost_retries: how often the task runs again after the loss of its engine; None: these runs count as retries.
    if_failed: what happens when a task that it waits for fails: "fail" (it fails too), "skip" (it ends as skipped,
        which is no failure of its job), "run" (it runs; a `Ref` to the failed task gives the exception).
    retry_delay: seconds before a retry after an error, or a function of the number of the failed attempt (1, 2 …).
    retry_on: an exception type, or several: only these errors are retried; (): all errors.
    defer_time: seconds before a deferred run starts again.
    defer_max: seconds after which a deferral fails the task.
    warn_after: seconds of a run after which the client is warned, and `status` shows it; the run goes on.
    on_failure: "hold": an engine on which the task fails keeps the frames for a debugger, see `TaskClient.debug`, and
        another engine takes its place; "fail": nothing is kept.
    cache: True: the result of an equal task that ran before is taken, see docs/caching.md; "refresh": it runs in any
        case, and its result is kept; "readonly": a kept result is taken, and none is left.
    idempotent: the task may run twice at once: a second copy is begun when its run is slow, see docs/jobs.md.
    """

    environment: TaskEnvironment | None
    requires: Mapping[str, Any] | None
    resources: Mapping[str, Any] | None
    exclusive: bool
    group: str | None
    max_parallel: int | None
    max_parallel_per_node: int | None
    force: bool
    fail_if_unmet: bool
    placement: str | None
    locality: Callable[[dict[str, Any]], int] | None
    grace: float | timedelta | None
    lost_retries: int | None
    if_failed: str
    retry_delay: Any
    retry_on: Any
    defer_time: float | timedelta
    defer_max: float | timedelta
    warn_after: float | timedelta | None
    on_failure: str
    cache: bool | str
    idempotent: bool


class Asking(Requirements, total=False):
    """The keywords of a task that its constructor collects: `Requirements`, and rules for the task alone.

    after: tasks that must end first: ids, futures, or tasks of the same job.
    unique: a key.  The task is refused while an unfinished task has the same key; with on_duplicate="return", `run`
        returns the id of that task instead.
    """

    after: Any
    unique: str | None
    on_duplicate: str


class MapRules(Requirements, total=False):
    """The rules of a map's items: those of a `Task`."""

    clear_before: bool
    clear_after: bool
    retries: int
    recovery_task: Any
    depend: Any
    priority: int
    time_limit: float | timedelta | None
    targets: Any


class JobRules(Requirements, total=False):
    """The keywords of ``tc.create_job``: rules for all tasks of the job, and rules of the job itself.

    retries, depend, priority, time_limit, targets: as for a `Task`. second_copies: all tasks are idempotent, so second
    copies of slow ones may run. abort_on_failure, abort_on_disconnect, unique: see
    `Job`; the ``cancel_on_…`` keywords are other names for them.
    """

    retries: int
    depend: Any
    priority: int
    time_limit: float | timedelta | None
    targets: Any
    abort_on_failure: bool
    cancel_on_task_failure: bool
    abort_on_disconnect: bool
    cancel_on_client_disconnection: bool
    unique: str | bool | None
    second_copies: bool


def keyword_parameters(keywords: type) -> dict[str, Parameter]:
    """Return the keys of a TypedDict as the parameters of a signature."""
    return {
        name: Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=DEFAULTS.get(name, False),
            annotation=getattr(hint, "__forward_arg__", hint),
        )
        for name, hint in keywords.__annotations__.items()
    }


# --------------------------------------------------------------------------------------------------
# Checks: (attribute, value) -> the value as it is stored


def flag(attribute: str, value: Any) -> bool:
    """Return a value as a bool.  0 and 1 are accepted as in IPython 0.10, and numpy's bool too."""
    found = as_bool(value)
    if found is None and isinstance(value, Real) and value in (0, 1):
        found = bool(value)
    if found is None:
        raise wrong(attribute, "True or False", value)
    return found


def _retries(value: Any) -> int:
    # Old scripts compute this number, so 1.0 counts as 1.
    if isinstance(value, Real) and not isinstance(value, Integral) and float(value).is_integer():
        value = int(float(value))
    number = check_int("retries", value)
    if number < 0:
        raise ValueError(f"retries must be 0 or more, not {number}")
    return number


def _depend(value: Any) -> Any:
    # A value that is not callable is accepted: the task then fits no engine (as in IPython 0.10), and `explain` says
    # why.
    return value


def _targets(value: Any) -> tuple[int, ...] | None:
    if value is None or (isinstance(value, str) and exactly(value) == "all"):
        return None
    if isinstance(value, (list, tuple, set, frozenset, range)):
        ids = tuple(_target(i) for i in value)
        if not ids:
            raise ValueError("targets must name at least one engine id; None means any engine")
        return ids
    return (_target(value),)


def _target(value: Any) -> int:
    """Return the id of an engine.  A task for an id that no engine can get would wait for ever."""
    engine = check_int("targets", value)
    if engine < 0:
        raise ValueError(f"targets must be ids of engines, which are 0 or more, not {engine}")
    return engine


def _environment(value: Any) -> TaskEnvironment | None:
    if isinstance(value, type) and issubclass(value, TaskEnvironment):
        raise TypeError(f"environment must be an instance: {value.__name__}(), not the class itself")
    if value is not None and not isinstance(value, TaskEnvironment):
        raise wrong("environment", "a TaskEnvironment or None", value)
    return value


def _requires(value: Any) -> tuple[Condition, ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise wrong("requires", "a dict of names and conditions, like {'memory': '>= 4 GiB'}", value)
    return tuple(_condition(name, wanted) for name, wanted in value.items())


def _condition(name: Any, wanted: Any) -> Condition:
    if not isinstance(name, str):
        raise wrong("requires", "a dict whose keys are names", name)
    name = _fact_or_property(check_name("requires: a name", name))
    if isinstance(wanted, (list, tuple, set, frozenset)):
        return Condition(name, "in", tuple(_operand(name, each) for each in wanted))
    if isinstance(wanted, str):
        wanted = exactly(wanted)
        for op in sorted(OPERATORS, key=len, reverse=True):
            if wanted.startswith(op) and not op[0].isalpha():
                return Condition(name, op, _operand(name, wanted[len(op) :].strip()))
        if wanted.startswith(("=", "!")):  # "=> 4" is equal to nothing
            raise _no_condition(name, wanted)
    return Condition(name, "==", _operand(name, wanted))


def _fact_or_property(name: str) -> str:
    """Return the name of a fact or a property as it is sent.  Raises ValueError for an unknown fact."""
    if name.startswith(PROPERTY):
        return name.removeprefix(PROPERTY)
    if name not in FACTS:
        near = did_you_mean(name, FACTS)
        raise ValueError(
            f"requires: engines have no fact {shown(name)}{near or ','} the facts are {', '.join(sorted(FACTS))};"
            f" a property needs 'property:' before its name: {shown(PROPERTY + name)}"
        )
    return name


def _operand(name: str, value: Any) -> str | float | bool:
    truth = as_bool(value)
    if truth is not None:
        return truth
    if isinstance(value, Integral) and INT_MIN <= int(value) <= INT_MAX:
        return int(value)
    if isinstance(value, Real):
        return check_number(f"requires: {name}", value)
    if not isinstance(value, str):
        raise wrong(f"requires: {name}", "a number, a str, or a list of them", value)
    text = check_text(name, value) or ""
    if name in SIZES:
        return _size("requires", name, text)
    if name in ("python", "version"):
        return text
    try:
        number = float(text)
    except ValueError:
        if name in NUMBERS:
            raise _no_condition(name, text) from None
        return text
    return number if isfinite(number) else text


def _no_condition(name: str, text: str) -> ValueError:
    known = ", ".join(op for op in OPERATORS if not op[0].isalpha())
    number = "a number" if name in NUMBERS else "a value"
    return ValueError(f"requires: {name}: {number} is expected, after one of {known} or none, not {shown(text)}")


def _size(attribute: str, name: str, text: str) -> float:
    try:
        return bytes_of(text)
    except ValueError as error:
        raise ValueError(f"{attribute}: {name}: {error}") from None


def _resources(value: Any) -> tuple[ResourceAmount, ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise wrong("resources", "a dict of names and amounts, like {'cores': 2, 'memory': '2 GiB'}", value)
    return tuple(_want(name, amount) for name, amount in value.items())


def _want(name: Any, amount: Any) -> ResourceAmount:
    if not isinstance(name, str):
        raise wrong("resources", "a dict whose keys are names", name)
    name = check_name("resources: a name", name)
    least, most = amount if isinstance(amount, (tuple, list)) and len(amount) == 2 else (amount, amount)
    want = ResourceAmount(name, _amount(name, least), _amount(name, most))
    if want.most < want.least:
        raise ValueError(f"resources: of {name} at least {least} and at most {most} cannot be")
    return want


def _amount(name: str, value: Any) -> float:
    if isinstance(value, str):
        text = exactly(value)
        if name == MEMORY or _SIZE_UNIT.search(text):
            return _size("resources", name, text)
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"resources: {name} must be a number, like {{'{name}': 2}}, not {shown(value)}") from None
    expected = "bytes, or text like '2 GiB'" if name == MEMORY else "a number, or a pair of them"
    number = check_number(f"resources: {name}", value, expected)
    if not 0 <= number <= SIZE_MAX:
        raise ValueError(f"resources: {name} must be 0 or more, and at most 2**60, not {number:g}")
    return number


def _placement(value: Any) -> str | None:
    if value is None:
        return None
    word = exactly(value) if isinstance(value, str) else None
    if word not in PLACEMENTS:
        near = did_you_mean(word, PLACEMENTS)
        raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, not {shown(value)}{near}")
    return word


def _locality(value: Any) -> Any:
    if value is not None and not callable(value):
        raise wrong("locality", "a function of an engine's properties, or None", value)
    return value


def _retry_delay(value: Any) -> Any:
    return value if callable(value) else check_seconds("retry_delay", value)


def _retry_on(value: Any) -> tuple[type[BaseException], ...]:
    kinds = value if isinstance(value, (list, tuple)) else () if value is None else (value,)
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise wrong("retry_on", "an exception type, or several", kind)
    return tuple(kinds)


def _seconds_or(attribute: str, value: Any) -> float:
    seconds = check_seconds(attribute, value)
    return float(DEFAULTS[attribute]) if seconds is None else seconds


def _cache(value: Any) -> bool | str:
    """Return False, or one of `MODES`."""
    if isinstance(value, str):
        if exactly(value) not in MODES:
            raise ValueError(
                f"cache must be True, False, 'refresh' or 'readonly', not {shown(value)}{did_you_mean(value, MODES)}"
            )
        return one_of("cache", MODES, value)
    return ON if value is not None and flag("cache", value) else False


CHECKS: dict[str, Callable[[Any], Any]] = {
    "retries": _retries,
    "depend": _depend,
    "name": partial(check_text, "name"),
    "priority": partial(check_int, "priority"),
    "time_limit": partial(check_seconds, "time_limit", zero=False),
    "targets": _targets,
    "environment": _environment,
    "requires": _requires,
    "resources": _resources,
    "exclusive": partial(flag, "exclusive"),
    "group": partial(check_text, "group"),
    "max_parallel": partial(check_count, "max_parallel", least=1),
    "max_parallel_per_node": partial(check_count, "max_parallel_per_node", least=1),
    "force": partial(flag, "force"),
    "fail_if_unmet": partial(flag, "fail_if_unmet"),
    "placement": _placement,
    "locality": _locality,
    "grace": partial(check_seconds, "grace"),
    "lost_retries": partial(check_count, "lost_retries", least=0),
    "if_failed": partial(one_of, "if_failed", IF_FAILED),
    "retry_delay": _retry_delay,
    "retry_on": _retry_on,
    "defer_time": partial(_seconds_or, "defer_time"),
    "defer_max": partial(_seconds_or, "defer_max"),
    "warn_after": partial(check_seconds, "warn_after"),
    "on_failure": partial(one_of, "on_failure", ON_FAILURE),
    "cache": _cache,
    "idempotent": partial(flag, "idempotent"),
    "unique": partial(check_text, "unique"),
    "on_duplicate": partial(one_of, "on_duplicate", ("refuse", "return")),
}

DEFAULTS: dict[str, Any] = {
    "retries": 0, "recovery_task": None, "depend": None, "name": None, "priority": 0, "time_limit": None,
    "targets": None, "environment": None, "requires": (), "resources": (), "exclusive": False, "group": None,
    "max_parallel": None, "max_parallel_per_node": None, "force": False, "fail_if_unmet": False, "placement": None,
    "locality": None, "grace": None, "lost_retries": None, "after": (), "if_failed": FAIL, "retry_delay": 0.0,
    "retry_on": (), "defer_time": 300.0, "defer_max": 3600.0, "warn_after": None, "on_failure": FAIL, "cache": False,
    "idempotent": False, "unique": None, "on_duplicate": "refuse",
}  # fmt: skip


_SIZE_UNIT = re.compile(r"\d\s*[kKmMgGtT]?i?[bB]\s*\Z|\d\s*[kKmMgGtT]\s*\Z")
"""Matches a size in bytes, for any resource: the owner of a farm may declare resources that are counted in bytes."""


# --------------------------------------------------------------------------------------------------
# Packing

_NO_RULES = Rules()
_NO_ASKS = Asks()


def pack_rules(
    given: Mapping[str, Any],
    shared: Mapping[str, Any],
    job: str | None,
    recovery: Recovery | None,
    functions: dict[str, Function],
) -> Rules | None:
    """Pack the rules of a task and those that its job shares, and add the functions that they need to `functions`.

    Returns None if all rules are defaults.
    """
    global _latest
    said = {**shared, **{name: value for name, value in given.items() if name in DEFAULTS}}
    said.pop("cache", None)  # it travels in the submission
    if said.keys() == _ENVIRONMENT and job is None and recovery is None:
        return _environment_alone(said["environment"], functions)
    is_simple = said.keys() <= _SIMPLE and said.get("environment") is None and job is None and recovery is None
    if is_simple and _latest is not None and said == _latest[0]:
        return _latest[1]
    asks = _pack_asks(said, job, functions) if said.keys() & _ASKED else None
    rules = Rules(
        name=said.get("name"),
        priority=said.get("priority", 0),
        retries=said.get("retries", 0),
        lost_retries=said.get("lost_retries"),
        time_limit_s=said.get("time_limit"),
        targets=said.get("targets"),
        depend=_pack_depend(said.get("depend"), functions),
        recovery=recovery,
        job=job,
        asks=asks,
        grace_s=said.get("grace"),
        retry_delays_s=_delays(said.get("retry_delay"), said.get("retries", 0)),
        retry_on=tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in said.get("retry_on", ())),
        defer_s=said.get("defer_time", 300.0),
        defer_max_s=said.get("defer_max", 3600.0),
        warn_after_s=said.get("warn_after"),
        unique=said.get("unique"),
        freeze=said.get("on_failure") == HOLD,
        idempotent=said.get("idempotent", False),
    )
    packed = None if rules == _NO_RULES else rules
    if is_simple:
        _latest = said, packed
    return packed


_SIMPLE = frozenset(
    {
        "environment",
        "grace",
        "lost_retries",
        "name",
        "on_failure",
        "priority",
        "retries",
        "retry_on",
        "time_limit",
        "warn_after",
    }
)
"""Rules that are plain values, without code."""
_latest: tuple[dict[str, Any], Rules | None] | None = None
"""The latest simple rules, and their pack: a program gives the same ones to thousands of tasks."""

DELAYS_MAX = 1000
"""Number of retries for which a function of delays is called; later retries use the last delay."""


def _delays(delay: Any, retries: int) -> tuple[float, ...]:
    if callable(delay):
        found = [check_seconds("retry_delay", delay(n)) for n in range(1, min(retries, DELAYS_MAX) + 1)]
        return tuple(float(each or 0.0) for each in found)
    return (float(delay),) if delay else ()


_ASKED = frozenset(Asks.__struct_fields__) & frozenset(Asking.__annotations__)
_ENVIRONMENT = frozenset({"environment"})


def _pack_asks(said: Mapping[str, Any], job: str | None, functions: dict[str, Function]) -> Asks | None:
    environment, recycle = pack_environment_of(said.get("environment"), functions)
    if said.keys() & _ASKED == _ENVIRONMENT:
        return Asks(environment=environment, recycle=recycle) if environment or recycle else None
    limited = said.get("max_parallel") is not None or said.get("max_parallel_per_node") is not None
    group = said.get("group") or (job if limited else None)
    if limited and group is None:
        raise ValueError("max_parallel and max_parallel_per_node are limits of a group: give group='a name' too")
    asks = Asks(
        environment=environment,
        recycle=recycle,
        requires=said.get("requires", ()),
        resources=said.get("resources", ()),
        exclusive=said.get("exclusive", False),
        group=group,
        max_parallel=said.get("max_parallel"),
        max_parallel_per_node=said.get("max_parallel_per_node"),
        force=said.get("force", False),
        fail_if_unmet=said.get("fail_if_unmet", False),
        placement=said.get("placement"),
        locality=_pack_function(said.get("locality"), functions),
    )
    return None if asks == _NO_ASKS else asks


_alone: list[Rules | None] = [None]
"""The last rules that consist of an environment alone: a loop submits many such tasks."""


def _environment_alone(environment: TaskEnvironment | None, functions: dict[str, Function]) -> Rules | None:
    packed, recycle = pack_environment_of(environment, functions)
    last = _alone[0]
    if last is not None and last.asks is not None and last.asks.environment is packed and last.asks.recycle == recycle:
        return last
    asks = Asks(environment=packed, recycle=recycle)
    _alone[0] = None if asks == _NO_ASKS else Rules(asks=asks)
    return _alone[0]


def _pack_depend(depend: Any, functions: dict[str, Function]) -> str | None:
    if depend is not None and not callable(depend):
        depend = partial(not_callable, shown(depend))
    return _pack_function(depend, functions)


def _pack_function(function: Any, functions: dict[str, Function]) -> str | None:
    if function is None:
        return None
    code = pack_function(function)
    functions[code.digest] = code
    return code.digest


def not_callable(what: str, properties: object) -> bool:
    """Replace a `depend` that is no function: raise an error, which `explain` shows."""
    raise TypeError(f"depend is {what}, not a function of an engine's properties")
