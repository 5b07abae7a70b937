"""Scripts for batch systems, and parsers for the output of their commands. All functions work on text.

A script is a template with the options filled in. The templates are beside this file (``templates/``). A site copies
one, changes it, and names it with the option ``template``. In a template ``@{name}`` stands for a value of `PLACES`. A
line that contains a name without a value is left out, so the directive of an option that was not given disappears. The
shell's own ``$`` needs no escape, which is the reason for not using `string.Template`.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from ipytaskfarm.core.errors import LauncherError
from ipytaskfarm.core.requirements import bytes_of
from ipytaskfarm.launchers.interface import AgentSpec, AgentStatus, Seat, agent_words

PLACES: Mapping[str, str] = {
    "job_name": "what the system calls the job",
    "indices": "the array's first and last index; none for a single agent on PBS",
    "count": "how many agents",
    "engines": "how many engines an agent brings, if that was said",
    "cpus": "cores for each agent",
    "memory": "memory for each agent, as the system writes it",
    "select": "PBS: cores and memory of one agent",
    "time_limit": "as the system writes it",
    "time_limit_s": "the same in seconds",
    "signal": "Slurm: seconds before the end at which the agent is told to end",
    "warning": "LSF: the same in minutes",
    "partition": "Slurm: where to run",
    "queue": "PBS, LSF: where to run",
    "account": "the account that is charged",
    "qos": "Slurm: quality of service",
    "output": "Slurm: the file for what is printed",
    "logs": "the folder for what is printed",
    "directives": "more lines for the system",
    "seats": "shell lines that set name and connection_file by $index",
    "prologue": "shell lines to run before the agent",
    "python": "the interpreter",
    "agent": "the agent's command line; uses $name, $connection_file, $node, $engines and, unless empty, $ends_at",
}
"""The names that a template may contain."""

NEEDED = ("seats", "agent")
"""The names that a template must contain. Without them no agent starts."""

WORDS = re.compile(r"[\w.,:;@%+=/\[\]&|~^-]+", re.ASCII)
"""The characters of an option in a directive: no blank and no quote, which each system reads in its own way."""

LEAVE_S = 30.0
"""Added to the time for running tasks: for the agent to hand over results and to end."""

_PLACE = re.compile(r"@\{([^{}\n]*)\}")
_VARIABLES = {f"\0{name}": f'"${name}"' for name in ("name", "connection_file", "node", "engines")}

Options = Mapping[str, str]
Values = dict[str, str | None]


# ------------------------------------------------------------------------------------------------ templates


def shipped(system: str) -> Path:
    """Return the template that is used unless the option ``template`` names another."""
    return Path(str(files("ipytaskfarm.launchers.batch"))) / "templates" / f"{system}.sh"


def fill(template: str, values: Values, source: str) -> str:
    """Return the template with its values.

    Raises:
        LauncherError: the template contains an unknown name, or lacks a needed one.
    """
    found = set(_PLACE.findall(template))
    unknown = sorted(found - PLACES.keys())
    if unknown:
        names = ", ".join(f"@{{{name}}}" for name in unknown)
        raise LauncherError(f"{source} names {names}, which there is not: there are {', '.join(PLACES)}")
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise LauncherError(
            f"{source} starts no agent: it needs lines with {' and '.join(f'@{{{n}}}' for n in missing)}"
        )
    lines = (line for line in template.splitlines() if all(values.get(name) for name in _PLACE.findall(line)))
    return "".join(_PLACE.sub(lambda place: values[place[1]] or "", line) + "\n" for line in lines)


def common_values(options: Options, seats: Sequence[Seat], spec: AgentSpec, first: int) -> Values:
    """Return the values that the templates of all systems use. `first` is the index of the array's first element."""
    engines = _count(options, "cpus") if spec.engines is None else spec.engines
    limit_s = None if spec.time_limit_s is None else math.ceil(spec.time_limit_s)
    return {
        "job_name": f"ipytaskfarm-{spec.farm}-{spec.group}",
        "indices": f"{first}-{first + len(seats) - 1}",
        "count": str(len(seats)),
        "engines": _text(engines),
        "cpus": _text(_count(options, "cpus") or spec.engines),
        "time_limit_s": _text(limit_s),
        "account": _word(options, "account"),
        "logs": shlex.quote(str(spec.logs)),
        "seats": seat_lines(seats, first),
        "prologue": options.get("prologue"),
        "python": shlex.quote(spec.python),
        "agent": agent_line(spec),
    }


def slurm_values(options: Options, seats: Sequence[Seat], spec: AgentSpec) -> Values:
    """Return the values for Slurm's template."""
    signal_s = _count(options, "signal") or math.ceil(spec.leave_s + LEAVE_S)
    if spec.time_limit_s is not None and spec.time_limit_s <= signal_s:
        raise ValueError(
            f"slurm: agents are told to end {signal_s} s before the time limit of {spec.time_limit_s:g} s: "
            "give them more time, or a smaller signal"
        )
    return common_values(options, seats, spec, 0) | {
        "memory": _memory(options, "M"),
        "time_limit": clock(spec.time_limit_s),
        "signal": str(signal_s),
        "partition": _word(options, "partition"),
        "qos": _word(options, "qos"),
        "output": _slurm_path(f"{spec.logs}/", f"{spec.group}.%a.out"),
        "directives": _directives(options, "#SBATCH"),
    }


