"""A progress bar for those who wait in a terminal or a notebook, once it lasts longer than a second."""

from __future__ import annotations

import sys
import time
from typing import Any

AFTER_S = 1.0


class Progress:
    """A context; `left` is told now and then how many are still to come."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._began_s = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._bar is not None:
            if kind is None:
                self._bar.update(self._total - self._bar.n)
            self._bar.close()

    def left(self, count: int) -> None:
        """So many have not ended yet."""
        if self._bar is None:
            if time.monotonic() - self._began_s < AFTER_S or not _somebody_looks():
                return
            self._bar = self._new_bar()
        self._bar.update(self._total - count - self._bar.n)

    def _new_bar(self) -> Any:
        from tqdm.std import tqdm

        class Bar(tqdm):  # type: ignore[type-arg]
            # tqdm's own watcher thread would outlive the bar.
            monitor_interval = 0

        return Bar(total=self._total, unit="task", file=sys.stderr, leave=False)


def _somebody_looks() -> bool:
    stream = sys.stderr
    return stream is not None and (stream.isatty() or type(stream).__module__.startswith("ipykernel"))
