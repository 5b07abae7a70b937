"""Reports an engine's properties. Each report has all of them, so of quick changes only the last one is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..core.limits import properties_bytes
from ..core.messages import PropertiesChanged

PAUSE_S = 0.05
"""The shortest time between two reports, unless something that follows them is reported in between."""
BYTES_PER_S = 16 << 20
"""Large properties wait longer."""
SMALL_BYTES = 64 << 10
"""So much is reported before a result, however short the pause was."""


class PropertyReports:
    """Sends reports, or keeps the last one until it is due."""

    def __init__(
        self,
        send: Callable[[PropertiesChanged], None],
        wait: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create it.

        Args:
            send: sends a report.
            wait: called when a report waits: somebody must call `watch` soon.
            clock: returns monotonic seconds.
        """
        self._send = send
        self._wait = wait
        self._clock = clock
        self._lock = threading.RLock()
        self._waiting: PropertiesChanged | None = None
        self._due_s = 0.0

    @property
    def is_waiting(self) -> bool:
        """Return whether a report waits."""
        return self._waiting is not None

    def changed(self, report: PropertiesChanged) -> None:
        """Take the newest report. Any thread may call this."""
        with self._lock:
            self._waiting = report
            self._send_if_due()
        if self._waiting is not None:
            self._wait()

    def watch(self) -> None:
        """Send the report that waits if it is due."""
        if self._waiting is not None:
            with self._lock:
                self._send_if_due()

    def flush(self) -> None:
        """Send the report that waits before something is reported that follows it, unless it is large."""
        waiting = self._waiting
        if waiting is not None:
            with self._lock:
                if properties_bytes(waiting.packed, waiting.plain) <= SMALL_BYTES:
                    self._due_s = 0.0
                self._send_if_due()

    def _send_if_due(self) -> None:
        report, now_s = self._waiting, self._clock()
        if report is None or now_s < self._due_s:
            return
        self._waiting = None
        self._due_s = now_s + max(PAUSE_S, properties_bytes(report.packed, report.plain) / BYTES_PER_S)
        self._send(report)
