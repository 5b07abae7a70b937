"""``python -m ipytaskfarm.launchers.dask.watchdog``: runs between an `AgentOwner` and its agent, and outlives the
owner.

When the owner's process dies for any reason, the kernel sends SIGTERM to the watchdog. The watchdog passes it on to the
agent, so that running tasks may end, and then removes the files that nobody else will remove.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ipytaskfarm.system.process import name_process

from .election import Election

_PR_SET_PDEATHSIG = 1

# Ties the agent's life to the watchdog's: the setting survives the exec.
_FOLLOW = f"""
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(0)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
""".strip()


def watchdog_words(parent: int, election: Election, farm: str, patience_s: float, agent: Sequence[str]) -> list[str]:
    """Return the command line after the interpreter.

    Args:
        parent: the process that starts it, from a thread that lives as long (PR_SET_PDEATHSIG refers to threads).
        election: the folder of the machine's owners.
        farm: the farm's name.
        patience_s: the time from the first SIGTERM to the agent's SIGKILL.
        agent: the agent's command line after the interpreter.
    """
    own = [str(parent), str(election.folder), str(election.agent_folder), farm, f"{patience_s:g}"]
    return ["-P", "-m", "ipytaskfarm.launchers.dask.watchdog", *own, *agent]


def main(argv: Sequence[str]) -> int:
    """Run the agent to its end. Return its exit code, or 128 and the signal that killed it."""
    parent, patience_s = int(argv[0]), float(argv[4])
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    name_process(f"ipytaskfarm watchdog --farm {argv[3]}")
    election = Election(Path(argv[1]), Path(argv[2]))
    code = 0
    # The parent may have died before this process asked for the signal.
    if os.getppid() == parent and not told:
        code = _run([sys.executable, "-P", "-c", _FOLLOW, str(os.getpid()), *argv[5:]], election, told, patience_s)
    if os.getppid() != parent:
        election.depart()
    return 128 - code if code < 0 else code


def _run(words: Sequence[str], election: Election, told: list[int], patience_s: float) -> int:
    agent = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    election.note_agent(agent.pid)
    # Blocked only now, because the agent would inherit the mask.
    awaited = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    kill_s = time.monotonic() + patience_s if told else None
    if told:
        agent.terminate()
    while agent.poll() is None:
        if kill_s is None:
            number = signal.sigwait(awaited)
        else:
            found = signal.sigtimedwait(awaited, max(0.0, kill_s - time.monotonic()))
            if found is None:
                agent.kill()
                return agent.wait()
            number = signal.Signals(found.si_signo)
        if number == signal.SIGTERM:
            agent.terminate()
            kill_s = kill_s or time.monotonic() + patience_s
    return agent.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
