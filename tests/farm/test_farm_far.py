"""Large values on a farm of two "machines", one of which does not see the farm's folder: each comes there once."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ipytaskfarm import Farm, MapTask, MultiEngineClient, Ref, Task, TaskClient, errors
from ipytaskfarm.agent.node import LOOK_S
from ipytaskfarm.storage.backup import needed_blobs
from tests.conftest import Dirs
from tests.support.far import NODE, far_connection, far_engines, far_node, farm_state
from tests.support.farms import DEADLINE_S, Gate, engines, python
from tests.support.polling import eventually
from tests.support.thorough import by_hand

pytestmark = pytest.mark.farm

THERE = {"node": NODE}
HERE = {"node": f"!= {NODE}"}
LARGE = 12_500_000
"""Of 8 bytes: 100 MB."""
ITEMS = 200_000


@pytest.fixture(scope="module")
def farm(dirs: Dirs) -> Iterator[Farm]:
    with Farm(n=2) as farm:
        yield farm


@pytest.fixture(scope="module")
def agent(farm: Farm, dirs: Dirs) -> Iterator[Path]:
    """The far agent's folder."""
    with far_engines(farm, dirs.work) as own:
        yield own


@pytest.fixture
def tc(farm: Farm, agent: Path) -> Iterator[TaskClient]:
    with farm.task_client() as tc:
        yield tc


@pytest.fixture
def mec(farm: Farm, agent: Path) -> MultiEngineClient:
    return farm.multiengine_client()


@pytest.fixture
def there(farm: Farm, agent: Path) -> list[int]:
    """The ids of the far engines."""
    return [row.id for row in engines(farm) if row.node == NODE]


def fetched(farm: Farm) -> tuple[int, int]:
    """Return (blobs, bytes) that the far agent reports as fetched; the report is at most a few seconds old."""
    node = far_node(farm)
    return node.fetched_blobs, node.fetched_bytes


def settled(farm: Farm) -> tuple[int, int]:
    """Return what `fetched` does when the agent has reported all that the tests before have made it fetch."""
    seen, since_s = fetched(farm), time.monotonic()

    def is_old() -> bool:
        nonlocal seen, since_s
        if (now := fetched(farm)) != seen:
            seen, since_s = now, time.monotonic()
        return time.monotonic() - since_s > 1.5 * LOOK_S

    eventually(is_old, DEADLINE_S, every_s=0.1, what="all was reported")
    return seen


def copies(agent: Path) -> set[str]:
    return {path.name for path in (agent / "blobs").glob("??/*")}


def filled(count: int, value: int) -> np.ndarray:
    return np.full(count, float(value))


def total(*arrays: np.ndarray) -> float:
    return float(sum(array.sum() for array in arrays))


def test_an_array_pushed_to_many_tasks_travels_once(farm: Farm, agent: Path, tc: TaskClient, tmp_path: Path) -> None:
    blobs, size = fetched(farm)
    array = np.arange(LARGE) + 11.0
    gate = Gate(tmp_path / "gate")
    # The first on each of the two engines waits for the other's.
    code = f"open({str(tmp_path)!r} + f'/{{id}}', 'w').close()\n{gate.code}\ns = float(x.sum()); p = id"
    ids = [tc.run(Task(code, push={"x": array}, pull=["s", "p"], requires=THERE)) for _ in range(8)]
    eventually(lambda: len(list(tmp_path.iterdir())) == 2, DEADLINE_S, what="both engines have it")
    gate.open()
    tc.barrier(ids, timeout=60)
    results = [tc.get_task_result(each) for each in ids]
    assert {result["s"] for result in results} == {float(array.sum())}
    assert {int(result["p"]) for result in results} == {row.id for row in engines(farm) if row.node == NODE}
    eventually(lambda: fetched(farm) == (blobs + 1, size + array.nbytes), DEADLINE_S, what="once")


