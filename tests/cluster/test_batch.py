"""Test launchers for batch systems with their commands: the calls, the parsing of answers, and agents that really run.

Slurm is a fake here that gives prepared answers; the real one is in test_slurm.py.  PBS and LSF are
`tests.support.fake_batch`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, Task
from ipytaskfarm.core.errors import FarmNotRunning, LauncherError
from ipytaskfarm.deployment.agent_groups import read_groups
from ipytaskfarm.deployment.daemon import stop_farm
from ipytaskfarm.launchers import answering
from ipytaskfarm.launchers.answering import telling
from ipytaskfarm.launchers.batch import commands as running
from ipytaskfarm.launchers.batch.launchers import Lsf, Pbs, Slurm
from ipytaskfarm.launchers.interface import AgentSpec, AgentStatus, Handle, Launcher, Seat
from ipytaskfarm.settings.checks import Agents
from tests.conftest import Dirs
from tests.farm.test_farm import background_farm
from tests.farm.test_farm_bad_input import Said
from tests.support import fake_batch
from tests.support.ended import has_ended
from tests.support.farms import DEADLINE_S, engines, until_engines
from tests.support.polling import eventually

SLURM_JOB: Handle = {"job": "17", "cluster": "", "names": ["g-1.0", "g-1.1", "g-1.2"]}


@pytest.fixture(autouse=True)
def _trusted() -> Iterator[None]:
    """Trust all systems again after a test: what is remembered of them is the process's."""
    yield
    running.answering.forget()


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that makes commands from shell text; each call of a command adds its arguments to
    ``NAME.calls``.
    """
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(running, "AGAIN_S", 0.0)

    def make(name: str, body: str) -> Path:
        calls = folder / f"{name}.calls"
        (folder / name).write_text(f'#!/bin/sh\nprintf "%s " "$@" >>{calls}; echo >>{calls}\n{body}\n')
        (folder / name).chmod(0o755)
        return calls

    return make


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Provide the folder of a fake PBS and LSF; their jobs end with the test."""
    folder = tmp_path / "batch"
    monkeypatch.setenv("PATH", f"{fake_batch.install(folder)}{os.pathsep}{os.environ['PATH']}")
    yield folder
    fake_batch.end_all(folder)


def seats(count: int) -> list[Seat]:
    return [Seat(f"g-1.{index}", Path(f"/farm/g-1.{index}.json")) for index in range(count)]


def spec(**changes: Any) -> AgentSpec:
    given: dict[str, Any] = {"farm": "f", "group": "g-1", "engines": 1, "logs": Path("/tmp")}
    return AgentSpec(**(given | changes))


def states(found: Mapping[str, AgentStatus]) -> list[str]:
    return [status.state for status in found.values()]


# ------------------------------------------------------------------------------------------- Slurm's commands


def test_the_script_goes_to_sbatch_by_its_standard_input(commands: Callable[..., Path], tmp_path: Path) -> None:
    calls = commands("sbatch", f"cat >{tmp_path}/script; echo '17;north'")
    launcher = Slurm({"partition": "short"})
    handle = launcher.submit(seats(2), spec())
    assert handle == {"job": "17", "cluster": "north", "names": ["g-1.0", "g-1.1"]}
    assert calls.read_text() == "--parsable \n"
    assert (tmp_path / "script").read_text() == launcher.preview(seats(2), spec())


def test_one_squeue_tells_of_all(commands: Callable[..., Path]) -> None:
    calls = commands("squeue", "echo '0|RUNNING|node01|None'; echo '1|PENDING||Priority'")
    assert Slurm({}).status(SLURM_JOB) == {
        "g-1.0": AgentStatus("running", "node01"),
        "g-1.1": AgentStatus("waiting", "", "Priority"),
        "g-1.2": AgentStatus("ended", "", "no longer known"),
    }
    assert calls.read_text() == "--noheader --array --states=all --format=%K|%T|%N|%r --jobs=17 \n"
    Slurm({}).status({**SLURM_JOB, "cluster": "north"})
    assert calls.read_text().splitlines()[1].startswith("--clusters=north ")


