"""Checkpoints and engines that are recycled with their session: on real farms, with kill -9."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from ipytaskfarm import Farm, MultiEngineClient, RecycleSettings, Task, TaskClient, TaskEnvironment, errors
from ipytaskfarm.cli import main
from tests.conftest import Dirs
from tests.farm.test_farm import background_farm, pid_of
from tests.farm.test_replacements import kill, row
from tests.support.farms import DEADLINE_S
from tests.support.polling import eventually
from tests.support.shells import shell_with_magics

pytestmark = pytest.mark.farm


@pytest.fixture
def mec(mec: MultiEngineClient) -> MultiEngineClient:
    mec.reset()
    mec.clear_properties()
    mec.clear_kept()
    return mec


def notes_of(tc: TaskClient, code: str, engine: int = 0) -> tuple[str, str]:
    """Return the notes of the task's NameError, and the task's explanation."""
    task = tc.run(Task(code, targets=engine))
    failure = tc.get_task_result(task, block=True).failure
    assert failure is not None
    assert isinstance(failure.value, NameError)
    return "\n".join(failure.value.__notes__), tc.explain(task)


def test_a_killed_engine_comes_back_from_the_checkpoint(farm: Farm, mec: MultiEngineClient, tmp_path: Path) -> None:
    log = tmp_path / "log"
    large = np.arange(200_000.0)
    mec.push({"log": str(log), "large": large, "offset": 5})
    mec.execute("open(log, 'a').write('ran\\n')\nclass Thing: n = 1\ndef f(x): return x + offset\nthing = Thing()")
    mec.execute("trained = id + 1", sticky=False)
    assert mec.checkpoint() == [{}, {}]
    names = sorted(mec.keys(targets=0)[0])
    assert [tuple(entry) for entry in mec.kept()] == [(i, f"checkpoint of {len(names)} names", "") for i in (0, 1)]
    mec.push({"offset": 7})
    for _ in range(2):
        kill(mec, 0)
    assert sorted(mec.keys(targets=0)[0]) == names
    assert mec.pull(["trained", "offset"]) == [[1, 7], [2, 7]]
    mec.execute("found = f(1), type(thing) is Thing, float(large.sum())", targets=0)
    assert mec.pull("found", targets=0) == [(8, True, large.sum())]
    assert log.read_text() == "ran\n" * 2, "the code was run by the first two engines, and never again"
    assert row(mec, 0).note == ""  # type: ignore[union-attr]


def test_surroundings_and_properties_are_part_of_it(mec: MultiEngineClient, tmp_path: Path) -> None:
    mec.execute(
        f"import os, sys\nos.chdir({str(tmp_path)!r})\nos.environ['CHECKPOINT_TEST'] = 'set'\n"
        f"home = os.environ.pop('HOME')\nsys.path.insert(0, '/first')\nsys.path.append('/last')",
        targets=0,
    )
    mec.set_properties({"kind": "fast", "level": 2}, targets=0)
    mec.del_properties("level", targets=0)
    mec.checkpoint(0)
    kill(mec, 0)
    mec.execute(
        "found = os.getcwd(), os.environ['CHECKPOINT_TEST'], 'HOME' in os.environ, sys.path[0], sys.path[-1]", targets=0
    )
    assert mec.pull("found", targets=0) == [(str(tmp_path), "set", False, "/first", "/last")]
    assert mec.get_properties(targets=0) == [{"kind": "fast"}]
    mec.execute("os.environ['HOME'] = home; os.chdir('/'); del sys.path[0], sys.path[-1]", targets=0)


def test_properties_set_by_hand_are_set_on_a_replacement(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.set_properties({"kind": "fast", "level": 1}, targets=1)
    mec.set_properties({"level": 2}, targets=1)
    mec.set_properties({"level": 3, "once": 1}, targets=1, sticky=False)
    mec.set_properties({"gone": 1}, targets=1)
    mec.del_properties("gone", targets=1)
    kill(mec, 1)
    assert mec.get_properties(targets=1) == [{"kind": "fast", "level": 2}]
    task = tc.run(Task("where = int(id)", pull="where", requires={"property:kind": "fast"}))
    assert tc.get_task_result(task, block=True).ns.where == 1
    mec.clear_properties(targets=1)
    kill(mec, 1)
    assert mec.get_properties(targets=1) == [{}]


def test_whose_name_counts_stays_as_it_was(tc: TaskClient, mec: MultiEngineClient) -> None:
    """Names that were placed by hand have priority over the values that functions bring; names that
    tasks left do not.
    """
    mec.push({"placed_value": 30})
    for engine in (0, 1):
        tc.run(Task("left_value = 30", targets=engine), block=True)
    mec.checkpoint()
    kill(mec, 0)
    assert mec.pull("left_value") == [30, 30]
    there = dict(vars())
    exec("placed_value = left_value = 1\ndef f(): return placed_value, left_value", there)
    assert tc.submit(Task(there["f"], targets=0)).result(timeout=DEADLINE_S) == (30, 1)


def test_what_cannot_be_saved_is_named(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.execute("import threading; lock, n = threading.Lock(), 4")
    (left_out,) = mec.checkpoint(0)
    assert left_out.keys() == {"lock"}
    kill(mec, 0)
    assert mec.pull("n", targets=0) == [4]
    for text in notes_of(tc, "lock"):
        assert "not done again: lock: lock: a _thread.lock cannot be pickled" in text
    found = row(mec, 0)
    assert found is not None
    assert "not done again: lock: " in found.note


class Prepared(TaskEnvironment):
    """An environment that is recycled after three tasks."""

    unique_id = "prepared"

    def __init__(self, keep: bool) -> None:
        self.additional_id = str(keep)
        self.recycle = RecycleSettings(after_tasks=3, keep_session=keep)


def test_a_recycled_engine_keeps_its_names(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.execute(
        "import math\nclass Thing: pass\nthing = Thing()\ndef f(): return math.floor(2.5), type(thing) is Thing"
    )
    runs = []
    for _ in range(8):
        task = Task("calls = globals().get('calls', 0) + 1; import os; pid = os.getpid(); found = f()",
                    pull=["calls", "pid", "found"], environment=Prepared(True), targets=0)  # fmt: skip
        runs.append(tc.run(task, block=True))
    assert [result.ns.calls for result in runs] == list(range(1, 9))
    assert all(result.ns.found == (2, True) for result in runs)
    assert len({result.ns.pid for result in runs}) == 3
    texts = {entry[1] for entry in mec.kept() if entry[0] == 0}
    assert any(text.endswith("that it had when it was recycled") for text in texts)


def test_without_it_the_names_that_tasks_left_are_gone(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.push({"base": 1})
    code = "calls = globals().get('calls', base) + 1"
    runs = [tc.run(Task(code, pull="calls", environment=Prepared(False), targets=0), block=True) for _ in range(4)]
    assert [result.ns.calls for result in runs] == [2, 3, 4, 2]


def test_a_recycling_goes_on_where_the_names_cannot_be_saved(tc: TaskClient, mec: MultiEngineClient) -> None:
    """Pickling an object ends the engine: a fresh engine replaces it, and reports the lost names."""
    mec.push({"base": 1})
    fatal = "import os\nclass Fatal:\n    def __reduce__(self): os._exit(3)\n"
    environment = TaskEnvironment()
    environment.recycle = RecycleSettings(on_failure=True, keep_session=True)
    before = row(mec, 0)
    assert before is not None
    job = tc.create_job("fatal", environment=environment)
    job.add_task(Task(f"{fatal}fatal = Fatal(); 1 / 0", targets=0))
    job.submit()
    job.wait_until_done(timeout=DEADLINE_S)

    def replaced() -> bool:
        now = row(mec, 0)
        return now is not None and now.pid != before.pid and now.state == "idle"

    eventually(replaced, DEADLINE_S)
    assert mec.pull("base", targets=0) == [1]
    lost = "not done again: the names that it had when it was recycled: while it saved them it exited with code 3"
    for text in notes_of(tc, "fatal"):
        assert "which was recycled: task" in text
        assert lost in text
    found = row(mec, 0)
    assert found is not None
    assert lost in found.note


def test_what_is_too_large_is_refused_and_the_rest_stays(mec: MultiEngineClient) -> None:
    mec.push({"kept_before": 1}, targets=0)
    mec.execute(
        "from ipytaskfarm.engine import commands\nlimit = commands.BLOB_BYTES_MAX\n"
        "commands.BLOB_BYTES_MAX = 2**20\nlarge = bytes(2**21)",
        targets=0,
    )
    with pytest.raises(errors.CompositeError) as caught:
        mec.checkpoint(0)
    error = caught.value.elist[0][2]
    assert isinstance(error, errors.SessionError)
    assert "the session has 2 MiB, and a checkpoint holds at most 1 MiB: delete" in str(error)
    assert "push(kept_before)" in [entry[1] for entry in mec.kept()]
    mec.execute("commands.BLOB_BYTES_MAX = limit", targets=0)


def test_reset_forgets_a_checkpoint(mec: MultiEngineClient) -> None:
    mec.push({"x": 1})
    mec.checkpoint()
    mec.reset()
    assert mec.kept() == []
    kill(mec, 1)
    assert mec.keys(targets=1) == [[]]


def test_the_farm_the_command_and_the_magic(
    farm: Farm, mec: MultiEngineClient, capsys: pytest.CaptureFixture[str]
) -> None:
    def kept() -> list[str]:
        return [text for _, text, _ in mec.kept()]

    mec.execute("import threading; n, lock = int(id), threading.Lock()")
    assert [found.keys() for found in farm.checkpoint()] == [{"lock"}] * 2
    assert kept().count("checkpoint of 2 names") == 2
    mec.push({"m": 1}, targets=1)
    assert main(["session", "checkpoint", "--engines", "1", "--farm", farm.name]) == 0
    out = capsys.readouterr().out
    assert out.startswith("engine 1: saved for its replacements\n  without lock: lock: a _thread.lock")
    assert "checkpoint of 3 names" in kept()
    assert main(["session", "checkpoint", "file", "--farm", farm.name]) == 2
    with shell_with_magics() as shell:
        shell["mec"] = mec
        shell.ok("mec.activate()")
        mec.push({"o": 1}, targets=0)
        assert "[0] without lock: " in shell.ok("%pxsession checkpoint -t 0").out
        assert "give `save FILE`" in shell.run("%pxsession save").err
    assert kept().count("checkpoint of 3 names") == 2


def test_the_controller_dies_in_between(farm_dirs: Dirs) -> None:
    with background_farm("-n", "2") as home, MultiEngineClient() as mec, TaskClient() as tc:
        tc.await_engines(2, connect_timeout=DEADLINE_S)
        mec.push({"offset": 5, "large": np.arange(100_000.0)})
        mec.execute("made = float(large.sum()) + id")
        mec.checkpoint()
        os.kill(pid_of(home, "controller"), signal.SIGKILL)
        # Commands wait for engines that have not reported yet; to be killed, they must have.
        eventually(lambda: [row.state for row in mec.engines()] == ["idle", "idle"], DEADLINE_S)
        kill(mec, 0)
        kill(mec, 1)
        assert mec.pull("made") == [np.arange(100_000.0).sum() + i for i in (0, 1)]
        assert tc.run(Task("a = offset + 1", pull="a"), block=True).ns.a == 6
