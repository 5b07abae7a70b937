"""Test scripts for batch systems as text: their contents, how a shell runs them, and the parsing of answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm.core.errors import LauncherError
from ipytaskfarm.launchers.batch import scripts
from ipytaskfarm.launchers.batch.launchers import Lsf, Pbs, Slurm
from ipytaskfarm.launchers.interface import AgentSpec, AgentStatus, Launcher, Seat, find_launcher

SYSTEMS: Mapping[str, Callable[[Mapping[str, str]], Launcher]] = {"slurm": Slurm, "pbs": Pbs, "lsf": Lsf}
NASTY = """it's "so" $HOME `id` %a;#&"""
"""What a folder may be called."""

SLURM_SCRIPT = """\
#!/bin/bash
# One agent per element of a job array.  A name in braces after @ is filled in; a line with one that has no value goes.
#SBATCH --job-name=ipytaskfarm-default-slurm-1
#SBATCH --array=0-1
#SBATCH --nodes=1 --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8192M
#SBATCH --time=26:00:05
#SBATCH --signal=B:TERM@55
#SBATCH --partition=long,short
#SBATCH --account=physics
#SBATCH --qos=high
#SBATCH --requeue --open-mode=append
#SBATCH --output='/home/me/log files/slurm-1.%a.out'
#SBATCH --constraint=avx
#SBATCH --gres=gpu:1

index=$SLURM_ARRAY_TASK_ID
node=$SLURMD_NODENAME
engines=${SLURM_CPUS_ON_NODE:-cores}
engines=4
ends_at=$SLURM_JOB_END_TIME
ends_at=${SLURM_JOB_END_TIME:-$(($(date +%s) + 93605))}
case $index in
0) name=slurm-1.0 connection_file=/home/me/farm/slurm-1.0.json ;;
1) name=slurm-1.1 connection_file=/home/me/farm/slurm-1.1.json ;;
*) echo "there is no agent for element '$index'" >&2; exit 64 ;;
esac
module load python
export OMP_NUM_THREADS=1
# In the shell's place, so that Slurm's SIGTERM reaches it.
exec /opt/python -P -m ipytaskfarm.agent --connection-file "$connection_file" --farm default --name "$name" \
--startup-cwd /home/me --leave 25 --node "$node" --engines "$engines" --lease 60 ${ends_at:+--ends-at "$ends_at"}
"""


def seats(group: str, count: int, folder: Path = Path("/home/me/farm")) -> list[Seat]:
    return [Seat(f"{group}.{index}", folder / f"{group}.{index}.json") for index in range(count)]


def spec(**changes: Any) -> AgentSpec:
    given: dict[str, Any] = {
        "farm": "default", "group": "g-1", "engines": 2, "python": "/opt/python", "cwd": Path("/home/me"),
        "logs": Path("/home/me/logs"),
    }  # fmt: skip
    return AgentSpec(**(given | changes))


def script(system: str, options: Mapping[str, str] | None = None, count: int = 3, **changes: Any) -> str:
    return SYSTEMS[system](options or {}).preview(seats("g-1", count), spec(**changes))


# ------------------------------------------------------------------------------------------- what is in them


def test_a_script_for_slurm_whole() -> None:
    options = {
        "partition": "long,short", "account": "physics", "qos": "high", "memory": "8 GiB",
        "directives": "--constraint=avx; --gres=gpu:1", "prologue": "module load python\nexport OMP_NUM_THREADS=1",
    }  # fmt: skip
    wanted = spec(
        group="slurm-1", engines=4, time_limit_s=93604.2, logs=Path("/home/me/log files"), flags=("--lease", "60")
    )
    assert Slurm(options).preview(seats("slurm-1", 2), wanted) == SLURM_SCRIPT


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_was_not_asked_for_is_not_asked_of_the_system(system: str) -> None:
    text = script(system, engines=None)
    for word in (
        "mem",
        "time=",
        "walltime",
        "-W",
        "-wt",
        "partition",
        "account",
        "-q ",
        "-A ",
        "-P ",
        "cpus",
        "-n ",
        "@",
    ):
        directives = [line for line in text.splitlines()[2:] if line.startswith("#")]
        assert not [line for line in directives if word in line and "B:TERM@55" not in line], word
    assert "engines=2" in script(system)


def test_pbs_asks_for_what_one_agent_needs() -> None:
    text = script("pbs", {"memory": "1.5G", "queue": "work@server", "cpus": "8"}, time_limit_s=100)
    for line in ("-l select=1:ncpus=8:mem=1536mb", "-l walltime=0:01:40", "-q work@server", "-J 0-2", "-r y"):
        assert f"#PBS {line}\n" in text
    assert "#PBS -l select=1\n" in script("pbs", engines=None)


