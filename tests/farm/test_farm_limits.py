"""Test limits on a real farm: memory, poison tasks, grace, kept results; and reports about a lost engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ipytaskfarm import Farm, Task, TaskClient, errors
from ipytaskfarm.core import messages
from ipytaskfarm.core.messages import tables
from tests.conftest import Dirs
from tests.support.farms import DEADLINE_S, ask, incarnations, until_engines
from tests.support.polling import eventually

LIMIT_MIB = 150

pytestmark = pytest.mark.farm(memory_limit=f"{LIMIT_MIB} MiB", grace=0.3, max_engine_losses=2)

GREEDY = "kept = [bytearray(1_000_000) for _ in range(400)]\nimport time; time.sleep(60)"
GREEDY_CHILD = """
import subprocess, sys
child = "kept = b'x' * 400_000_000; import time; time.sleep(60)"
print("about to be greedy")
subprocess.run([sys.executable, "-c", child])
"""


LEFT = f"""
class Cycle:
    pass

left = Cycle()
left.itself = left
left.kept = b"x" * {LIMIT_MIB << 17}
del left
"""
"""It leaves an eighth of the limit in a reference cycle, few objects, so that Python would not collect it for long."""


def newest(farm: Farm) -> int:
    """Return how many engines were ever started."""
    return max(int(incarnation.rpartition(".")[2]) for incarnation in incarnations(farm))


@pytest.mark.parametrize("code", [GREEDY, GREEDY_CHILD], ids=["engine", "child"])
def test_an_engine_with_too_much_memory_is_ended_and_the_cause_named(code: str, farm: Farm, tc: TaskClient) -> None:
    others = [tc.run(Task("import time; time.sleep(0.02); a = 1", pull="a", retries=1)) for _ in range(40)]
    greedy = tc.run(Task(code))
    tc.barrier([greedy, *others], timeout=DEADLINE_S)
    tr = tc.get_task_result(greedy)
    with pytest.raises(errors.MemoryLimitExceeded, match=rf"memory: .* in use, the limit is {LIMIT_MIB} MiB") as raised:
        tr.raise_exception()
    assert "signal 9" in str(raised.value)
    assert "peak memory" in str(raised.value)
    assert all(tc.get_task_result(i).ns.a == 1 for i in others)
    until_engines(farm, 2)
    assert not [p for p in psutil.process_iter(["cmdline"]) if "400_000_000" in " ".join(p.info["cmdline"] or [])]


def test_a_task_over_its_memory_spends_its_retries(farm: Farm, tc: TaskClient) -> None:
    tr = tc.run(Task(GREEDY, retries=1), block=True)
    assert [attempt.outcome for attempt in tr.attempts] == ["memory", "memory"]
    assert tr.reason == "memory"


def test_poison_is_quarantined_with_its_evidence(farm: Farm, tc: TaskClient) -> None:
    before = newest(farm)
    poison = tc.run(
        Task("import os, sys; print('last words'); sys.stdout.flush(); os.kill(os.getpid(), 11)", retries=99)
    )
    others = [tc.run(Task("import time; time.sleep(0.02); a = 1", pull="a", retries=1)) for _ in range(100)]
    tc.barrier([poison, *others], timeout=60)
    tr = tc.get_task_result(poison)
    with pytest.raises(errors.Quarantined, match="2 engines were lost while they ran it"):
        tr.raise_exception()
    assert [attempt.outcome for attempt in tr.attempts] == ["engine lost", "quarantined"]
    told = tc.explain(poison)
    assert "SIGSEGV" in told
    assert "Segmentation fault" in told, "faulthandler's text"
    assert all(tc.get_task_result(i).ns.a == 1 for i in others)
    until_engines(farm, 2)
    assert newest(farm) - before == 2, "two engines were lost, no more"


def test_the_farms_state_tells_of_losses(farm: Farm, tc: TaskClient) -> None:
    tc.run(Task("import os; os._exit(3)"), block=True)
    state = ask(farm, messages.FarmStatus())
    assert isinstance(state, tables.FarmState)
    assert "exited with code 3" in state.losses[-1]


def test_results_are_cleared_by_age(farm_dirs: Dirs) -> None:
    with Farm(n=1, keep_results=1.0) as farm, farm.task_client() as tc:
        ids = [tc.run(Task("a = 1", pull="a")) for _ in range(20)]
        tc.barrier(ids)
        eventually(lambda: tc.queue_status()["succeeded"] == 0, DEADLINE_S, what="cleared results")
        tc.run(Task("a = 1"), block=True)


@pytest.mark.slow
def test_results_are_cleared_by_size(farm_dirs: Dirs) -> None:
    with Farm(n=1, keep_results_size="3 MiB") as farm, farm.task_client() as tc:
        ids = [tc.run(Task("import os; a = os.urandom(50_000)", pull="a")) for _ in range(100)]
        tc.barrier(ids)
        eventually(lambda: tc.queue_status()["succeeded"] < 65, DEADLINE_S, what="fewer results")
        assert tc.get_task_result(ids[-1]).ns.a, "the newest stay"


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ipytaskfarm", *words], capture_output=True, text=True, timeout=60)


def test_backup_check_and_compact_while_the_farm_runs_and_when_it_is_stopped(farm_dirs: Dirs, tmp_path: Path) -> None:
    with Farm(n=1, name="default") as farm, farm.task_client() as tc:
        kept = tc.run(Task("a = bytes(200_000)", pull="a"))
        many = [tc.run(Task("import os; a = os.urandom(30_000)", pull="a")) for _ in range(100)]
        tc.barrier([kept, *many])
        running = cli("backup", str(tmp_path / "one.sqlite"))
        assert running.returncode == 0, running.stderr
        tc.clear(many)
        compacted = cli("compact")
        assert compacted.returncode == 0, compacted.stderr
        assert "MiB before" in compacted.stdout
        assert cli("check").stdout.endswith("no errors found\n")
        assert tc.get_task_result(kept).ns.a == bytes(200_000)
    again = cli("backup", str(tmp_path / "one.sqlite"))
    assert again.returncode == 3
    assert "choose another name" in again.stderr
    assert cli("backup", str(tmp_path / "two.sqlite")).returncode == 0
    assert cli("compact").returncode == 0
    sizes = [(tmp_path / name).stat().st_size for name in ("one.sqlite", "two.sqlite")]
    assert sizes[1] < sizes[0] / 5
    _put_back(tmp_path / "one.sqlite", farm_dirs.data / "ipytaskfarm" / "default" / "store.sqlite")
    with Farm(n=1, name="default") as farm, farm.task_client() as tc:
        assert tc.queue_status()["succeeded"] == 101
        assert tc.get_task_result(kept).ns.a == bytes(200_000)


def _put_back(copy: Path, store: Path) -> None:
    """Restore a backup as docs/commands.md describes."""
    copy.replace(store)
    for file in copy.with_name(copy.name + ".blobs").rglob("*"):
        if file.is_file():
            target = store.with_name(store.name + ".blobs") / file.relative_to(copy.with_name(copy.name + ".blobs"))
            target.parent.mkdir(exist_ok=True)
            file.replace(target)


def test_no_task_is_ended_for_cyclic_garbage_of_those_before_it(farm: Farm, tc: TaskClient) -> None:
    before = newest(farm)
    ids = [tc.run(Task(LEFT)) for _ in range(40)]
    tc.barrier(ids, timeout=DEADLINE_S)
    assert [tc.get_task_result(tid).failure for tid in ids] == [None] * len(ids)
    assert newest(farm) == before
