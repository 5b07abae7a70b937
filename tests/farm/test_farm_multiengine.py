"""The multi-engine interface, call by call, on a real farm of three engines."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipytaskfarm import Farm, MultiEngineClient, Task, TaskClient, errors
from ipytaskfarm.client.commands import PendingResult
from tests.support.farms import DEADLINE_S, Gate, until_engines, until_running
from tests.support.polling import eventually

pytestmark = pytest.mark.farm(n=3)


@pytest.fixture
def mec(mec: MultiEngineClient) -> MultiEngineClient:
    mec.reset()
    mec.clear_properties()
    return mec


# -- who is meant


def test_targets_are_an_id_a_sequence_or_all(mec: MultiEngineClient) -> None:
    assert mec.get_ids() == [0, 1, 2]
    assert len(mec) == 3
    mec.execute("me = int(id)")
    assert mec.pull("me") == [0, 1, 2]
    assert mec.pull("me", targets=1) == [1]
    assert mec.pull("me", targets=[2, 0]) == [2, 0]
    assert mec.pull("me", targets=(1, 2)) == [1, 2]
    mec.targets = [1]
    assert mec.pull("me") == [1]
    assert mec.pull("me", targets="all") == [0, 1, 2]


@pytest.mark.parametrize(
    ("targets", "error"),
    [
        (7, errors.InvalidEngineID),
        ([0, 7], errors.InvalidEngineID),
        ("some", errors.InvalidEngineID),
        (1.5, errors.InvalidEngineID),
        ({}, errors.InvalidEngineID),
        ([], ValueError),
        (True, errors.InvalidEngineID),
        (["a"], errors.InvalidEngineID),
    ],
)
def test_wrong_targets_are_refused_bare(mec: MultiEngineClient, targets: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        mec.execute("a = 1", targets=targets)
    assert mec.pull("id", targets=0)[0] == 0


# -- commands


def test_execute_shows_what_each_engine_shows(mec: MultiEngineClient) -> None:
    mec.execute("a = 5")
    found = mec.execute("print('hello'); a + int(id)")
    assert [entry["id"] for entry in found] == [0, 1, 2]
    assert {*found[0]} == {"id", "number", "input", "stdout", "stderr", "display"}
    assert found[0]["input"] == {"raw": "print('hello'); a + int(id)", "translated": "print('hello'); a + int(id)\n"}
    assert found[1]["stdout"] == "hello\n"
    number = found[0]["number"]
    assert f"[0] In [{number}]: print('hello'); a + int(id)" in repr(found)
    assert f"[2] Out[{found[2]['number']}]: hello\n7" in repr(found)
    assert len(mec.execute("a", targets=1)) == 1


def test_push_and_pull(mec: MultiEngineClient) -> None:
    assert mec.push({"a": 1, "b": [2]}) == [None] * 3
    assert mec.push({"a": 10}, targets=1) == [None]
    assert mec.pull("a") == [1, 10, 1]
    assert mec.pull(["a", "b"]) == [[1, [2]], [10, [2]], [1, [2]]]
    assert mec.pull(("a",)) == [1, 10, 1]
    assert mec.zip_pull(["a", "b"]) == [(1, 10, 1), ([2], [2], [2])]
    assert mec.zip_pull(["a", "b"], targets=1) == [10, [2]]
    assert mec.zip_pull("a", block=False).r == [1, 10, 1]
    assert mec.zip_pull("a", targets=1) == 10
    mec["c"] = 3
    assert mec["c"] == [3] * 3
    with pytest.raises(errors.CompositeError, match="NameError") as raised:
        mec.pull("nothing")
    assert [engine_id for engine_id, _, _ in raised.value.elist] == [0, 1, 2]


def test_functions_travel(mec: MultiEngineClient) -> None:
    factor = 3

    def multiply(x: int) -> int:
        return factor * x

    assert mec.push_function({"multiply": multiply}) == [None] * 3
    mec.execute("b = multiply(int(id))")
    assert mec.pull("b") == [0, 3, 6]
    assert [f(2) for f in mec.pull_function("multiply")] == [6, 6, 6]


def test_large_values_travel(mec: MultiEngineClient) -> None:
    array = np.arange(300_000)
    mec.push({"array": array})
    mec.execute("array = array + int(id)")
    for engine_id, found in enumerate(mec.pull("array")):
        assert (found == array + engine_id).all()


def test_get_result_keys_reset(mec: MultiEngineClient) -> None:
    mec.execute("left = 1")
    number = mec.execute("40 + 2", targets=0)[0]["number"]
    assert "42" in repr(mec.get_result(number, targets=0))
    assert mec.get_result(targets=0)[0]["number"] == number
    assert mec.get_result()[1]["input"]["raw"] == "left = 1"
    with pytest.raises(errors.CompositeError, match="IndexError"):
        mec.get_result(99_999)
    assert "left" in mec.keys()[2]
    assert mec.reset() == [None] * 3
    assert ["left" in names for names in mec.keys(targets="all")] == [False] * 3


def test_an_error_names_its_engines_only(mec: MultiEngineClient) -> None:
    mec.push({"d": 0}, targets=1)
    mec.push({"d": 2}, targets=[0, 2])
    with pytest.raises(errors.CompositeError) as raised:
        mec.execute("1 / d")
    error = raised.value
    assert [(engine_id, verb) for engine_id, verb, _ in error.elist] == [(1, "execute")]
    assert "[1:execute]: ZeroDivisionError: division by zero" in str(error)
    with pytest.raises(ZeroDivisionError):
        error.raise_exception()
    with pytest.raises(IndexError):
        error.raise_exception(1)


# -- pending results


def test_an_error_says_what_this_session_has(mec: MultiEngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "only_here", 1, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "system", os, raising=False)
    start = "this session has 'only_here', and engines have names of their own: mec.push({'only_here': only_here})"
    for verb, text in (("execute", "y = only_here"), ("pull", "only_here")):
        with pytest.raises(errors.CompositeError) as raised:
            getattr(mec, verb)(text)
        assert raised.value.__notes__ == [start]
        with pytest.raises(NameError) as inner:
            raised.value.raise_exception()
        assert inner.value.__notes__ == [start]
    with pytest.raises(errors.CompositeError) as raised:
        mec.execute("system.getpid()")
    assert raised.value.__notes__ == [
        "this session has 'system', and engines have names of their own: mec.execute('import os as system')"
    ]


def test_a_block_that_is_no_bool_is_refused_where_it_is_set(mec: MultiEngineClient) -> None:
    with pytest.raises(TypeError, match="block must be True or False, not int: 2"):
        mec.block = 2  # type: ignore[assignment]
    assert mec.block is True


def test_pending_results(mec: MultiEngineClient, gate: Gate) -> None:
    mec.block = False
    pending = mec.execute(gate.code + "a = 3")
    assert isinstance(pending, PendingResult)
    assert not pending.done()
    assert pending.get_result(default="not yet", block=False) == "not yet"
    gate.open()
    assert len(pending.r) == 3
    assert pending.done()
    assert pending.get_result() is pending.r
    called: list[object] = []
    pending.add_done_callback(called.append)
    eventually(lambda: called == [pending], DEADLINE_S, what="the callback")
    pulled = mec.pull("a")
    pulled.add_callback(lambda values, more: sum(values) + more, 1)
    assert pulled.r == 10
    failing = mec.execute("1/0")
    for _ in range(2):
        with pytest.raises(errors.CompositeError):
            assert failing.r


def test_pending_results_can_be_awaited(mec: MultiEngineClient) -> None:
    async def both() -> list[Any]:
        pending = [mec.execute("a = int(id)", block=False), mec.pull("a", block=False)]
        done = [await each for each in pending]
        return [*done, await pending[1]]

    _, pulled, again = asyncio.run(both())
    assert pulled == again == [0, 1, 2]

    async def fails() -> None:
        await mec.execute("1/0", block=False)

    with pytest.raises(errors.CompositeError):
        asyncio.run(fails())


def test_barrier_swallows_errors_and_flush_forgets(mec: MultiEngineClient, gate: Gate) -> None:
    failing, fine = mec.execute("1/0", block=False), mec.execute("a = 1", targets=0, block=False)
    mec.barrier([failing])
    assert failing.done()
    mec.barrier(fine)
    with pytest.raises(errors.NotAPendingResult):
        mec.barrier([5])  # type: ignore[list-item]
    waiting = mec.execute(gate.code, block=False)
    mec.flush()
    for pending in (waiting, failing):
        with pytest.raises(errors.InvalidDeferredID):
            assert pending.r


def test_flush_wakes_who_waits(mec: MultiEngineClient, gate: Gate) -> None:
    pending = mec.execute(gate.code, block=False)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            pending.get_result()
        except errors.InvalidDeferredID as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)

    async def flush_while_waiting() -> None:
        awaiting = asyncio.ensure_future(pending._ended())
        await asyncio.sleep(0)
        waiting.start()
        mec.flush()
        await asyncio.wait_for(awaiting, DEADLINE_S)
        with pytest.raises(errors.InvalidDeferredID, match="flush"):
            await pending

    asyncio.run(flush_while_waiting())
    waiting.join(DEADLINE_S)
    assert len(raised) == 1


# -- queues


def test_commands_run_in_order_and_an_error_clears_those_behind_it(
    mec: MultiEngineClient, farm: Farm, gate: Gate
) -> None:
    mec.targets = 0
    waits = mec.execute(gate.code, block=False)
    fails = mec.execute("order = ['first']; 1/0", block=False)
    behind = mec.execute("order = ['second']", block=False)
    with in_another_process(farm, "mec.execute('others = True', targets=0); print('done')") as other:
        eventually(lambda: len(mec.queue_status(0)[0][1]["queue"]) == 3, DEADLINE_S, what="the other's command")
        gate.open()
        mec.barrier([waits, fails, behind])
        assert isinstance(_error(fails), ZeroDivisionError)
        assert isinstance(_error(behind), errors.QueueCleared)
        assert other.communicate(timeout=DEADLINE_S)[0] == "done\n"
    assert mec.pull(["order", "others"]) == [[["first"], True]]


def in_another_process(farm: Farm, code: str) -> subprocess.Popen[str]:
    """Run code in another session with its own `mec`."""
    begin = f"from ipytaskfarm import MultiEngineClient\nmec = MultiEngineClient({str(farm.connection_file)!r})\n"
    return subprocess.Popen([sys.executable, "-c", begin + code], stdout=subprocess.PIPE, text=True)


def _error(pending: PendingResult) -> BaseException:
    with pytest.raises(errors.CompositeError) as raised:
        pending.get_result()
    error: BaseException = raised.value.elist[0][2]
    return error


def test_queue_status_and_clear_queue(mec: MultiEngineClient, tc: TaskClient, gate: Gate) -> None:
    idle: dict[str, Any] = {"queue": [], "pending": None}
    assert mec.queue_status() == [(0, idle), (1, idle), (2, idle)]
    task = tc.run(Task(gate.code, targets=1))
    until_running(tc, task)
    begun = gate.path.with_name("begun")
    running = mec.execute(f"import os; open({str(begun)!r}, 'w')\n{gate.code}ran = 1", targets=0, block=False)
    eventually(begun.exists, DEADLINE_S)
    dropped = [mec.execute("dropped = 1", targets=[0, 1], block=False), mec.push({"dropped": 2}, [0, 1], False)]
    found = dict(mec.queue_status([0, 1]))
    assert found[1] == {"queue": ["execute(dropped = 1)", "push(dropped)"], "pending": f"task {task}"}
    assert found[0]["pending"].startswith("execute(import os")
    assert found[0]["queue"] == ["execute(dropped = 1)", "push(dropped)"]
    with pytest.raises(errors.InvalidEngineID):
        mec.queue_status(7)
    assert mec.clear_queue([0, 1]) == [None, None]  # at once, whatever runs there
    assert all(isinstance(_error(pending), errors.QueueCleared) for pending in dropped)
    gate.open()
    assert len(running.r) == 1
    tc.barrier(task, timeout=DEADLINE_S)
    assert tc.get_task_result(task).failure is None
    assert mec.pull("ran", targets=0) == [1]
    assert "dropped" not in mec.keys()[0]


def test_a_command_waits_for_the_task_and_says_so(
    mec: MultiEngineClient, tc: TaskClient, gate: Gate, capfd: pytest.CaptureFixture[str]
) -> None:
    task = tc.run(Task(gate.telling_code + "seen = 1", targets=0))
    gate.until_reached()
    pending = mec.pull("seen", targets=0, block=False)
    with pytest.raises(TimeoutError, match=r"was not answered by engines \[.*\] in time: it continues there"):
        pending.get_result(timeout=1.2)
    assert f"pull waits for task {task} on engine 0" in capfd.readouterr().err
    gate.open()
    assert pending.r == [1]


def test_a_push_comes_before_the_task_that_is_handed_in_after_it(mec: MultiEngineClient, tc: TaskClient) -> None:
    for n in range(20):
        mec.push({"n": n}, block=False)
        assert tc.get_task_result(tc.run(Task("m = n", pull="m")), block=True)["m"] == n


# -- sequences


@pytest.mark.parametrize(
    ("sequence", "dist", "parts"),
    [
        (list(range(8)), "b", [[0, 1, 2], [3, 4, 5], [6, 7]]),
        ([1, 2], "b", [[1], [2], []]),
        ([], "b", [[], [], []]),
        (list(range(8)), "r", [[0, 3, 6], [1, 4, 7], [2, 5]]),
        ((1, 2, 3, 4), "b", [(1, 2), (3,), (4,)]),
        ({"a": 1, "b": 2, "c": 3}, "b", [["a"], ["b"], ["c"]]),
    ],
)
def test_scatter_and_gather(mec: MultiEngineClient, sequence: Any, dist: str, parts: list[Any]) -> None:
    assert mec.scatter("x", sequence, dist) == [None] * 3
    assert mec.pull("x") == parts
    assert mec.gather("x", dist) == (sequence if isinstance(sequence, tuple) else list(sequence))


def test_scatter_of_arrays(mec: MultiEngineClient) -> None:
    array = np.arange(16).reshape(8, 2)
    for dist in ("b", "r"):
        mec.scatter("x", array, dist)
        found = mec.gather("x", dist)
        assert isinstance(found, np.ndarray)
        assert (found == array).all()
    mec.scatter("x", iter(range(4)), targets=[2, 0])
    assert mec.pull("x", targets=[2, 0]) == [[0, 1], [2, 3]]


def test_flatten_unwraps_parts_of_one(mec: MultiEngineClient) -> None:
    mec.scatter("x", [10, 20, 30], flatten=True)
    assert mec.pull("x") == [10, 20, 30]
    assert mec.gather("x") == [10, 20, 30]
    masked = np.ma.masked_equal(np.arange(7), 3)
    for dist in ("b", "r"):
        mec.scatter("x", masked, dist)
        found = mec.gather("x", dist)
        assert (found.filled(-1) == masked.filled(-1)).all()
    pending = mec.scatter("y", [1, 2, 3], block=False)
    assert pending.r == [None] * 3
    assert mec.gather("y", block=False).r == [1, 2, 3]
    with pytest.raises(ValueError, match="dist"):
        mec.scatter("x", [1], dist="x")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_map_any_number_of_items(mec: MultiEngineClient, count: int) -> None:
    assert mec.map(lambda x: x * x, range(count)) == [x * x for x in range(count)]
    assert mec.raw_map(lambda x: -x, [range(count)], dist="r", targets=[0, 2]) == [-x for x in range(count)]


def test_map_by_name_with_several_sequences_and_errors(mec: MultiEngineClient) -> None:
    mec.execute("def add(x, y): return x + y + base\nbase = 100")
    assert mec.map("add", [1, 2, 3, 4], [10, 20, 30, 40]) == [111, 122, 133, 144]
    assert mec.mapper(dist="r", block=False).map("add", range(5), range(5)).r == [100, 102, 104, 106, 108]

    @mec.parallel()
    def double(x: int) -> int:
        return 2 * x

    assert double.__name__ == "double"
    assert double(range(7)) == [2 * x for x in range(7)]
    with pytest.raises(errors.CompositeError, match="ZeroDivisionError"):
        mec.map(lambda x: 1 / x, [1, 2, 3, 0])
    with pytest.raises(ValueError, match="equal lengths"):
        mec.map("add", [1], [1, 2])
    with pytest.raises(errors.CompositeError, match="NameError"):
        mec.map("no_such_function", [1])


# -- files and imports


def test_run_a_file(mec: MultiEngineClient, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("# -*- coding: latin-1 -*-\nfrom_file = 'é'\n", encoding="latin-1")
    mec.run(script)
    assert mec.pull("from_file") == ["é"] * 3
    script.write_text("a = = 1")
    with pytest.raises(SyntaxError):
        mec.run(str(script))
    with pytest.raises(OSError, match="missing"):
        mec.run(tmp_path / "missing.py")


def test_sync_imports(mec: MultiEngineClient) -> None:
    with mec.sync_imports():
        import json as js
        import os.path  # noqa: F401
        import xml.dom.minidom as dom
        from collections import (
            OrderedDict as Ordered,
            namedtuple,  # noqa: F401
        )
    assert js.dumps({}) == "{}"
    assert Ordered() == {}
    assert dom.__name__ == "xml.dom.minidom"
    mec.execute("found = [js.__name__, os.path.sep, Ordered.__name__, namedtuple.__name__, dom.__name__]")
    assert mec.pull("found")[0] == ["json", "/", "OrderedDict", "namedtuple", "xml.dom.minidom"]
    with pytest.raises(ModuleNotFoundError), mec.sync_imports():
        import no_such_module_anywhere  # type: ignore[import-not-found] # noqa: F401


# -- properties


def test_properties(mec: MultiEngineClient) -> None:
    assert mec.set_properties({"ram": 8, "gpu": True}) == [None] * 3
    assert mec.set_properties({"ram": 16}, targets=2) == [None]
    assert mec.get_properties() == [{"ram": 8, "gpu": True}] * 2 + [{"ram": 16, "gpu": True}]
    assert mec.get_properties("ram", 1) == [{"ram": 8}]
    assert mec.get_properties("ram") == [{"ram": 8}] * 2 + [{"ram": 16}]
    assert mec.has_properties(["ram", "no"]) == [[True, False]] * 3
    facts = mec.get_properties(facts=True)[1]
    assert facts["id"] == 1
    assert {"hostname", "cores", "memory", "platform", "python", "node", "started"} <= facts.keys()
    assert mec.del_properties("gpu") == [None] * 3
    with pytest.raises(errors.CompositeError, match="KeyError"):
        mec.get_properties("gpu")
    with pytest.raises(errors.InvalidProperty):
        mec.set_properties({"bad": threading.Lock()})
    with pytest.raises((errors.InvalidProperty, errors.CompositeError), match=r"InvalidProperty|fact"):
        mec.set_properties({"hostname": "mine"})
    assert mec.clear_properties() == [None] * 3
    assert mec.get_properties() == [{}] * 3


def test_an_engine_sets_its_own_properties(mec: MultiEngineClient, tc: TaskClient) -> None:
    mec.execute(
        "from ipytaskfarm.engine import get_engine\nget_engine(int(id)).properties['RAM'] = 2**30 * int(id)\n",
        targets=2,
    )
    task = tc.run(Task("a = 1", depend=lambda properties: properties.get("RAM", 0) > 2**30))
    tc.barrier(task, timeout=DEADLINE_S)
    assert tc.get_task_result(task).engineid == 2
    with pytest.raises(errors.CompositeError, match="InvalidEngineID"):
        mec.execute("get_engine(99)", targets=2)


def test_id_still_does_what_the_builtin_does(mec: MultiEngineClient) -> None:
    mec.execute("import builtins\nx = object()\nsame = id(x) == builtins.id(x)\nnext_one = id + 1")
    assert mec.pull(["same", "next_one"], targets=1) == [[True, 2]]


# -- losses and ends


def test_an_engine_that_is_lost_answers_with_that(mec: MultiEngineClient, farm: Farm) -> None:
    with pytest.raises(errors.CompositeError, match="EngineLost") as raised:
        mec.execute("import os\nif id == 1: os.kill(os.getpid(), 9)")
    assert [engine_id for engine_id, _, _ in raised.value.elist] == [1]
    until_engines(farm, 3)
    assert mec.pull("id") == [0, 1, 2]


def test_kill_ends_engines_and_then_the_farm(farm_dirs: Any) -> None:
    with Farm(n=2) as farm, farm.multiengine_client() as mec:
        pending = mec.execute("import time; time.sleep(60)", targets=0, block=False)
        mec.kill(targets=0)
        assert isinstance(_error(pending), errors.EngineLost)
        eventually(lambda: mec.get_ids() == [1], DEADLINE_S, what="engine 0 ends")
        mec.kill()
        eventually(lambda: mec.get_ids() == [], DEADLINE_S, what="the other one ends")
        with pytest.raises(errors.NoEnginesRegistered):
            mec.execute("a = 1")
        with pytest.raises(errors.NoEnginesRegistered):
            mec.scatter("x", [1, 2])
        mec.kill(controller=True)  # nothing is left: the fixture looks
