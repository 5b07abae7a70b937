"""Runs on engines, merged into stretches, so that a picture of a million runs stays small."""

from __future__ import annotations

from collections.abc import Iterable

from .messages.view import Stretch

MERGED_NAMES = "…"
"""The name of a stretch of runs with several names."""


class OpenStretch:
    """A stretch to which runs are added."""

    __slots__ = ("busy_s", "count", "ended_s", "engine_id", "first_id", "good", "name", "outcome", "started_s")

    def __init__(self, stretch: Stretch) -> None:
        self.engine_id, self.name, self.outcome = stretch.engine_id, stretch.name, stretch.outcome
        self.started_s, self.ended_s = stretch.started_s, stretch.ended_s
        self.count, self.first_id, self.busy_s, self.good = (
            stretch.count,
            stretch.first_id,
            stretch.busy_s,
            stretch.good,
        )

    def takes(self, stretch: Stretch, resolution_s: float) -> bool:
        """Return whether a later stretch looks like a part of this one at this resolution (seconds)."""
        return (
            stretch.name == self.name
            and stretch.outcome == self.outcome
            and stretch.started_s - self.ended_s < resolution_s
            and self.busy_s < self.count * resolution_s
            and stretch.busy_s < stretch.count * resolution_s
        )

    def takes_run(
        self, name: str, outcome: str, started_s: float, ended_s: float, count: int, resolution_s: float
    ) -> bool:
        """Add a later run if it looks like a part of this one, as `takes` and `add` do; return whether it did.

        A farm may end ten thousand runs in a second: this makes no object of each."""
        busy_s = ended_s - started_s
        if busy_s < 0.0:
            busy_s = 0.0
        if (
            name != self.name
            or started_s - self.ended_s >= resolution_s
            or busy_s >= count * resolution_s
            or self.busy_s >= self.count * resolution_s
            or outcome != self.outcome
        ):
            return False
        if started_s < self.started_s:
            self.started_s = started_s
        if ended_s > self.ended_s:
            self.ended_s = ended_s
        self.count += count
        self.busy_s += busy_s
        return True

    def add(self, stretch: Stretch) -> None:
        """Add a stretch of the same engine."""
        self.started_s = min(self.started_s, stretch.started_s)
        self.ended_s = max(self.ended_s, stretch.ended_s)
        self.count += stretch.count
        self.busy_s += stretch.busy_s
        if stretch.name != self.name:
            self.name = MERGED_NAMES
        if self.outcome or stretch.outcome:  # a failure among a thousand runs is what people look for
            bad = stretch.bad + (self.count - stretch.count - self.good if self.outcome else 0)
            self.outcome = self.outcome or stretch.outcome
            self.good = self.count - bad

    def closed(self) -> Stretch:
        """Return it as it is now."""
        return Stretch(
            self.engine_id, self.name, self.outcome, self.started_s, self.ended_s, self.count, self.first_id,
            self.busy_s, self.good,
        )  # fmt: skip


def merged(stretches: Iterable[Stretch], resolution_s: float, most: int) -> list[Stretch]:
    """Return the same runs in at most `most` stretches, as long as there are not more engines than that.

    Neighbours of one engine become one stretch if they are shorter than the resolution (seconds) and have the same name
    and outcome.  If that is not enough, the resolution becomes coarser, and names and outcomes are merged too.
    """
    rows = sorted(stretches, key=lambda each: (each.engine_id, each.started_s))
    resolution_s = max(resolution_s, 1e-6)
    while True:
        found = _once(rows, resolution_s, False)
        if len(found) > most:
            found = _once(rows, resolution_s, True)
        if len(found) <= most or len(found) <= len({each.engine_id for each in rows}):
            return found[:most]
        resolution_s *= 4


def _once(rows: list[Stretch], resolution_s: float, all_alike: bool) -> list[Stretch]:
    found: list[OpenStretch] = []
    for row in rows:
        last = found[-1] if found else None
        near = last is not None and last.engine_id == row.engine_id and row.started_s - last.ended_s < resolution_s
        if last is not None and near and (all_alike or last.takes(row, resolution_s)):
            last.add(row)
        else:
            found.append(OpenStretch(row))
    return [each.closed() for each in found]
