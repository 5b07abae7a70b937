"""A real Slurm of three nodes for tests: its daemons listen on loopback, with their own ports, keys and files.

They neither read nor write files of the machine's own Slurm or munge.  Nothing is left behind: the daemons are our
children, and end with us even when we are killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path

import psutil
import pytest

from tests.support.polling import DEADLINE_S, eventually

NODES = ("node01", "node02", "node03")
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo", "setpriv")

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
MailProg=/bin/true
PlugStackConfig=/dev/null
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
ReturnToService=2
SlurmdTimeout=30
KillWait=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=2000 State=UNKNOWN\n"


@dataclass(frozen=True)
class Cluster:
    """A running Slurm.  The environment variable SLURM_CONF points its commands, ours too, to it."""

    folder: Path

    def run(self, *words: str) -> str:
        """Run a command and return its output."""
        ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
        assert ended.returncode == 0, f"{words}: {ended.stderr}"
        return ended.stdout

    def queue(self) -> list[str]:
        """Return ``JOB_INDEX STATE NODE`` of the unfinished jobs."""
        return self.run("squeue", "--noheader", "--array", "--format=%i %T %N").splitlines()

    def processes(self) -> list[psutil.Process]:
        """Return the jobs and their supervising processes: everything below the nodes' daemons."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter(["name"]):
            if process.info["name"] == "slurmstepd":
                found += _below(process, self.folder)
        return found

    def drain(self, node: str) -> None:
        """Start no more jobs on a node; a running job goes on."""
        self.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")


@contextmanager
def slurm_cluster() -> Iterator[Cluster]:
    """Three idle nodes of two cores each.  Skips the test where there is no Slurm to start."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    missing = [command for command in COMMANDS if shutil.which(command, path=path) is None]
    if missing:
        pytest.skip(f"no {missing[0]}: a Slurm to test with is Debian's slurmctld, slurmd, slurm-client and munge")
    folder = Path(tempfile.mkdtemp(prefix="itf-slurm-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        patch.setenv("PATH", path)
        patch.setenv("SLURM_CONF", str(_configure(folder)))
        key, socket_path = folder / "munge.key", folder / "munge.socket"
        files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("pid", "log", "seed")]
        # --force: a key and a socket below /tmp are good enough here.
        munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_path}", *files]
        _daemon(stack, folder, munged)
        eventually(socket_path.exists, DEADLINE_S, what="munged's socket")
        _daemon(stack, folder, ["slurmctld", "-D"])
        for node in NODES:
            _daemon(stack, folder, ["slurmd", "-D", "-N", node])
        cluster = Cluster(folder)
        eventually(lambda: _idle() == len(NODES), DEADLINE_S, every_s=0.05, what=f"idle nodes: {_log(folder)}")
        stack.callback(_empty, cluster)
        yield cluster


def _configure(folder: Path) -> Path:
    folder.chmod(0o755)  # munged refuses a socket in a folder that others cannot reach
    for name in ("state", *NODES):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(1024))
    # Without this slurmd looks for the cgroups of a systemd service.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    host, ports = socket.gethostname().split(".")[0], _free_ports(1 + len(NODES))
    nodes = "".join(NODE.format(node=node, host=host, port=port) for node, port in zip(NODES, ports[1:], strict=True))
    path = folder / "slurm.conf"
    path.write_text(nodes + CONFIGURATION.format(folder=folder, host=host, ports=ports, user=getuser()))
    return path


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _daemon(stack: ExitStack, folder: Path, words: list[str]) -> None:
    with open(folder / "daemons.log", "ab") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _idle() -> int:
    ended = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%T"],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    return ended.stdout.split().count("idle")


def _log(folder: Path) -> str:
    return (folder / "daemons.log").read_text(errors="replace")[-2000:]


def _empty(cluster: Cluster) -> None:
    """Whatever a failed test left: jobs outlive the daemons unless they are ended before."""
    cluster.run("scancel", f"--user={getuser()}")
    try:
        eventually(
            lambda: not cluster.queue() and not cluster.processes(), DEADLINE_S, every_s=0.1, what="an empty queue"
        )
    finally:
        for process in cluster.processes():
            process.kill()


def _below(process: psutil.Process, folder: Path) -> list[psutil.Process]:
    try:
        # Its title has overwritten its environment; it listens in its node's folder.
        ours = any(str(folder) in socket.laddr for socket in process.net_connections("unix"))
        return [process, *process.children(recursive=True)] if ours else []
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
