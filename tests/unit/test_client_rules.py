"""Test the rules of tasks: their checks and their packed form; and the identity of environments."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from ipytaskfarm import Join, RecycleSettings, Ref, Task, TaskEnvironment, errors
from ipytaskfarm.adapters.executor_calls import check_rules
from ipytaskfarm.client.environments import pack_environment_of
from ipytaskfarm.client.job_tasks import Graph
from ipytaskfarm.client.packing import Shared, pack_task
from ipytaskfarm.core.messages.task_types import Function, Needs
from ipytaskfarm.core.requirements import Asks, Condition, Recycle, ResourceAmount, unmet


def asks(**rules: Any) -> Asks | None:
    packed = pack_task(Task("1", **rules)).rules
    return packed.asks if packed is not None else None


@pytest.mark.parametrize(
    ("given", "travels"),
    [
        ({"memory": ">= 4 GiB"}, [Condition("memory", ">=", 4 * 2**30)]),
        ({"free_memory": 100}, [Condition("free_memory", "==", 100)]),
        ({"hostname": ["a", "b"]}, [Condition("hostname", "in", ("a", "b"))]),
        ({"cores": ">=2", "property:model": "A100"}, [Condition("cores", ">=", 2.0), Condition("model", "==", "A100")]),
        ({"property:model": "!= K80"}, [Condition("model", "!=", "K80")]),
        ({"python": ">= 3.12"}, [Condition("python", ">=", "3.12")]),
        ({"python": ["3.11", "3.12"]}, [Condition("python", "in", ("3.11", "3.12"))]),
        ({"load": "< 0.5"}, [Condition("load", "<", 0.5)]),
        ({"property:fast": True}, [Condition("fast", "==", True)]),
        ({"property:name": "insane"}, [Condition("name", "==", "insane")]),
        ({}, None),
    ],
)
def test_conditions_as_they_travel(given: dict[str, Any], travels: list[Condition] | None) -> None:
    found = asks(requires=given)
    assert (list(found.requires) if found is not None else None) == travels


@pytest.mark.parametrize(
    ("given", "travels"),
    [
        ({"cores": 2}, [ResourceAmount("cores", 2, 2)]),
        ({"cores": (1, 4)}, [ResourceAmount("cores", 1, 4)]),
        ({"memory": "2 GiB"}, [ResourceAmount("memory", 2**31, 2**31)]),
        (
            {"memory": ("1G", "2G"), "licence": 0.5},
            [ResourceAmount("memory", 2**30, 2**31), ResourceAmount("licence", 0.5, 0.5)],
        ),
    ],
)
def test_resources_as_they_travel(given: dict[str, Any], travels: list[ResourceAmount]) -> None:
    found = asks(resources=given)
    assert found is not None
    assert list(found.resources) == travels


@pytest.mark.parametrize(
    ("rules", "error", "text"),
    [
        ({"requires": "memory >= 4"}, TypeError, "requires must be a dict of names and conditions"),
        ({"requires": {1: 2}}, TypeError, "requires must be a dict whose keys are names"),
        ({"requires": {"property:a": None}}, TypeError, "requires: a must be a number, a str, or a list"),
        ({"requires": {"memory": ">= much"}}, ValueError, "a size like '300 MiB'"),
        ({"requires": {"cores": "=> 1"}}, ValueError, "cores: a number is expected, after one of <, <=, >, >=, ==, !="),
        ({"requires": {"cores": ["2", "two"]}}, ValueError, "cores: a number is expected"),
        ({"requires": {"load": "< 50%"}}, ValueError, "load: a number is expected"),
        ({"requires": {"hostname": "= a"}}, ValueError, "hostname: a value is expected, after one of <, <="),
        ({"resources": 2}, TypeError, "resources must be a dict"),
        ({"resources": {"cores": "many"}}, ValueError, "cores must be a number"),
        ({"resources": {"cores": -1}}, ValueError, "cores must be 0 or more"),
        ({"resources": {"cores": (4, 1)}}, ValueError, "of cores at least 4 and at most 1 cannot be"),
        ({"resources": {"cores": True}}, TypeError, "resources: cores must be a number"),
        ({"exclusive": "yes"}, TypeError, "exclusive must be True or False"),
        ({"max_parallel": 0}, ValueError, "max_parallel must be 1 or more"),
        ({"max_parallel": "two"}, TypeError, "max_parallel must be an int"),
        ({"group": 3}, TypeError, "group must be a str or None"),
        ({"placement": "best"}, ValueError, "placement must be one of default, priority"),
        ({"locality": 3}, TypeError, "locality must be a function"),
        ({"grace": -1}, ValueError, "grace must be 0 seconds or more"),
        ({"time_limit": 0}, ValueError, "time_limit must be more than 0 seconds"),
        ({"colour": "red"}, TypeError, "has no argument 'colour'"),
        ({"memory_limit": "2 GiB"}, TypeError, r"instead: a setting of the farm.*: Farm\(memory_limit=…\)"),
        ({"after": "first"}, TypeError, "after must be an id, a future, a Task of the same job"),
        ({"after": [1, None]}, TypeError, "after must be an id"),
        ({"if_failed": "ignore"}, ValueError, "if_failed must be one of 'fail', 'skip', 'run'"),
        ({"retry_delay": -1}, ValueError, "retry_delay must be 0 seconds or more"),
        ({"retry_on": "OSError"}, TypeError, "retry_on must be an exception type, or several"),
        ({"retry_on": [int]}, TypeError, "retry_on must be an exception type"),
        ({"defer_time": "soon"}, TypeError, "defer_time must be"),
        ({"warn_after": -2}, ValueError, "warn_after must be 0 seconds or more"),
        ({"unique": 3}, TypeError, "unique must be a str or None"),
        ({"on_duplicate": "maybe"}, ValueError, "on_duplicate must be one of 'refuse', 'return'"),
    ],
)
def test_what_is_wrong_is_named(rules: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Task("1", **rules)
    if not {"colour", "memory_limit"} & rules.keys():
        task = Task("1")
        (name, value) = next(iter(rules.items()))
        with pytest.raises(error, match=text):
            setattr(task, name, value)


def test_a_task_that_asks_for_nothing_travels_without_rules() -> None:
    assert pack_task(Task("1", requires={}, resources={}, exclusive=False, environment=TaskEnvironment())).rules is None


def test_an_empty_environment_is_nobodys() -> None:
    environment = TaskEnvironment()
    environment.recycle.after_tasks = 3
    assert asks(environment=environment) == Asks(recycle=Recycle(after_tasks=3))
    assert asks(environment=TaskEnvironment()) is None


# -- identity


class Data(TaskEnvironment):
    def __init__(self, path: str, **more: Any) -> None:
        self.path = path
        self.__dict__.update(more)

    def setup(self) -> None:
        self.rows = [1]


class Other(Data):
    def setup(self) -> None:
        self.rows = [2]


def identity(environment: TaskEnvironment) -> str:
    functions: dict[str, Function] = {}
    packed, _ = pack_environment_of(environment, functions)
    assert packed is not None
    assert list(functions) == [packed.identity]
    return packed.identity


def test_without_an_id_code_and_attributes_are_the_identity() -> None:
    assert identity(Data("a")) == identity(Data("a"))
    assert identity(Data("a")) != identity(Data("b"))
    assert identity(Data("a")) != identity(Other("a"))
    changed = Data("a")
    before = identity(changed)
    changed.path = "b"
    assert identity(changed) == identity(Data("b")) != before
    deep = Data("a", values=[1])
    first = identity(deep)
    deep.values.append(2)  # type: ignore[attr-defined]
    assert identity(deep) != first, "what is changed inside is seen too"


def test_recycle_settings_are_no_part_of_it() -> None:
    environment = Data("a")
    environment.recycle.after_tasks = 7
    assert identity(environment) == identity(Data("a"))


def test_with_an_id_the_id_and_the_code_are_the_identity() -> None:
    assert identity(Data("a", unique_id="x")) == identity(Data("b", unique_id="x"))
    assert identity(Data("a", unique_id="x")) != identity(Data("a", unique_id="y"))
    assert identity(Data("a", unique_id="x")) != identity(Data("a", unique_id="x", additional_id=1))
    assert identity(Data("a", unique_id="x")) != identity(Other("a", unique_id="x"))


def test_code_of_a_notebook_that_is_edited_in_place_is_seen() -> None:
    names: dict[str, Any] = {"__name__": "__main__", "TaskEnvironment": TaskEnvironment}
    exec("class Here(TaskEnvironment):\n    def setup(self):\n        self.a = 1\n", names)
    exec("def better(self):\n    self.a = 2\n", names)
    environment = names["Here"]()
    before = identity(environment)
    names["Here"].setup = names["better"]
    assert identity(environment) != before


def test_what_cannot_travel_is_refused_and_named() -> None:
    with pytest.raises(TypeError, match="lock"), open("/dev/null") as file:
        pack_task(Task("1", environment=Data("a", lock=file)))


# -- settings


def test_recycle_settings_as_they_travel() -> None:
    settings = RecycleSettings(
        after_tasks=3,
        idle_timeout=datetime.timedelta(minutes=1),
        interval=60,
        at_times=["15:00", "9:30:10", datetime.time(1, 2, 3)],  # type: ignore[list-item]
        max_memory="300 MiB",
        on_job_end=True,
        when_unreferenced=True,
        on_failure=True,
    )
    assert settings.as_message() == Recycle(
        after_tasks=3,
        idle_s=60.0,
        interval_s=60.0,
        at_times_s=(3723, 34210, 54000),
        memory_bytes=300 * 2**20,
        on_job_end=True,
        when_unreferenced=True,
        on_failure=True,
    )
    assert RecycleSettings().as_message() is None
    assert RecycleSettings(after_tasks=3) == RecycleSettings(after_tasks=3) != RecycleSettings()
    assert repr(RecycleSettings(after_tasks=3, on_failure=True)) == "RecycleSettings(after_tasks=3, on_failure=True)"


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("after_tasks", 0, ValueError),
        ("after_tasks", "3", TypeError),
        ("idle_timeout", -1, ValueError),
        ("interval", "soon", TypeError),
        ("at_times", "09:00", TypeError),
        ("at_times", ["9 o'clock"], ValueError),
        ("at_times", ["24:00"], ValueError),
        ("max_memory", "much", ValueError),
        ("max_memory", 1.5, TypeError),
        ("on_job_end", "yes", TypeError),
        ("after_lunch", True, AttributeError),
    ],
)
def test_wrong_recycle_settings_are_named(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        setattr(RecycleSettings(), name, value)


def test_settings_of_an_environment_are_set_in_place_or_whole() -> None:
    environment = TaskEnvironment()
    environment.recycle.on_job_end = True
    assert environment.recycle == RecycleSettings(on_job_end=True)
    environment.recycle_settings = RecycleSettings(after_tasks=2)
    assert environment.recycle.after_tasks == 2
    with pytest.raises(TypeError, match="recycle must be RecycleSettings"):
        environment.recycle = {"after_tasks": 2}  # type: ignore[assignment]


@pytest.mark.parametrize("task", ["j", b"j", 1.5, None, [1], {"task": 1}])
def test_what_is_no_task_is_no_reference(task: Any) -> None:
    with pytest.raises(TypeError, match="task must be an id, a TaskFuture or a Task, not"):
        Ref(task)
    with pytest.raises(TypeError, match="name must be one of the names that the task pulls, not 5"):
        Ref(1, 5)  # type: ignore[arg-type]


def test_edges_and_references_as_they_travel() -> None:
    first, other = Task("1"), Task("2")
    packed = pack_task(Task(max, args=(Ref(7), [Ref(8, "x")]), kwargs={"key": {"deep": Ref(7)}}, after=[3, 8]))
    assert packed.needs == Needs(after=(3, 8, 7), inputs=((7, 7), (8, 8)))
    assert pack_task(Task("a", push={"x": Ref(5)}, if_failed="run")).needs == Needs(
        after=(5,), inputs=((5, 5),), if_failed="run"
    )
    assert pack_task(Task("a")).needs is None
    assert pack_task(Join(after=[1, 2])).needs == Needs(after=(1, 2), join=True)
    graph = Graph()
    tasks = [first, other, Task(max, args=(Ref(first),), after=other)]
    shared = Shared({}, "job", None, (), graph.place_of(tasks))
    made = [pack_task(task, None, shared) for task in tasks]
    assert made[2].needs == Needs(after=(-2, -1), inputs=((-1, -1),))
    assert graph.add(tasks, made) == [0, 1, 2]
    assert graph.dependents(0) == [2]
    with pytest.raises(ValueError, match="was not added to this job"):
        pack_task(Task("1", after=Task("2")), None, shared)
    ref = Ref(4)
    with pytest.raises(errors.UnpickleableException, match="a Ref cannot travel; give it as an argument"):
        pack_task(Task(lambda: ref))


def test_delays_of_a_function_are_asked_for_each_retry() -> None:
    rules = pack_task(Task("1", retries=3, retry_delay=lambda n: 2.0**n, retry_on=(OSError, KeyError))).rules
    assert rules is not None
    assert rules.retry_delays_s == (2.0, 4.0, 8.0)
    assert rules.retry_on == ("builtins.OSError", "builtins.KeyError")


@pytest.mark.parametrize(
    ("amount", "shown"), [(2**42, "4.0 TiB"), (2**40 - 2**30, "1023.0 GiB"), (2**30, "1.0 GiB"), (2**29, "512 MiB")]
)
def test_sizes_of_conditions_have_a_suitable_unit(amount: int, shown: str) -> None:
    text = unmet(Condition("memory", ">=", amount), {"memory": 2**20})
    assert text == f"memory >= {shown}: it is 1 MiB"


def test_rules_of_an_executor_that_are_of_the_farm_are_named() -> None:
    with pytest.raises(TypeError, match=r"instead: a setting of the farm.*: Farm\(memory_limit=…\)"):
        check_rules({"memory_limit": "2 GiB"}, "an Executor", ("max_workers",))
    with pytest.raises(TypeError, match="did you mean 'max_workers'"):
        check_rules({"workers": 4}, "an Executor", ("max_workers",))
