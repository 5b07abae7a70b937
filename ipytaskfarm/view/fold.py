"""Folds the controller's changes and answers into a picture.  The state is bounded, whatever the farm does."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ipytaskfarm.core.messages import view
from ipytaskfarm.core.messages.tables import ConnectionRow, FarmState, FrozenRow
from ipytaskfarm.core.states import state_counts
from ipytaskfarm.core.stretches import merged

from .picture import Picture

JOBS_MAX = 100
CAUSES_MAX = 100
STRETCHES_MAX = 3000
SERIES_MAX = 900
"""Seconds of the throughput that are kept."""
STRETCHES_AT_ONCE = 50
"""The largest number of stretches in one delta; quick neighbours are merged."""
TOLD_AT_ONCE = 10
"""The largest number of jobs, causes and engines that one delta renews; the others follow in the next ones."""
RATE_S = 30.0
"""Seconds over which a job's speed is measured."""
STALLED_S = 5.0
"""A job of which nothing has ended in this time is measured again: what was foretold of it may not come."""
TEXT_MAX = 400
NAME_MAX = 120
LOSSES_SHOWN = 20


def cut(text: str, most: int = TEXT_MAX) -> str:
    """Return foreign text for a page: as it is, without control characters, cut with a mark."""
    if len(text) > most:
        text = f"{text[: most - 1]}…"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def cause_key(reason: str, etype: str, place: str) -> str:
    """Return the key of a group of failures in the picture: short, whatever the texts are."""
    return hashlib.blake2b(f"{reason}\n{etype}\n{place}".encode(), digest_size=8).hexdigest()