def test_a_controller_killed_amid_it(farm: Farm, agent: Path, tc: TaskClient) -> None:
    blobs, size = fetched(farm)
    array = np.arange(LARGE) + 12.0
    controller = farm_state(farm).pid
    ids = [tc.run(Task("s = float(x.sum())", push={"x": array}, pull="s", requires=THERE)) for _ in range(4)]

    def under_way() -> list[Path]:
        parts = list((agent / "blobs").glob("*.part"))
        with contextlib.suppress(FileNotFoundError):
            return [part for part in parts if part.stat().st_size > 0]
        return []

    (part,) = eventually(under_way, DEADLINE_S, every_s=0.001, what="it is on its way")
    os.kill(controller, signal.SIGKILL)
    assert part.exists(), "it had come already"
    tc.barrier(ids, timeout=60)
    assert {tc.get_task_result(each)["s"] for each in ids} == {float(array.sum())}
    assert farm_state(farm).pid != controller
    eventually(lambda: fetched(farm) == (blobs + 1, size + array.nbytes), DEADLINE_S, what="once")


def test_a_value_that_is_gone_fails_its_task_alone(tc: TaskClient, agent: Path) -> None:
    shared = tc.broadcast(np.arange(ITEMS) + 13.0)
    here = tc._session.io.folder_of_blobs
    assert here is not None
    shared.unpersist()
    store = here.folder.with_suffix("")
    eventually(lambda: not needed_blobs(store, [shared._key]), DEADLINE_S)
    here.sweep(lambda names: needed_blobs(store, names), older_than_s=-1.0)
    future = tc.submit(Task(lambda: shared.value.sum(), requires=THERE))
    with pytest.raises(errors.BlobMissing, match=shared._key[:12]):
        future.result(timeout=60)
    assert tc.submit(Task(total, args=(np.ones(ITEMS),), requires=THERE)).result(timeout=60) == ITEMS


def is_replaced(farm: Farm, engine_id: int, pid: int) -> bool:
    return any(row.id == engine_id and row.pid != pid for row in engines(farm))


def test_checkpoints_of_engines_there_and_here(farm: Farm, mec: MultiEngineClient, there: list[int]) -> None:
    """Replacements begin with a checkpoint that was made there or here."""
    mec.reset(block=True)  # the tasks of other tests have left large arrays
    mec.execute(f"import numpy as np\nmade = np.arange({ITEMS}) + int(id)", block=True)
    before = {row.id: row.pid for row in engines(farm)}
    assert mec.checkpoint(block=True) == [{}] * len(before)
    for engine_id, pid in before.items():
        os.kill(pid, signal.SIGKILL)
        eventually(partial(is_replaced, farm, engine_id, pid), DEADLINE_S)
    assert sorted(row.id for row in engines(farm) if row.node == NODE) == sorted(there)
    mec.execute("total = int(made.sum())", block=True)
    ids = sorted(before)
    assert mec.pull("total", ids, block=True) == [int((np.arange(ITEMS) + i).sum()) for i in ids]
    mec.reset(block=True)


