"""Results of runs as engines write them, and the real call of a task's function or code."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import msgspec

from ..client.tasks import MapTask, StringTask, Task
from ..core.errors import TaskRejectError, TimeLimitExceeded
from ..core.messages import Input
from ..core.messages.payload import CallWork, ResultBody, StringWork, Work
from ..core.messages.task_types import Ended, RunKey
from ..core.states import Reason
from ..engine.current import giver
from ..engine.failures import described
from ..serialization.pack import pack, unpack, unpack_called
from ..serialization.references import give_inputs
from .memory_store import MemoryReader, MemoryStore

_decode = msgspec.msgpack.Decoder(Work).decode
_encode = msgspec.msgpack.Encoder().encode


def succeeded(key: RunKey, task: Task, value: Any, started_s: float, run_s: float) -> Ended:
    """Return the end of a run with a value.

    Raises:
        TypeError: this kind of task cannot have such a value.
    """
    if isinstance(task, StringTask):
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise TypeError(
                f"a StringTask leaves a dict of the names that it pulls, like {{'a': 1}}, not {value!r:.80}"
            )
    body = ResultBody(pack(value, "value"), kind=_kind(task))
    return Ended(*key, "", started_s, run_s, None, _encode(body))


def failed(key: RunKey, task: Task, error: BaseException, started_s: float, run_s: float) -> Ended:
    failure, whole = described(error)
    outcome = Reason.REJECTED if isinstance(error, TaskRejectError) else Reason.ERROR
    if isinstance(error, TimeLimitExceeded):
        outcome = Reason.TIME_LIMIT
    return Ended(*key, outcome, started_s, run_s, failure, _encode(ResultBody(failure=whole, kind=_kind(task))))


def _kind(task: Task) -> str:
    if isinstance(task, StringTask):
        return "names"
    return "raw" if isinstance(task, MapTask) else "call"


def call(store: MemoryStore, task_id: int, names: MutableMapping[str, Any]) -> Any:
    """Run a task's function or code here, with the arguments that travelled. Its error is raised.

    Args:
        store: the farm's store, with the task and the results that are among its arguments.
        task_id: the task.
        names: the engine's namespace.
    """
    saved, progress = store.tasks[task_id], store.progress.get(task_id)
    recovers = progress is not None and progress.recovery > 0
    payload = progress.payload if progress is not None and progress.payload is not None else saved.payload
    digest = progress.function if progress is not None and recovers else saved.function
    work = _decode(payload)
    if work.clear_before:
        names.clear()
    give_inputs(giver(_inputs(store, task_id), names))
    try:
        if isinstance(work, StringWork):
            return _run_code(work, names)
        return _call_function(work, store.functions[digest or ""], names)
    finally:
        give_inputs(None)
        if work.clear_after:
            names.clear()


def _inputs(store: MemoryStore, task_id: int) -> list[Input]:
    needs = store.tasks[task_id].needs
    inputs = []
    for number, other in needs.inputs if needs is not None else ():
        chunk = store.chunk_of(other)
        # An item that is a task of its own has its own end; the others have that of their chunk.
        found = {final.id: final for final in MemoryReader(store).finals([other, chunk])}
        final = found.get(other, found.get(chunk))
        item = other - final.id - 1 if final is not None and final.id != other else None
        inputs.append(
            Input(number, other, final.reason, final.body, final.failure, item, final.from_cache)
            if final
            else Input(number, other)
        )
    return inputs


def _run_code(work: StringWork, names: MutableMapping[str, Any]) -> dict[str, Any]:
    if work.push is not None:
        names.update(unpack(work.push, names))
    exec(compile(work.code, "<task>", "exec"), names)  # type: ignore[arg-type]
    missing = [name for name in work.pull if name not in names]
    if missing:
        raise NameError(f"name {missing[0]!r} is not defined")
    return {name: names[name] for name in work.pull}


def _call_function(work: CallWork, code: bytes, names: MutableMapping[str, Any]) -> Any:
    function = unpack_called(code, work.values, names)
    arguments, keywords = unpack(work.arguments, names) if work.arguments is not None else ((), {})
    return function(*arguments, **keywords)
