"""Test what a task finds and leaves: each row of the table in docs/surroundings.md has checks here, and no check lacks
a row.
"""

from __future__ import annotations

import asyncio
import decimal
import os
import re
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from ipytaskfarm import Farm, MapTask
from ipytaskfarm.agent import node
from ipytaskfarm.core.messages import CommandDone, Returned, SetUp
from ipytaskfarm.core.messages.engine_commands import ExecuteBody
from ipytaskfarm.core.messages.payload import CallWork, ResultBody, StringWork
from ipytaskfarm.core.messages.task_types import ItemsEnded
from ipytaskfarm.core.requirements import THREADS
from ipytaskfarm.engine.interpreter import Numpy
from ipytaskfarm.serialization.pack import pack, pack_function, unpack
from ipytaskfarm.system.flight_recorder import TIME_LIMIT
from ipytaskfarm.system.process import usable_cores
from tests.conftest import Dirs
from tests.support.fake_agent import FakeAgent, FakeEngine, Outcome
from tests.support.farms import DEADLINE_S
from tests.support.polling import eventually
from tests.support.surroundings_table import LEFT, PUT_BACK, RECYCLED, Check

PAGE = Path(__file__).parents[2] / "docs" / "surroundings.md"


ELSEWHERE = {
    "names that others left": "test_what_a_task_leaves_hides_no_builtin",
    "joblib's pool of processes": "test_joblibs_workers_are_as_fresh_ones",
}


def rows() -> dict[str, str]:
    """Return a dict of the first and the third column of the page's table."""
    table = PAGE.read_text().partition("<!-- surroundings -->")[2].partition("<!-- /surroundings -->")[0]
    cells = [re.split(r"\s*\|\s*", line.strip().strip("|").strip()) for line in table.strip().splitlines()[2:]]
    return {what: afterwards for what, _, afterwards in cells}


def test_each_row_of_the_page_has_a_check_and_each_check_a_row() -> None:
    checked = dict.fromkeys([*PUT_BACK, *ELSEWHERE], "put back")
    checked |= dict.fromkeys(LEFT, "left") | dict.fromkeys(RECYCLED, "recycled")
    assert rows() == checked
    assert all(name in globals() for name in ELSEWHERE.values())


@pytest.fixture(scope="module")
def engine(agent: FakeAgent) -> FakeEngine:
    return agent.start_engine(umask=0o027)


def outcomes(engine: FakeEngine, *works: Any, **rules: Any) -> list[Outcome]:
    """Return the outcomes of works that are submitted together, so that the engine runs them without a pause."""
    return [Outcome(engine.ended(key)) for key in engine.hand(*works, **rules)]


def call(engine: FakeEngine, function: Callable[..., Any], *args: Any, each: bool = False) -> Any:
    packed = pack_function(function)
    work = CallWork(pack((args, {})), each=each)
    (outcome,) = outcomes(engine, work, functions=[packed], function=packed.digest)
    return all_values(outcome)


def all_values(outcome: Outcome) -> Any:
    """Return a run's value; of a chunk with the values of slow items, which are told apart."""
    values, detail = outcome.value, outcome.ended.detail
    if isinstance(detail, ItemsEnded):
        for told in detail.told:
            assert told.outcome == "", told.failure
            body = msgspec.msgpack.decode(told.body, type=ResultBody)
            values[told.index] = unpack(body.value) if body.value is not None else None
    return values


def call_items(engine: FakeEngine, function: Callable[..., Any], items: list[Any]) -> list[Any]:
    """Call a function with the parts of each item, as a chunk; return the values of the items that it ran."""
    packed = pack_function(function)
    work = CallWork(pack(((items, True, 0, len(items)), {})), each=True)
    (outcome,) = outcomes(engine, work, functions=[packed], function=packed.digest)
    return list(all_values(outcome))


def by_hand(engine: FakeEngine, code: str) -> CommandDone:
    done = engine.command("execute", msgspec.msgpack.encode(ExecuteBody(code)))
    assert done.ok, done
    return done


PUT_BACK_CHECKS = [
    pytest.param(check, id=f"{row.strip('`')}-{number}")
    for row, checks in PUT_BACK.items()
    for number, check in enumerate(checks)
]


