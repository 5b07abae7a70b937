"""Makes a `multiprocessing.Pool` fail if a worker dies of an exception. Otherwise such a pool waits for ever.

A worker ends by an exception if its initializer raises, if the work that it was sent cannot be loaded, or if a call
ends in SystemExit. The pool starts another worker, but never repeats the first worker's call.
"""

from __future__ import annotations

import functools
import weakref
from multiprocessing import pool as pools
from typing import Any

_EXCEPTION = 1
"""The exit code of a process that ended by an exception."""
_ITERATOR: Any = pools.IMapIterator
_MAP: Any = pools.MapResult
_pools: weakref.WeakSet[Any] = weakref.WeakSet()


def install() -> None:
    """Watch the workers of all pools of this process."""
    cls: Any = pools.Pool
    usual_init, usual_join = cls.__init__, cls._join_exited_workers

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        _pools.add(self)
        usual_init(self, *args, **kwargs)

    def join(workers: list[Any]) -> Any:
        died = [worker.name for worker in workers if worker.exitcode == _EXCEPTION]
        if died:
            _fail(workers, died[0])
        return usual_join(workers)

    functools.update_wrapper(init, usual_init)
    cls.__init__ = init
    cls._join_exited_workers = staticmethod(join)


def _fail(workers: list[Any], name: str) -> None:
    pool = next((each for each in list(_pools) if getattr(each, "_pool", None) is workers), None)
    if pool is None or pool._state != pools.RUN:
        return
    error = RuntimeError(
        f"{name} of this pool was ended by an exception: its initializer failed, or what it was sent could not be "
        "loaded there, or a call ended in SystemExit; its traceback is in the task's standard error"
    )
    waiting: Any
    for waiting in list(pool._cache.values()):
        if isinstance(waiting, _ITERATOR):
            waiting._set(waiting._index, (False, error))
            waiting._set_length(waiting._index)
        else:
            if isinstance(waiting, _MAP):
                if not hasattr(waiting, "_number_left"):
                    continue  # another thread is making it: the worker that is started now will die for the same reason
                waiting._number_left = 1  # no more answers are awaited
            waiting._set(0, (False, error))
