"""State that processes share through `multiprocessing`: a manager's proxies, and shared memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import queue
import threading
from collections.abc import Iterator
from multiprocessing.managers import BaseManager, SyncManager
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import pytest

from ipytaskfarm import Executor, Farm, Pool, Task, TaskClient
from ipytaskfarm.core import errors
from ipytaskfarm.serialization import rebuild_arenas
from tests.support.polling import DEADLINE_S

pytestmark = pytest.mark.farm


@pytest.fixture(scope="module")
def manager() -> Iterator[SyncManager]:
    with multiprocessing.Manager() as manager:
        yield manager


def put_square(numbers: Any, x: int) -> int:
    numbers.put(x * x)
    return x


def count(value: Any, lock: Any, times: int) -> None:
    for _ in range(times):
        with lock:
            value.value += 1


def first_of_inner(shared: Any) -> Any:
    shared["inner"].append(2)
    return shared["inner"][0]


def set_in_child(shared: Any) -> Any:
    child = multiprocessing.get_context("fork").Process(target=shared.update, args=({"child": 1},))
    child.start()
    child.join(DEADLINE_S)
    return shared["child"]


begun: Any = None


def begin(numbers: Any) -> None:
    global begun
    begun = numbers


def put_begun(x: int) -> int:
    begun.put(x)
    return x


def test_calls_share_queues_locks_and_dicts_of_a_manager(tc: TaskClient, manager: SyncManager) -> None:
    numbers, value, lock = manager.Queue(), manager.Value("i", 0), manager.Lock()
    with Pool(tc) as pool:
        assert pool.starmap(put_square, [(numbers, x) for x in range(4)]) == [0, 1, 2, 3]
        assert sorted(numbers.get(timeout=DEADLINE_S) for _ in range(4)) == [0, 1, 4, 9]
        pool.starmap(count, [(value, lock, 10)] * 4)
        assert value.value == 40
    shared = manager.dict(inner=manager.list([1]))
    assert tc.submit(first_of_inner, shared).result(DEADLINE_S) == 1
    assert list(shared["inner"]) == [1, 2]
    assert tc.submit(set_in_child, shared).result(DEADLINE_S) == 1


def test_an_initializer_gets_a_proxy(manager: SyncManager) -> None:
    shared = manager.Queue()
    with Executor(1, initializer=begin, initargs=(shared,)) as executor:
        assert executor.submit(put_begun, 5).result(DEADLINE_S) == 5
    assert shared.get(timeout=DEADLINE_S) == 5


def test_a_call_may_have_the_only_proxy(tc: TaskClient, manager: SyncManager) -> None:
    assert tc.submit(manager.Semaphore(2).acquire).result(DEADLINE_S) is True
    assert tc.submit(len, manager.list([1, 2])).result(DEADLINE_S) == 2


def test_a_manager_with_a_key_of_its_own(tc: TaskClient) -> None:
    served: queue.Queue[int] = queue.Queue()

    class Queues(BaseManager):
        pass

    Queues.register("served", callable=lambda: served)
    server = Queues(address=("127.0.0.1", 0), authkey=b"other").get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = Queues(address=server.address, authkey=b"other")
    client.connect()
    numbers: Any = client.served()  # type: ignore[attr-defined]
    assert tc.submit(put_square, numbers, 3).result(DEADLINE_S) == 3
    assert served.get(timeout=DEADLINE_S) == 9


def test_a_manager_that_has_ended_is_named(tc: TaskClient) -> None:
    with multiprocessing.Manager() as manager:
        shared = manager.dict()
    with pytest.raises(ConnectionError, match=r"no multiprocessing\.Manager answers at .*: it has ended"):
        tc.submit(len, shared).result(DEADLINE_S)


def test_a_lock_of_processes_is_refused_with_the_managers_as_the_remedy(tc: TaskClient) -> None:
    pool = Pool(tc, initializer=print, initargs=(multiprocessing.Lock(),))
    with pool, pytest.raises(RuntimeError, match="through inheritance") as caught:
        pool.map(abs, [1])
    assert "initargs[0]: a multiprocessing.synchronize.Lock cannot be pickled: send one that" in str(
        caught.value.__cause__
    )
    assert isinstance(caught.value.__cause__, errors.UnpickleableException)


def take_over(numbers: Any) -> None:
    global begun
    begun = numbers


def set_item(i: int) -> Any:
    before = begun[i]
    begun[i] = 10.0 * i
    return before


def double_in_child(value: Any) -> None:
    with multiprocessing.get_context("fork").Pool(1, take_over, ([value],)) as pool:
        pool.apply(double_begun)


def double_begun() -> None:
    begun[0].value *= 2


def test_raw_arrays_and_values_are_shared(tc: TaskClient) -> None:
    array = multiprocessing.RawArray("d", [0, 1, 2])
    with Pool(tc, initializer=take_over, initargs=(array,)) as pool:
        assert pool.map(set_item, range(3)) == [0, 1, 2]
    assert list(array) == [0, 10, 20]
    value: Any = multiprocessing.Value("i", 3, lock=False)
    tc.submit(double_in_child, value).result(DEADLINE_S)
    assert value.value == 6
    assert list(tc.submit(lambda: array).result(DEADLINE_S)) == [0, 10, 20]
    found: Any = tc.submit(ctypes.c_int, 5).result(DEADLINE_S)
    assert found.value == 5, "an ordinary number is a copy"


def test_a_raw_array_of_a_program_that_has_ended_is_refused(tc: TaskClient) -> None:
    array = tc.submit(lambda: multiprocessing.RawArray("d", 2)).result(DEADLINE_S)
    where = rebuild_arenas.opened_at(array._wrapper._state[0][0])
    assert where is not None
    with pytest.raises(FileNotFoundError, match="its program has ended, or runs on another machine"):
        rebuild_arenas.open_arena(where[0], where[1], where[2], where[3] + 1, 10)


def total(numbers: Any) -> Any:
    return sum(numbers)


def test_results_for_shared_values_are_not_kept(tc: TaskClient, manager: SyncManager) -> None:
    block = SharedMemory(create=True, size=10)
    try:
        for shared in (manager.list([1]), multiprocessing.RawArray("d", 2), block):
            with pytest.raises(errors.UnpickleableException, match="is shared with other processes"):
                tc.run(Task(total, args=([shared],), cache=True))
    finally:
        block.close()
        block.unlink()


def read(name: str) -> bytes:
    block: Any = SharedMemory(name)
    try:
        return bytes(block.buf[:3])
    finally:
        block.close()


def read_and_unlink(name: str) -> bytes:
    found = read(name)
    SharedMemory(name).unlink()
    return found


def test_memory_that_a_task_attaches_outlives_the_engine(capfd: pytest.CaptureFixture[str]) -> None:
    block: Any = SharedMemory(create=True, size=10)
    try:
        block.buf[:3] = b"abc"
        with Farm(n=1) as farm:
            tc = farm.task_client()
            assert tc.run(Task(read, args=(block.name,)), block=True).result == b"abc"
        with Farm(n=1) as farm:
            tc = farm.task_client()
            assert tc.run(Task(read_and_unlink, args=(block.name,)), block=True).result == b"abc"
        with pytest.raises(FileNotFoundError):
            SharedMemory(block.name)
    finally:
        block.close()
    assert "Traceback" not in capfd.readouterr().err