@pytest.mark.parametrize("check", PUT_BACK_CHECKS)
def test_the_next_task_finds_what_the_one_before_found(engine: FakeEngine, check: Check) -> None:
    look = StringWork(check.look, ("seen",))
    before, changed, after, again = outcomes(
        engine, look, StringWork(check.change), look, StringWork(check.look, ("seen",))
    )
    assert changed.value == {}
    if check.found is not ...:
        assert before.value["seen"] == check.found
    assert after.value == again.value == before.value


def look_and_change(look: str, change: str) -> Any:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(look, names)
    exec(change, names)
    return names["seen"]


@pytest.mark.parametrize("check", PUT_BACK_CHECKS)
def test_an_item_finds_what_the_one_before_found(engine: FakeEngine, check: Check) -> None:
    values = call_items(engine, look_and_change, [(check.look, check.change)] * 5)
    # A chunk of slow items ends early, and gives the rest back.
    assert len(values) > 1
    assert values == [values[0]] * len(values)
    if check.found is not ...:
        assert values[0] == check.found


@pytest.mark.parametrize("row", LEFT)
def test_what_is_left_is_said_to_be_left(engine: FakeEngine, row: str) -> None:
    check = LEFT[row]
    look = StringWork(check.look, ("seen",))
    before, _, after = outcomes(engine, look, StringWork(check.change), look)
    assert (before.value["seen"], after.value["seen"]) in [(False, True), (True, False), (0, 5)]


@pytest.mark.parametrize("row", RECYCLED)
def test_what_cannot_be_put_back_ends_the_engine(agent: FakeAgent, row: str) -> None:
    engine = agent.start_engine()
    change, look = engine.hand(StringWork(RECYCLED[row]), StringWork("pass"))
    if (failed := engine.ended(change).failure) is not None:
        pytest.skip(f"not allowed here: {failed.value}")
    assert engine.wait(SetUp).error
    assert engine.wait(Returned).runs == [look]


# -- items in the quick loop


def in_another_folder(number: int) -> str:
    here = os.getcwd()
    os.chdir("/" if number % 2 else "/tmp")
    return here


def with_a_variable(number: int) -> str | None:
    found = os.environ.get("MINE")
    os.environ["MINE"] = str(number)
    return found


def with_a_umask(number: int) -> int:
    return os.umask(number % 8)


def with_a_handler(number: int) -> bool:
    return signal.signal(signal.SIGUSR1, lambda *_: None) is signal.SIG_DFL


def with_a_timer(number: int) -> float:
    return signal.setitimer(signal.ITIMER_REAL, 1000)[0]


def with_precision(number: int) -> int:
    found = decimal.getcontext().prec
    decimal.getcontext().prec = 3
    return found


def with_a_filter(number: int) -> int:
    found = len(warnings.filters)
    if number == 100:
        quietly()
    return found


def quietly() -> None:
    warnings.simplefilter("ignore")


def one_of_a_hundred(number: int) -> str:
    here = os.getcwd()
    if number % 100 == 50:
        os.chdir("/")
        raise ValueError(number)
    if number % 100 == 70:
        os.chdir("/")
        raise StopIteration
    return here


@pytest.mark.parametrize(
    "function",
    [
        in_another_folder, with_a_variable, with_a_umask, with_a_handler, with_a_timer, with_precision, with_a_filter,
    ],
)  # fmt: skip
def test_each_of_many_items_begins_as_a_task_does(engine: FakeEngine, function: Callable[[int], Any]) -> None:
    first = call(engine, function, [0], False, 0, 1, each=True)
    values = call(engine, function, range(2000), False, 0, 2000, each=True)
    assert len(values) > 100  # a chunk that takes long leaves its other items to others
    assert values == [first] * len(values)


def test_items_that_fail_are_put_back_too_and_run_once(engine: FakeEngine) -> None:
    packed = pack_function(one_of_a_hundred)
    work = CallWork(pack(((range(1000), False, 0, 1000), {})), each=True)
    (outcome,) = outcomes(engine, work, functions=[packed], function=packed.digest)
    values, detail = outcome.value, outcome.ended.detail
    home = values[0]
    assert isinstance(detail, ItemsEnded)
    assert detail.done > 100
    failed = [told.index for told in detail.told if told.outcome]
    assert failed == [n for n in range(detail.done) if n % 100 in (50, 70)]
    assert values == [None if n % 100 in (50, 70) else home for n in range(detail.done)]


