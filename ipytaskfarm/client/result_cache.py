"""The result cache for users: `cached` functions, why a result was taken or not, and the entries."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from ..core.arguments import check_int, check_seconds, check_text
from ..core.errors import BlobMissing
from ..core.messages import (
    CacheReport,
    CacheTable,
    ExplainTasks,
    ForgetCache,
    ListCache,
    NumberReply,
    ReadCacheKey,
    TextReply,
)
from ..core.messages.task_types import Final
from ..core.text import Text, text_of
from ..display import cache_text
from ..display.tables import Table
from ..serialization.cache import damage_of
from ..serialization.rebuild import same
from ..system.user_code import depth_of_user
from .cache_keys import Decorated
from .ids import task_id
from .operate import mark_failed
from .results import TaskResult, decode_body
from .session import Session
from .tables import TaskCalls
from .tasks import CallTask

P = ParamSpec("P")
R = TypeVar("R")

NAMED = 3
"""How many unreadable results a warning names."""


class _CachedCall(CallTask):
    """A call whose caller gets the value and no id, so that a kept value need not wait for its task's record."""

    _value_first = True


class CachedFunction(Decorated, Generic[P, R]):
    """A function whose calls run on the farm once for equal arguments, see `TaskClient.cached`.

    The undecorated function is ``__wrapped__``.  In a task that uses the cached function, and in its key, the
    undecorated one takes its place: a task has no client.  So a cached function may call itself or other ones.
    """

    def __init__(self, client: TaskCalls, function: Callable[P, R], rules: dict[str, Any]) -> None:
        rules = {"cache": True, **rules}
        plain: Callable[P, R] = function._function if isinstance(function, CachedFunction) else function
        CallTask(plain, **rules)  # a mistake in the rules raises here
        functools.update_wrapper(self, plain)
        self._client = client
        self._function: Callable[P, R] = plain
        self.undecorated = plain
        self._rules = rules
        self.last_id: int | None = None
        """The id of the latest call's task, for `why_miss` and `why_hit`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the result of the call: a kept one, or that of a run on the farm."""
        self.last_id = task = self._client.run(_CachedCall(self._function, args=args, kwargs=kwargs, **self._rules))
        session, kept = self._client.session, list[Final]()
        if session.arrivals.is_live(task):
            session.wait({task}, kept=kept)
        found: TaskResult = (
            kept_result(session, kept[0]) if kept else self._client.get_task_result(task, block=True, raw=False)
        )
        value: R = found.result
        return value

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Return the method of an instance, which is an argument like the others."""
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> tuple[Any, ...]:
        return same, (self._function,)

    def __repr__(self) -> str:
        return f"<cached {getattr(self._function, '__qualname__', self._function)!s}>"


def report_of(session: Session, task: object) -> tuple[int, CacheReport]:
    """Return the id of a task, and what the controller knows about it and the cache.

    Raises IndexError if there is no such task.
    """
    number = task_id(task, session.farm)
    report = session.ask_for(ReadCacheKey(number), CacheReport)
    if report.key is None:
        session.ask_for(ExplainTasks(number), TextReply)  # which raises for a task that is unknown
    return number, report


def why_hit(session: Session, task: object) -> Text:
    """Return why a task took its result from the cache."""
    return Text(cache_text.why_hit(*report_of(session, task)))


def why_miss(session: Session, task: object) -> Text:
    """Return why a task did not take its result from the cache."""
    return Text(cache_text.why_miss(*report_of(session, task)))


class CacheSize(NamedTuple):
    """The size of the result cache."""

    entries: int
    bytes: int
    limit: int
    """Bytes at which entries are removed: the farm's setting ``cache_size``."""
    hits: int
    """How often the present entries were taken."""
    saved: float
    """Seconds of computing that these hits have saved."""


class CacheView:
    """The entries of the farm's result cache, as ``tc.cache``.  Its repr is their table."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def _table(self, function: str | None = None, last: int = 1000) -> CacheTable:
        most = max(0, min(check_int("last", last), 100_000))
        return self._session.ask_for(ListCache(check_text("function", function), most), CacheTable)

    def list(self, function: str | None = None, last: int = 1000) -> Table:
        """Return the entries as a table, the most recently used first.

        Args:
            function: only entries of functions of this name.
            last: the largest number of entries.
        """
        return cache_text.cache_table(self._table(function, last))

    @property
    def size(self) -> CacheSize:
        """Return the number and the bytes of all entries, the limit, and what the entries have saved."""
        table = self._table(last=0)
        return CacheSize(table.count, table.size_bytes, table.limit_bytes, table.hits, table.saved_s)

    def forget(
        self, function: str | None = None, key: str | None = None, older: float | timedelta | None = None
    ) -> int:
        """Remove entries, and return their number; without arguments all of them.

        Args:
            function: only entries of functions of this name.
            key: only the entry of this key, or of keys that begin so.
            older: seconds; only entries that were not used for this time.
        """
        unused_s = check_seconds("older", older)
        of_name, of_key = check_text("function", function), check_text("key", key)
        return self._session.ask_for(ForgetCache(of_name, of_key, unused_s), NumberReply).value

    def __repr__(self) -> str:
        return repr(self.list())

    def _repr_html_(self) -> str:
        return self.list().html()


# --------------------------------------------------------------------------------------------------
# Reading kept results


def kept_result(session: Session, final: Final) -> TaskResult:
    """Return a result that was taken from the cache.  A task whose kept result cannot be read runs again."""
    result, why = _read(final)
    if not why:
        return result
    _run_again(session, {final.id: why})
    again = session.fetch(final.id)
    return result if again is None else TaskResult(again)


def kept_results(session: Session, ids: Iterable[int]) -> dict[int, TaskResult]:
    """Return the results among those of ended tasks that were taken from the cache.

    Tasks whose kept results cannot be read run again together, and their results are not among the returned ones.
    """
    found: dict[int, TaskResult] = {}
    faults: dict[int, str] = {}
    for task in ids:
        final = session.arrivals.finals.get(task)
        if final is not None and final.from_cache and final.body is None:
            final = session.fetch(task)
        if final is not None and final.from_cache:
            result, why = _read(final)
            if why:
                faults[task] = why
            else:
                found[task] = result
    if faults:
        _run_again(session, faults)
    return found


def _run_again(session: Session, faults: Mapping[int, str]) -> None:
    """Run the tasks with unreadable results again, and wait for them.  faults: task -> why."""
    named = [f"task {task}: {why}" for task, why in list(faults.items())[:NAMED]]
    named += [f"and {len(faults) - NAMED:,} more"] if len(faults) > NAMED else []
    count = len(faults)
    what = f"{count:,} kept results cannot be used, and their tasks run again"
    what = what if count > 1 else "a kept result cannot be used, and its task runs again"
    text = f"{what} ({'; '.join(named)})"
    warnings.warn(text, UserWarning, stacklevel=depth_of_user())
    for task, why in faults.items():
        mark_failed(session, task, f"its kept result cannot be used: {why}", only_ended=True)
    session.watch(faults)
    session.wait(set(faults))


def _read(final: Final) -> tuple[TaskResult, str]:
    """Return a kept result, unpacked, and why it cannot be read; "" if it can.

    Its large values are compared with their digests.
    """
    body = decode_body(final)
    result = TaskResult(final, body)
    try:
        if why := damage_of(body.value or b""):
            return result, why
        result.result  # noqa: B018 - it is unpacked
    except BlobMissing as error:
        return result, str(error)
    except Exception as error:  # an import or a class of the user may raise anything
        return result, f"{type(error).__name__}: {text_of(error)}"
    return result, ""