def test_a_single_agent_is_no_array_to_pbs() -> None:
    text = script("pbs", count=1)
    assert "#PBS -J" not in text
    assert "index=${PBS_ARRAY_INDEX:-0}" in text


def test_lsf_counts_from_one_and_in_minutes() -> None:
    text = script("lsf", {"memory": "2G", "account": "physics"}, time_limit_s=3601)
    for line in (
        '-J "ipytaskfarm-default-g-1[1-3]"', "-W 1:01", "-wt 1 -wa TERM", "-P physics", "-n 2",
        '-M 2048MB -R "rusage[mem=2048MB]"',
    ):  # fmt: skip
        assert f"#BSUB {line}\n" in text
    assert "1) name=g-1.0 " in text
    assert "3) name=g-1.2 " in text


@pytest.mark.parametrize("system", SYSTEMS)
def test_cores_are_as_many_as_engines_unless_said(system: str) -> None:
    directive = {"slurm": "--cpus-per-task=", "pbs": "select=1:ncpus=", "lsf": "-n "}[system]
    assert f"{directive}2\n" in script(system)
    both = script(system, {"cpus": "8"})
    assert f"{directive}8\n" in both
    assert "engines=2\n" in both
    # What the cores were asked for.
    assert "engines=8\n" in script(system, {"cpus": "8"}, engines=None)


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_secret_is_in_a_script(system: str, tmp_path: Path) -> None:
    (tmp_path / "g-1.0.json").write_text("k3y")
    text = SYSTEMS[system]({}).preview(seats("g-1", 1, tmp_path), spec())
    assert str(tmp_path / "g-1.0.json") in text
    assert "k3y" not in text


# ------------------------------------------------------------------------------------------- what a shell makes of them

SURROUNDINGS = {
    "slurm": {"SLURM_ARRAY_TASK_ID": "1", "SLURMD_NODENAME": "node07"},
    "pbs": {"PBS_ARRAY_INDEX": "1", "PBS_NODEFILE": "nodes"},
    "lsf": {"LSB_JOBINDEX": "2", "LSB_HOSTS": "node07 node07"},
}
"""What each system tells a job: here the second element, on node07."""
CORES = {"slurm": "SLURM_CPUS_ON_NODE", "pbs": "NCPUS", "lsf": "LSB_DJOB_NUMPROC"}