# -- the user's own hands


def test_what_is_set_by_hand_is_what_tasks_find(agent: FakeAgent) -> None:
    engine = agent.start_engine()
    by_hand(
        engine,
        "import decimal, os, signal, sys, warnings\n"
        "decimal.getcontext().prec = 50; os.environ['BY_HAND'] = '1'; sys.setrecursionlimit(3000); os.umask(0o070)\n"
        "sys.argv = ['me']; os.chdir('/'); signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
    )
    look = (
        "import decimal, os, signal, sys\nmask = os.umask(0); decimal.getcontext().prec += 1\n"
        "seen = (decimal.getcontext().prec, os.environ.pop('BY_HAND'), sys.getrecursionlimit(), mask, sys.argv.pop(),"
        " os.getcwd(), int(signal.getsignal(signal.SIGUSR1)))\nos.chdir('/tmp'); sys.setrecursionlimit(999)"
    )
    for outcome in outcomes(engine, *[StringWork(look, ("seen",))] * 3):
        assert outcome.value["seen"] == (51, "1", 3000, 0o070, "me", "/", int(signal.SIG_IGN))


def test_tasks_find_the_users_umask(engine: FakeEngine, agent: FakeAgent) -> None:
    made = agent.folder / "made"
    engine.run(f"open({str(made)!r}, 'w').close()")
    assert made.stat().st_mode & 0o777 == 0o640
    made.unlink()
    own = [path for path in agent.folder.rglob("*") if path.is_file() and path.name.startswith(("engine", "kernel"))]
    assert own
    assert not [path for path in own if path.stat().st_mode & 0o077]


# -- names


def of_a_notebook(code: str, name: str) -> Callable[..., Any]:
    """A function that travels by itself, and looks on the engine for what it does not bring."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code, names)
    found: Callable[..., Any] = names[name]
    return found


ADD_UP = "def add_up(numbers): return sum(numbers), max(numbers), sorted(numbers, key=lambda n: -abs(n))"
USE_PUSHED = "def use_pushed(): return pushed + eval('sum([1, 2])')"


def test_what_a_task_leaves_hides_no_builtin(engine: FakeEngine) -> None:
    spoil = StringWork("sum = 0; max = None; sorted = abs = print = len = 3; pushed = 5")
    outcomes(engine, spoil)
    for each in (False, True):
        arguments = ([[1, 2]] * 2, False, 0, 2) if each else ([1, 2],)
        found = call(engine, of_a_notebook(ADD_UP, "add_up"), *arguments, each=each)
        assert found == ([(3, 2, [2, 1])] * 2 if each else (3, 2, [2, 1]))
    assert call(engine, of_a_notebook(USE_PUSHED, "use_pushed")) == 8  # a name that was nothing at home is still found
    outcomes(engine, StringWork("del sum, max, sorted, abs, print, len, pushed"))


# -- processes that libraries keep


def in_loky(number: int, change: bool) -> tuple[str | None, int]:
    import joblib

    if change:
        os.environ["MINE"] = "1"
    found: list[tuple[str | None, int]] = joblib.Parallel(2, backend="loky")([joblib.delayed(look_and_print)(number)])
    return found[0]


def look_and_print(number: int) -> tuple[str | None, int]:
    print("number", number, flush=True)
    return os.environ.get("MINE"), os.getpid()


def test_joblibs_workers_are_as_fresh_ones(agent: FakeAgent) -> None:
    engine = agent.start_engine()
    packed = pack_function(in_loky)
    before: set[int] = set()
    for number, change in enumerate((False, False, True)):
        work = CallWork(pack(((number, change), {})))
        (outcome,) = outcomes(engine, work, functions=[packed], function=packed.digest)
        assert outcome.body.stdout == f"number {number}\n"
        assert outcome.value[0] is None
        before.add(outcome.value[1])
        assert len(before) <= 2, "they are used again, though a task has changed a variable meanwhile"
    assert engine.output.read_text() == ""


def test_joblibs_workers_that_were_born_elsewhere_end(agent: FakeAgent) -> None:
    engine = agent.start_engine()
    packed = pack_function(in_loky)
    work = [CallWork(pack(((0, change), {}))) for change in (True, False)]
    elsewhere, home = outcomes(engine, *work, functions=[packed], function=packed.digest)
    assert (elsewhere.value[0], home.value[0]) == ("1", None)
    eventually(lambda: not psutil.pid_exists(elsewhere.value[1]), DEADLINE_S)


def test_a_worker_of_an_older_loky_writes_for_the_task_that_uses_it(engine: FakeEngine, tmp_path: Path) -> None:
    """loky before 3.5 (joblib 1.4) forks, and the child calls ``os.execve``."""
    fifo = tmp_path / "number"
    os.mkfifo(fifo)
    worker = [sys.executable, "-c", WRITE_WHAT_COMES, "loky.backend.popen_loky_posix", str(fifo)]
    fork = f"import os\nworker = {worker}\nif not os.fork(): os.execve(worker[0], worker, os.environ)"
    use = f"with open({str(fifo)!r}, 'w') as to: to.write('{{}}')\nwith open({str(fifo)!r}) as back: back.read()"
    for number, code in enumerate((f"{fork}\n{use}", use)):
        (outcome,) = outcomes(engine, StringWork(code.format(number)))
        assert outcome.body.stdout == f"number {number}\n"


WRITE_WHAT_COMES = """
import sys
for _ in range(2):
    with open(sys.argv[2]) as to: number = to.read()
    print("number", number, flush=True)
    with open(sys.argv[2], "w") as back: back.write("done")
