"""Mistakes as people make them in their first hour, each with the sentence that it gets."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import ipytaskfarm
from ipytaskfarm import Executor, Farm, MapTask, Pool, Task, TaskClient, TaskEnvironment, TaskFuture, add_dependency
from ipytaskfarm.core import errors
from ipytaskfarm.core.requirements import CHANGING, FACTS
from tests.support.farms import module_farm


def f(x: int = 1) -> int:
    return x


def two(x: int, y: int) -> int:
    return x + y


class World(NamedTuple):
    farm: Farm
    tc: TaskClient
    stopped: TaskClient
    foreign: TaskFuture[int]
    """The future of a task of another farm."""
    running: int
    plain: Any
    """The result of code without a pull."""
    pulled: Any
    called: Any


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with module_farm(2) as farm, farm.task_client() as tc:
        other = Farm(n=0)
        stopped = other.task_client()
        foreign = stopped.submit(f)
        other.stop()
        plain = tc.run(Task("a = 1"), block=True)
        pulled = tc.run(Task("total = 1", pull="total"), block=True)
        called = tc.run(Task(f), block=True)
        running = tc.run(Task("import time; time.sleep(300)"))
        yield World(farm, tc, stopped, foreign, running, plain, pulled, called)
        tc.abort(running)


def facts_here() -> list[str]:
    from ipytaskfarm import engine

    assert engine._here is not None
    return sorted(engine._here.facts)


def used_up() -> Iterator[int]:
    generator = (i for i in range(3))
    list(generator)
    return generator


AnyTask: Any = Task
AnyFarm: Any = Farm
"""Type checkers find these mistakes too, see ``tests/unit/test_typing.py``."""


def client(world: World) -> Any:
    """Return the client without its types."""
    return world.tc


Mistake = tuple[str, Callable[[World], object], type[BaseException], str]

MISTAKES: list[Mistake] = [
    # A farm
    ("unknown argument of Farm", lambda w: AnyFarm(startpu="x.py"), TypeError,
     "Farm() has no argument 'startpu', did you mean 'startup'?"),
    ("another library's word", lambda w: AnyFarm(n_workers=4), TypeError,
     "Farm() has no argument 'n_workers', did you mean 'n'?"),
    ("number as text", lambda w: AnyFarm(n="4"), TypeError, "n, the number of engines, must be an int, not str"),
    ("client's call on the farm", lambda w: w.farm.map(f, [1]), AttributeError,
     "a Farm has no 'map': its client has, farm.task_client().map"),
    ("engines' call on the farm", lambda w: w.farm.execute("a = 1"), AttributeError,
     "a Farm has no 'execute': its client has, farm.multiengine_client().execute"),
    ("another library's end of a farm", lambda w: w.farm.close(), AttributeError, "instead: farm.stop()"),
    ("another library's client of a farm", lambda w: w.farm.client, AttributeError, "instead: farm.task_client()"),
    ("another library's call", lambda w: w.tc.apply_async, AttributeError,  # type: ignore[attr-defined]
     "instead: submit(f, x)"),
    ("starmap", lambda w: w.tc.starmap, AttributeError,  # type: ignore[attr-defined]
     "instead: map(f, *zip(*pairs))"),
    ("wrong farm", lambda w: TaskClient("nightyl"), errors.FarmNotRunning,
     "start it with `ipytaskfarm start --farm nightyl`"),
    ("client of an Executor by name", lambda w: Executor(client=w.tc), TypeError,
     "an Executor has no argument 'client'; a TaskClient is the first argument"),
    ("another library's word for a pool", lambda w: Pool(n_processes=2), TypeError,
     "a Pool has no argument 'n_processes', did you mean 'processes'?"),
    # A task
    ("arguments behind the function", lambda w: AnyTask(pow, 2, 3), TypeError, "Task(pow, args=(2, 3))"),
    ("a tuple of arguments behind it", lambda w: AnyTask(pow, (2, 3)), TypeError, "Task(pow, args=(2, 3))"),
    ("one argument behind it", lambda w: AnyTask(f, 2), TypeError, "Task(f, args=(2,))"),
    ("argument by name", lambda w: AnyTask(f, x=3), TypeError,
     "an argument of the function goes into kwargs={'x': 3}"),
    ("function called", lambda w: AnyTask(f(2)), TypeError,
     "not int: 2; give the function itself, Task(f, args=(2,)), not what it returns"),
    ("args without a comma", lambda w: AnyTask(f, args=(3)), TypeError,
     "args must be a list or tuple of arguments, not int: 3; one argument is args=(3,)"),
    ("MapTask's argument", lambda w: MapTask(f, 3), TypeError, "one argument is args=(3,)"),  # type: ignore[arg-type]
    ("misspelt rule", lambda w: AnyTask(f, retires=3), TypeError,
     "a Task has no argument 'retires', did you mean 'retries'?"),
    ("misspelt attribute", lambda w: setattr(Task(f), "time_limt", 3), AttributeError, "did you mean 'time_limit'?"),
    ("pull of a function", lambda w: AnyTask(f, pull="a"), TypeError, "the result of a function is what it returns"),
    ("args of code", lambda w: AnyTask("a = 1", args=(1,)), TypeError, "code takes values by name, push={'x': 1}"),
    ("value for code by name", lambda w: AnyTask("a = b", b=2), TypeError, "a name for the code is push={'b': 2}"),
    ("names in one text", lambda w: Task("a = b = 1", pull="a, b"), ValueError, "are a list: pull=['a', 'b'], not"),
    ("nothing to do", lambda w: AnyTask(), TypeError, "a Task needs work: code, Task('a = 1', pull='a'), or a"),
    ("recovery task as text", lambda w: AnyTask(f, recovery_task="a = 0"), TypeError, "make it one: Task('a = 0')"),
    ("environment's class", lambda w: AnyTask(f, environment=TaskEnvironment), TypeError, "TaskEnvironment()"),
    ("time limit as text", lambda w: Task(f, time_limit="10s"), TypeError,  # type: ignore[arg-type]
     "time_limit must be seconds, a timedelta or None, not str: '10s'"),
    ("negative time limit", lambda w: Task(f, time_limit=-1), ValueError, "must be more than 0 seconds, not -1"),
    ("misspelt fact", lambda w: Task(f, requires={"memroy": ">= 1 GiB"}), ValueError,
     "engines have no fact 'memroy', did you mean 'memory'? the facts are bits, cores, "),
    ("property without its mark", lambda w: Task(f, requires={"model": "A100"}), ValueError,
     "a property needs 'property:' before its name: 'property:model'"),
    ("condition as text", lambda w: Task(f, requires="memory > 4"), TypeError,  # type: ignore[arg-type]
     "requires must be a dict of names and conditions, like {'memory': '>= 4 GiB'}"),
    ("cores in words", lambda w: Task(f, resources={"cores": "two"}), ValueError,
     "resources: cores must be a number, like {'cores': 2}, not 'two'"),
    ("memory in words", lambda w: Task(f, resources={"memory": "lots"}), ValueError,
     "resources: memory: a size like '300 MiB' or '2G' is expected, not 'lots'"),
    ("misspelt choice", lambda w: Task(f, placement="leastrecent"), ValueError, "did you mean 'least_recent'?"),
    # Submitting
    ("code without a Task", lambda w: w.tc.run("a = 1"), TypeError, "code goes into a Task: Task('a = 1')"),
    ("list of tasks", lambda w: w.tc.run([Task(f)]), TypeError, "[tc.run(task) for task in tasks]"),
    ("arguments of run", lambda w: w.tc.run(f, 2), TypeError, "submit(f, 2), or run(Task(f, args=(2,)))"),  # type: ignore[arg-type]
    ("function called in submit", lambda w: w.tc.submit(f(2)), TypeError, "submit(f, 2)"),  # type: ignore[call-overload]
    ("rules in submit", lambda w: w.tc.submit(f, 2, retries=3), TypeError,
     "retries is a rule of a task: submit(Task(f, args=(…), retries=…))"),
    ("argument forgotten", lambda w: w.tc.submit(two, 2), TypeError, "two(): missing a required argument: 'y'"),
    ("arguments of a Task", lambda w: w.tc.submit(Task(f), 3), TypeError,  # type: ignore[call-overload]
     "submit(Task(f, args=(3,)))"),
    ("lock as an argument", lambda w: w.tc.submit(f, threading.Lock()), errors.UnpickleableException,
     "args[0]: a _thread.lock cannot be pickled: make it where it is used, inside the task"),
    ("generator as an argument", lambda w: w.tc.submit(f, (i for i in range(3))), errors.UnpickleableException,
     "make a list of it"),
    ("future of another farm as argument", lambda w: w.tc.submit(f, w.foreign), ValueError, "give its value"),
    ("stopped farm", lambda w: w.stopped.run(Task(f)), errors.FarmNotRunning, "was stopped"),
    # Maps
    ("map of a called function", lambda w: w.tc.map(f(1), [1]), TypeError,  # type: ignore[call-overload]
     "the first argument of map must be a function, not int: 1; give the function itself, map(f, values)"),
    ("map the wrong way round", lambda w: w.tc.map([1, 2], f), TypeError, "map takes the function first"),  # type: ignore[call-overload]
    ("map over a number", lambda w: w.tc.map(f, 5), TypeError, "must be a sequence, with one item for each call"),  # type: ignore[call-overload]
    ("map over a used generator", lambda w: w.tc.map(f, used_up()), ValueError, "was read to its end before"),
    ("map with too many sequences", lambda w: w.tc.map(lambda x: x, [1], [2]), TypeError,
     "map has 2 sequences, one for each argument of"),
    ("map with sequences of two lengths", lambda w: w.tc.map(two, [1, 2], [1]), ValueError, "one is shorter"),
    # Results
    ("forgotten pull", lambda w: w.plain["a"], KeyError,
     "task 0 has no result 'a': it pulled nothing; Task(…, pull='a') brings it back"),
    ("forgotten pull, as an attribute", lambda w: w.plain.ns.a, AttributeError, "Task(…, pull='a') brings it back"),
    ("misspelt result", lambda w: w.pulled.ns.totl, AttributeError, "it pulled 'total', did you mean 'total'?"),
    ("name of a function's result", lambda w: w.called["x"], KeyError, "its return value is .result"),
    ("result too early", lambda w: w.tc.get_task_result(w.running), UserWarning,
     "has not ended, and None is returned: block=True waits for its result"),
    ("a wait that is too short", lambda w: w.tc.barrier(w.running, timeout=-1), TimeoutError,
     "not all of 1 tasks have ended within 0 s"),
    ("timeout as text", lambda w: w.tc.barrier(w.running, timeout="1"), TypeError,  # type: ignore[arg-type]
     "timeout must be seconds, a timedelta or None, not str: '1'"),
    ("Task for an id", lambda w: w.tc.get_task_result(Task(f)), TypeError,  # type: ignore[arg-type]
     "a Task has no id: tc.run(task) returns one"),
    ("result for an id", lambda w: w.tc.explain(w.called), TypeError, "the id of a TaskResult is its .taskid"),
    ("Job for ids", lambda w: w.tc.barrier(w.tc.create_job()), TypeError, "the ids of a Job's tasks are its .ids"),
    ("id as text", lambda w: w.tc.get_task_result("3"), TypeError, "int('3') is one"),  # type: ignore[arg-type]
    ("name for an id", lambda w: w.tc.barrier("fit"), TypeError, "tc.tasks(name=…) finds tasks by their name"),
    ("ids for an id", lambda w: w.tc.get_task_result([1, 2]), TypeError, "this call takes one id at a time"),  # type: ignore[arg-type]
    ("id that was never issued", lambda w: w.tc.get_task_result(999_999), IndexError, "(never issued, or cleared)"),
    ("id of a task to come", lambda w: w.tc.barrier(w.running + 2, timeout=60), IndexError,
     "no task was submitted under it"),
    ("result of a task to come", lambda w: w.tc.get_task_result(w.running + 2, block=True), IndexError,
     "no task was submitted under it"),
    ("future of another farm for an id", lambda w: w.tc.get_task_result(w.foreign), ValueError, "belongs to farm"),  # type: ignore[arg-type]
    ("retry of a running task", lambda w: w.tc.retry(w.running), ValueError,
     "only failed tasks are tried again: task 3 is not; tc.restart"),
    ("clear of a running task", lambda w: w.tc.clear(w.running), KeyError, "not ended yet, abort it first: task 3"),
    ("ids for a name", lambda w: w.tc.tasks([1, 2]), TypeError, "tc.tasks(ids=…) takes ids"),  # type: ignore[arg-type]
    ("misspelt rule of a map", lambda w: w.tc.map(f, [1], retires=3), TypeError, "did you mean 'retries'?"),  # type: ignore[call-overload]
    ("argument of the function for a map", lambda w: w.tc.map(two, [1], y=2), TypeError,  # type: ignore[call-overload]
     "functools.partial(two, y=…)"),
    ("optional argument of the function for a map", lambda w: w.tc.map(f, [], x=2), TypeError,  # type: ignore[call-overload]
     "functools.partial(f, x=…)"),
    ("timeout of a map", lambda w: w.tc.map(f, [1], timeout=2), TypeError,  # type: ignore[call-overload]
     "tc.map(…, block=False).results(timeout) waits no longer"),
    ("misspelt argument of a map", lambda w: w.tc.map(f, [1], chunk_size=3), TypeError, "did you mean 'chunksize'?"),  # type: ignore[call-overload]
    # Jobs
    ("pause of an empty job", lambda w: w.tc.pause(w.tc.create_job()), ValueError, "job.add_task(task) adds one"),
    ("resumption of an empty job", lambda w: w.tc.create_job().resume(), ValueError, "job.add_task(task) adds one"),
    ("results of an empty job", lambda w: w.tc.create_job().results(), ValueError,
     "job.add_task(task) adds one, then job.submit() submits them"),
    ("results before submit", lambda w: with_task(w).results(), ValueError, "job.submit() submits them"),
    ("arguments of add_task", lambda w: w.tc.create_job().add_task(f, 3), TypeError,  # type: ignore[arg-type]
     "job.add_task(Task(f, args=(3,)))"),
    ("a negative number of tasks", lambda w: w.tc.tasks(last=-1), ValueError, "last must be 0 or more, not -1"),
    ("no node's name", lambda w: w.tc.drain(""), ValueError, "an empty text names no node"),
    ("a negative engine", lambda w: AnyTask(f, targets=[0, -1]), ValueError, "which are 0 or more, not -1"),
    ("a word for the cache", lambda w: AnyTask(f, cache="always"), ValueError, "cache must be True, False,"),
    ("a word for second copies", lambda w: create(w, second_copies="yes"), TypeError, "second_copies must be"),
    ("misspelt rule of a job", lambda w: create(w, retires=3), TypeError, "did you mean 'retries'?"),
    ("misspelt attribute of a job", lambda w: setattr(w.tc.create_job(), "priorty", 3), AttributeError,
     "did you mean 'priority'?"),
    # Arguments of calls
    ("reason behind the id", lambda w: client(w).abort(w.running, "wrong input"), TypeError,
     "interrupt must be True or False, not str: 'wrong input'"),
    ("timeout of a future as text", lambda w: client(w).submit(f, 1).result("3s"), TypeError,
     "timeout must be seconds, a timedelta or None, not str: '3s'"),
    ("timeout in the place of the order", lambda w: client(w).map(f, [1], block=False).results(10), TypeError,
     "order must be True or False, not int: 10"),
    ("block as text", lambda w: client(w).map(f, [1], block="no"), TypeError, "block must be True or False"),
    ("errors or not, as text", lambda w: client(w).map(f, [1], return_exceptions="no"), TypeError,
     "return_exceptions must be True or False, not str: 'no'"),
    ("heartbeat's seconds", lambda w: client(w).map(f, [1], block=False).wait(heartbeat=3), TypeError,
     "heartbeat must be a function of the job, or None, not int: 3"),
    ("sum without a function", lambda w: client(w).accumulator(0, None), TypeError,
     "op must be a function of two values, not NoneType"),
    ("future as a number", lambda w: math.sqrt(client(w).submit(f, 4)), TypeError, "its result() is the task's value"),
    ("engine's number for the farm's end", lambda w: engines(w).kill(1), TypeError,
     "controller must be True, which ends the whole farm, or False, not int: 1; mec.kill(targets=…) ends engines"),
    ("arguments behind mec.apply", lambda w: engines(w).apply(f, 3), TypeError, "one argument is args=(3,)"),
    ("block of imap", lambda w: client(w).imap(f, [1], block=False), TypeError,
     "tc.map(…, block=False) returns the job at once"),
    ("start-up file as a str", lambda w: AnyFarm(n=1, startup="setup.py"), ValueError,
     "a str is code: give pathlib.Path('setup.py')"),
    ("drain or not, as text", lambda w: client(w).drain("n", on="no"), TypeError, "on must be True or False"),
    ("farm's name as a number", lambda w: AnyFarm(n=1, name=5), TypeError, "a farm's name must be a str, not int: 5"),
    # Names that others' objects have
    ("results of a job's line", lambda w: with_line(w).results, AttributeError, "tc.job(line), which is the job"),
    ("result of a job", lambda w: client(w).create_job().result, AttributeError, "instead: results()"),
    ("misspelt name of a job", lambda w: client(w).create_job().retry_faild, AttributeError,
     "did you mean 'retry_failed'?"),
    ("result of a task's row", lambda w: client(w).tasks()[0].result, AttributeError, "tc.get_task_result(row)"),
    ("columns of a table", lambda w: client(w).tasks().sort_values, AttributeError, "to_dataframe() makes"),
    ("columns of a list", lambda w: client(w).history().head, AttributeError, "to_dataframe() makes"),
    ("value of a future", lambda w: client(w).submit(f, 1).get, AttributeError, "instead: result()"),
    ("view of the engines", lambda w: engines(w).load_balanced_view, AttributeError, "ipytaskfarm.ipyparallel as ipp"),
    ("removal of a task", lambda w: client(w).remove, AttributeError, "instead: clear(ids)"),
    # Modules
    ("package with compiled parts", lambda w: add_dependency("numpy"), ValueError,
     "is compiled and cannot be sent: install it where engines run. Files, folders, modules and packages of Python"),
    ("module of the standard library", lambda w: add_dependency("json"), ValueError, "leave this call out"),
    ("module that is not there", lambda w: add_dependency("nunpy"), FileNotFoundError, "no such module"),
    ("misspelt name of the package", lambda w: ipytaskfarm.TaskCleint, AttributeError,  # type: ignore[attr-defined]
     "module 'ipytaskfarm' has no attribute 'TaskCleint', did you mean 'TaskClient'?"),
    ("another library's client", lambda w: ipytaskfarm.Client, AttributeError, "instead: TaskClient(), or"),  # type: ignore[attr-defined]
]  # fmt: skip


def engines(world: World) -> Any:
    return world.farm.multiengine_client()


def with_line(world: World) -> Any:
    job = world.tc.create_job()
    job.add_task(f)
    job.submit()
    return world.tc.jobs()[-1]


def with_task(world: World) -> Any:
    job = world.tc.create_job()
    job.add_task(f)
    return job


def create(world: World, **rules: Any) -> Any:
    return world.tc.create_job(**rules)


@pytest.mark.farm
@pytest.mark.parametrize(("call", "error", "sentence"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_gets_a_sentence(
    call: Callable[[World], object], error: type[BaseException], sentence: str, world: World
) -> None:
    with pytest.raises(error) as caught:
        call(world)
    assert sentence in str(caught.value)


@pytest.mark.farm
def test_a_name_that_is_pulled_and_not_there_is_explained(world: World) -> None:
    result = world.tc.run(Task("total = 1", pull="totals"), block=True)
    with pytest.raises(NameError, match="when the code has ended: pull='totals' asks for it, did you mean 'total'"):
        result.raise_exception()


@pytest.mark.farm
def test_a_client_that_was_closed_says_so_although_others_use_the_connection(world: World) -> None:
    client = world.farm.task_client()
    client.close()
    with pytest.raises(errors.ConnectionError, match=r"was closed: make a new one, TaskClient\("):
        client.run(Task(f))
    engines = world.farm.multiengine_client()
    engines.close()
    with pytest.raises(errors.ConnectionError, match=r"was closed: make a new one, MultiEngineClient\("):
        engines.execute("a = 1", block=False)
    assert world.tc.submit(f, 3) is not None


@pytest.mark.farm
def test_whoever_polls_is_not_warned(world: World) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert world.tc.get_task_result(world.running, block=False) is None


@pytest.mark.farm
def test_the_facts_of_an_engine_are_those_that_conditions_know(world: World) -> None:
    found = world.tc.run(Task(facts_here), block=True).result
    assert set(found) == FACTS - CHANGING
