"""The state of a farm as an output of a notebook that is renewed in place while the kernel lives.

A widget needs its kernel: in a notebook that is opened later, exported or read elsewhere it shows nothing. So the live
view has a second output beside the widget, a table, which a notebook saves as it was last. While the widget is there it
hides the table (``web/static/widget.js``).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from ipytaskfarm.client.screens import Slot
from ipytaskfarm.view.picture import Delta, PictureData
from ipytaskfarm.web import last_state
from ipytaskfarm.web.feed import FarmFeed

EVERY_S = 5.0
"""The state is renewed at most once in this time while tasks run: each time the notebook counts as changed."""
ENDED_S = 0.5
"""The same when the last task has ended, or the farm is gone."""
OPEN_MAX = 5
"""The largest number of states in a process that are renewed; with a further one the oldest stays as it is."""

_open: deque[SavedView] = deque()


class SavedView:
    """Renews the state of one farm in its cells.  It lives in the loop's thread.

    Args:
        feed: follows the farm.
        farm: its name.
        link: a link to the page (HTML), or "".
        shell: the notebook's shell.
    """

    def __init__(self, feed: FarmFeed, farm: str, link: str, shell: Any) -> None:
        self._feed = feed
        self._farm = farm
        self._link = link
        self._slot = Slot(shell)
        self._key: Any = None
        """What was shown, without the time."""
        self._shown_s = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def present(self, picture: PictureData) -> None:
        """Show the state in the cell that runs now; the next changes are shown there too."""
        self._slot.again()
        self._publish(picture)

    async def begin(self) -> None:
        """Begin to renew it, unless it is renewed already."""
        if self in _open:
            return
        _open.append(self)
        if len(_open) > OPEN_MAX:
            _open.popleft().end()
        self._feed.open(self)

    def end(self) -> None:
        """Leave it as it is."""
        self._feed.close(self)
        if self._timer is not None:
            self._timer.cancel()

    # -- a page of the feed

    def tell(self, delta: Delta) -> None:
        """Renew it in a while, or at once if there is nothing left to happen."""
        self.show()

    def show(self) -> None:
        """See `tell`."""
        picture = self._feed.fold.picture.data
        # A picture that begins anew is empty for a moment, in which the state before is better than none.
        if "counts" not in picture or _key(picture) == self._key:
            return
        after_s = ENDED_S if _is_quiet(picture) else EVERY_S
        at_s = max(time.monotonic(), self._shown_s + after_s)
        loop = asyncio.get_running_loop()
        delay_s = at_s - time.monotonic()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + delay_s:
                return
            self._timer.cancel()
        self._timer = loop.call_later(delay_s, self._renew)

    def _renew(self) -> None:
        self._timer = None
        self._publish(self._feed.fold.picture.data)

    def _publish(self, picture: PictureData) -> None:
        self._key, self._shown_s = _key(picture), time.monotonic()
        self._slot.show(last_state.bundle_of(self._farm, picture, self._link))


def _key(picture: PictureData) -> Any:
    """Return what `last_state` shows of a picture, without the time."""
    return repr([picture.get(name) for name in ("counts", "status", "engine_states", "causes")]), [
        (job["name"], job["ended"], job["total"], job["failed"]) for job in picture.get("jobs", {}).values()
    ]


def _is_quiet(picture: PictureData) -> bool:
    """Return whether nothing more happens for now: no task is left, or the farm is gone."""
    counts = picture.get("counts", {})
    return picture.get("status", {}).get("state") != "up" or not (counts.get("scheduled") or counts.get("running"))
