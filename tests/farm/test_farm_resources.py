"""Resources, conditions, limits and placement on real engines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, Task, TaskClient, errors
from ipytaskfarm.system.process import usable_cores
from tests.support.farms import DEADLINE_S, Gate, module_farm
from tests.support.polling import eventually

pytestmark = pytest.mark.farm(n=4, resources={"cores": 4, "gpu": 2, "licence": 1}, resource_patience=0.5)

LEDGER = """
import os, time
from ipytaskfarm.engine import current_task
begun = time.time()
time.sleep({seconds})
with open({path!r}, "a") as file:
    file.write(f"{{begun}} {{time.time()}} {{current_task().allotment.get('cores', 0)}} {name}\\n")
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def entry(ledger: Path, name: str = "-", seconds: float = 0.05) -> str:
    return LEDGER.format(path=str(ledger), name=name, seconds=seconds)


def runs(ledger: Path) -> list[tuple[float, float, float, str]]:
    """(begun, ended, cores, name) of each run."""
    found = [line.split() for line in ledger.read_text().splitlines()]
    return [(float(a), float(b), float(c), name) for a, b, c, name in found]


def most_at_once(entries: list[tuple[float, float, float, str]], weigh: bool = False) -> float:
    """The largest number of runs (weigh: sum of their cores) at any moment."""
    moments = sorted([(a, cores if weigh else 1.0) for a, _, cores, _ in entries]
                     + [(b, -cores if weigh else -1.0) for _, b, cores, _ in entries])  # fmt: skip
    most = now = 0.0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


# -- resources


def test_node_sums_never_exceed_what_there_is(tc: TaskClient, ledger: Path) -> None:
    wants: list[Any] = [1, 2, (1, 3), 3, 1, 4, 2, (2, 4), 1, 1, 2, 3]
    ids = [tc.run(Task(entry(ledger), resources={"cores": cores})) for cores in wants]
    tc.barrier(ids, timeout=DEADLINE_S)
    entries = runs(ledger)
    assert len(entries) == len(wants)
    assert most_at_once(entries, weigh=True) <= 4
    assert most_at_once(entries) >= 2, "what fits runs beside each other"