"""


class NumpysSettings:
    """What `interpreter.Numpy` uses of numpy 2.0: print options that belong to the process."""

    __version__ = "2.0.2"

    def __init__(self) -> None:
        self.options: dict[str, Any] = {
            "edgeitems": 3, "threshold": 1000, "floatmode": "maxprec", "precision": 8, "suppress": False,
            "linewidth": 75, "nanstr": "nan", "infstr": "inf", "sign": "-", "formatter": None, "legacy": False,
        }  # fmt: skip

    def get_printoptions(self) -> dict[str, Any]:
        return dict(self.options)

    def set_printoptions(self, **options: Any) -> None:
        self.options.update(options)


def test_print_options_of_an_older_numpy_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Numpy()
    monkeypatch.delitem(sys.modules, "numpy", raising=False)
    part.take()  # a task imports it first
    numpy = NumpysSettings()
    monkeypatch.setitem(sys.modules, "numpy", numpy)
    assert not part.restore()
    numpy.set_printoptions(precision=2)
    assert part.restore()
    assert numpy.options["precision"] == 8
    numpy.set_printoptions(precision=4)
    part.take()  # set by hand, with MultiEngineClient
    numpy.set_printoptions(precision=2)
    assert part.restore()
    assert numpy.options["precision"] == 4


# -- event loops


async def wait_a_little(value: int) -> int:
    await asyncio.sleep(0.001)
    return value


def with_run(value: int) -> int:
    return asyncio.run(wait_a_little(value))


def with_a_loop(value: int) -> int:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(wait_a_little(value))
    finally:
        loop.close()


def with_anyio(value: int) -> int:
    import anyio

    return anyio.run(wait_a_little, value)


def with_tornado(value: int) -> int:
    from tornado.ioloop import IOLoop

    found: int = IOLoop.current().run_sync(lambda: wait_a_little(value))
    return found


def in_a_thread(value: int) -> int:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(with_run, value).result()


@pytest.mark.parametrize("function", [with_run, with_a_loop, with_anyio, with_tornado, in_a_thread])
def test_loops_of_ones_own_run(engine: FakeEngine, function: Callable[[int], int]) -> None:
    for value in (1, 2):
        assert call(engine, function, value) == value
    values: list[int] = []
    while len(values) < 5:  # on a busy machine a chunk leaves slow items to others, after the first
        more = call(engine, function, range(len(values), 5), False, 0, 5 - len(values), each=True)
        assert more
        values += more
    assert values == [*range(5)]
    assert call(engine, wait_a_little, 5) == 5
    assert engine.run("import asyncio; seen = await asyncio.sleep(0, 7)", "seen").value == {"seen": 7}


def test_a_time_limit_ends_a_loop_of_ones_own(engine: FakeEngine) -> None:
    (key,) = engine.hand(StringWork("import asyncio; asyncio.run(asyncio.sleep(60))"))
    engine.wait_running(key)
    assert Outcome(engine.interrupt(key, TIME_LIMIT)).ended.outcome == "time limit"
    assert call(engine, with_run, 3) == 3


def test_a_handler_that_raises_hits_its_own_task_alone(engine: FakeEngine) -> None:
    code = (
        "import signal\ndef late(*_): raise TimeoutError('late')\nsignal.signal(signal.SIGALRM, late)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.002, 0.0001)\nfor _ in range(n): pass"
    )
    for n in (10**3, 10**5, 10**6):
        Outcome(engine.ended(engine.hand(StringWork(code, (), pack({"n": n})))[0]))
        assert engine.run("alive = 1", "alive").value == {"alive": 1}


# -- figures, threads, a real farm


def test_figures_are_shown_though_no_variable_says_so(agent: FakeAgent) -> None:
    engine = agent.start_engine()
    look = "import os, subprocess; seen = os.environ.get('MPLBACKEND'), subprocess.run('echo $MPLBACKEND', shell=True, "
    look += "capture_output=True).stdout\n"
    for _ in range(2):
        outcome = engine.run(look + "import matplotlib.pyplot as plt; plt.plot([1, 2])", "seen")
        assert outcome.value["seen"] == (None, b"\n")
        assert ["image/png" in each["data"] for each in outcome.body.outputs].count(True) == 1


@pytest.mark.parametrize(
    ("own", "engines", "expected"),
    [
        ({}, 1, {"OMP_NUM_THREADS": "8", "OPENBLAS_NUM_THREADS": "8", "NUMBA_NUM_THREADS": "8"}),
        ({}, 3, {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}),
        ({}, 100, {"OMP_NUM_THREADS": "1"}),
        ({"OMP_NUM_THREADS": "5"}, 2, {"OMP_NUM_THREADS": None, "MKL_NUM_THREADS": None, "NUMBA_NUM_THREADS": "4"}),
        ({"MKL_NUM_THREADS": "5"}, 2, {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": None}),
    ],
)
def test_engines_share_the_cores_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, own: dict[str, str], engines: int, expected: dict[str, str | None]
) -> None:
    monkeypatch.setattr(node, "usable_cores", lambda: 8)
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    found = node.thread_limits(engines)
    assert {name: found.get(name) for name in expected} == expected


def variables_of_a_child() -> dict[str, str]:
    output = subprocess.run(["env", "-0"], capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in output.rstrip("\0").split("\0"))


def lower_a_limit(number: int) -> tuple[int, int]:
    if number == 3:
        os.setresgid(12345, 12345, 12345) if os.geteuid() == 0 else resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return number, os.getpid()


def make_a_file(path: str) -> int:
    with open(path, "w"):
        return os.stat(path).st_mode & 0o777


@pytest.mark.farm
def test_a_farm_hands_on_the_surroundings_that_it_was_started_in(
    farm_dirs: Dirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*THREADS, "MPLBACKEND", "FORCE_COLOR", "TERM", "PAGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    before = os.umask(0o026)
    try:
        with Farm(n=2) as farm, farm.task_client() as tc:
            added = {name: str(max(1, usable_cores() // 2)) for name in THREADS if name != "NUMBA_NUM_THREADS"}
            found = tc.map(lambda _: variables_of_a_child(), [0])[0]
            assert found.pop("IPYTASKFARM_ENGINE")
            private, *rest = found.pop("PYTHONPATH").split(os.pathsep)
            assert private.endswith("/children")
            assert rest == os.environ.get("PYTHONPATH", "").split(os.pathsep)[: len(rest)]
            assert found == {name: value for name, value in {**os.environ, **added}.items() if name != "PYTHONPATH"}
            assert tc.map(make_a_file, [str(farm_dirs.work / "made")]) == [0o640]
            assert set(tc.map(in_another_folder, range(200))) == {os.getcwd()}
            # An engine that a task has spoiled is replaced, and nothing is lost by it.
            ids = [tc.run(MapTask(lower_a_limit, (n,))) for n in range(40)]
            tc.barrier(ids)
            numbers, pids = zip(*(tc.get_task_result(task) for task in ids), strict=True)
            assert numbers == tuple(range(40))
            spoiled = pids[3]
            eventually(lambda: not psutil.pid_exists(spoiled), DEADLINE_S)
            assert spoiled not in [pid for _, pid in tc.map(lower_a_limit, range(10, 30))]
    finally:
        os.umask(before)