def pbs_values(options: Options, seats: Sequence[Seat], spec: AgentSpec) -> Values:
    """Return the values for PBS's template."""
    values = common_values(options, seats, spec, 0)
    memory = _memory(options, "mb")
    parts = ["1", f"ncpus={values['cpus']}" if values["cpus"] else "", f"mem={memory}" if memory else ""]
    return values | {
        # PBS refuses an array of one element ("-J 0-0").
        "indices": values["indices"] if len(seats) > 1 else None,
        "memory": memory,
        "select": ":".join(filter(None, parts)),
        "time_limit": clock(spec.time_limit_s),
        "queue": _word(options, "queue"),
        "directives": _directives(options, "#PBS"),
    }


def lsf_values(options: Options, seats: Sequence[Seat], spec: AgentSpec) -> Values:
    """Return the values for LSF's template."""
    minutes = None if spec.time_limit_s is None else math.ceil(spec.time_limit_s / 60)
    warning = math.ceil((spec.leave_s + LEAVE_S) / 60)
    if minutes is not None and minutes <= warning:
        raise ValueError(
            f"lsf: agents are told to end {warning} min before the time limit of {minutes} min: give them more time"
        )
    return common_values(options, seats, spec, 1) | {
        "memory": _memory(options, "MB"),
        "time_limit": None if minutes is None else f"{minutes // 60}:{minutes % 60:02}",
        "warning": None if minutes is None else str(warning),
        "queue": _word(options, "queue"),
        "directives": _directives(options, "#BSUB"),
    }


VALUES = {"slurm": slurm_values, "pbs": pbs_values, "lsf": lsf_values}


def agent_line(spec: AgentSpec) -> str:
    """Return the agent's command line, with shell variables for the words that differ between elements."""
    words = agent_words(spec, "\0name", "\0connection_file", node="\0node")
    words[words.index("--engines") + 1] = "\0engines"
    line = " ".join(_VARIABLES.get(word) or shlex.quote(word) for word in [spec.python, *words])
    return line + ' ${ends_at:+--ends-at "$ends_at"}'


def seat_lines(seats: Sequence[Seat], first: int) -> str:
    """Return the shell code that selects the agent by the element's index, so that all elements share one script."""
    cases = (
        f"{index}) name={shlex.quote(seat.name)} connection_file={shlex.quote(str(seat.connection_file))} ;;"
        for index, seat in enumerate(seats, first)
    )
    refusal = "*) echo \"there is no agent for element '$index'\" >&2; exit 64 ;;"
    return "\n".join(["case $index in", *cases, refusal, "esac"])


def clock(seconds: float | None) -> str | None:
    """Return a time like ``26:00:05`` (hours, minutes, seconds, rounded up); None for no limit."""
    if seconds is None:
        return None
    whole = math.ceil(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


# ------------------------------------------------------------------------------------------------ options


def check_options(options: Options) -> None:
    """Check the options that templates use.

    Raises:
        ValueError: an option has an invalid value. The message names it.
    """
    for name in ("cpus", "signal"):
        _count(options, name)
    for name in ("partition", "queue", "account", "qos"):
        _word(options, name)
    _memory(options, "")


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)


def _count(options: Options, name: str) -> int | None:
    text = options.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise ValueError(f"{name} must be a number of 1 or more, not {text!r}")
    return int(text)


def _word(options: Options, name: str) -> str | None:
    text = options.get(name)
    if text is not None and not WORDS.fullmatch(text):
        raise ValueError(f"{name} must be one word without blanks and quotes, not {text!r}")
    return text


def _memory(options: Options, unit: str) -> str | None:
    text = options.get("memory")
    if text is None:
        return None
    mebibytes = math.ceil(bytes_of(text) / 2**20)
    if mebibytes == 0:
        raise ValueError(f"memory must be more than nothing, not {text!r}")
    return f"{mebibytes}{unit}"


def _directives(options: Options, prefix: str) -> str | None:
    given = re.split(r"[;\n]", options.get("directives", ""))
    return "\n".join(f"{prefix} {line.strip()}" for line in given if line.strip())


def _slurm_path(folder: str, name: str) -> str:
    # sbatch reads quotes like a shell, but inside them it still treats a backslash as an escape, and % as a field.
    if "\\" in folder or "\n" in folder:
        raise LauncherError(f"sbatch cannot be told to write into {folder!r}: choose a folder without backslashes")
    return shlex.quote(folder.replace("%", "%%") + name)


# ------------------------------------------------------------------------------------------------ their output


def slurm_job(said: str) -> tuple[str, str]:
    """Return (job id, cluster or "") from the output of ``sbatch --parsable``."""
    found = re.search(r"^(\d+)(?:;(\S+))?$", said, re.MULTILINE)
    if found is None:
        raise LauncherError(f"sbatch did not say which job it made: {said.strip()!r}")
    return found[1], found[2] or ""


