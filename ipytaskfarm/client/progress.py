"""A progress bar for those who wait in a terminal or a notebook, once it lasts longer than a second.

A widget where there are widgets, else a line of text; nothing where nobody looks (a file, a pipe).  Off with the
environment variable ``IPYTASKFARM_PROGRESS=0``, or ``tc.progress = False`` for one client.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from typing import Any

AFTER_S = 1.0


class ProgressBar:
    """A context; `left` is told now and then how many are still to come."""

    def __init__(self, total: int, unit: str = "task", show: bool = True) -> None:
        self._total = total
        self._unit = unit
        self._show = show and total > 0 and os.environ.get("IPYTASKFARM_PROGRESS", "1") != "0"
        self._began_s = time.monotonic()
        self._bar: Any = None
        self._failed = 0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._bar is not None:
            if kind is None:
                self._bar.update(self._total - self._bar.n)
            self._bar.close()

    def left(self, count: int, failed: int = 0) -> None:
        """So many have not ended yet; of those that have, so many failed."""
        if not self._show:
            return
        if self._bar is None:
            if time.monotonic() - self._began_s < AFTER_S or not _somebody_looks():
                return
            self._bar = self._new_bar()
        if failed != self._failed:
            self._failed = failed
            self._bar.set_postfix_str(f"{failed} failed", refresh=False)
        self._bar.update(self._total - count - self._bar.n)

    def beside(self, write: Callable[[], None]) -> None:
        """Write something else to the terminal: the bar steps aside meanwhile."""
        bar = self._bar
        if bar is None or _is_kernel(sys.stderr):
            write()
            return
        bar.clear()
        write()
        bar.refresh()

    def _new_bar(self) -> Any:
        class Bar(_bar_class()):  # type: ignore[misc]
            # tqdm's own watcher thread would outlive the bar.
            monitor_interval = 0

        # A cell keeps its bar, which says how much it was and how long it took; a terminal has other things to show.
        bar = Bar(total=self._total, unit=self._unit, file=sys.stderr, leave=_is_kernel(sys.stderr))
        # tqdm counts from now on; for the rate it is to count from the beginning.
        waited_s = time.monotonic() - self._began_s
        bar.start_t -= waited_s
        bar.last_print_t -= waited_s
        return bar


def _bar_class() -> Any:
    """Return what `tqdm.auto` would choose, but for its warning where widgets are missing."""
    if _is_kernel(sys.stderr) and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget
    from tqdm.std import tqdm

    return tqdm


def _is_kernel(stream: object) -> bool:
    return type(stream).__module__.startswith("ipykernel")


def _somebody_looks() -> bool:
    stream = sys.stderr
    return stream is not None and (_is_kernel(stream) or stream.isatty())