def test_results_go_from_machine_to_machine(farm: Farm, tc: TaskClient, agent: Path) -> None:
    """Results of either machine are files, which the other one gets once."""
    before, (blobs, size) = copies(agent), settled(farm)
    made = [tc.submit(Task(filled, args=(LARGE // 2, each), requires=where)) for each, where in ((1, THERE), (2, HERE))]
    for future in made:
        assert tc.get_task_result(future.id, block=True, raw=False).result.nbytes == 4 * LARGE
    assert len(copies(agent) - before) == 1, "what was made there"
    for where in (THERE, HERE):
        for future in made:
            summed = tc.submit(Task(total, args=(future,), requires=where)).result(timeout=60)
            assert summed == (1 + made.index(future)) * (LARGE // 2)
    assert tc.submit(Task(total, args=tuple(made), requires=THERE)).result(timeout=60) == 3 * (LARGE // 2)
    assert len(copies(agent) - before) == 2
    eventually(lambda: fetched(farm) == (blobs + 1, size + 4 * LARGE), DEADLINE_S, what="once")
    assert [total(future.result()) for future in made] == [LARGE // 2, 2 * (LARGE // 2)]


def test_broadcasts_maps_and_names(tc: TaskClient, agent: Path) -> None:
    before = copies(agent)
    shared = tc.broadcast(np.arange(ITEMS) + 14.0)
    assert list(tc.map(lambda i: float(shared.value[i]), range(64))) == [14.0 + i for i in range(64)]
    futures = [tc.submit(MapTask(lambda i: float(shared.value[i]), (i,), requires=THERE)) for i in range(8)]
    assert [future.result(60) for future in futures] == [14.0 + i for i in range(8)]
    assert len(copies(agent) - before) == 2  # the array, and the pickle that it is part of
    rows = tc.map(lambda row: row * 2, [np.full(ITEMS, float(i)) for i in range(6)])
    assert [row[0] for row in rows] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    pulled = tc.run(
        Task("a = numpy.ones(n); b = a * 2", push={"n": ITEMS, "numpy": np}, pull=["a", "b"], requires=THERE)
    )
    later = Task("s = float(a.sum() + b.sum())", push={"a": Ref(pulled, "a"), "b": Ref(pulled, "b")}, pull="s")
    assert tc.run(later, block=True)["s"] == 3 * ITEMS


def test_engines_there_are_pushed_to_and_pulled_from(mec: MultiEngineClient, there: list[int], agent: Path) -> None:
    before = copies(agent)
    array = np.arange(ITEMS) + 15.0
    mec.push({"pushed": array}, targets=there)
    assert len(copies(agent) - before) == 1
    assert all((each == array).all() for each in mec.pull("pushed", targets=there))
    mec.push({"kept": array}, sticky=True)
    mec.execute("kept_sum = float(kept.sum())")
    assert mec.pull("kept_sum") == [array.sum()] * len(mec.get_ids())
    mec.scatter("part", array)
    assert (mec.gather("part") == array).all()


FAR_CLIENT = """
import sys
import time
import numpy as np
from ipytaskfarm import MultiEngineClient, Task, TaskClient
with TaskClient(sys.argv[1]) as tc:
    assert tc._session.io.folder_of_blobs is None
    came = lambda: tc._session._downloads.bytes
    def rows(n):
        import numpy
        return numpy.arange(n, dtype=float)
    items = int(sys.argv[2])
    future = tc.submit(Task(rows, args=(items,), requires={"node": "!= far"}))
    assert (future.result(60) == rows(items)).all()
    result = tc.get_task_result(future.id, raw=False)
    result.result[0] = 5.0
    assert future.result()[0] == 0.0
    assert came() == 8 * items
    names = tc.run(Task("a = list(range(100_000))", pull="a", requires={"node": "!= far"}), block=True)
    assert names["a"] == list(range(100_000))
    before = came()
    there = tc.submit(Task(lambda a: float(a.sum()), args=(future,), requires={"node": "far"}))
    assert there.result(60) == rows(items).sum()
    assert tc.submit(lambda a: a[:3], rows(items)).result(60).tolist() == [0.0, 1.0, 2.0]
    assert came() == before, "arguments do not come by the client"
    mec = MultiEngineClient(sys.argv[1])
    mec.execute("import numpy; z = numpy.arange(%d.)" % items)
    assert all((each == rows(items)).all() for each in mec.pull("z"))
    assert came() == before, "of the same content nothing comes twice"
    print("all is right")
"""


def test_a_client_there_sees_large_results(farm: Farm, agent: Path, tmp_path: Path) -> None:
    said = python(FAR_CLIENT, str(far_connection(farm.name, "client", tmp_path)), "2000000", timeout_s=120.0)
    assert said.strip() == "all is right"


FAR_SENDER = """
import os, signal, sys
import numpy as np
from ipytaskfarm import Task, TaskClient
from ipytaskfarm.core.messages.blob_chunks import WriteBlob
file, items, first, controller = sys.argv[1], *map(int, sys.argv[2:])
with TaskClient(file) as tc:
    session = tc._session
    begin = session.begin
    def kill_amid_it(question):
        global controller
        if controller and isinstance(question, WriteBlob) and question.offset > 4 * items:
            os.kill(controller, signal.SIGKILL)
            controller = 0
        return begin(question)
    session.begin = kill_amid_it
    array = np.arange(items) + float(first)
    where = 10 * ["far", "!= far"]
    ids = [tc.run(Task("s = float(x.sum())", push={"x": array}, pull="s", requires={"node": each})) for each in where]
    tc.barrier(ids)
    assert {tc.get_task_result(each)["s"] for each in ids} == {array.sum()}
    print(session.blobs.bytes)
"""


def sent(farm: Farm, folder: Path, items: int, first: int, controller: int = 0) -> int:
    """Let a client there use one array in twenty tasks, half of them there; return how many bytes of it were sent."""
    file = str(far_connection(farm.name, "client", folder))
    return int(python(FAR_SENDER, file, str(items), str(first), str(controller), timeout_s=120.0))


def test_an_array_of_a_client_there_travels_once_to_the_farm_and_once_to_each_node(
    farm: Farm, agent: Path, tmp_path: Path
) -> None:
    """A second client with the same array sends nothing."""
    blobs, size = settled(farm)
    items = 10_000_000 // 8
    assert [sent(farm, tmp_path, items, 21) for _ in range(2)] == [8 * items, 0]
    eventually(lambda: fetched(farm) == (blobs + 1, size + 8 * items), DEADLINE_S, what="once")


@by_hand
def test_a_controller_killed_amid_an_upload(farm: Farm, agent: Path, tc: TaskClient, tmp_path: Path) -> None:
    """The next one is sent the array from its beginning, and nothing is left of the first half."""
    controller = farm_state(farm).pid
    come = sent(farm, tmp_path, LARGE, 22, controller)
    assert farm_state(farm).pid != controller
    assert 8 * LARGE < come < 2 * 8 * LARGE
    folder = tc._session.io.folder_of_blobs
    assert folder is not None
    assert list(folder.folder.glob("*.part")) == []


def test_a_far_client_waits_until_it_is_told_not_to(farm: Farm, agent: Path, tmp_path: Path) -> None:
    """Ctrl-C while a result is on its way."""
    code = """
import os, signal, sys, threading
from ipytaskfarm import Task, TaskClient
from ipytaskfarm.core.messages.blob_chunks import ReadBlob
with TaskClient(sys.argv[1]) as tc:
    task = tc.run(Task("a = list(range(300_000))", pull="a", requires={"node": "!= far"}))
    result = tc.get_task_result(task, block=True)
    begin = tc._session.begin
    def stall(question):
        asked = begin(question)
        if isinstance(question, ReadBlob):
            tc._session.forget(asked)  # its answer reaches nobody
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return asked
    tc._session.begin = stall
    try:
        result["a"]
    except KeyboardInterrupt:
        print("interrupted")
    tc._session.begin = begin
    print(result["a"] == list(range(300_000)))
"""
    assert python(code, str(far_connection(farm.name, "client", tmp_path))).split() == ["interrupted", "True"]


def test_a_module_that_a_node_lacks_is_named_with_the_node(
    tc: TaskClient, farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking.py").write_text("def f(): return 1\n")
    metadata = tmp_path / "lacking-1.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lacking\nVersion: 1.5\n")
    (metadata / "RECORD").write_text("lacking.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("lacking").f
    try:
        for where, node in ((THERE, NODE), (HERE, next(row.node for row in engines(farm) if row.node != NODE))):
            with pytest.raises(errors.ModuleMissing) as caught:
                tc.run(Task(function, requires=where), block=True).raise_exception()
            assert re.fullmatch(
                rf"module 'lacking' cannot be imported on node {re.escape(node)}, engine \d+ \(Python [\d.]+\): "
                r"install it there, or, if it is pure Python, send it along: add_dependency\('lacking'\) "
                r"\(this client has lacking 1\.5\)",
                str(caught.value),
            )
    finally:
        del sys.modules["lacking"]


def test_engines_stay_on_their_nodes_when_the_controller_is_killed(farm: Farm, agent: Path) -> None:
    """Those of the far node had been started again on the near one, which comes back first, and were ended there."""
    before = {(row.node, row.pid) for row in engines(farm)}
    os.kill(farm_state(farm).pid, signal.SIGKILL)

    def are_back() -> bool:
        with contextlib.suppress(errors.FarmNotRunning):  # the controller is being started again
            return {(row.node, row.pid) for row in engines(farm) if row.state != "unreachable"} == before
        return False

    eventually(are_back, DEADLINE_S)
