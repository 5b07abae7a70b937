"""Fake commands of PBS and LSF: they record their calls, and run the jobs.

``python -m tests.support.fake_batch qsub …`` is ``qsub``; `install` creates such commands.  The state is in the folder
FAKE_BATCH: ``calls.jsonl``, and for each element a folder ``JOB.INDEX`` with its script, the pid of its process group,
and its exit code.  Refusals and their texts follow the manuals and reports of users.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

PROJECT = Path(__file__).parents[2]
COMMANDS = ("qsub", "qstat", "qdel", "bsub", "bjobs", "bkill")
SERVER = "server.site"
JOB = 7
"""There is one job at a time."""


def install(folder: Path) -> Path:
    """Make the commands, below `folder`; returns the folder for PATH."""
    commands = folder / "commands"
    commands.mkdir(parents=True)
    for name in COMMANDS:
        path = commands / name
        path.write_text(
            f"#!/bin/sh\nexport FAKE_BATCH='{folder}' PYTHONPATH='{PROJECT}'\n"
            f"exec '{sys.executable}' -m tests.support.fake_batch {name} \"$@\"\n"
        )
        path.chmod(0o755)
    return commands


def calls(folder: Path) -> list[list[str]]:
    """Each command with its arguments, in order."""
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def elements(folder: Path) -> list[Path]:
    """The folders of a job's elements."""
    return sorted(folder.glob(f"{JOB}.*"))


def end_all(folder: Path) -> None:
    """Whatever still runs, by pid."""
    for element in elements(folder):
        _signal(element, signal.SIGKILL)


def main(name: str, arguments: list[str]) -> int:
    """One command; its exit code."""
    folder = Path(os.environ.pop("FAKE_BATCH"))
    os.environ.pop("PYTHONPATH")
    if name == "keep":
        return _keep(Path(arguments[0]))
    with open(folder / "calls.jsonl", "a") as file:
        file.write(json.dumps([name, *arguments]) + "\n")
    command = {"qsub": _qsub, "qstat": _qstat, "qdel": _qdel, "bsub": _bsub, "bjobs": _bjobs, "bkill": _bkill}[name]
    return command(folder, arguments)


def _complain(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


# ------------------------------------------------------------------------------------------------ PBS


def _qsub(folder: Path, arguments: list[str]) -> int:
    script = sys.stdin.read()
    found = re.search(r"^#PBS -J (\d+)-(\d+)$", script, re.MULTILINE)
    if found is not None and found[1] == found[2]:
        return _complain("qsub: illegal -J value", 2)
    if re.search(r"^#PBS -q nowhere$", script, re.MULTILINE):
        return _complain("qsub: Unknown queue", 170)
    indices = range(int(found[1]), int(found[2]) + 1) if found else range(1)
    (folder / "nodes").write_text("node01.site\n")
    for index in indices:
        environment = {"PBS_NODEFILE": str(folder / "nodes"), "NCPUS": "1"}
        _begin(folder / f"{JOB}.{index}", script, environment | ({"PBS_ARRAY_INDEX": str(index)} if found else {}))
    print(f"{JOB}{'[]' if found else ''}.{SERVER}")
    return 0


def _qstat(folder: Path, arguments: list[str]) -> int:
    job = arguments[-1]
    living = [element for element in elements(folder) if not (element / "code").exists()]
    if not living:
        return _complain(f"qstat: Unknown Job Id {job}", 153)
    print(f"Job Id: {job}\n    job_state = B\n") if "[]" in job else None
    for element in elements(folder):
        name = job.replace("[]", f"[{element.suffix[1:]}]")
        code = element / "code"
        state = f"X\n    Exit_status = {code.read_text()}" if code.exists() else "R"
        print(f"Job Id: {name}\n    Job_Name = x\n    job_state = {state}\n    exec_host = node01/0\n")
    return 0


def _qdel(folder: Path, arguments: list[str]) -> int:
    return _end_jobs(folder, arguments, lambda job: f"qdel: Unknown Job Id {job}", 153)


def _end_jobs(folder: Path, jobs: list[str], complaint: Callable[[str], str], code: int) -> int:
    """Send SIGTERM to jobs, or to elements of arrays such as ``7[2]``; return the code of the last complaint."""
    worst = 0
    for job in jobs:
        found = re.match(r"\d+\[(\d+)\]", job)
        chosen = [folder / f"{JOB}.{found[1]}"] if found else elements(folder)
        told = [_signal(element, signal.SIGTERM) for element in chosen]
        if not any(told):
            worst = _complain(complaint(job), code)
    return worst


# ------------------------------------------------------------------------------------------------ LSF


def _bsub(folder: Path, arguments: list[str]) -> int:
    script = sys.stdin.read()
    found = re.search(r'^#BSUB -J "[^\s"\[]+\[1-(\d+)\]"$', script, re.MULTILINE)
    if found is None:
        return _complain("Bad job name. Job not submitted.", 255)
    for index in range(1, int(found[1]) + 1):
        environment = {"LSB_JOBINDEX": str(index), "LSB_HOSTS": "node01 node01", "LSB_DJOB_NUMPROC": "1"}
        _begin(folder / f"{JOB}.{index}", script, environment)
    print(f"Job <{JOB}> is submitted to default queue <normal>.")
    return 0


def _bjobs(folder: Path, arguments: list[str]) -> int:
    if arguments[-1] != str(JOB):
        records = [{"JOBID": arguments[-1], "ERROR": f"Job <{arguments[-1]}> is not found"}]
    else:
        records = [_record(element) for element in elements(folder)]
    print(json.dumps({"COMMAND": "bjobs", "JOBS": len(records), "RECORDS": records}))
    return 255 if "ERROR" in records[0] else 0


def _record(element: Path) -> dict[str, str]:
    record = {
        "JOBINDEX": element.suffix[1:],
        "STAT": "RUN",
        "EXEC_HOST": "2*node01",
        "EXIT_REASON": "",
        "PEND_REASON": "",
    }
    code = element / "code"
    if code.exists():
        ok = code.read_text() == "0"
        record |= {
            "STAT": "DONE" if ok else "EXIT",
            "EXIT_REASON": "" if ok else f"Exited with exit code {code.read_text()}",
        }
    return record


def _bkill(folder: Path, arguments: list[str]) -> int:
    return _end_jobs(folder, arguments, lambda job: f"Job <{job}>: Job has already finished", 255)


# ------------------------------------------------------------------------------------------------ jobs


def _begin(element: Path, script: str, environment: dict[str, str]) -> None:
    element.mkdir()
    (element / "script").write_text(script)
    subprocess.Popen(
        [sys.executable, "-m", "tests.support.fake_batch", "keep", str(element)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, **environment, "FAKE_BATCH": str(element.parent), "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip


def _keep(element: Path) -> int:
    """Run one element, and write down its end."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with open(element / "output", "wb") as output:
        job = subprocess.Popen(
            ["bash", element / "script"], stdout=output, stderr=output, start_new_session=True, env=environment
        )
    _write(element / "pid", str(job.pid))
    _write(element / "code", str(job.wait()))
    return 0


def _write(path: Path, text: str) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.rename(path)


def _signal(element: Path, signum: int) -> bool:
    """Whether it ran.  The whole group is meant, as a batch system does."""
    if (element / "code").exists() or not (element / "pid").exists():
        return False
    pid = int((element / "pid").read_text())
    if psutil.pid_exists(pid):
        os.killpg(pid, signum)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