def test_what_slurm_has_forgotten_has_ended(commands: Callable[..., Path]) -> None:
    commands("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert states(Slurm({}).status(SLURM_JOB)) == ["ended"] * 3


def test_all_or_some_are_cancelled(commands: Callable[..., Path]) -> None:
    calls = commands("scancel", "exit 0")
    launcher = Slurm({})
    launcher.cancel(SLURM_JOB)
    launcher.cancel(SLURM_JOB, ["g-1.2", "g-1.0", "another"])
    launcher.cancel(SLURM_JOB, [])
    assert calls.read_text() == "--quiet 17 \n--quiet 17_2 17_0 \n"


def test_what_has_ended_is_cancelled_in_silence(commands: Callable[..., Path]) -> None:
    gone = "echo 'scancel: error: Kill job error on job id 17: Invalid job id specified' >&2"
    commands("scancel", f"{gone}; exit 1")
    Slurm({}).cancel(SLURM_JOB)
    commands("scancel", f"{gone}; echo 'scancel: error: Kill job error: Access denied' >&2; exit 1")
    with pytest.raises(LauncherError, match=r"scancel ended with exit code 1: (?s:.*)Access denied"):
        Slurm({}).cancel(SLURM_JOB)


def test_a_busy_controller_is_asked_once_more(commands: Callable[..., Path], tmp_path: Path) -> None:
    busy = "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1"
    calls = commands(
        "squeue", f"if [ ! -e {tmp_path}/asked ]; then touch {tmp_path}/asked; {busy}; fi; echo '0|RUNNING|n|x'"
    )
    assert Slurm({}).status(SLURM_JOB)["g-1.0"].state == "running"
    assert len(calls.read_text().splitlines()) == 2
    calls = commands("squeue", busy)
    calls.unlink()
    with pytest.raises(LauncherError, match="Socket timed out on send/recv operation\nSlurm does not say"):
        Slurm({}).status(SLURM_JOB)
    assert len(calls.read_text().splitlines()) == 2


def test_a_submission_is_not_repeated(commands: Callable[..., Path]) -> None:
    calls = commands("sbatch", "echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1")
    with pytest.raises(LauncherError, match="Socket timed out\nIt may have taken the job all the same"):
        Slurm({}).submit(seats(1), spec())
    assert len(calls.read_text().splitlines()) == 1


def test_a_refusal_is_in_slurms_own_words(commands: Callable[..., Path]) -> None:
    commands("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    with pytest.raises(
        LauncherError, match=r"sbatch ended with exit code 1: .*invalid partition specified: x\nCorrect"
    ):
        Slurm({}).submit(seats(1), spec())


def test_a_command_that_hangs_is_given_up(commands: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "COMMAND_S", 0.2)
    monkeypatch.setattr(running, "SUBMIT_S", 0.2)
    commands("squeue", "exec sleep 60")
    with pytest.raises(LauncherError, match=r"squeue did not answer within 0\.2 s: .* Try again$"):
        Slurm({}).status(SLURM_JOB)
    commands("sbatch", "exec sleep 60")
    with pytest.raises(LauncherError, match=r"It may have taken the job all the same"):
        Slurm({}).submit(seats(1), spec())


def test_one_command_that_hangs_tells_about_the_next_ones(
    commands: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop of a farm waited for the full limit at each command: 86 s."""
    for module, name in ((running, "COMMAND_S"), (answering, "TELL_S"), (answering, "DOUBT_S")):
        monkeypatch.setattr(module, name, {"COMMAND_S": 0.6, "TELL_S": 0.1, "DOUBT_S": 0.2}[name])
    asked, cancelled = commands("squeue", "sleep 600"), commands("scancel", "sleep 600")
    told: list[str] = []
    launcher = Slurm({})
    with telling(told.append):
        with pytest.raises(LauncherError, match=r"squeue did not answer within 0\.6 s"):
            launcher.status(SLURM_JOB)
        with pytest.raises(LauncherError, match=r"scancel did not answer within 0\.2 s.*: scancel --quiet 17$"):
            launcher.cancel(SLURM_JOB)
        for _ in range(50):
            with pytest.raises(
                LauncherError, match="scancel was not tried, because Slurm has just not answered: scancel"
            ):
                launcher.cancel(SLURM_JOB)
    assert told[0] == "waiting for squeue: Slurm has not answered for 0.1 s; it has 0.5 s more"
    assert len(told) == 2
    assert len(asked.read_text().splitlines()) == len(cancelled.read_text().splitlines()) == 1


def test_what_a_sites_own_script_waits_for_ends_with_it(
    commands: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "COMMAND_S", 1.0)
    commands("squeue", f"sleep 600 & echo $! >{tmp_path}/pid; wait")
    with pytest.raises(LauncherError, match="did not answer"):
        Slurm({}).status(SLURM_JOB)
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: has_ended(pid), DEADLINE_S, what="the script's child")


def test_a_controller_that_is_away_is_not_asked_at_length_again(
    commands: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PATIENT_S", 0.0)  # as if squeue itself had tried for ten seconds
    away = "echo 'error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    calls = commands("squeue", away)
    for text in ("ended with exit code 1", "ended with exit code 1", "was not tried"):
        with pytest.raises(LauncherError, match=f"squeue {text}"):
            Slurm({}).status(SLURM_JOB)
    assert len(calls.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("kind", "name", "command"), [(Slurm, "Slurm", "sbatch"), (Pbs, "PBS", "qsub"), (Lsf, "LSF", "bsub")]
)
def test_a_machine_without_the_system_says_so(
    commands: Callable[..., Path], kind: Callable[..., Launcher], name: str, command: str
) -> None:
    os.environ["PATH"] = os.environ["PATH"].split(os.pathsep)[0]
    with pytest.raises(LauncherError, match=f"this machine has no {name} client: there is no command '{command}'"):
        kind({}).submit(seats(1), spec())


# ------------------------------------------------------------------------------------------- PBS and LSF


@pytest.mark.parametrize("kind", [Pbs, Lsf])
def test_jobs_are_submitted_asked_after_and_cancelled(
    fakes: Path, tmp_path: Path, kind: Callable[..., Launcher]
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho it runs\nexec sleep 600\n")
    python.chmod(0o755)
    launcher = kind({})
    handle = launcher.submit(seats(3), spec(python=str(python), logs=tmp_path))
    for index in range(3):
        log = tmp_path / f"g-1.{index}.out"
        eventually(lambda log=log: log.exists() and log.read_text() == "it runs\n", DEADLINE_S)  # type: ignore[misc]
    assert launcher.status(handle) == {name: AgentStatus("running", "node01") for name in handle["names"]}
    assert launcher.tend(handle) == handle

    launcher.cancel(handle, ["g-1.1"])
    eventually(lambda: states(launcher.status(handle)) == ["running", "ended", "running"], DEADLINE_S)
    assert "-15" in launcher.status(handle)["g-1.1"].why
    launcher.cancel(handle, ["g-1.1"])  # again
    launcher.cancel(handle)
    eventually(lambda: states(launcher.status(handle)) == ["ended"] * 3, DEADLINE_S)
    launcher.cancel(handle)

    said = [" ".join(call) for call in fake_batch.calls(fakes)]
    if kind is Pbs:
        assert said[:2] == ["qsub -f", "qstat -t -f 7[].server.site"]
        assert next(line for line in said if "qdel" in line) == "qdel 7[1].server.site"
        assert said[-1] == "qdel 7[].server.site"
    else:
        assert said[:2] == ["bsub", "bjobs -a -json -o jobindex stat exec_host exit_reason pend_reason 7"]
        assert next(line for line in said if "bkill" in line) == "bkill 7[2]"
        assert said[-1] == "bkill 7"


def test_a_single_job_of_pbs(fakes: Path, tmp_path: Path) -> None:
    launcher = Pbs({})
    handle = launcher.submit(seats(1), spec(python="/bin/true", logs=tmp_path))
    assert handle["job"] == "7.server.site"
    eventually(lambda: states(launcher.status(handle)) == ["ended"], DEADLINE_S)


def test_what_lsf_has_forgotten_has_ended(fakes: Path) -> None:
    fakes.mkdir(exist_ok=True)
    assert states(Lsf({}).status({"job": "8", "names": ["g-1.0"]})) == ["ended"]


def test_a_queue_that_pbs_does_not_have(fakes: Path) -> None:
    with pytest.raises(LauncherError, match="qsub ended with exit code 170: qsub: Unknown queue\nCorrect the options"):
        Pbs({"queue": "nowhere"}).submit(seats(2), spec())


@pytest.mark.farm
@pytest.mark.parametrize("system", ["pbs", "lsf"])
def test_agents_of_a_batch_system_work(fakes: Path, farm_dirs: Dirs, system: str) -> None:
    with Farm(agents=Agents(system, 2, engines=1, time_limit=600.0)) as farm:
        until_engines(farm, 2)
        assert {row.node for row in engines(farm)} == {"node01" if system == "lsf" else "node01.site"}
        with farm.task_client() as tc:
            assert [tc.run(Task(f"a = {i}", pull="a"), block=True)["a"] for i in range(5)] == list(range(5))
    ended = [element / "code" for element in fake_batch.elements(fakes)]
    assert len(ended) == 2
    assert [path.read_text() for path in ended if path.exists()] == ["0", "0"]


@pytest.mark.farm
def test_jobs_that_their_system_does_not_end_are_ended_by_the_next_stop(fakes: Path, farm_dirs: Dirs) -> None:
    """They were forgotten, and `stop` said nothing of them."""
    with background_farm("-n", "0", "--agents", "pbs:2", "--agent-engines", "1", "--agent-time", "10m") as home:
        eventually(lambda: len(read_groups(home)) == 1, DEADLINE_S)
        qdel = fakes / "commands" / "qdel"
        works = qdel.read_text()
        qdel.write_text("#!/bin/sh\necho 'qdel: cannot connect' >&2; exit 1\n")
        said = Said()
        with pytest.raises(LauncherError, match="pbs-1: qdel ended with exit code 1") as raised:
            stop_farm(home, 0.0, said)
        assert "The farm itself has ended; what may be left of pbs-1 is ended by another `ipyt" in str(raised.value)
        assert [group.name for group in read_groups(home)] == ["pbs-1"]
        qdel.write_text(works)
        stop_farm(home, 0.0, said)
        assert read_groups(home) == []
        with pytest.raises(FarmNotRunning):
            stop_farm(home, 0.0, said)


@pytest.mark.farm
def test_a_stop_whose_commands_hang_says_so_and_ends(fakes: Path, farm_dirs: Dirs) -> None:
    """It said nothing for 86 seconds."""
    with background_farm("-n", "0", "--agents", "pbs:2", "--agent-engines", "1", "--agent-time", "10m") as home:
        eventually(lambda: len(read_groups(home)) == 1, DEADLINE_S)
        for name in ("qstat", "qdel"):
            (fakes / "commands" / name).write_text("#!/bin/sh\nsleep 600\n")
        said = Said()
        began_s = time.monotonic()
        with pytest.raises(LauncherError, match=r"pbs-1: qdel (did not answer|was not tried)"):
            stop_farm(home, 0.0, said)
        assert time.monotonic() - began_s < 50.0
        assert any("waiting for qstat: PBS has not answered for 3 s" in line for line in said.lines)
