"""An engine that comes in another's place is what its predecessor was: on real farms, with kill -9."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from ipytaskfarm import Farm, MultiEngineClient, Task, TaskClient, errors
from ipytaskfarm.core.messages.tables import EngineRow
from tests.conftest import Dirs
from tests.farm.test_farm import background_farm, pid_of
from tests.support.farms import DEADLINE_S, Gate
from tests.support.polling import eventually
from tests.support.thorough import by_hand

pytestmark = pytest.mark.farm


@pytest.fixture(autouse=True)
def forgotten(request: pytest.FixtureRequest) -> None:
    """Delete the commands that the test before has left."""
    if "mec" in request.fixturenames:
        request.getfixturevalue("mec").reset()


def row(mec: MultiEngineClient, engine_id: int) -> EngineRow | None:
    return next((each for each in mec.engines() if each.id == engine_id), None)


def kill(mec: MultiEngineClient, engine_id: int) -> None:
    """Kill an engine with kill -9, and wait until another one is ready in its place."""
    before = row(mec, engine_id)
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)

    def replaced() -> bool:
        now = row(mec, engine_id)
        return now is not None and now.pid != before.pid and now.state in ("idle", "busy")

    eventually(replaced, DEADLINE_S)


def initialise(mec: MultiEngineClient) -> np.ndarray:
    """The engines are given an import, a number, a function and their parts of a sequence, by plain calls."""
    values = np.arange(100.0)
    mec.execute("import numpy as np_there")
    mec.push({"offset": 5})
    mec.push_function({"twice": lambda x: 2 * x})
    mec.scatter("part", values)
    mec.execute("part_sum = float(np_there.sum(part))")
    return values


CODE = "import time; time.sleep(0.005); total = twice(offset + {n}) + 0 * float(np_there.sum(part)); where = int(id)"


def test_an_engine_is_killed_amid_two_hundred_tasks(
    farm: Farm, tc: TaskClient, mec: MultiEngineClient, gate: Gate
) -> None:
    values = initialise(mec)
    parts = mec.pull("part_sum")
    assert sum(parts) == values.sum()
    codes = [(gate.code if n >= 150 else "") + CODE.format(n=n) for n in range(200)]
    before = tc.queue_status()["succeeded"]
    ids = [tc.run(Task(code, pull=["total", "where"], retries=1)) for code in codes]
    eventually(lambda: tc.queue_status()["succeeded"] >= before + 20, DEADLINE_S)
    kill(mec, 1)
    gate.open()
    tc.barrier(ids)
    results = [tc.get_task_result(i) for i in ids]
    assert [r.failure for r in results if r.failure] == []
    assert [r.ns.total for r in results] == [2 * (5 + n) for n in range(200)]
    assert mec.pull("part_sum") == parts, "the replacement has its predecessor's part"
    assert [len(part) for part in mec.pull("part")] == [len(part) for part in np.array_split(values, len(parts))]
    np.testing.assert_array_equal(mec.gather("part"), values)


def test_commands_wait_for_the_replacement(tc: TaskClient, mec: MultiEngineClient) -> None:
    ids = mec.get_ids()
    mec.scatter("part", range(12))
    end = Task("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", targets=(1,))
    for _ in range(2):
        assert tc.run(end, block=True).failure
        assert mec.get_ids() == ids
        assert mec.gather("part") == [*range(12)], "all parts are there"
        assert tc.run(end, block=True).failure
        mec.scatter("part", range(12))
        mec.execute("total = sum(part)")
        assert sum(mec.pull("total")) == sum(range(12))
        assert tc.run(end, block=True).failure
        assert mec.pull("total", targets=1) == mec.pull("total")[1:2]


def test_large_values_are_there_again(farm: Farm, mec: MultiEngineClient) -> None:
    large = np.arange(400_000.0)
    mec.scatter("large", large)
    mec.push({"whole": large})
    del large
    for _ in range(2):
        kill(mec, 0)
    np.testing.assert_array_equal(mec.gather("large"), np.arange(400_000.0))
    assert float(mec.pull("whole", targets=0)[0].sum()) == np.arange(400_000.0).sum()


def test_what_opted_out_is_named_by_the_error_and_by_explain(
    farm: Farm, tc: TaskClient, mec: MultiEngineClient
) -> None:
    mec.execute("kept = 1")
    mec.execute("trained = 2", sticky=False)
    with farm.multiengine_client() as other:
        other.replay = False
        other.push({"secret": 3})
    assert mec.pull(["kept", "trained", "secret"], targets=1) == [[1, 2, 3]]
    kill(mec, 1)
    assert mec.pull("kept", targets=1) == [1]
    ids = [tc.run(Task(f"print({name})", targets=1)) for name in ("trained", "secret")]
    tc.barrier(ids)
    result = tc.get_task_result(ids[0])
    assert isinstance(result.failure.value, NameError)
    for text in ("\n".join(result.failure.value.__notes__), tc.explain(ids[0]), tc.explain(ids[1])):
        assert "engine 1 is the replacement of one which was ended by signal 9 (SIGKILL)" in text
        assert "not done again: execute(trained = 2): it was sent with sticky=False" in text
        assert "not done again: push(secret)" in text
    with pytest.raises(errors.CompositeError) as caught:
        mec.execute("trained", targets=1)
    assert "sticky=False" in str(caught.value.elist[0][2].__notes__)


def test_reset_forgets(farm: Farm, tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.push({"x": 1})
    mec.reset()
    assert mec.kept() == []
    kill(mec, 0)
    with pytest.raises(errors.CompositeError) as caught:
        mec.pull("x", targets=0)
    assert not getattr(caught.value.elist[0][2], "__notes__", None)


def test_a_command_that_fails_on_the_replacement_is_told(farm: Farm, mec: MultiEngineClient, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("7")
    mec.execute(f"value = int(open({str(data)!r}).read())")
    mec.execute("after = 1")
    data.unlink()
    kill(mec, 1)
    assert mec.pull("after", targets=1) == [1]
    found = row(mec, 1)
    assert found is not None
    assert "not done again: execute(value = int" in found.note
    assert "FileNotFoundError" in found.note


def test_how_far_it_is_is_shown(farm: Farm, mec: MultiEngineClient, tc: TaskClient, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    mec.execute("a = 1")
    mec.execute(f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)")
    gate.unlink()
    before = row(mec, 1)
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    task = tc.run(Task("b = a", pull="b", targets=1))
    try:
        eventually(lambda: "being prepared: 2 of 2, execute(import os, time" in tc.explain(task), DEADLINE_S)
        now = row(mec, 1)
        assert now is not None
        assert (now.state, now.note.startswith("being prepared: 2 of 2")) == ("preparing", True)
    finally:
        gate.touch()
    assert tc.get_task_result(task, block=True).ns.b == 1


def test_what_is_kept_is_listed_and_cleared(farm: Farm, mec: MultiEngineClient) -> None:
    mec.push({"x": 1, "y": 2})
    mec.push({"x": 2}, targets=0)
    mec.push({"x": 3, "y": 3}, targets=0)
    assert [tuple(entry) for entry in mec.kept()] == [(0, "push(x, y)", ""), (1, "push(x, y)", "")]
    assert "push(x, y)" in repr(mec.kept())
    assert mec.clear_kept(1) == 1
    assert mec.clear_kept() == 1
    assert repr(mec.kept()) == "nothing was done by hand"


@by_hand
def test_the_controller_dies_in_between(farm_dirs: Dirs) -> None:
    with background_farm("-n", "2") as home, MultiEngineClient() as mec, TaskClient() as tc:
        tc.await_engines(2, connect_timeout=DEADLINE_S)
        initialise(mec)
        os.kill(pid_of(home, "controller"), signal.SIGKILL)
        # Commands wait for engines that have not reported yet; to be killed, they must have.
        eventually(lambda: [row.state for row in mec.engines()] == ["idle", "idle"], DEADLINE_S)
        kill(mec, 0)
        kill(mec, 1)
        np.testing.assert_array_equal(mec.gather("part"), np.arange(100.0))
        assert tc.get_task_result(tc.run(Task("a = twice(offset)", pull="a")), block=True).ns.a == 10
