"""What a user writes, for type checkers: ``# error: WORD`` is expected where it stands, ``# type: T`` of reveal_type.

Read by ``tests/unit/test_typing.py``, never run.
"""

from datetime import timedelta
from typing import reveal_type

from ipytaskfarm import Farm, Join, MapTask, Ref, StringTask, Task, TaskClient, TaskFuture


def fit(x: int, y: float = 0.0) -> str:
    return f"{x} {y}"


async def later(x: int) -> bytes:
    return b""


farm = Farm(n=4, name="nightly", grace=timedelta(seconds=2))
Farm(startpu="x.py")  # error: startpu
Farm(n="4")  # error: int
tc = farm.task_client()
reveal_type(tc)  # type: TaskClient
TaskClient(timeout=3)

task = Task(fit, args=(2,), kwargs={"y": 1.0}, retries=3, time_limit=timedelta(minutes=1), requires={"cores": ">= 2"})
code = Task("a = b", pull="a", push={"b": 1}, priority=-10, resources={"memory": "2 GiB"}, after=[1, 2])
StringTask("a = 1", pull=["a"], exclusive=True)
MapTask(fit, (2,), name="fit")
Join(after=[task])
Task(fit, retires=3)  # error: retires
Task("a = 1", time_limt=3)  # error: time_limt
Task("a = 1", retries="3")  # error: int
Task(3)  # error: str
MapTask(fit, (2,), prioriti=3)  # error: prioriti
task.retries = 2
task.retires = 2  # error: retires

future = tc.submit(fit, 2, y=1.0)
reveal_type(future)  # type: TaskFuture[str]
reveal_type(future.result())  # type: str
reveal_type(tc.submit(later, 2))  # type: TaskFuture[bytes]
reveal_type(tc.submit(task))  # type: TaskFuture[Any]
tc.submit(fit, future, y=Ref(3))
tc.submit(fit(2))  # error: submit
both: list[TaskFuture[str]] = [future, tc.submit(fit, 3)]

job = tc.create_job("sweep", retries=1, environment=None, max_parallel=2, abort_on_failure=True)
job.add_task(task)
job.priority = 3
reveal_type(job.submit())  # type: list[int]
tc.create_job(retires=3)  # error: retires
job.prioriti = 3  # error: prioriti
job.add_task(fit, 3)  # error: Never

values = tc.map(fit, range(10), name="sweep", retries=1, time_limit=3.0, chunksize="auto")
reveal_type(values)  # type: Values[str]
reveal_type(values[3])  # type: str
reveal_type(values.stdout)  # type: list[str]
reveal_type(values.job)  # type: Job
reveal_type(values.job.retry_failed())  # type: list[int]
reveal_type(tc.map(later, [1, 2]))  # type: Values[bytes]
reveal_type(tc.map(fit, [1], on_error="return"))  # type: Values[Any]
reveal_type(tc.map(fit, [1], return_exceptions=True))  # type: Values[Any]
handle = tc.map(fit, [1, 2], [0.5, 1.5], block=False)
reveal_type(handle)  # type: Job
reveal_type(handle.retry_failed())  # type: list[int]
reveal_type(handle.results())  # type: list[Any]
reveal_type(handle.results(order=False))  # type: Iterator[Any]
reveal_type(handle.counts())  # type: dict[str, int]
tc.map(fit, [1], on_error="ignore")  # error: map
tc.map(fit, [1], retires=3)  # error: map
tc.map(3, [1])  # error: map
for one in tc.imap(fit, range(3), chunksize=1, stream=True):
    reveal_type(one)  # type: str
for other in tc.imap_unordered(fit, range(3)):
    reveal_type(other)  # type: str
tc.imap(fit, [1], on_error="collect")  # error: collect
tc.imap(fit, [1], block=False)  # error: block
