"""Test environments and recycling on real engines, which log each setup, teardown and end."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from ipytaskfarm import Farm, RecycleSettings, Task, TaskClient, TaskEnvironment, errors
from ipytaskfarm.engine import current_task
from tests.support.farms import DEADLINE_S, Gate, module_farm
from tests.support.polling import eventually
from tests.support.thorough import by_hand, some

pytestmark = pytest.mark.farm


def note(log: str, what: str) -> None:
    with open(log, "a") as file:
        file.write(f"{what} {os.getpid()}\n")


class Logged(TaskEnvironment):
    """Writes down each setup and teardown."""

    def __init__(self, log: Path, name: str = "A", **recycle: Any) -> None:
        self.log = str(log)
        self.label = name
        self.recycle = RecycleSettings(**recycle)

    def setup(self) -> None:
        note(self.log, f"setup {self.label}")
        self.pid = os.getpid()

    def teardown(self) -> None:
        note(self.log, f"teardown {self.label}")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def setups(log: Path, name: str | None = None) -> list[int]:
    """Return the pids in the order of their setups."""
    return [int(pid) for what, label, pid in lines(log) if what == "setup" and name in (None, label)]


def teardowns(log: Path) -> list[int]:
    return [int(pid) for what, _, pid in lines(log) if what == "teardown"]


def run(tc: TaskClient, environment: TaskEnvironment | None, count: int = 1) -> list[int]:
    """Run tasks one after the other; return the pids of their engines."""
    pids = []
    for _ in range(count):
        tr = tc.run(Task("import os; pid = os.getpid()", pull="pid", environment=environment), block=True)
        tr.raise_exception()
        pids.append(tr.ns.pid)
    return pids


@pytest.fixture(scope="module")
def one() -> Iterator[TaskClient]:
    """A farm of one slot; its engine may still have the environment of the test before."""
    with module_farm(1) as farm, farm.task_client() as tc:
        yield tc


@pytest.fixture
def two() -> Iterator[TaskClient]:
    """A farm of two slots, empty at first."""
    with module_farm(2, warm=0) as farm, farm.task_client() as tc:
        yield tc


# -- setup once


@pytest.mark.alone
def test_setup_once_per_engine_and_not_again_for_a_later_job(log: Path) -> None:
    class Slow(Logged):
        def setup(self) -> None:
            time.sleep(0.4)
            super().setup()

    with module_farm(2) as farm, farm.task_client() as tc:

        def job() -> float:
            begun = time.monotonic()
            job = tc.create_job(environment=Slow(log))
            for i in range(20):
                job.add_task(Task(f"import time; time.sleep(0.02); a = {i} if env.pid else None", pull="a"))
            job.submit()
            assert job.wait(DEADLINE_S)
            assert job.results() == [{"a": i} for i in range(20)]
            return time.monotonic() - begun

        first = job()
        assert len(setups(log)) == 2
        second = job()
        assert len(setups(log)) == 2
        assert second < first - 0.3, "it was faster by the cost of the setup"
        assert not teardowns(log)
    assert sorted(teardowns(log)) == sorted(setups(log)), "torn down when the farm stopped"


# -- identity


def test_another_additional_id_has_engines_of_its_own(two: TaskClient, log: Path) -> None:
    a, b = Logged(log), Logged(log)
    a.unique_id = b.unique_id = "db"
    b.additional_id = "other"
    assert run(two, a) != run(two, b)
    assert len(setups(log)) == 2


def test_each_task_finds_its_environment_though_an_earlier_one_has_bound_the_name(one: TaskClient, log: Path) -> None:
    environment = Logged(log)
    one.run(Task("env = 5", environment=environment), block=True)
    assert one.run(Task("found = env.label", pull="found", environment=environment), block=True)["found"] == "A"


def test_with_a_unique_id_the_first_attributes_win_and_one_is_told(one: TaskClient, log: Path) -> None:
    first, second = Logged(log, "first"), Logged(log, "second")
    first.unique_id = second.unique_id = "db"
    run(one, first)
    with pytest.warns(UserWarning, match="other attributes: the first ones are used"):
        run(one, second)
    assert len(setups(log, "first")) == 1
    assert not setups(log, "second")


def test_edited_code_under_the_same_id_gets_a_fresh_engine_and_a_warning(one: TaskClient, log: Path) -> None:
    def make(text: str) -> TaskEnvironment:
        names: dict[str, Any] = {"__name__": "__main__", "TaskEnvironment": TaskEnvironment}
        exec(f"class Edited(TaskEnvironment):\n    def setup(self):\n        self.text = {text!r}\n", names)
        made: TaskEnvironment = names["Edited"]()
        made.unique_id = "edited"
        return made

    assert one.run(Task("t = env.text", pull="t", environment=make("old")), block=True).ns.t == "old"
    with pytest.warns(UserWarning, match="the code of environment 'edited' has changed"):
        assert one.run(Task("t = env.text", pull="t", environment=make("new")), block=True).ns.t == "new"


SCRIPT = """
import sys
from ipytaskfarm import Task, TaskClient, TaskEnvironment