def run_script(folder: Path, text: str, **environment: str) -> list[str]:
    """Run a script in a shell; return the arguments for the agent's interpreter, which is `interpreter(folder)`."""
    (folder / "nodes").write_text("node07\nnode07\n")
    ended = subprocess.run(
        ["bash", "-s"], input=text, capture_output=True, text=True, cwd=folder, timeout=60,
        env={"PATH": os.environ["PATH"], **environment},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    given: list[str] = json.loads((folder / "given.json").read_text())
    return given


def interpreter(folder: Path) -> str:
    """A program that writes down how it was called."""
    path = folder / "py thon's"
    path.write_text(
        """#!/bin/sh\nexec python3 -c "import json, sys; json.dump(sys.argv[1:], open('given.json', 'w'))" "$@"\n"""
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_word_reaches_the_agent_as_it_was(system: str, tmp_path: Path) -> None:
    nasty = tmp_path / NASTY
    nasty.mkdir()
    wanted = spec(
        python=interpreter(tmp_path),
        cwd=nasty,
        logs=nasty,
        flags=("--resource", NASTY),
        time_limit_s=3600.0,
        leave_s=7.5,
    )
    text = SYSTEMS[system]({"prologue": "test $index"}).preview(seats("g-1", 3, nasty), wanted)
    before = int(time.time())
    given = run_script(tmp_path, text, **SURROUNDINGS[system])
    assert given[:-1] == [
        "-P", "-m", "ipytaskfarm.agent", "--connection-file", str(nasty / "g-1.1.json"), "--farm", "default",
        "--name", "g-1.1", "--startup-cwd", str(nasty), "--leave", "7.5", "--node", "node07", "--engines", "2",
        "--resource", NASTY, "--ends-at",
    ]  # fmt: skip
    assert before + 3600 <= int(given[-1]) <= int(time.time()) + 3600


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_agent_without_a_limit_and_a_number_of_engines(system: str, tmp_path: Path) -> None:
    text = SYSTEMS[system]({}).preview(seats("g-1", 3), spec(python=interpreter(tmp_path), engines=None, logs=tmp_path))
    given = run_script(tmp_path, text, **SURROUNDINGS[system])
    assert "--ends-at" not in given
    assert given[given.index("--engines") + 1] == "cores"
    given = run_script(tmp_path, text, **SURROUNDINGS[system], **{CORES[system]: "12"})
    assert given[given.index("--engines") + 1] == "12"


@pytest.mark.parametrize("limit_s", [None, 3600.0])
def test_slurm_knows_best_when_it_ends_a_job(tmp_path: Path, limit_s: float | None) -> None:
    text = Slurm({}).preview(seats("g-1", 3), spec(python=interpreter(tmp_path), time_limit_s=limit_s))
    given = run_script(tmp_path, text, **SURROUNDINGS["slurm"], SLURM_JOB_END_TIME="1800000000")
    assert given[given.index("--ends-at") + 1] == "1800000000"


def test_an_element_that_nobody_knows_ends() -> None:
    ended = subprocess.run(
        ["bash", "-s"], input=script("slurm"), capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "3"},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (64, "there is no agent for element '3'\n")


@pytest.mark.parametrize("system", ["pbs", "lsf"])  # Slurm itself writes to the file that the script names
def test_what_a_job_prints_is_in_its_log(system: str, tmp_path: Path) -> None:
    logs = tmp_path / NASTY
    logs.mkdir()
    text = SYSTEMS[system]({"prologue": "echo module loaded"}).preview(
        seats("g-1", 3), spec(python=interpreter(tmp_path), logs=logs)
    )
    run_script(tmp_path, text, **SURROUNDINGS[system])
    assert (logs / "g-1.1.out").read_text() == "module loaded\n"


@pytest.mark.parametrize("system", SYSTEMS)
def test_shellcheck_finds_nothing(system: str, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck")
    path = tmp_path / "script.sh"
    path.write_text(script(system, {"prologue": "module load x"}, time_limit_s=3600, logs=Path("/a b")))
    ended = subprocess.run(["shellcheck", path], capture_output=True, text=True, timeout=60)
    assert ended.stdout == ""


# ------------------------------------------------------------------------------------------- templates of a site


def test_a_site_has_a_template_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "site.sh"
    path.write_text("#SBATCH -p @{partition}\n#SBATCH -n @{cpus}\n@{seats}\necho ${x[@]} $USER me@site.org\n@{agent}\n")
    text = script("slurm", {"template": str(path), "cpus": "3"})
    assert text.startswith("#SBATCH -n 3\ncase $index in\n")
    assert "\necho ${x[@]} $USER me@site.org\n/opt/python -P" in text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "@{seats} @{agent} @{partitoin} @{jobname}",
            r"names @\{jobname\}, @\{partitoin\}, which there is not: there are",
        ),
        ("@{seats} @{agent} @{job-name}", r"@\{job-name\}"),
        ("@{agent}", r"starts no agent: it needs lines with @\{seats\}$"),
        ("", r"needs lines with @\{seats\} and @\{agent\}$"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "site.sh"
    path.write_text(text)
    with pytest.raises(LauncherError, match=f"the template {path} .*{complaint}"):
        script("slurm", {"template": str(path)})


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match=r"the template /nowhere/x\.sh cannot be read: .*No such file"):
        script("pbs", {"template": "/nowhere/x.sh"})
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(LauncherError, match="cannot be read"):
        script("pbs", {"template": str(tmp_path / "binary")})


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_help_names_the_template_that_is_shipped(system: str) -> None:
    shipped = scripts.shipped(system)
    assert shipped.is_file()
    assert str(shipped) in SYSTEMS[system]({}).OPTIONS["template"]


# ------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("account", "a b", r"account must be one word .*, not 'a b'"),
        ("account", "a\n#SBATCH --x", "account must be one word"),
        ("account", "a'b", "account must be one word"),
        ("account", "", "account must be one word"),
        ("cpus", "0", "cpus must be a number of 1 or more, not '0'"),
        ("cpus", "four", "cpus must be a number"),
        ("memory", "much", "a size like '300 MiB'"),
        ("memory", "0", "memory must be more than nothing"),
    ],
)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_bad_option_is_refused_before_anything_is_done(system: str, option: str, value: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SYSTEMS[system]({option: value})


def test_agents_need_time_to_work_before_they_are_told_to_end() -> None:
    with pytest.raises(ValueError, match="55 s before the time limit of 55 s"):
        script("slurm", time_limit_s=55)
    assert "TERM@20\n" in script("slurm", {"signal": "20"}, time_limit_s=55)
    with pytest.raises(ValueError, match="1 min before the time limit of 1 min"):
        script("lsf", time_limit_s=60)


def test_a_folder_that_slurm_cannot_write_to_is_refused() -> None:
    with pytest.raises(LauncherError, match="without backslashes"):
        script("slurm", logs=Path("/a\\b"))


@pytest.mark.parametrize("system", SYSTEMS)
def test_agents_are_numbered(system: str) -> None:
    launcher = find_launcher(system, {})
    assert launcher.names("g-1", 2) == ["g-1.0", "g-1.1"]
    assert launcher.names("g-1", None) == ["g-1.0"]
    with pytest.raises(ValueError, match=f"{system}: how many agents must be 1 or more, not 0"):
        launcher.names("g-1", 0)


# ------------------------------------------------------------------------------------------- what they answer


def states(found: Mapping[int, AgentStatus]) -> dict[int, Sequence[str]]:
    return {index: tuple(status) for index, status in found.items()}


def test_what_squeue_says() -> None:
    said = (
        "0|RUNNING|node01|None\n1|PENDING||Resources\n2|CANCELLED|node02|None\n3|TIMEOUT|node02|TimeLimit\n"
        "4|COMPLETING|node03|None\n5|CONFIGURING|node04|None\nN/A|CANCELLED||Resources\n7|PENDING||BeginTime\n"
        "8|PENDING||(a|b)\n"
    )
    assert states(scripts.slurm_status(said)) == {
        0: ("running", "node01", ""), 1: ("waiting", "", "Resources"), 2: ("ended", "node02", "cancelled"),
        3: ("ended", "node02", "timeout: TimeLimit"), 4: ("running", "node03", "completing"), 5: ("waiting", "", ""),
        7: ("waiting", "", "BeginTime"), 8: ("waiting", "", "(a|b)"),
    }  # fmt: skip


QSTAT = """\
Job Id: 12[].server
    Job_Name = ipytaskfarm-default-pbs-1
    job_state = B
    array = True

Job Id: 12[0].server
    Job_Name = ipytaskfarm-default-pbs-1
    job_state = R
    exec_host = node01/0*4
    Variable_List = PBS_O_HOME=/home/me,A=
\tjob_state = Q

Job Id: 12[1].server
    job_state = Q
    comment = Not Running: Insufficient amount of resource: ncp
\tus (R: 4 A: 0 T: 8)

Job Id: 12[2].server
    job_state = X
    exec_host = node02/1
    Exit_status = 271

Job Id: 12[11].server
    job_state = H
"""


def test_what_qstat_says() -> None:
    assert states(scripts.pbs_status(QSTAT)) == {
        0: ("running", "node01", ""),
        1: ("waiting", "", "Not Running: Insufficient amount of resource: ncpus (R: 4 A: 0 T: 8)"),
        2: ("ended", "node02", "exit code 271"),
        11: ("waiting", "", "held"),
    }
    single = "Job Id: 13.server\n    job_state = E\n    exec_host = node01/0\n"
    assert states(scripts.pbs_status(single)) == {0: ("running", "node01", "exiting")}
    assert states(scripts.pbs_status("Job Id: 13.server\n    Job_Name = x\n")) == {0: ("ended", "", "")}


def test_what_bjobs_says() -> None:
    records = [
        {"JOBINDEX": "1", "STAT": "RUN", "EXEC_HOST": "4*node01", "EXIT_REASON": "", "PEND_REASON": ""},
        {"JOBINDEX": "2", "STAT": "PEND", "EXEC_HOST": "", "PEND_REASON": "New job is waiting for scheduling;"},
        {"JOBINDEX": "3", "STAT": "EXIT", "EXEC_HOST": "node02", "EXIT_REASON": "TERM_RUNLIMIT: killed"},
        {"JOBINDEX": "4", "STAT": "DONE", "EXEC_HOST": "node02:node03"},
        {"JOBINDEX": "5", "STAT": "SSUSP", "EXEC_HOST": "node02"},
        {"JOBID": "99", "ERROR": "Job <99> is not found"},
    ]
    said = json.dumps({"COMMAND": "bjobs", "JOBS": len(records), "RECORDS": records})
    assert states(scripts.lsf_status(said)) == {
        1: ("running", "node01", ""), 2: ("waiting", "", "New job is waiting for scheduling;"),
        3: ("ended", "node02", "TERM_RUNLIMIT: killed"), 4: ("ended", "node02", "done"),
        5: ("running", "node02", "suspended"),
    }  # fmt: skip
    with pytest.raises(LauncherError, match="bjobs did not answer as LSF 10 does: 'JOBID'"):
        scripts.lsf_status("JOBID")


def test_which_job_was_made() -> None:
    assert scripts.slurm_job("17\n") == ("17", "")
    assert scripts.slurm_job("hello from a wrapper\n17;north\n") == ("17", "north")
    assert scripts.pbs_job("12[].server.site\n") == "12[].server.site"
    assert scripts.pbs_job("12.server\n") == "12.server"
    assert scripts.pbs_element("12[].server", 3) == "12[3].server"
    assert scripts.pbs_element("12.server", 0) == "12.server"
    assert scripts.lsf_job("Job <12> is submitted to default queue <normal>.\n") == "12"
    for parse, command in (
        (scripts.slurm_job, "sbatch"),
        (scripts.pbs_job, "qsub"),
        (scripts.lsf_job, "bsub"),
    ):
        with pytest.raises(LauncherError, match=f"{command} did not say which job it made: 'hm'"):
            parse("hm\n")