class FarmFold:
    """Folds what the controller says into `picture`.  Times are wall-clock seconds of the controller."""

    def __init__(self) -> None:
        self.picture = Picture()
        self.needs_tables = True
        """Whether causes and jobs must be asked for again."""
        self.doubts = 0
        """How often in a row they had to, because tasks failed meanwhile."""
        self._asking = self._answered = self._failed_meanwhile = False
        self._counted: frozenset[str] | None = None
        """The jobs of which the failed tasks were asked for; None: those with the most."""
        self._number: int | None = None
        self._jobs: dict[str, view.JobProgress] = {}
        self._causes: dict[str, view.FailureCause] = {}
        self._speeds: dict[str, deque[tuple[float, int]]] = {}
        self._renew: dict[str, dict[str, dict[str, Any]]] = {"jobs": {}, "causes": {}, "engines": {}}
        """Section -> entries that have changed and were not told."""
        self._second: list[float] = []
        """Of the present second: when it began, tasks that succeeded, tasks that failed."""
        for section in ("stretches", "series"):
            self.picture.append(section, [], 1)
        for section in self._renew:
            self.picture.put(section, {})

    # -- what the controller says

    def changes(self, told: view.FarmChanges) -> None:
        """Fold changes.  A gap in their numbers means that tables must be asked for again."""
        if told.stale or (self._number is not None and told.number != self._number + 1):
            self.needs_tables = True
        self._number = told.number
        self._note_failures(told.failed > 0)
        self.picture.set("counts", state_counts(told.counts))
        self.picture.set("hold", _hold(told))
        self._add_to_series(told)
        rows = merged(told.stretches, 0.02, STRETCHES_AT_ONCE)
        self.picture.append("stretches", [stretch_row(row) for row in rows], STRETCHES_MAX)
        for cause in told.causes:
            self._add_cause(cause)
        for job in told.jobs:
            known = self._jobs.get(job.id)
            failed = job.failed + (known.failed if known is not None else 0)
            self._note_job(msgspec.structs.replace(job, failed=failed), told.at_s)
        self._note_stalled(told.at_s)
        self._forget_surplus()
        self._tell_some()

    def tables_asked(self) -> None:
        """Note that causes and jobs are asked for, because of `needs_tables`.

        Changes are told a few times a second, and the tables are read at some moment between question and answer. So
        failures that are told between the question and the first changes after the answer may be in both, or would be
        in neither. Then the tables are needed again."""
        self.needs_tables = self._answered = self._failed_meanwhile = False
        self._asking = True

    def jobs_to_count(self) -> list[str]:
        """Return the ids of the jobs of which the next `cause_table` shall count the failed tasks."""
        self._counted = frozenset(self._jobs)
        return list(self._jobs)

    def _note_failures(self, are_some: bool) -> None:
        """Note whether tasks have failed since the last changes; `tables_asked` has the reason."""
        if self._asking:
            self._failed_meanwhile = self._failed_meanwhile or are_some
            if self._answered:
                self._end_asking()

    def _end_asking(self) -> None:
        self._asking = False
        self.needs_tables = self.needs_tables or self._failed_meanwhile
        self.doubts = self.doubts + 1 if self._failed_meanwhile else 0

    def farm_state(self, state: FarmState, version: str) -> None:
        """Fold the state of the farm, which is asked for when the connection is made."""
        self.picture.set(
            "farm",
            {
                "name": state.name,
                "incarnation": state.incarnation,
                "epoch": state.epoch,
                "started_s": round(state.started_s, 3),
                "version": version,
                "store_bytes": state.store_bytes,
                "found": cut(state.found),
            },
        )
        self.picture.set("counts", state_counts(state.counts))
        self.picture.set("hold", _hold(state))

    def cause_table(self, table: view.CauseTable) -> None:
        """Fold all failed tasks by cause."""
        self._answered = True
        if self._asking and self._failed_meanwhile:
            self._end_asking()
        if not table.complete:  # what is known is better than nothing
            self.needs_tables = True
            return
        self._causes = {
            cause_key(row.reason, row.etype, row.place): row for row in table.rows[:CAUSES_MAX]
        }  # the largest first
        self.picture.set("causes", {key: cause_entry(row) for key, row in self._causes.items()})
        self.picture.set("causes_more", table.more + max(0, len(table.rows) - CAUSES_MAX))
        self._renew["causes"].clear()
        failed = dict(table.by_job)
        for job_id, job in self._jobs.items():
            was_counted = self._counted is None or job_id in self._counted
            if was_counted and job.failed != failed.get(job_id, 0):
                self._jobs[job_id] = msgspec.structs.replace(job, failed=failed.get(job_id, 0))
                self._renew["jobs"][job_id] = self._job_entry(self._jobs[job_id])
        self._tell_some()

    def job_page(self, page: view.JobPage, at_s: float) -> None:
        rows = page.rows[:JOBS_MAX]
        kept = {row.id for row in rows}
        for job_id in [job_id for job_id in self._jobs if job_id not in kept]:
            self._forget_job(job_id)
        for row in rows:
            known = self._jobs.get(row.id)
            self._note_job(msgspec.structs.replace(row, failed=known.failed if known is not None else 0), at_s)
        self.picture.put("jobs", self._renew["jobs"])
        self._renew["jobs"] = {}
        self.picture.set("jobs_more", page.more + len(page.rows) - len(rows))

    def engine_page(self, page: view.EnginePage) -> None:
        """Fold a page of engines, and the nodes."""
        rows = {str(row.id): engine_entry(row) for row in page.rows}
        known = self.picture.data["engines"]
        if not known:
            self.picture.put("engines", rows)
        else:
            self._renew["engines"] = {key: row for key, row in rows.items() if known.get(key) != row}
        self.picture.drop("engines", [key for key in known if key not in rows])
        self.picture.set("frozen", [frozen_entry(row) for row in page.frozen])
        self.picture.set("engine_states", page.states)
        self.picture.set("engines_total", page.total)
        self.picture.set("wanted", page.wanted)
        self.picture.set("clients", page.clients)
        self.picture.set("losses", [cut(line) for line in page.losses[-LOSSES_SHOWN:]])
        nodes = {cut(str(row["name"] or row["node"]), NAME_MAX): node_entry(row) for row in page.agents}
        self.picture.put("nodes", nodes)
        self.picture.drop("nodes", [key for key in self.picture.data["nodes"] if key not in nodes])
        self.picture.set("nodes_total", page.agents_total)

    def versions(self, page: str, farm: str, clients: Iterable[ConnectionRow]) -> None:
        """Fold which versions the page, the farm, its clients and its engines have; see `version_differences`."""
        nodes, engines = self.picture.data.get("nodes", {}), self.picture.data.get("engines", {})
        # The engines of an environment have a Python of their own, which nobody tells.
        known = not any(engine["environment"] for engine in engines.values())
        pythons = [str(node.get("python") or "") for node in nodes.values()] if known else []
        self.picture.set("versions", [cut(line) for line in version_differences(page, farm, clients, pythons)])

    def waiting_table(self, table: view.WaitingTable) -> None:
        """Fold the reasons why tasks wait."""
        rows = [[cut(reason), count, example, cut(text, 600)] for reason, count, example, text in table.rows]
        self.picture.set("waiting", rows)
        self.picture.set("waiting_unknown", table.unknown)

    def forget_stretches(self) -> None:
        """Forget all runs: after a while without changes some may be missing."""
        self.picture.set("stretches", [])

    def past_stretches(self, table: view.StretchTable, until_s: float) -> None:
        """Fold runs that ended before this moment, when the first changes began, and how far back there are runs."""
        self.picture.set("first_s", table.first_s)
        ended = [row for row in table.rows if row.ended_s <= until_s]
        rows = sorted(merged(ended, 0.05, STRETCHES_MAX // 2), key=lambda row: row.ended_s)
        self.picture.append("stretches", [stretch_row(row) for row in rows], STRETCHES_MAX)

    # -- jobs

    def _note_job(self, job: view.JobProgress, at_s: float) -> None:
        self._jobs[job.id] = job
        samples = self._speeds.setdefault(job.id, deque(maxlen=64))
        ended = job.arrived - job.unfinished
        if samples and ended < samples[-1][1]:
            samples.clear()
        if not samples or at_s - samples[-1][0] >= RATE_S / 32 or ended == samples[-1][1]:
            samples.append((at_s, ended))
        while len(samples) > 2 and at_s - samples[1][0] > RATE_S:
            samples.popleft()
        self._renew["jobs"][job.id] = self._job_entry(job)

    def _note_stalled(self, at_s: float) -> None:
        for job in list(self._jobs.values()):
            if job.unfinished and at_s - self._speeds[job.id][-1][0] > STALLED_S and self._rate(job) is not None:
                self._note_job(job, at_s)

    def _job_entry(self, job: view.JobProgress) -> dict[str, Any]:
        # The tasks that were submitted again stand for others, which have failed and count no more.
        ended = max(0, job.arrived - job.unfinished)
        rate = self._rate(job)
        left = max(0, job.total - ended)
        return {
            "name": cut(job.name, NAME_MAX),
            "total": job.total,
            "unfinished": job.unfinished,
            "ended": ended,
            "failed": job.failed,
            "paused": job.paused,
            "priority": job.priority,
            "aborted": cut(job.aborted),
            "opened_s": round(job.opened_s, 3),
            "rate": None if rate is None else float(f"{rate:.3g}"),
            "left_s": None if not rate or not left else float(f"{left / rate:.3g}"),
        }

    def _rate(self, job: view.JobProgress) -> float | None:
        """Return how many of a job's tasks end in a second; None if it is not known, or if the job is over."""
        samples = self._speeds[job.id]
        if job.unfinished == 0 or job.paused:
            return None
        (first_s, first), (last_s, last) = samples[0], samples[-1]
        if last_s - first_s >= 1.0 and last > first:
            return (last - first) / (last_s - first_s)
        since_s = last_s - job.opened_s
        return last / since_s if last and 1.0 <= since_s < 86_400 and len(samples) < 3 else None

    def _forget_job(self, job_id: str) -> None:
        del self._jobs[job_id]
        self._speeds.pop(job_id, None)
        self._renew["jobs"].pop(job_id, None)
        self.picture.drop("jobs", [job_id])

    # -- causes

    def cause(self, key: str) -> view.FailureCause | None:
        """Return the group of failures of this key, with its whole texts."""
        return self._causes.get(key)

    def _add_cause(self, new: view.FailureCause) -> None:
        key = cause_key(new.reason, new.etype, new.place)
        known = self._causes.get(key)
        if known is not None:
            ids = sorted({*known.ids, *new.ids}, reverse=True)[:8]
            new = msgspec.structs.replace(new, count=known.count + new.count, ids=ids)
        self._causes[key] = new
        self._renew["causes"][key] = cause_entry(new)

    def _forget_surplus(self) -> None:
        """Keep the largest groups of failures, and the jobs that run or are the latest."""
        if len(self._causes) > CAUSES_MAX:
            by_size = sorted(self._causes, key=lambda key: self._causes[key].count)
            for key in by_size[: len(self._causes) - CAUSES_MAX]:
                del self._causes[key]
                self._renew["causes"].pop(key, None)
                self.picture.drop("causes", [key])
            self.needs_tables = True
        if len(self._jobs) > JOBS_MAX:
            by_age = sorted(self._jobs.values(), key=lambda job: (job.unfinished > 0, job.opened_s))
            for job in by_age[: len(self._jobs) - JOBS_MAX]:
                self._forget_job(job.id)

    # -- telling

    def _tell_some(self) -> None:
        for section, entries in self._renew.items():
            some = {key: entries.pop(key) for key in list(entries)[:TOLD_AT_ONCE]}
            if some:
                self.picture.put(section, some)

    def settle(self) -> None:
        """Write everything that was put off into the picture, for a caller that shows it once."""
        while any(self._renew.values()):
            self._tell_some()

    def _add_to_series(self, told: view.FarmChanges) -> None:
        """Add to the present second; a second that is over becomes a row of the series."""
        if not self._second:
            self._second = [told.at_s, 0, 0]
        self._second[1] += told.succeeded
        self._second[2] += told.failed
        began_s, succeeded, failed = self._second
        length_s = told.at_s - began_s
        if length_s >= 0.95:
            counts = state_counts(told.counts)
            row = [
                round(told.at_s, 2),
                round(succeeded / length_s, 1),
                round(failed / length_s, 1),
                counts["running"],
                counts["scheduled"],
            ]
            self.picture.append("series", [row], SERIES_MAX)
            self._second = [told.at_s, 0, 0]


def _hold(told: view.FarmChanges | FarmState) -> dict[str, Any]:
    """Return whether tasks start, and why none is accepted."""
    return {"held": told.held, "stopping": told.stopping, "refusing": cut(told.refusing)}


def stretch_row(row: view.Stretch) -> list[Any]:
    """Return a stretch for a page: engine, name, outcome, begin, end, runs, first task, seconds of work, bad runs."""
    return [
        row.engine_id,
        cut(row.name, 60),
        cut(row.outcome, 60),
        round(row.started_s, 3),
        round(row.ended_s, 3),
        row.count,
        row.first_id,
        round(row.busy_s, 3),
        row.bad,
    ]


def cause_entry(row: view.FailureCause) -> dict[str, Any]:
    """Return a group of failures for a page."""
    return {
        "reason": cut(row.reason),
        "etype": cut(row.etype, NAME_MAX),
        "place": cut(row.place),
        "text": cut(row.text),
        "count": row.count,
        "ids": row.ids,
        "last_s": round(row.last_s, 1),
    }


def engine_entry(row: view.EngineLine) -> dict[str, Any]:
    """Return an engine for a page."""
    return {
        "node": cut(row.node, NAME_MAX),
        "state": row.state,
        "task": row.task,
        "name": cut(row.name, NAME_MAX),
        "since_s": round(row.since_s, 1),
        "ahead": row.ahead,
        "finished": row.finished,
        "started_s": round(row.started_s, 1),
        "pid": row.pid,
        "note": cut(row.note),
        "environment": cut(row.environment, NAME_MAX),
        "memory": row.memory if row.memory >= 0 else None,
        "memory_limit": row.memory_limit or None,
    }


def frozen_entry(row: FrozenRow) -> dict[str, Any]:
    """Return a frozen engine for a page."""
    return {
        "id": row.id,
        "node": cut(row.node, NAME_MAX),
        "task": row.task,
        "error": cut(row.error, NAME_MAX),
        "place": cut(row.place),
        "ends_s": round(row.ends_s),
        "state": row.state,
    }


_NODE = ("state", "engines", "starting", "cores", "load", "memory", "free_memory", "free_disk", "guard", "python")

_STEPS = {"load": 0.01, "free_memory": 1 << 20, "free_disk": 1 << 20}
"""Smaller changes of these are not told."""


def node_entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node for a page: its machine, and what its engines use of it."""
    entry: dict[str, Any] = {name: row.get(name) for name in _NODE}
    for name, value in entry.items():
        if isinstance(value, str):
            entry[name] = cut(value)
        elif name in _STEPS and value is not None:
            entry[name] = round(round(value / _STEPS[name]) * _STEPS[name], 2)
    capacity, used = row.get("capacity") or {}, row.get("used") or {}
    entry["resources"] = {cut(str(k), NAME_MAX): [used.get(k, 0), v] for k, v in _some(capacity.items())}
    entry["node"] = cut(str(row.get("node", "")), NAME_MAX)
    return entry


def _some(items: Iterable[tuple[Any, Any]], most: int = 20) -> list[tuple[Any, Any]]:
    return list(items)[:most]


CLIENT = "client"
"""The title of the key of clients."""
VERSION_MAX = 40


def version_differences(page: str, farm: str, clients: Iterable[ConnectionRow], engines: Iterable[str]) -> list[str]:
    """Return what differs between the page, the farm, its clients and its engines, a sentence each.

    The kernel of a notebook, Jupyter's server and the farm may live in three environments. Peers of another protocol
    are refused by the connection; what is said here concerns those that understand each other.

    Args:
        page: the version of this package in the process that serves the page.
        farm: the same in the controller; "" if it is not known.
        clients: the connections of the farm.
        engines: the versions of Python of the nodes.
    """
    here = [row for row in clients if row.there and row.key == CLIENT]
    found = []
    if farm and page != farm:
        found.append(
            f"This page comes from ipytaskfarm {page}, and the farm runs {farm[:VERSION_MAX]}: they understand each "
            "other, but where something is missing here, install the same version for both."
        )
    other = [row for row in here if row.version not in ("", page, farm)]
    if other:
        versions = ", ".join(sorted({row.version for row in other})[:3])
        found.append(
            f"{_number(other)} ipytaskfarm {versions}, and the farm {farm[:VERSION_MAX]}: install the same version in "
            "the environment of the notebook or script."
        )
    engine_pythons = {_minor(version) for version in engines} - {""}
    odd = [row for row in here if _minor(row.python) and engine_pythons and _minor(row.python) not in engine_pythons]
    if odd:
        pythons = ", ".join(sorted({_minor(row.python) for row in odd})[:3])
        found.append(
            f"{_number(odd)} Python {pythons}, and the engines {', '.join(sorted(engine_pythons)[:3])}: functions of a "
            "notebook or script run only in the same minor version of Python."
        )
    return found


def _number(rows: list[ConnectionRow]) -> str:
    if len(rows) == 1:
        return f"The client {rows[0].name[:60]} uses"
    return f"{len(rows):,} clients use"


def _minor(version: str) -> str:
    """Return a Python's minor version, such as 3.12; "" if this is none."""
    parts = version.split(".")[:2]
    return ".".join(parts) if len(parts) == 2 and all(part.isdigit() for part in parts) else ""