class Here(TaskEnvironment):
    kinds = {"a", "b", "c", "d"}

    def __init__(self, log):
        self.log = log

    def setup(self):
        import os
        with open(self.log, "a") as file:
            file.write(f"setup Here {os.getpid()}\\n")

with TaskClient(sys.argv[1]) as tc:
    tc.run(Task("env.kinds", environment=Here(sys.argv[2])), block=True).raise_exception()
"""


@by_hand
def test_the_same_code_in_another_process_is_the_same_environment(log: Path, tmp_path: Path) -> None:
    with module_farm(1) as farm:
        for seed in ("1", "2", "3"):
            script = tmp_path / f"script{seed}.py"
            script.write_text("\n" * int(seed) + SCRIPT)
            words = [sys.executable, str(script), str(farm.connection_file), str(log)]
            subprocess.run(words, check=True, timeout=DEADLINE_S, env={**os.environ, "PYTHONHASHSEED": seed})
    assert len(setups(log)) == 1


# -- the five situations of seed 003


def test_host_choice(two: TaskClient, log: Path) -> None:
    (a,) = run(two, Logged(log, "A"))
    # 1: an idle one that has it, and a free slot
    assert run(two, Logged(log, "A")) == [a]
    # 2: an idle one that has another, and a free slot
    (b,) = run(two, Logged(log, "B"))
    assert b != a
    assert psutil.pid_exists(a)
    assert not teardowns(log)
    # 3: idle ones that have others, and no free slot
    (c,) = run(two, Logged(log, "C"))
    assert c not in (a, b)
    assert teardowns(log) == [a], "the one that was idle for longest is torn down"
    assert not psutil.pid_exists(a)
    assert [name for _, name, _ in lines(log)] == ["A", "B", "A", "C"]


def test_four_and_five_the_count(two: TaskClient, log: Path) -> None:
    (first,) = run(two, Logged(log, after_tasks=3))
    assert run(two, Logged(log, after_tasks=3)) == [first], "it stays while the count is not full"
    assert run(two, Logged(log, after_tasks=3)) == [first]
    eventually(lambda: teardowns(log) == [first])
    eventually(lambda: not psutil.pid_exists(first))


# -- recycling


def test_by_count_seven_tasks_are_three_three_and_one(one: TaskClient, log: Path) -> None:
    ids = [
        one.run(Task("import os; pid = os.getpid()", pull="pid", environment=Logged(log, after_tasks=3)))
        for _ in range(7)
    ]
    one.barrier(ids, timeout=DEADLINE_S)
    pids = [one.get_task_result(i).ns.pid for i in ids]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]
    assert teardowns(log) == list(dict.fromkeys(pids))[:2]
    assert setups(log) == list(dict.fromkeys(pids))


@pytest.mark.alone
def test_settings_in_the_body_of_a_class(one: TaskClient, log: Path) -> None:
    """They hold for each instance; each instance has a copy of them, and they are no part of the identity."""

    class Counted(Logged):
        recycle = RecycleSettings(after_tasks=2)

        def __init__(self, log: Path) -> None:
            self.log = str(log)
            self.label = "counted"

    pids = run(one, Counted(log), 3)
    assert pids[0] == pids[1] != pids[2]
    changed = Counted(log)
    changed.recycle.after_tasks = 1
    assert Counted(log).recycle == RecycleSettings(after_tasks=2)
    assert run(one, changed) == pids[2:]
    with pytest.raises(TypeError, match="recycle must be RecycleSettings, not int"):
        type("Wrong", (TaskEnvironment,), {"recycle": 3})


def test_by_idleness(one: TaskClient, log: Path) -> None:
    (pid,) = run(one, Logged(log, idle_timeout=1.0))
    idle = time.monotonic()
    eventually(lambda: teardowns(log) == [pid])
    assert time.monotonic() - idle > 0.8


def test_by_the_time_since_the_start_never_within_a_task(one: TaskClient, log: Path) -> None:
    code = "import os, time; time.sleep(1.5); pid = os.getpid()"
    first = one.run(Task(code, pull="pid", environment=Logged(log, interval=timedelta(seconds=1))))
    tr = one.get_task_result(first, block=True)
    assert tr.ns.pid == setups(log)[0], "it was let come to its end"
    eventually(lambda: teardowns(log) == setups(log))


def test_by_the_time_of_day(one: TaskClient, log: Path) -> None:
    soon = (datetime.now().astimezone() + timedelta(seconds=3)).strftime("%H:%M:%S")
    run(one, Logged(log, at_times=[soon, "00:00"] if soon > "00:01" else [soon]))
    assert not teardowns(log)
    eventually(lambda: teardowns(log) == setups(log))


LEAKS = some(15, 40)


@pytest.mark.slow
def test_by_memory_a_leak_stays_bounded(one: TaskClient, log: Path) -> None:
    """A task that leaks 50 MiB each run."""
    code = (
        "import sys, resource\n"
        "kept = sys.modules.setdefault('kept', [])\n"
        "kept.append(bytearray(50 << 20))\n"
        "kept[-1][::4096] = bytes(50 << 8)\n"
        "n, peak = len(kept), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    )
    environment = Logged(log, max_memory="300 MiB")
    ids = [one.run(Task(code, pull=["n", "peak"], environment=environment)) for _ in range(LEAKS)]
    one.barrier(ids, timeout=60)
    results = [one.get_task_result(i) for i in ids]
    assert all(not tr.reason for tr in results)
    assert max(tr.ns.n for tr in results) <= 6, "ended after the task that reached it, not later"
    assert max(tr.ns.peak for tr in results) < (300 + 50 + 150) << 10
    assert LEAKS // 6 <= len(setups(log)) <= 2 * LEAKS // 5


def test_by_job_the_six_jobs_of_the_seed(one: TaskClient, log: Path) -> None:
    unreferenced, completion = RecycleSettings(when_unreferenced=True), RecycleSettings(on_job_end=True)
    jobs = []
    for unique_id, settings in zip("ABBCDD", [unreferenced] * 4 + [completion] * 2, strict=True):
        job = one.create_job()
        job.environment = Logged(log, unique_id)
        job.environment.unique_id = unique_id
        job.environment.recycle = settings
        for _ in range(5):
            job.add_task(Task("import os; pid = os.getpid()", pull="pid"))
        jobs.append(job)
    first, second, third, fourth, fifth, sixth = jobs[1], jobs[2], jobs[0], jobs[3], jobs[4], jobs[5]
    for pair in ((first, second), (third, fourth), (fifth, sixth)):
        for job in pair:
            job.submit()
        for job in pair:
            assert job.wait(DEADLINE_S)
    eventually(lambda: len(teardowns(log)) == 5)
    assert len(setups(log, "B")) == 1, "once, after both"
    assert len(setups(log, "A")) == len(setups(log, "C")) == 1, "after each"
    assert len(setups(log, "D")) == 2, "after each, though they are the same"
    assert teardowns(log) == setups(log)


def test_settings_of_an_empty_environment(one: TaskClient) -> None:
    job = one.create_job()
    job.environment.recycle.after_tasks = 2
    for _ in range(4):
        job.add_task(Task("import os; pid = os.getpid()", pull="pid"))
    job.submit()
    pids = [result["pid"] for result in job.results(timeout=DEADLINE_S)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_after_a_failure_only_where_that_was_asked_for(one: TaskClient, log: Path) -> None:
    for on_failure in (False, True):
        environment = Logged(log, on_failure=on_failure)
        (before,) = run(one, environment)
        failed = one.run(Task("1/0", environment=environment))
        one.barrier(failed, timeout=DEADLINE_S)
        assert (run(one, environment) == [before]) is not on_failure


# -- what goes wrong


class Broken(TaskEnvironment):
    def setup(self) -> None:
        self.missing = dict[str, int]()["licence"]


def test_a_setup_error_fails_its_tasks_and_no_others(one: TaskClient, log: Path) -> None:
    ids = [one.run(Task("a = 1", pull="a", environment=Broken())) for _ in range(3)]
    others = [one.run(Task("a = 1", pull="a", environment=Logged(log))) for _ in range(3)]
    one.barrier([*ids, *others], timeout=DEADLINE_S)
    tr = one.get_task_result(ids[0])
    assert tr.reason == "environment setup"
    with pytest.raises(errors.EnvironmentSetupError, match="the setup of Broken failed: KeyError: 'licence'") as raised:
        tr.raise_exception()
    assert 'self.missing = dict[str, int]()["licence"]' in raised.value.remote_traceback  # type: ignore[attr-defined]
    assert [one.get_task_result(i).reason for i in ids] == ["environment setup"] * 3
    assert all(one.get_task_result(i).ns.a == 1 for i in others)
    assert run(one, None), "the slot is usable"


def test_a_setup_error_spends_retries(one: TaskClient, tmp_path: Path) -> None:
    class Flaky(TaskEnvironment):
        def __init__(self, path: str) -> None:
            self.path = path

        def setup(self) -> None:
            with open(self.path, "a") as file:
                file.write("x")
            if os.path.getsize(self.path) < 3:
                raise ConnectionError("the server is busy")

    tr = one.run(Task("a = 1", pull="a", environment=Flaky(str(tmp_path / "tries")), retries=2), block=True)
    assert tr.ns.a == 1
    assert [attempt.outcome for attempt in tr.attempts] == ["environment setup", "environment setup", ""]


def test_a_setup_that_kills_its_engine_is_a_lost_engine(one: TaskClient) -> None:
    class Deadly(TaskEnvironment):
        def setup(self) -> None:
            os.kill(os.getpid(), 9)

    tr = one.run(Task("1", environment=Deadly()), block=True)
    assert tr.reason == "engine lost"
    assert run(one, None)


def test_an_abort_reaches_a_setup(one: TaskClient, tmp_path: Path) -> None:
    class Endless(TaskEnvironment):
        def __init__(self, path: str) -> None:
            self.path = path

        def setup(self) -> None:
            open(self.path, "w").close()
            while True:
                time.sleep(0.01)

    begun = tmp_path / "begun"
    task = one.run(Task("1", environment=Endless(str(begun))))
    eventually(begun.exists)
    assert one.status(task).reason == "preparing its environment"
    one.abort(task)
    with pytest.raises(errors.TaskAborted):
        one.get_task_result(task, block=True, timeout=DEADLINE_S)
    assert run(one, None), "the slot is usable"


def test_a_teardown_that_hangs_is_killed_at_its_time_limit(one: TaskClient) -> None:
    class Hanging(TaskEnvironment):
        teardown_timeout = 0.5

        def teardown(self) -> None:
            while True:
                time.sleep(1)

    (pid,) = run(one, Hanging())
    begun = time.monotonic()
    (other,) = run(one, Logged(Path(os.devnull)))
    assert other != pid
    assert not psutil.pid_exists(pid)
    assert time.monotonic() - begun < 30.0, "without the limit it would hang"


def test_a_teardown_that_raises_does_not_keep_the_engine(one: TaskClient) -> None:
    class Raising(TaskEnvironment):
        def teardown(self) -> None:
            raise SystemExit("no")

    (pid,) = run(one, Raising())
    run(one, Logged(Path(os.devnull)))
    assert not psutil.pid_exists(pid)


def test_time_limits_count_neither_the_setup_nor_the_queue(one: TaskClient, log: Path, tmp_path: Path) -> None:
    class Slow(Logged):
        def setup(self) -> None:
            time.sleep(1.5)

    gate = Gate(tmp_path / "gate")
    one.run(Task(gate.code))
    task = one.run(Task("import time; time.sleep(0.3); a = 1", pull="a", environment=Slow(log), time_limit=1.0))
    assert not one.wait(task, timeout=1.2)[0]
    gate.open()
    tr = one.get_task_result(task, block=True, timeout=DEADLINE_S)
    assert tr.ns.a == 1
    assert tr.duration < 1.0, "nor does the duration"


# -- what a task sees


def test_the_environment_at_the_tasks_hand(one: TaskClient, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    class Full(TaskEnvironment):
        preload = ("wave", "colorsys")

        def __init__(self, cwd: str) -> None:
            self.cwd = cwd

        def setup(self) -> None:
            os.environ["SET_UP"] = "yes"
            self.values = [1, 2, 3]

    def look(factor: int) -> list[int]:
        values = current_task().environment.values
        values.append(4)
        return [factor * value for value in values]

    environment = Full(str(folder))
    code = "import os, sys; found = os.getcwd(), os.environ['SET_UP'], 'wave' in sys.modules; os.chdir('/')"
    for _ in range(2):
        tr = one.run(Task(code, pull="found", environment=environment), block=True)
        assert tr.results["found"] == (str(folder), "yes", True)
    assert one.run(Task(look, args=(10,), environment=environment), block=True).result == [10, 20, 30, 40]
    kept = one.run(Task("n = len(env.values)", pull="n", environment=environment, clear_before=True), block=True)
    assert kept.ns.n == 4, "what empties the namespace leaves it"


def test_an_attribute_that_equals_its_former_value_is_sent_anew(one: TaskClient) -> None:
    class Count(TaskEnvironment):
        many: float = 1

    def seen(environment: TaskEnvironment) -> str:
        return str(one.run(Task("many = repr(env.many)", pull="many", environment=environment), block=True)["many"])

    environment = Count()
    found = []
    for environment.many in (1, True, 1.0):
        found.append(seen(environment))
    assert found == ["1", "True", "1.0"]


def test_an_environment_that_is_a_dataclass(one: TaskClient) -> None:
    @dataclasses.dataclass
    class Settings(TaskEnvironment):
        many: int = 3

    assert one.run(Task("many = env.many", pull="many", environment=Settings()), block=True)["many"] == 3


def test_a_pair_of_functions(one: TaskClient, log: Path) -> None:
    path = str(log)

    @TaskEnvironment.of
    def database(env: Any) -> None:
        env.rows = [1, 2]
        note(path, "setup pair")

    @database.on_teardown
    def database_closed(env: Any) -> None:
        note(path, "teardown pair")

    assert one.run(Task("n = len(env.rows)", pull="n", environment=database), block=True).ns.n == 2
    run(one, Logged(log))
    assert [words[0] for words in lines(log)[:2]] == ["setup", "teardown"]


model: list[int]


def test_a_function_without_arguments_prepares_as_an_initializer_of_a_pool(one: TaskClient) -> None:
    @TaskEnvironment.of
    def load() -> None:
        global model
        model = [3]

    assert one.map(lambda x: model[0] * x, range(3), environment=load) == [0, 3, 6]


def test_what_is_no_environment_is_refused(one: TaskClient) -> None:
    with pytest.raises(TypeError, match="environment must be an instance: Broken"):
        Task("1", environment=Broken)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="environment must be a TaskEnvironment or None, not str"):
        Task("1", environment="db")  # type: ignore[arg-type]


def test_a_recycle_takes_a_moment(one: TaskClient, log: Path) -> None:
    """From the end of a task to the next engine's readiness: measured 0.1 s, on a busy machine many times that."""
    numbers = count()

    def is_quick() -> bool:
        run(one, Logged(log, f"E{next(numbers)}"))
        begun = time.monotonic()
        run(one, Logged(log, f"E{next(numbers)}"))
        return time.monotonic() - begun < 10.0

    eventually(is_quick, what="a recycle within 10 s")
    assert len(setups(log)) == next(numbers)


def test_nothing_is_warned_of_without_need(one: TaskClient, log: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            run(one, Logged(log))


@by_hand
def test_engines_keep_their_environments_when_the_controller_is_killed(log: Path) -> None:
    with module_farm(2) as farm, farm.task_client() as tc:
        run(tc, Logged(log, "A"))
        _kill_controller(farm)
        assert run(tc, Logged(log, "A")) == setups(log), "no new setup"
        run(tc, Logged(log, "B"))
        run(tc, Logged(log, "C"))
        assert teardowns(log) == setups(log, "A")


def _kill_controller(farm: Farm) -> None:
    from ipytaskfarm.core import messages
    from ipytaskfarm.core.messages import tables
    from tests.support.farms import ask

    state = ask(farm, messages.FarmStatus())
    assert isinstance(state, tables.FarmState)
    psutil.Process(state.pid).kill()
