"""Runs the commands of batch systems, which may take long, hang, or fail because their controller is away.

A command that was not answered says something about the next ones of its system: `answering` remembers it, so that a
stop of ten groups does not wait ten times.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ipytaskfarm.core.errors import LauncherError
from ipytaskfarm.launchers.answering import Answering, EndedCommand, run_command
from ipytaskfarm.launchers.interface import shell_line

COMMAND_S = 15.0
"""The time limit for a command of the batch system."""
SUBMIT_S = 30.0
"""The time limit for a submission: if it is ended too early, the system may have taken the job."""
AGAIN_S = 2.0
"""The pause before a command is repeated if the system's controller was busy."""
PATIENT_S = 5.0
"""A command that took so long to say that the controller is busy has tried more than once itself."""


@dataclass(frozen=True)
class System:
    """The commands of a batch system, and texts by which their errors are recognised."""

    name: str
    submit: str
    """The command that submits a job."""
    busy: tuple[str, ...]
    """Texts that mean: the system's controller cannot answer now."""
    gone: tuple[str, ...]
    """Texts that mean: the job has ended."""


SLURM = System(
    "Slurm",
    "sbatch",
    ("Socket timed out", "Unable to contact slurm controller", "Resource temporarily unavailable"),
    ("Invalid job id", "already completing or completed"),
)
PBS = System(
    "PBS",
    "qsub",
    ("cannot connect to server", "Connection refused", "Connection timed out"),
    ("Unknown Job", "Job has finished", "Request invalid for state of job"),
)
LSF = System(
    "LSF",
    "bsub",
    ("LSF is down", "Communication time out", "batch daemon not responding", "LSF daemon not responding"),
    ("is not found", "No matching job found", "Job has already finished", "has finished"),
)


answering = Answering()
"""Which systems have just not answered."""


# ------------------------------------------------------------------------------------------------ kinds of commands


def submit(system: System, words: Sequence[str], script: str) -> str:
    """Submit a script, without a second try: a busy controller may have taken it although it did not answer."""
    remedy = "It may have taken the job all the same: look, then try again"
    answer = _run(system, words, SUBMIT_S, script, remedy)
    if answer.code == 0:
        return answer.said
    if not _is_busy(system, answer):
        remedy = "Correct the options or the template; --dry-run shows the script"
    raise LauncherError(f"{_shown(words, answer)}\n{remedy}")


def ask(system: System, words: Sequence[str]) -> str:
    """Return the output of a command; "" if the job has ended and is not known any more."""
    answer = _patiently(system, words, "Try again")
    if answer.code == 0 or answer.said.strip():
        return answer.said
    if any(text in answer.complaint for text in system.gone):
        return ""
    raise LauncherError(f"{_shown(words, answer)}\n{system.name} does not say how its jobs do: try again")


def carry_out(system: System, words: Sequence[str]) -> None:
    """Run a command that ends jobs. Jobs that have ended are no error."""
    remedy = f"Try again, or type the command yourself: {shell_line(words)}"
    answer = _patiently(system, words, remedy)
    if answer.code == 0:
        return
    lines = [line for line in answer.complaint.splitlines() if line.strip()]
    if lines and all(any(text in line for text in system.gone) for line in lines):
        return
    raise LauncherError(f"{_shown(words, answer)}\n{remedy}")


# ------------------------------------------------------------------------------------------------ running


def _patiently(system: System, words: Sequence[str], remedy: str) -> EndedCommand:
    """Run a command that may be repeated, once more if the controller was busy for a moment.

    Raises:
        LauncherError: there is no such command, or it was not answered in time, or was not tried because the ones
            before it were not answered.
    """
    limit_s = answering.limit_s(system.name, COMMAND_S)
    if limit_s <= 0:
        before = answering.why(system.name)
        raise LauncherError(
            f"{words[0]} was not tried, because {system.name} has just not answered: {before}\n{remedy}"
        )
    answer = _run(system, words, limit_s, "", remedy)
    if _is_busy(system, answer) and limit_s >= COMMAND_S and answer.took_s < PATIENT_S:
        time.sleep(AGAIN_S)
        answer = _run(system, words, limit_s, "", remedy)
    if _is_busy(system, answer):
        answering.was_silent(system.name, _shown(words, answer))
    else:
        answering.has_answered(system.name)
    return answer


def _is_busy(system: System, answer: EndedCommand) -> bool:
    return answer.code != 0 and any(text in answer.complaint for text in system.busy)


def _run(system: System, words: Sequence[str], limit_s: float, text: str, remedy: str) -> EndedCommand:
    try:
        # A session of its own: sites put scripts around these commands, and with them ends what they wait for.
        return run_command(
            words, limit_s, text, system.name, environment={**os.environ, "LC_ALL": "C"}, own_session=True
        )
    except FileNotFoundError as error:
        raise LauncherError(
            f"this machine has no {system.name} client: there is no command {words[0]!r}. Start the farm on a machine"
            f" from which jobs are submitted, or load the module that brings {system.submit!r}"
        ) from error
    except OSError as error:
        raise LauncherError(f"{words[0]} cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        why = f"{words[0]} did not answer within {limit_s:g} s"
        answering.was_silent(system.name, why)
        raise LauncherError(f"{why}: {system.name}'s controller is away or busy. {remedy}") from error


def _shown(words: Sequence[str], answer: EndedCommand) -> str:
    complaint = answer.complaint.strip() or answer.said.strip() or "it said nothing"
    return f"{words[0]} ended with exit code {answer.code}: {complaint}"
