"""Waits of a forked child for what its parent has submitted: they raise at once, unless the result is there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from ipytaskfarm import Executor, Farm, MultiEngineClient, Pool, Task, TaskClient
from ipytaskfarm.core import errors
from ipytaskfarm.ipyparallel import Client
from tests.support.polling import DEADLINE_S

pytestmark = pytest.mark.farm

LONG = 600


def what_a_child_gets(call: Callable[[], object]) -> str:
    """Return what a call returns or raises in a forked child; it hangs if the child had to be ended."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(int(DEADLINE_S))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        try:
            said = repr(call())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode()[:500])
        os._exit(0)
    os.close(write)
    with open(read) as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return said or "it hangs"


def must_raise(calls: dict[str, Callable[[], object]]) -> None:
    """Check that each of the calls raises in a forked child, and says whose the connection is."""
    found = {name: what_a_child_gets(call) for name, call in calls.items()}
    wrong = {name: said for name, said in found.items() if "the process that this one was forked from" not in said}
    assert not wrong


def waited(future: Any) -> Any:
    async def wait() -> Any:
        return await (asyncio.wrap_future(future) if isinstance(future, concurrent.futures.Future) else future)

    return asyncio.run(wait())


def raised(done: Any) -> Any:
    """Raise the error of a future that a wait has returned."""
    return next(iter(done)).result()


def test_futures_and_waits_of_a_client(tc: TaskClient) -> None:
    ended, unread, late = tc.submit(pow, 2, 3), tc.submit(pow, 2, 4), tc.submit(time.sleep, LONG)
    called: list[object] = []
    late.add_done_callback(called.append)
    waiting = tc.run(Task(f"import time; time.sleep({LONG})"))
    assert ended.result() == 8
    tc.barrier(unread.id)
    assert what_a_child_gets(ended.result) == "8"
    assert what_a_child_gets(unread.result) == "16"
    must_raise(
        {
            "result": late.result,
            "timeout": lambda: late.result(LONG),
            "exception": late.exception,
            "wait": lambda: raised(concurrent.futures.wait([late]).done),
            "as_completed": lambda: raised(concurrent.futures.as_completed([late])),
            "await": lambda: waited(late),
            "barrier": tc.barrier,
            "block": lambda: tc.get_task_result(waiting, block=True),
            "the client's as_completed": lambda: list(tc.as_completed([late])),
        }
    )
    assert what_a_child_gets(lambda: (concurrent.futures.wait([late]), called)[1]) == "[]"
    tc.abort([late.id, waiting])
    with pytest.raises(concurrent.futures.CancelledError):
        late.result(DEADLINE_S)
    assert called == [late]


def test_pending_results(mec: MultiEngineClient) -> None:
    pending = mec.execute("import time; time.sleep(2)", block=False)
    must_raise({"r": lambda: pending.r, "await": lambda: waited(pending)})
    pending.get_result()


def test_executors_and_pools(tc: TaskClient) -> None:
    executor, pool = Executor(tc), Pool(tc)
    ended = executor.submit(pow, 2, 3)
    assert ended.result() == 8
    calls = [executor.submit(time.sleep, LONG) for _ in range(30)]
    several, one = pool.map_async(time.sleep, [LONG] * 4), pool.apply_async(time.sleep, (LONG,))
    lazy, unordered = pool.imap(time.sleep, [LONG] * 4), pool.imap_unordered(time.sleep, [LONG] * 4)
    values, chunks = executor.map(time.sleep, [LONG] * 8), executor.map(time.sleep, [LONG] * 8, chunksize=4)
    assert what_a_child_gets(ended.result) == "8"
    must_raise(
        {
            "first": calls[0].result,
            "last": calls[-1].result,
            "wait": lambda: raised(concurrent.futures.wait(calls).done),
            "await": lambda: waited(calls[0]),
            "map": lambda: next(values),
            "map in chunks": lambda: next(chunks),
            "submit": lambda: executor.submit(pow, 2, 3),
            "pool's map": several.get,
            "pool's apply": one.get,
            "imap": lambda: next(lazy),
            "imap_unordered": lambda: next(unordered),
        }
    )
    assert (
        what_a_child_gets(lambda: [end() for end in (pool.close, pool.join, executor.shutdown)]) == "[None, None, None]"
    )
    executor.terminate_workers()
    pool.terminate()


def test_async_results(tc: TaskClient) -> None:
    client = Client(tc.farm)
    view, balanced = client[:], client.load_balanced_view()
    calls = [balanced.apply_async(time.sleep, LONG), balanced.map_async(time.sleep, [LONG] * 4)]
    command = view.apply_async(time.sleep, 2)
    must_raise(
        {
            "get": calls[0].get,
            "r": lambda: calls[0].r,
            "map": calls[1].get,
            "items": lambda: next(iter(calls[1])),
            "command": command.get,
            "wait": lambda: raised(concurrent.futures.wait([*calls, command]).done),
            "await": lambda: waited(calls[0]),
            "executor": balanced.executor.submit(time.sleep, LONG).result,
        }
    )
    client.abort()
    command.get()


def test_a_map_ends_with_its_farm() -> None:
    """Also where the items share tasks: nothing is known of the items' ends then."""
    with Farm(n=1) as farm:
        executor = Executor(farm.task_client())
        maps = [executor.map(time.sleep, [LONG] * 40, chunksize=4) for _ in range(2)]
        executor.client.flush()
        farm.stop(drain=0)
        for values in maps:
            with pytest.raises(errors.ConnectionError):
                next(values)