SQUEUE_FORMAT = "%K|%T|%N|%r"
_SLURM_WAITS = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
_SLURM_RUNS = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})


def slurm_status(said: str) -> dict[int, AgentStatus]:
    """Return index -> status from lines of `SQUEUE_FORMAT`."""
    found = {}
    for line in said.splitlines():
        index, state, node, reason = line.strip().split("|", 3)
        if not index.isdigit():
            continue  # elements that were cancelled before they ran are shown as one, "N/A"
        found[int(index)] = _slurm_element(state, node, "" if reason == "None" else reason)
    return found


def _slurm_element(state: str, node: str, reason: str) -> AgentStatus:
    if state in _SLURM_WAITS:
        return AgentStatus("waiting", "", reason)
    said = state.lower().replace("_", " ")
    if state in _SLURM_RUNS:
        return AgentStatus("running", node, "" if state == "RUNNING" else said)
    return AgentStatus("ended", node, f"{said}: {reason}" if reason else said)


def pbs_job(said: str) -> str:
    """Return the job's id from the output of ``qsub``: ``12[].server`` for an array, ``12.server`` for a single job."""
    found = re.search(r"^\d+(?:\[\])?(?:\.\S+)?$", said.strip(), re.MULTILINE)
    if found is None:
        raise LauncherError(f"qsub did not say which job it made: {said.strip()!r}")
    return found[0]


def pbs_element(job: str, index: int) -> str:
    """Return the id of one element, like ``12[3].server``."""
    return job.replace("[]", f"[{index}]", 1)


_PBS_WAITS = frozenset("QHWTM")
_PBS_RUNS = frozenset("RESU")
_PBS_STATES = {
    "Q": "queued", "H": "held", "W": "waits for its time", "T": "is moved", "M": "was moved", "R": "",
    "E": "exiting", "S": "suspended", "U": "suspended", "X": "finished", "F": "finished",
}  # fmt: skip


def pbs_status(said: str) -> dict[int, AgentStatus]:
    """Return index -> status from ``qstat -t -f``. A single job is index 0.

    The JSON output is not used, because users' environment variables break it (openpbs issues 1255, 2541).
    """
    found = {}
    # Long values continue in lines that begin with a tab.
    for block in said.replace("\n\t", "").split("Job Id: ")[1:]:
        job = re.match(r"\d+(?:\[(\d*)\])?", block)
        if job is None or job[1] == "":
            continue  # the array itself
        facts = dict(re.findall(r"^ {4}(job_state|exec_host|comment|Exit_status) = (.*)$", block, re.MULTILINE))
        found[int(job[1] or 0)] = _pbs_element(facts)
    return found


def _pbs_element(facts: dict[str, str]) -> AgentStatus:
    state = facts.get("job_state", "")
    why = _PBS_STATES.get(state, state)
    if state in _PBS_WAITS:
        return AgentStatus("waiting", "", facts.get("comment") or why)
    node = facts.get("exec_host", "").split("/")[0]
    if state in _PBS_RUNS:
        return AgentStatus("running", node, why)
    return AgentStatus("ended", node, f"exit code {facts['Exit_status']}" if "Exit_status" in facts else why)


def lsf_job(said: str) -> str:
    """Return the job's id from the output of ``bsub``: ``Job <12> is submitted to queue <normal>.``"""
    found = re.search(r"Job <(\d+)> is submitted", said)
    if found is None:
        raise LauncherError(f"bsub did not say which job it made: {said.strip()!r}")
    return found[1]


BJOBS_FIELDS = "jobindex stat exec_host exit_reason pend_reason"
_LSF_WAITS = frozenset({"PEND", "PSUSP", "WAIT", "PROV"})
_LSF_RUNS = {"RUN": "", "USUSP": "suspended", "SSUSP": "suspended", "UNKWN": "its node does not answer"}


def lsf_status(said: str) -> dict[int, AgentStatus]:
    """Return index -> status from ``bjobs -json`` with `BJOBS_FIELDS`."""
    try:
        records = json.loads(said)["RECORDS"]
    except (ValueError, KeyError, TypeError) as error:
        raise LauncherError(f"bjobs did not answer as LSF 10 does: {said.strip()[:200]!r}") from error
    return {int(record["JOBINDEX"]): _lsf_element(record) for record in records if "JOBINDEX" in record}


def _lsf_element(record: Mapping[str, str]) -> AgentStatus:
    state = record.get("STAT", "")
    # "4*node01" means four slots of the node.
    node = record.get("EXEC_HOST", "").split(":")[0].split("*")[-1]
    if state in _LSF_WAITS:
        return AgentStatus("waiting", "", record.get("PEND_REASON", "") or state.lower())
    if state in _LSF_RUNS:
        return AgentStatus("running", node, _LSF_RUNS[state])
    return AgentStatus("ended", node, record.get("EXIT_REASON", "") or state.lower())