def test_a_task_reads_its_allotment_and_libraries_know_it(tc: TaskClient) -> None:
    code = """
import os
import numpy
import threadpoolctl
from ipytaskfarm.engine import current_task
allotted = current_task().allotment
threads = os.environ["OMP_NUM_THREADS"]
pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
"""
    task = Task(code, pull=["allotted", "threads", "pools"], resources={"cores": 1, "memory": "100 MiB"})
    first = tc.run(task, block=True)
    second = tc.run(task, block=True)  # numpy is loaded now
    for tr in (first, second):
        assert tr.ns.allotted == {"cores": 1.0, "memory": 100 * 2**20}
        assert tr.ns.threads == "1"
    assert set(second.ns.pools) == {1}
    after = tc.run(Task("import os; left = os.environ.get('OMP_NUM_THREADS')", pull="left", targets=second.engineid))
    assert tc.get_task_result(after, block=True).ns.left == str(max(1, usable_cores() // 2))


def test_gpus_are_given_out_one_by_one(tc: TaskClient, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    code = gate.code + "found = os.environ['CUDA_VISIBLE_DEVICES'], current_task().allotment['gpus']"
    code = "from ipytaskfarm.engine import current_task\n" + code
    ids = [tc.run(Task(code, pull="found", resources={"gpu": 1})) for _ in range(3)]
    eventually(lambda: tc.tasks(ids=ids, state="running").ids == ids[:2])
    assert tc.status(ids[2]).reason == "waiting for resources"
    gate.open()
    tc.barrier(ids, timeout=DEADLINE_S)
    found = [tc.get_task_result(i).results["found"] for i in ids]
    assert {names for names, _ in found[:2]} == {"0", "1"}
    assert all(gpus == (names,) for names, gpus in found)


def test_what_is_yielded_lets_others_start_and_is_taken_back(tc: TaskClient, tmp_path: Path) -> None:
    begun, gate, back = tmp_path / "begun", Gate(tmp_path / "gate"), tmp_path / "back"
    parent = tc.run(
        Task(
            f"from ipytaskfarm.engine import current_task\nme = current_task()\nhad = me.allotment\n"
            f"left = me.yield_resources(cores=3)\n{gate.code}\n"
            f"again = me.reserve_resources()\nopen({str(back)!r}, 'w').close()\n",
            pull=["had", "left", "again"],
            resources={"cores": 4},
        )
    )
    other_gate = Gate(tmp_path / "other")
    other = tc.run(Task(f"open({str(begun)!r}, 'w').close()\n{other_gate.code}", resources={"cores": 2}))
    eventually(begun.exists)
    gate.open()
    assert not tc.wait(parent, timeout=0.5)[0], "it waits: two of its cores are in use"
    assert not back.exists()
    other_gate.open()
    tr = tc.get_task_result(parent, block=True, timeout=DEADLINE_S)
    assert tr.results == {"had": {"cores": 4.0}, "left": {"cores": 1.0}, "again": {"cores": 4.0}}
    tc.barrier(other, timeout=DEADLINE_S)


def test_what_cannot_be_reserved_is_refused_or_times_out(tc: TaskClient, tmp_path: Path) -> None:
    code = """
from ipytaskfarm.engine import current_task
me = current_task()
said = []
for call in (lambda: me.reserve_resources(cores=99), lambda: me.yield_resources(cores=9),
             lambda: me.reserve_resources(timeout=0.2, licence=1)):
    try:
        call()
    except (ValueError, TimeoutError) as error:
        said.append(f"{type(error).__name__}: {error}")
left = me.allotment
"""
    gate = Gate(tmp_path / "gate")
    holder = tc.run(Task(gate.code, resources={"licence": 1}))
    eventually(lambda: tc.status(holder).state == "running")
    tr = tc.run(Task(code, pull=["said", "left"], resources={"cores": 1}), block=True)
    gate.open()
    assert [re.match(r"\w+", line).group() for line in tr.ns.said] == ["ValueError", "ValueError", "TimeoutError"]  # type: ignore[union-attr]
    assert "100 cores were asked for" in tr.ns.said[0]
    assert tr.ns.left == {"cores": 1.0}


def test_there_is_no_current_task_outside_of_one(tc: TaskClient) -> None:
    from ipytaskfarm.engine import current_task

    with pytest.raises(RuntimeError, match="where no task runs"):
        current_task()
    code = "from ipytaskfarm.engine import current_task\nme = current_task()\nfound = me.id, me.attempt, me.allotment"
    task = tc.run(Task(code, pull="found"))
    assert tc.get_task_result(task, block=True).results["found"] == (task, 1, {})


# -- exclusive, groups


def test_an_exclusive_task_is_never_beside_anything(tc: TaskClient, ledger: Path) -> None:
    ids = [tc.run(Task(entry(ledger, "many"))) for _ in range(12)]
    ids += [tc.run(Task(entry(ledger, "alone"), exclusive=True)) for _ in range(3)]
    ids += [tc.run(Task(entry(ledger, "many"))) for _ in range(12)]
    tc.barrier(ids, timeout=DEADLINE_S)
    entries = runs(ledger)
    for begun, ended, _, name in entries:
        if name == "alone":
            beside = [e for e in entries if e[0] < ended and e[1] > begun]
            assert len(beside) == 1, beside


@pytest.mark.parametrize("limit", ["max_parallel", "max_parallel_per_node"])
def test_no_more_of_a_group_run_than_its_limit(tc: TaskClient, ledger: Path, limit: str) -> None:
    rules: Any = {"group": "g", limit: 2}
    ids = [tc.run(Task(entry(ledger, seconds=0.1), **rules)) for _ in range(10)]
    others = [tc.run(Task(entry(ledger, "other"))) for _ in range(4)]
    eventually(lambda: tc.status(ids[-1]).reason == "limit reached" and f"{limit} is 2" in tc.explain(ids[-1]))
    tc.barrier([*ids, *others], timeout=DEADLINE_S)
    assert most_at_once([e for e in runs(ledger) if e[3] == "-"]) == 2
    assert most_at_once(runs(ledger)) > 2


def test_a_jobs_limit_is_its_own_groups(tc: TaskClient, ledger: Path) -> None:
    job = tc.create_job("narrow", max_parallel=1)
    for _ in range(5):
        job.add_task(Task(entry(ledger)))
    job.submit()
    assert job.wait(DEADLINE_S)
    assert most_at_once(runs(ledger)) == 1


def test_a_limit_needs_a_group() -> None:
    with pytest.raises(ValueError, match="give group='a name' too"), module_farm(1) as farm, farm.task_client() as tc:
        tc.run(Task("1", max_parallel=1))


# -- the load guard


def test_the_load_guard_starts_nothing_but_what_is_forced() -> None:
    with module_farm(2, free_memory="900 TiB") as farm, farm.task_client() as tc:
        eventually(lambda: "load guard" in tc.snapshot()[0].guard)
        waits = tc.run(Task("a = 1", pull="a"))
        assert tc.run(Task("a = 2", pull="a", force=True), block=True).ns.a == 2
        assert not tc.wait(waits, timeout=0.3)[0]
        assert "load guard" in tc.explain(waits)
        assert "943,718,400" in tc.explain(waits)


# -- conditions


def test_only_engines_that_meet_the_conditions_are_used(farm: Farm, tc: TaskClient) -> None:
    mec = farm.multiengine_client()
    mec.set_properties({"model": "A100", "slots": 3}, targets=2)
    code = "where = id + 0"
    ids = [
        tc.run(Task(code, pull="where", requires={"property:model": "A100", "property:slots": ">= 2", "bits": 64}))
        for _ in range(6)
    ]
    ids += [tc.run(Task(code, pull="where", requires={"python": ">= 3.11", "id": [2, 99]})) for _ in range(2)]
    ids += [tc.run(Task(code, pull="where", depend=lambda properties: properties.get("model") == "A100"))]
    tc.barrier(ids, timeout=DEADLINE_S)
    assert {tc.get_task_result(i).ns.where for i in ids} == {2}
    unmet = tc.run(Task(code, requires={"property:model": "H100"}))
    explained = tc.explain(unmet)
    assert "engine 2: model == H100: it is A100" in explained
    assert "engine 0: model == H100: this engine has no model" in explained
    tc.abort(unmet)
    mec.del_properties(["model", "slots"], targets=2)


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({"requires": {"memory": ">= 900 TiB"}}, r"memory >= 900\.0 TiB: it is"),
        ({"requires": {"memory": "900 TiB"}}, r"\('>= 900\.0 TiB' asks for as much at least\)"),
        ({"requires": {"hostname": ["elsewhere"]}}, r"hostname in \['elsewhere'\]: it is"),
        ({"requires": {"free_disk": "> 900 TiB"}}, "free_disk > 900.0 TiB"),
        ({"requires": {"load": "< 0"}}, "load < 0%: it is"),
        ({"requires": {"free_cores": "> 99"}}, "free_cores > 99.0: it is 4"),
        ({"requires": {"free_memory": "> 900 TiB"}}, "free_memory > 900.0 TiB: it is"),
        ({"requires": {"property:colour": "red"}}, "this engine has no colour"),
        ({"resources": {"cores": 99}}, "it needs 99 cores, and .* has 4 cores in all"),
        ({"resources": {"licence": 2}}, "it needs 2 licence, and .* has 1 licence in all"),
        ({"resources": {"tape": 1}}, "it needs 1 tape, and .* has 0 tape in all"),
        ({"depend": lambda properties: False}, "its depend function said no"),
        ({"targets": 77}, r"not among the task's targets \[77\]"),
        ({"locality": lambda properties: -1}, "its locality function forbids it"),
    ],
)
def test_every_unmet_condition_is_named(tc: TaskClient, rules: dict[str, Any], named: str) -> None:
    eventually(lambda: tc.snapshot()[0].load is not None)
    check = tc.check(Task("1", **rules))
    assert not check
    assert check.engines == []
    assert re.search(named, check.unmet)
    failing = tc.run(Task("1", fail_if_unmet=True, **rules))
    tr = tc.get_task_result(failing, block=True, timeout=DEADLINE_S)
    assert tr.reason == "unmet"
    with pytest.raises(errors.TaskTimeout, match=named):
        tr.raise_exception()
    waits = tc.run(Task("1", **rules))
    eventually(lambda: re.search(named, tc.explain(waits)), what="explained")
    tc.abort(waits)


def test_check_of_a_task_that_can_run(tc: TaskClient) -> None:
    check = tc.check(Task("1", targets=[1, 3], depend=lambda properties: properties["id"] != 3))
    assert check
    assert check.engines == [1]
    assert set(check.why) == {0, 2, 3}
    assert "its depend function said no" in check.why[3]
    assert check.unmet == ""
    assert "it can" in repr(check)


def test_who_waits_for_what_nobody_can_serve_is_told_once(farm: Farm) -> None:
    code = (
        "import sys\nfrom ipytaskfarm import Task, TaskClient\n"
        "from ipytaskfarm.client import wait_notices\nwait_notices.LOOK_AFTER_S = 0.3\n"
        "tc = TaskClient(sys.argv[1])\n"
        "task = tc.run(Task('1', requires={'property:colour': 'red'}))\n"
        "tc.flush()\nprint(task, flush=True)\ntc.barrier(task)\n"
    )
    words = [sys.executable, "-c", code, str(farm.connection_file)]
    with (
        farm.task_client() as tc,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child,
    ):
        assert child.stdout is not None
        assert child.stderr is not None
        task = int(child.stdout.readline())
        first = child.stderr.readline()
        assert "nothing of what you wait for can run now" in first
        assert not tc.wait(task, timeout=1.5)[0], "time enough to say it again"
        tc.abort(task)
        said = child.stderr.read()
    assert said.count("this engine has no colour") == 1
    assert "this engine has no colour (engines 1 to 3 too)" in said
    assert "nothing of what" not in said


# -- placement


def test_locality_prefers_and_forbids(farm: Farm, tc: TaskClient) -> None:
    mec = farm.multiengine_client()
    for engine_id, score in enumerate((-1, 0, 5, -1)):
        mec.set_properties({"score": score}, targets=engine_id)

    def near(properties: dict[str, Any]) -> int:
        return int(properties["score"])

    for _ in range(5):
        assert tc.run(Task("where = id + 0", pull="where", locality=near), block=True).ns.where == 2
    ids = [tc.run(Task("import time; time.sleep(0.05); where = id + 0", pull="where", locality=near)) for _ in range(8)]
    tc.barrier(ids, timeout=DEADLINE_S)
    assert {tc.get_task_result(i).ns.where for i in ids} == {1, 2}
    mec.del_properties(["score"])


def test_placement_of_a_task_and_of_the_farm(tc: TaskClient) -> None:
    def where(count: int, **rules: Any) -> list[int]:
        return [tc.run(Task("where = id + 0", pull="where", **rules), block=True).ns.where for _ in range(count)]

    assert sorted(where(4)) == [0, 1, 2, 3], "each rests as long"
    assert len(set(where(4, placement="most_recent"))) == 1
    assert set(where(3, placement="priority")) == {0}


# -- the farm at a glance


def test_snapshot(tc: TaskClient, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    task = tc.run(Task(gate.code, resources={"cores": 2, "gpu": 1}))
    eventually(lambda: tc.status(task).state == "running")
    snapshot = tc.snapshot()
    (node,) = snapshot
    gate.open()
    assert (node.state, node.engines, snapshot.slots) == ("up", 4, 4)
    assert node.capacity["cores"] == 4
    assert node.capacity["licence"] == 1
    assert node.used == {"cores": 2.0, "gpu": 1.0}
    assert node.memory > node.free_memory > 0  # type: ignore[operator]
    assert node.free_disk > 0  # type: ignore[operator]
    assert 0 <= node.load <= 1  # type: ignore[operator]
    assert node.platform
    assert "2 cores, 1 gpu" in repr(snapshot)
    assert "<table" in snapshot._repr_html_()
    tc.barrier(task, timeout=DEADLINE_S)
