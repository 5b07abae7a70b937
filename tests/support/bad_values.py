"""Unexpected values, and calls to pass them to; to extend the table, add a line to `VALUES` or `CALLS`."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from ipytaskfarm import MultiEngineClient, RecycleSettings, StringTask, Task, TaskClient, TaskEnvironment

SURROGATE = "caf\udce9"
"""A file name that is not UTF-8, as Python reads it."""


class OddText(str):
    """A str with a broken opinion on everything but its characters."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __format__ = encode = lower = startswith = __str__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")


class Unshowable:
    """Its repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Unindexable:
    """Its __index__ raises."""

    def __index__(self) -> int:
        raise RuntimeError("no number")


class Word(enum.StrEnum):
    ONE = "one"


class Figure(enum.IntEnum):
    THREE = 3


def _recursive_list() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def _recursive_dict() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["self"] = found
    return found


def _generator() -> Iterator[Any]:
    yield SURROGATE


VALUES: dict[str, Callable[[], Any]] = {
    "surrogate": lambda: SURROGATE,
    "lone low": lambda: "\ud800\udc00",
    "nul": lambda: "a\0b",
    "long": lambda: "x" * 300_000,
    "empty": lambda: "",
    "line": lambda: "a\nb\u2028c",
    "odd str": lambda: OddText("odd"),
    "str enum": lambda: Word.ONE,
    "int enum": lambda: Figure.THREE,
    "numpy str": lambda: np.str_("word"),
    "numpy int": lambda: np.int64(3),
    "numpy uint": lambda: np.uint64(2**64 - 1),
    "numpy float": lambda: np.float64(1.5),
    "numpy float32": lambda: np.float32(1.5),
    "numpy bool": lambda: np.bool_(True),
    "numpy array": lambda: np.arange(3),
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "1e300": lambda: 1e300,
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "2**64": lambda: 2**64,
    "10**30": lambda: 10**30,
    "10**400": lambda: 10**400,
    "-1": lambda: -1,
    "-2**63-1": lambda: -(2**63) - 1,
    "True": lambda: True,
    "None": lambda: None,
    "bytes": lambda: b"bytes",
    "Decimal": lambda: Decimal("1.5"),
    "Fraction": lambda: Fraction(3, 2),
    "complex": lambda: 1 + 2j,
    "dict": lambda: {1: 2},
    "surrogate dict": lambda: {SURROGATE: SURROGATE},
    "recursive list": _recursive_list,
    "recursive dict": _recursive_dict,
    "surrogate list": lambda: [SURROGATE],
    "list of None": lambda: [None],
    "list of 2**64": lambda: [2**64],
    "generator": _generator,
    "no repr": Unshowable,
    "no index": Unindexable,
    "object": object,
    "class": lambda: OddText,
    "timedelta": lambda: timedelta.max,
    "datetime": lambda: datetime.max,
}


class World(NamedTuple):
    """The objects whose methods are called."""

    tc: TaskClient
    mec: MultiEngineClient


Throw = Callable[[World, Any], Any]


def ran(**attributes: str) -> Throw:
    """A task with that attribute."""
    (name,) = attributes

    def throw(world: World, value: Any) -> Any:
        return world.tc.run(StringTask("a = 1", **{name: value}))

    return throw


def checked(environment: Callable[[Any], TaskEnvironment]) -> Throw:
    """An environment, as it travels: run, it might rightly recycle its engine."""
    return lambda world, value: world.tc.check(Task("a = 1", environment=environment(value)))


def _environment(**attributes: Any) -> TaskEnvironment:
    environment = TaskEnvironment()
    for name, value in attributes.items():
        setattr(environment, name, value)
    return environment


def recycling(setting: str) -> Throw:
    """An environment with that setting."""

    def make(value: Any) -> TaskEnvironment:
        environment = TaskEnvironment()
        environment.recycle = RecycleSettings(**{setting: value})
        return environment

    return checked(make)


def keyed(throw: Throw) -> Throw:
    """Make a dict with the value as its key; fail for a value without a hash."""

    def throw_dict(world: World, value: Any) -> Any:
        try:
            named = {value: 1}
        except (TypeError, RuntimeError):
            return None
        return throw(world, named)

    return throw_dict


TASK_FIELDS = (
    "pull", "push", "clear_before", "clear_after", "retries", "recovery_task", "depend", "name", "priority",
    "time_limit", "targets", "environment", "requires", "resources", "exclusive", "group", "max_parallel",
    "max_parallel_per_node", "force", "fail_if_unmet", "placement", "locality", "grace", "lost_retries", "after",
    "if_failed", "retry_delay", "retry_on", "defer_time", "defer_max", "warn_after", "unique", "on_duplicate",
)  # fmt: skip

JOB_FIELDS = ("name", "unique", "abort_on_failure", "priority", "group", "requires", "resources", "time_limit")


def job(field: str) -> Throw:
    """A job with that attribute."""

    def throw(world: World, value: Any) -> Any:
        made = world.tc.create_job(**{field: value})
        made.add_task(Task("a = 1"))
        return made.submit()

    return throw


RECYCLING = (
    "after_tasks",
    "idle_timeout",
    "interval",
    "at_times",
    "max_memory",
    "on_job_end",
    "on_failure",
    "keep_session",
)


def pause(world: World, value: Any) -> None:
    world.tc.pause(value)
    world.tc.resume(value)


CALLS: dict[str, Throw] = {
    "expression": lambda w, v: w.tc.run(StringTask(v)),
    **{f"task {field}": ran(**{field: field}) for field in TASK_FIELDS},
    "requires key": keyed(lambda w, v: w.tc.run(Task("a = 1", requires=v))),
    "requires value": lambda w, v: w.tc.run(Task("a = 1", requires={"property:word": v})),
    "requires values": lambda w, v: w.tc.run(Task("a = 1", requires={"property:word": [v]})),
    "requires condition": lambda w, v: w.tc.run(Task("a = 1", requires={"memory": v})),
    "resources key": keyed(lambda w, v: w.tc.run(Task("a = 1", resources=v))),
    "resources value": lambda w, v: w.tc.run(Task("a = 1", resources={"cores": v})),
    "resources pair": lambda w, v: w.tc.run(Task("a = 1", resources={"cores": (0, v)})),
    "push key": keyed(lambda w, v: w.tc.run(Task("a = 1", push=v))),
    "push value": lambda w, v: w.tc.run(Task("a = 1", push={"a": v})),
    "pull name": lambda w, v: w.tc.run(Task("a = 1", pull=[v])),
    "call args": lambda w, v: w.tc.run(Task(repr, args=(v,))),
    "call kwargs": lambda w, v: w.tc.run(Task(dict, kwargs={"a": v})),
    "call kwargs key": keyed(lambda w, v: w.tc.run(Task(dict, kwargs=v))),
    "args": lambda w, v: w.tc.run(Task(dict, args=v)),
    "kwargs": lambda w, v: w.tc.run(Task(dict, kwargs=v)),
    "max_parallel": lambda w, v: w.tc.run(Task("a = 1", group="g", max_parallel=v)),
    "tc.run": lambda w, v: w.tc.run(v),
    "tc.submit": lambda w, v: w.tc.submit(str, v),
    "tc.map": lambda w, v: w.tc.map(type, [v]),
    # Of 300,000 items each later table of tasks would be as long.
    "tc.map items": lambda w, v: w.tc.map(type, v[:10_000] if type(v) is str else v),
    "tc.map function": lambda w, v: w.tc.map(v, [1]),
    "tc.imap": lambda w, v: list(w.tc.imap(type, [v])),
    "tc.barrier": lambda w, v: w.tc.barrier(v, timeout=5),
    "tc.barrier timeout": lambda w, v: w.tc.barrier([], timeout=v),
    "tc.wait": lambda w, v: w.tc.wait(v, timeout=5),
    "tc.wait timeout": lambda w, v: w.tc.wait([], timeout=v),
    "tc.as_completed": lambda w, v: list(w.tc.as_completed(v, timeout=5)),
    "tc.flush": lambda w, v: w.tc.flush(v),
    "tc.get_task_result": lambda w, v: w.tc.get_task_result(v),
    "tc.abort": lambda w, v: w.tc.abort(v),
    "tc.abort reason": lambda w, v: w.tc.abort([w.tc.run(Task("a = 1"))], reason=v),
    "tc.clear": lambda w, v: w.tc.clear(v) if v is not None else None,
    "tc.retry": lambda w, v: w.tc.retry(v),
    "tc.restart": lambda w, v: w.tc.restart(v),
    "tc.status": lambda w, v: w.tc.status(v),
    "tc.stack": lambda w, v: w.tc.stack(v),
    "tc.tasks name": lambda w, v: w.tc.tasks(name=v),
    "tc.tasks state": lambda w, v: w.tc.tasks(state=v),
    "tc.tasks ids": lambda w, v: w.tc.tasks(ids=v),
    "tc.tasks last": lambda w, v: w.tc.tasks(last=v),
    "tc.failures": lambda w, v: w.tc.failures(v) if v is not None else None,
    "tc.history ids": lambda w, v: w.tc.history(v, last=10),
    "tc.history name": lambda w, v: w.tc.history(name=v, last=10),
    "tc.history what": lambda w, v: w.tc.history(what=v, last=10),
    "tc.history since": lambda w, v: w.tc.history(since=v, last=10),
    "tc.history last": lambda w, v: w.tc.history(last=v),
    "tc.pause job": pause,
    "tc.cache.list function": lambda w, v: w.tc.cache.list(function=v),
    "tc.cache.list last": lambda w, v: w.tc.cache.list(last=v),
    "tc.cache.forget function": lambda w, v: w.tc.cache.forget(function=v, key="none"),
    "tc.cache.forget key": lambda w, v: w.tc.cache.forget(key=v, function="none"),
    "tc.cache.forget older": lambda w, v: w.tc.cache.forget(older=v, function="none"),
    "tc.why_miss task id": lambda w, v: w.tc.why_miss(v),
    "tc.explain": lambda w, v: w.tc.explain(v),
    "tc.progress_of": lambda w, v: w.tc.progress_of(v),
    "tc.send": lambda w, v: w.tc.send(v, 1),
    "tc.send value": lambda w, v: w.tc.send(w.tc.run(Task("a = 1")), v, quiet=True),
    "tc.messages": lambda w, v: list(w.tc.messages(v, timeout=5)),
    "tc.mark_done": lambda w, v: w.tc.mark_done(v),
    "tc.mark_failed": lambda w, v: w.tc.mark_failed(v),
    "tc.mark_failed reason": lambda w, v: w.tc.mark_failed(w.tc.run(Task("a = 1")), v),
    "tc.job": lambda w, v: w.tc.job(v),
    "tc.drain": lambda w, v: w.tc.drain(v),
    "tc.drain nodes": lambda w, v: w.tc.drain([v]),
    "tc.await_engines": lambda w, v: w.tc.await_engines(1, v) if v != 1 else None,
    **{f"job {field}": job(field) for field in JOB_FIELDS},
    "environment unique_id": checked(lambda v: _environment(unique_id=v)),
    "environment additional_id": checked(lambda v: _environment(unique_id="u", additional_id=v)),
    "environment teardown_timeout": checked(lambda v: _environment(unique_id="u", teardown_timeout=v)),
    **{f"recycle {name}": recycling(name) for name in RECYCLING},
    "mec.push": lambda w, v: w.mec.push(v),
    "mec.push key": keyed(lambda w, v: w.mec.push(v)),
    "mec.push value": lambda w, v: w.mec.push({"thrown": v}),
    "mec.pull": lambda w, v: w.mec.pull(v),
    "mec.execute": lambda w, v: w.mec.execute(v),
    "mec.execute targets": lambda w, v: w.mec.execute("a = 1", targets=v),
    "mec.scatter key": lambda w, v: w.mec.scatter(v, [1, 2]),
    "mec.scatter seq": lambda w, v: w.mec.scatter("thrown", v),
    "mec.scatter dist": lambda w, v: w.mec.scatter("thrown", [1, 2], dist=v),
    "mec.gather": lambda w, v: w.mec.gather(v),
    "mec.get_result": lambda w, v: w.mec.get_result(v),
    "mec.set_properties": lambda w, v: w.mec.set_properties(v),
    "mec.set_properties key": keyed(lambda w, v: w.mec.set_properties(v)),
    "mec.set_properties value": lambda w, v: w.mec.set_properties({"thrown": v}),
    "mec.get_properties": lambda w, v: w.mec.get_properties(v),
    "mec.has_properties": lambda w, v: w.mec.has_properties(v),
    "mec.del_properties": lambda w, v: w.mec.del_properties(v),
    "mec.clear_kept": lambda w, v: w.mec.clear_kept(v),
    "mec.clear_sticky": lambda w, v: w.mec.clear_sticky(v),
    "mec.map": lambda w, v: w.mec.map(v, [1]),
}  # fmt: skip


_CALLED_OTHERWISE = {
    "call args": "args",
    "call kwargs": "kwargs",
    "call kwargs key": "kwargs",
    "tc.pause job": "name_or_id",
    "tc.tasks ids": "task id",
    "tc.history ids": "task id",
    "tc.send value": "message",
    "mec.push value": "value",
    "mec.set_properties key": "property",
    "mec.set_properties value": "property",
}


def argument(call: str) -> str:
    """Return the word by which the refusals of a call name the argument.  "": the call takes only one."""
    first, _, second = call.partition(" ")
    if call in _CALLED_OTHERWISE or first in ("tc.run", "expression", "args", "kwargs", "max_parallel"):
        return _CALLED_OTHERWISE.get(call, "")
    whole = first in ("task", "job", "recycle", "environment") or "." in first
    return second if whole else first
